"""Exact arithmetic: the network on an integer grid on which no sum depends on its order, and the proof that it does not."""
