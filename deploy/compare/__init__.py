"""Compares arrays: bits, units in the last place, derived budgets, stated tolerances; and reads the samples. NumPy only."""
