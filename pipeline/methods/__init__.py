"""Training methods, one file each; `method_from_options` is the table of them."""
