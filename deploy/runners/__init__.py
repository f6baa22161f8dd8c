"""Runs a model: one interface to PyTorch and to the runtimes."""
