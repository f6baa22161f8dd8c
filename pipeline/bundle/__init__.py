"""A bundle of a trained graph.

It is made, rebuilt from its files alone, given engines, and verified link by link.
"""
