"""Computes the exactness certificate from an ONNX file alone.

It shares no code with what wrote the file, on purpose.
"""
