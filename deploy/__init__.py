"""Runs the files, compares what they compute, certifies the exact form, and tells the verdict."""
