"""A BatchNorm without affine over the logits.

It uses the batch's statistics in training and acts on the classifier's weight in evaluation. A
classifier that is a convolution is followed by an average; one scale and shift per class are the
same before and after an average.
"""

import torch
from torch import nn
from torch.fx import GraphModule, Node

from export.errors import UsageError
from export.graph import Convolution
from export.graph.layers import FoldableLayer, derived
from export.graph.operations import Kind, step_at
from export.graph.rewriting import bypass, insert_in_front, output_of, replace_layer
from pipeline.methods.batchnorm import BatchStatistics, NormedLayer, NormInWeight

_OF_LOGITS = "batch statistics of a BatchNorm over the logits"
_AVERAGES: frozenset[Kind] = frozenset(
    {"average pool", "adaptive pool", "global average", "mean", "flattening", "reshaping", "copy", "training only"}
)
"""The kinds of operations after which one scale and shift per class is the same as before them."""


class ClassifierWithNorm(FoldableLayer):
    """A classifier whose norm comes after the pooling.

    In evaluation the norm acts on the weight; where `statistics` acts, it is left to that.
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear, norm: nn.BatchNorm1d, statistics: BatchStatistics) -> None:
        super().__init__()
        self.operation = derived(layer, NormInWeight(layer.weight, layer.bias, norm))
        self._statistics = (statistics,)  # in a tuple, so that it is not registered here: it has its own node

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (statistics,) = self._statistics
        if not statistics.acts:
            return self.operation(x)
        derivation = self.operation.derivation
        assert isinstance(derivation, NormInWeight)
        return self.operation.run(x, derivation.weight, derivation.bias)

    def evaluated(self) -> nn.Module:
        return self.operation

    def folded(self) -> nn.Module:
        return self.operation.folded()


def normalise_logits(graph: GraphModule, classifier: Convolution) -> None:
    """Put the norm over the logits after the classifier.

    The classifier already has the weight that is to be trained.
    """
    norm = nn.BatchNorm1d(classifier.module.weight.shape[0], affine=False)
    behind = _nodes_behind(graph, classifier.node)
    if not behind:
        replace_layer(graph, classifier.node, NormedLayer(classifier.module, norm, _OF_LOGITS))
        return
    statistics = BatchStatistics(norm, _OF_LOGITS)
    replace_layer(graph, classifier.node, ClassifierWithNorm(classifier.module, norm, statistics))
    insert_in_front(graph, output_of(graph), "logit_statistics", statistics)


def _nodes_behind(graph: GraphModule, classifier: Node) -> list[Node]:
    """Return the averaging nodes between classifier and output.

    A ReLU there is removed, because it would cut the logits that the norm is to see.
    """
    behind: list[Node] = []
    (node,) = output_of(graph).all_input_nodes
    while node is not classifier:
        if len(node.all_input_nodes) != 1:
            raise _refused(node)
        (before,) = node.all_input_nodes
        kind = step_at(graph, node).kind
        if kind == "rectifier":
            bypass(graph, node)
        elif kind in _AVERAGES:
            behind.append(node)
        else:
            raise _refused(node)
        node = before
    return behind


def _refused(node: Node) -> UsageError:
    return UsageError(
        f"node {node.name!r} stands between the classifier and the logits and is no average, so a norm over the logits cannot act on the "
        "classifier's weight; set method.last_norm: false, or end the network in its classifier"
    )
