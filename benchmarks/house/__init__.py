"""Measures two trees of this repository, before and after its files are restructured.

The measures are bundles, walks through the code, and what the tests catch.
"""
