"""The only fold: derived layers become the plain layers they compute, training-only parts go.

Takes a training graph; returns a new graph of plain layers in evaluation mode, on the same device.
Knows no method.
"""

import copy
from collections.abc import Callable, Mapping

import safetensors.torch
import torch
from torch import nn
from torch.fx import GraphModule

from export.graph.layers import FoldableLayer
from export.graph.operations import walk
from export.graph.rewriting import bypass, finish, replace_layer


def fold(graph: GraphModule) -> GraphModule:
    """The folded copy of a training graph."""
    folded = copy.deepcopy(graph)
    leave_training(folded, lambda layer: layer.folded())
    return finish(folded).eval().requires_grad_(False)


def leave_training(graph: GraphModule, form: Callable[[FoldableLayer], nn.Module]) -> None:
    """In place: replace each layer of training by `form` of it, and remove training-only parts."""
    for step in walk(graph):
        if isinstance(step.layer, FoldableLayer):
            replace_layer(graph, step.node, form(step.layer))
        elif step.kind == "training only":
            bypass(graph, step.node)


def tensors_bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """The content of a safetensors file. The same tensors give the same bytes."""
    # Cloned, because safetensors refuses tensors that share memory.
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})
