"""Runs untrusted forms of a model in a process of their own, with limits on memory and time."""
