"""CZMI (Mean Shift Rejection): zero-mean filters at the start and W = e^g V, with gradients left as they are.

It is CZMIG with z = 0, the way the paper's table lists it; there is no code of its own to keep in step.
"""

import torch
from torch.fx import GraphModule

from pipeline.config.methods import CzmigOptions, CzmiOptions
from pipeline.methods.czmig import Czmig
from pipeline.methods.method import Method, RewrittenGraph


class Czmi(Method):
    """The rewrite of CZMIG, and its rules without the correction of gradients."""

    def __init__(self, options: CzmiOptions) -> None:
        self._czmig = Czmig(CzmigOptions.model_validate({**options.model_dump(), "name": "czmig", "zmg": 0.0}))

    def rewrite(self, graph: GraphModule, generator: torch.Generator) -> RewrittenGraph:
        return self._czmig.rewrite(graph, generator)
