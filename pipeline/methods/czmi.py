"""CZMI (Mean Shift Rejection): zero-mean filters at the start and W = e^g V, unchanged gradients.

It is CZMIG with z = 0, as the paper's table lists it, so there is no separate code that could drift
apart from CZMIG.
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
