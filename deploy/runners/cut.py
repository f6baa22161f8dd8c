"""The inner tensors of a graph, at which a form of a model can be cut off and run.

Plain data. Knows no runtime.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """A tensor that an operation of a graph computes."""

    name: str
    operation: str
    inputs: tuple[str, ...]
    """The points it is computed from; the graph's inputs and weights are none."""
    layer: str = ""
    """The module of the network that the operation belongs to, where that is known."""
