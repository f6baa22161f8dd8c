"""Exact arithmetic: networks on an integer grid, where no sum depends on the order of its terms."""
