"""The tables of the papers, run.

Data flows one way: table, plan, runs, figures, result, files. Each module is one of these parts.
"""
