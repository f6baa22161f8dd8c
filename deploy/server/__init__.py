"""Serves a verified bundle over the Open Inference Protocol, with the bits that validation had."""
