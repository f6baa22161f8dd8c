"""A network as a graph: traced, searched for its parts, rewritten, folded.

Knows neither methods nor particular networks.
"""

from export.graph.layers import Normalise
from export.graph.parts import Convolution, Norm, Parts, ResidualUnit, find_parts
from export.graph.trace import Dropout, trace

__all__ = ["Convolution", "Dropout", "Norm", "Normalise", "Parts", "ResidualUnit", "find_parts", "trace"]
