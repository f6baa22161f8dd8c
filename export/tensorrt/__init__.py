"""Builds engines from ONNX files, in either TensorRT."""
