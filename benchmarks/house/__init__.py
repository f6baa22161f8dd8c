"""Measures two trees of this repository, before and after its files are restructured: bundles, walks through the code, what the tests catch."""
