"""Runs models, compares their outputs, certifies the exact form, and reports the verdict."""
