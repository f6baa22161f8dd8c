"""Trace a network into a graph and find its parts.

Knows neither methods nor particular networks.
"""

from export.layers import Normalise
from pipeline.graph.parts import Convolution, Norm, Parts, ResidualUnit, find_parts
from pipeline.graph.trace import Dropout, trace

__all__ = ["Convolution", "Dropout", "Norm", "Normalise", "Parts", "ResidualUnit", "find_parts", "trace"]
