"""Traces a network into a graph and finds its parts. Knows neither methods nor particular networks."""

from pipeline.graph.parts import Convolution, Norm, Parts, ResidualUnit, find_parts
from pipeline.graph.trace import Dropout, Normalise, trace

__all__ = ["Convolution", "Dropout", "Norm", "Normalise", "Parts", "ResidualUnit", "find_parts", "trace"]
