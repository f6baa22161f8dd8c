"""Turns a trained network into files. Imports neither `pipeline` nor `deploy`."""
