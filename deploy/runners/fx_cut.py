"""The inner tensors of a torch.fx graph, and the module up to one of them. Weights and submodules are shared, modes kept.

Takes a traced module. What a node computes is known only when it has run: shapes come from one batch.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import fx

from deploy.runners.base import Array, TensorSpec
from deploy.runners.cut import Point
from deploy.runners.torch import TorchRunner


def points_of(module: fx.GraphModule) -> tuple[Point, ...]:
    """Everything that a node computes, in order."""
    return tuple(_points(module))


def open_until(
    module: fx.GraphModule,
    name: str,
    inputs: Sequence[TensorSpec],
    batch: Mapping[str, Array],
    *,
    device: str,
    gradients: bool,
    plain_sums: bool = False,
) -> TorchRunner:
    """The module up to a node, whose result becomes the only output; a ValueError where that is no tensor."""
    prefix = _prefix(module, name)
    arguments = [torch.tensor(batch[spec.name]).to(device) for spec in inputs]
    with torch.inference_mode():
        (found,) = prefix(*arguments)
    if not isinstance(found, torch.Tensor):
        raise ValueError(f"{name} is no tensor")
    output = TensorSpec(name, str(found.dtype).removeprefix("torch."), (None, *found.shape[1:]) if found.ndim else ())
    return TorchRunner(prefix, inputs, (output,), name=f"{name} of the graph", device=device, gradients=gradients, plain_sums=plain_sums)


def _prefix(module: fx.GraphModule, name: str) -> fx.GraphModule:
    graph = fx.Graph()
    kept: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        kept[node] = graph.node_copy(node, lambda other: kept[other])
        if node.name == name:
            graph.output((kept[node],))
            return fx.GraphModule(module, graph)
    raise ValueError(f"the graph has no node {name!r}")


def _points(module: fx.GraphModule) -> Iterator[Point]:
    computed: set[fx.Node] = set()
    for node in module.graph.nodes:
        if node.op in ("call_module", "call_function", "call_method"):
            inputs = tuple(each.name for each in node.all_input_nodes if each in computed)
            computed.add(node)
            yield Point(node.name, _operation(module, node), inputs, str(node.target) if node.op == "call_module" else "")


def _operation(module: fx.GraphModule, node: fx.Node) -> str:
    if node.op == "call_module":
        return type(module.get_submodule(str(node.target))).__name__
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
