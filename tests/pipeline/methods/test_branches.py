"""Branches that do not end in a convolution of their own.

Some methods have no scale there, and some refuse the network.
"""

import pytest
import torch
from graphs import DEFAULTS
from torch import nn

from export.errors import UsageError
from export.graph import Normalise, find_parts, trace
from pipeline.methods import method_from_options
from pipeline.methods.branches import BranchScale, last_convolutions, last_shortcut_convolutions

SHAPE = (3, 8, 8)


class Unit(nn.Module):
    """A residual unit whose branch ends in its convolution, a ReLU, a concatenation or a second
    reader."""

    def __init__(self, end: str) -> None:
        super().__init__()
        self.end = end
        self.stem, self.inner = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        half = 4 if end == "concatenation" else 8
        self.left, self.right = nn.Conv2d(8, half, 3, padding=1), nn.Conv2d(8, half, 1)
        self.classifier = nn.Linear(16 if end == "second reader" else 8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        inner = torch.relu(self.inner(x))
        branch = self.left(inner)
        if self.end == "relu":
            branch = torch.relu(branch)
        elif self.end == "concatenation":
            branch = torch.cat([branch, self.right(inner)], 1)
        joined = torch.relu(x + branch)
        if self.end == "second reader":
            joined = torch.cat([joined, branch], 1)
        return self.classifier(torch.flatten(nn.functional.adaptive_avg_pool2d(joined, 1), 1))


def graph_of(end: str) -> torch.fx.GraphModule:
    return trace(Unit(end), Normalise((128.0,) * 3, (64.0,) * 3), SHAPE, 10)


@pytest.mark.parametrize(("end", "found"), [("convolution", ["network.left"]), ("relu", []), ("concatenation", []), ("second reader", [])])
def test_only_a_convolution_of_its_own_ends_a_branch(end: str, found: list[str]) -> None:
    units = find_parts(graph_of(end)).units
    assert len(units) == 1
    assert [str(node.target) for node in last_convolutions(units)] == found
    assert last_shortcut_convolutions(units) == []


@pytest.mark.parametrize("end", ["relu", "concatenation", "second reader"])
def test_skipinit_refuses_what_it_cannot_scale_and_mimicnorm_leaves_it_alone(end: str) -> None:
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(UsageError, match=r"the branch that node 'add' adds ends in '\w+'; end the branch in a convolution"):
        method_from_options(DEFAULTS["skipinit"]).rewrite(graph_of(end), generator)
    training = method_from_options(DEFAULTS["mimicnorm"]).rewrite(graph_of(end), generator)
    assert not [each for each in training.graph.modules() if isinstance(each, BranchScale)]
