"""Where numbers stop being finite.

Once a run has failed, this finds the layer whose weights or activations failed first.
"""

from pathlib import Path

import torch
from torch import nn
from torch.fx import GraphModule, Interpreter, Node

from export.errors import UsageError
from export.graph.operations import walk


class NotFiniteError(UsageError):
    """Training has diverged; the weights of the last checkpoint are still good."""

    def __init__(self, what: str, *, epoch: int, step: int, rate: float, checkpoint: Path | None) -> None:
        self.epoch = epoch
        kept = f"the last good checkpoint is {checkpoint}" if checkpoint else "no checkpoint was written before"
        super().__init__(
            f"training diverged in epoch {epoch}, step {step}, at learning rate {rate:.6g}: {what}; {kept}; "
            "lower training.learning_rate, or raise training.schedule.warmup_epochs"
        )


def all_finite(graph: nn.Module) -> bool:
    """Return whether every weight and statistic is finite; reads the device once."""
    values = [value.detach() for value in (*graph.parameters(), *graph.buffers()) if value.is_floating_point()]
    # The largest magnitude of a tensor is NaN or infinite exactly when one of its values is.
    return not values or bool(torch.stack(torch._foreach_norm(values, float("inf"))).isfinite().all())


def first_bad_weights(graph: GraphModule) -> str | None:
    """Return the first layer, in the order of computation, with a weight or statistic that is not
    finite."""
    for step in walk(graph):
        if step.layer is None:
            continue
        for name, value in (*step.layer.named_parameters(), *step.layer.named_buffers()):
            if _is_bad(value):
                return f"{name} of layer {step.node.target} is not finite"
    return None


def first_bad_activation(graph: GraphModule, images: torch.Tensor) -> str | None:
    """Return the first value of the forward pass that is not finite.

    The caller sets seed and autocast again.
    """
    watching = _ActivationWatcher(graph)
    with torch.no_grad():
        watching.run(images)
    return watching.found


class _ActivationWatcher(Interpreter):
    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.found: str | None = None
        self._last_layer = "the input"

    def run_node(self, n: Node) -> object:
        value: object = super().run_node(n)
        if n.op == "call_module":
            self._last_layer = f"layer {n.target}"
        if self.found is None and isinstance(value, torch.Tensor) and _is_bad(value):
            place = self._last_layer if n.op == "call_module" else f"{n.name}, after {self._last_layer},"
            self.found = f"the output of {place} is not finite"
        return value


def _is_bad(value: torch.Tensor) -> bool:
    return value.is_floating_point() and not bool(value.isfinite().all())
