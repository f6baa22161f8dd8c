"""Compares arrays: bits, ulps, derived budgets, stated tolerances. Reads samples. NumPy only."""
