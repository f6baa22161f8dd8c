"""Runs forms of a model side by side and judges each link between them."""
