"""The one fold: every derived layer becomes the plain layer it computes, every training-only part goes.

Takes a training graph; returns a new graph of plain layers in evaluation mode, on the same device. Knows no method.
"""

import copy
from collections.abc import Mapping

import safetensors.torch
import torch
from torch import nn
from torch.fx import GraphModule

from export.layers import FoldableLayer, TrainingPart


def fold(graph: GraphModule) -> GraphModule:
    """The folded copy of a training graph."""
    folded = copy.deepcopy(graph)
    for node in list(folded.graph.nodes):
        if node.op != "call_module":
            continue
        layer = folded.get_submodule(node.target)
        if isinstance(layer, FoldableLayer):
            folded.set_submodule(node.target, layer.folded())
        elif isinstance(layer, (TrainingPart, nn.Identity)):
            (before,) = node.all_input_nodes
            node.replace_all_uses_with(before)
            folded.graph.erase_node(node)
    folded.graph.eliminate_dead_code()
    folded.delete_all_unused_submodules()
    folded.recompile()
    return folded.eval().requires_grad_(False)


def tensors_bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """The file's content; the same tensors give the same bytes."""
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})
