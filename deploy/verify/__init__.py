"""Comparison of outputs, derived budgets, the chain of links, and the report."""
