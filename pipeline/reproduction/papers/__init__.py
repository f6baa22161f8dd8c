"""The tables of the papers, by their names on the command line.

One file per paper; data alone.
"""

from pipeline.reproduction.papers import czmig, equinorm, gaur, mimicnorm
from pipeline.reproduction.papers.table import Images, PrintedFigure, Quantity, Row, Statistic, Table

TABLES: dict[str, Table] = {table.name: table for paper in (czmig, mimicnorm, equinorm, gaur) for table in paper.TABLES}
__all__ = ["TABLES", "Images", "PrintedFigure", "Quantity", "Row", "Statistic", "Table"]
