"""What an engine file is: which TensorRT made it, for which machine, from which ONNX file. Shared by those who build and those who run."""
