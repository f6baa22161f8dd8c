"""Engines from ONNX files, in either TensorRT."""
