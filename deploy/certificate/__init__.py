"""The exactness certificate, computed from an ONNX file alone. Shares no code with what wrote the file, on purpose."""
