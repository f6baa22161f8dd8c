"""What is done to large gradients between the method's own correction of them and the step. Knows no method."""

import math
from abc import ABC, abstractmethod
from typing import assert_never, final

from torch import nn
from torch.fx import GraphModule

from pipeline.config.sections import AdaptiveClipping as AdaptiveOptions
from pipeline.config.sections import Clipping as ClippingOptions
from pipeline.config.sections import NoClipping, NormClipping
from pipeline.graph.trained import trained_layers
from pipeline.methods.clipping import AdaptiveClipping


class Clipping(ABC):
    """Changes the gradients in place."""

    @abstractmethod
    def __call__(self, epoch: int) -> None:
        """Once a step; epochs count from 0."""


def clipping(graph: GraphModule, options: ClippingOptions) -> Clipping:
    """The clipping that the options ask for."""
    match options:
        case NoClipping():
            return _None()
        case NormClipping():
            return _Norm([each for each in graph.parameters() if each.requires_grad], options)
        case AdaptiveOptions():
            return _Adaptive(graph, options)
        case _:
            assert_never(options)


def threshold(options: NormClipping, epoch: int) -> float:
    """The largest norm in an epoch, counted from 0."""
    growth = 1 + math.log(1 + epoch)
    match options.growth:
        case "constant":
            return options.threshold
        case "times_log":
            return options.threshold * growth
        case "plus_log":
            return options.threshold + math.log(1 + epoch)
        case "over_log":
            return options.threshold / growth


@final
class _None(Clipping):
    def __call__(self, epoch: int) -> None:
        return


@final
class _Norm(Clipping):
    def __init__(self, parameters: list[nn.Parameter], options: NormClipping) -> None:
        self._parameters, self._options = parameters, options

    def __call__(self, epoch: int) -> None:
        nn.utils.clip_grad_norm_(self._parameters, threshold(self._options, epoch), foreach=True)


@final
class _Adaptive(Clipping):
    def __init__(self, graph: GraphModule, options: AdaptiveOptions) -> None:
        classifier = trained_layers(graph)[-1].module
        kept = set() if options.classifier else {id(each) for each in classifier.parameters()}
        clipped = (each for each in graph.parameters() if each.requires_grad and id(each) not in kept)
        self._clip = AdaptiveClipping(clipped, options.threshold, options.eps)

    def __call__(self, epoch: int) -> None:
        self._clip()
