"""Runs forms of a model that are not trusted in a process of their own, with limits on memory and time."""
