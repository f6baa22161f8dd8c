"""Training and the command line.

Imports `export` and `deploy`; neither of them imports this package.
"""
