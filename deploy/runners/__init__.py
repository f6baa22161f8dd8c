"""What runs a model: one interface over PyTorch and the runtimes."""
