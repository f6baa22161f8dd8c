"""Where the grid begins and ends in a network: quantisers, groups of one step, layers.

Nothing but rounding changes.
"""

import pytest
import torch
from graphs import DEFAULTS, REFUSED, images, rewritten
from torch import nn
from torch.nn import functional as F

from export.errors import UsageError
from export.exact import rewrite
from export.exact.grid import GridBits, GridGraph, GridWeights, Quantise, off_grid
from export.exact.rewrite import grid_graph
from export.graph import trace
from export.graph.fold import fold
from export.graph.layers import Normalise
from pipeline.methods import METHODS

SMALL, COLOUR = (1, 8, 8), (3, 32, 32)
CASES = [("small", SMALL), ("resnet20", COLOUR), ("torchvision:shufflenet_v2_x0_5", (3, 64, 64))]
BITS = GridBits()
OFF_THE_GRID = {"fixup": "ScalarBias", "groupnorm": "GroupNormLayer"}
FOLDABLE = [name for name in METHODS if name not in OFF_THE_GRID]


def on_grid(network: str, shape: tuple[int, int, int], method: str = "czmig") -> GridGraph:
    return grid_graph(rewritten(network, shape, DEFAULTS[method]).graph.eval(), shape, BITS)


@pytest.mark.parametrize(("network", "shape"), CASES)
@pytest.mark.parametrize("method", FOLDABLE)
def test_before_anything_is_rounded_the_bits_are_those_of_the_network(
    method: str, network: str, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exception is a classifier in front of its pool, whose sums are in another order.

    See test_tf32.py for that.
    """
    monkeypatch.setattr(rewrite, "LARGEST_IN_TF32", 2**24)
    if network in REFUSED.get(method, ()):
        pytest.skip("the method refuses this network")
    graph = rewritten(network, shape, DEFAULTS[method]).graph.eval()
    batch = images(3, shape)
    with torch.no_grad():
        before = graph(batch)
        grid = grid_graph(graph, shape, BITS)
        with off_grid(grid.graph):
            assert torch.equal(grid.graph(batch), before)


@pytest.mark.parametrize(("method", "layer"), OFF_THE_GRID.items())
def test_a_method_whose_layers_have_no_exact_form_is_refused_by_their_name(method: str, layer: str) -> None:
    with pytest.raises(UsageError, match=rf"cannot go onto the exact grid: {layer} has no form there") as caught:
        on_grid("small", SMALL, method)
    assert "\n" not in str(caught.value)


def test_a_residual_stream_has_one_step_and_branches_have_their_own() -> None:
    """ResNet-20's shortcuts have no convolution: one step goes from the first layer to the pool."""
    grid = on_grid("resnet20", COLOUR)
    sizes = sorted(len(members) for members in grid.groups.values())
    assert sizes == [1] * 9 + [1 + 9 * 2]  # the first layer, and a branch end and a join per unit
    assert {layer.kind for layer in grid.layers} == {"first", "spatial", "classifier"}
    assert grid.layers[-1].target is None
    assert (grid.layers[-1].source_factor, grid.layers[-1].positions) == (1, 64)


def test_a_step_changes_only_where_every_way_has_a_convolution() -> None:
    grid = on_grid("torchvision:resnet18", (3, 64, 64))
    assert sorted(len(members) for members in grid.groups.values()) == [1] * 8 + [5] * 4


def test_signed_inputs_have_small_weights() -> None:
    """Signed inputs are the image, and the values behind MobileNet's linear bottlenecks."""
    grid = on_grid("torchvision:mobilenet_v2", (3, 64, 64))
    for layer in grid.layers:
        limit = 62 if layer.kind == "first" else 64 if layer.signed_input else 126
        assert (layer.weights.limit == limit).all(), layer.name
    assert {layer.signed_input for layer in grid.layers if layer.kind == "pointwise"} == {True, False}


def test_every_parameter_of_the_method_is_still_trained() -> None:
    for method in FOLDABLE:
        network = rewritten("small", SMALL, DEFAULTS[method])
        owned = {id(p) for group in network.rules.parameter_groups for p in group.parameters}
        grid = grid_graph(network.graph, SMALL, BITS)
        assert {id(p) for p in grid.graph.parameters()} == owned, method


def test_a_folded_grid_graph_has_plain_layers_and_quantisers() -> None:
    folded = fold(on_grid("small", SMALL).graph)
    assert not [module for module in folded.modules() if isinstance(module, GridWeights)]
    assert len([module for module in folded.modules() if isinstance(module, Quantise)]) == 10


class Pooled(nn.Module):
    """Has pools that are means in the middle, and an output that is a mean."""

    def __init__(self, tail: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 10, 1)
        self.tail = tail

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.avg_pool2d(F.relu(self.first(x)), 3, 2, 1)
        return torch.flatten(self.tail(self.last(x)), 1)


def traced(network: nn.Module, size: int = 12) -> GridGraph:
    shape = (3, size, size)
    return grid_graph(trace(network, Normalise((128.0,) * 3, (64.0,) * 3), shape, 10).eval(), shape, BITS)


@pytest.mark.parametrize("tail", [nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1)), nn.AdaptiveAvgPool2d(1)])
def test_a_mean_at_the_output_over_a_count_that_is_no_power_of_two_is_a_sum(tail: nn.Module) -> None:
    torch.manual_seed(0)
    network = Pooled(tail)
    batch = images(2, (3, 12, 12))
    with torch.no_grad():
        wanted = network.double()((batch.double() - 128) / 64)
        grid = traced(network.float())
        with off_grid(grid.graph):
            found = grid.graph(batch)
    assert wanted.abs().max() > 0.1
    assert (found - wanted).abs().max() < 1e-6  # float32 compared with float64
    assert [layer.kind for layer in grid.layers] == ["first", "mean", "pointwise"]


class Broken(nn.Module):
    """A network with one thing that has no exact form."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.first, self.second, self.last = nn.Conv2d(3, 10, 3, padding=1), nn.Conv2d(10, 10, 3, padding=1), nn.Linear(10, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.first(x))
        if self.what == "image in a join":
            y = y + torch.cat((x, x, x, x[:, :1] if False else F.pad(x, (0, 0, 0, 0, 0, -2))), 1)
        if self.what == "border":
            y = F.avg_pool2d(y, 3, 2, 1, count_include_pad=False)
        y = F.relu(self.second(y))
        logits = self.last(torch.flatten(F.adaptive_avg_pool2d(y, 1), 1))
        return F.relu(logits) if self.what == "behind the logits" else logits


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("image in a join", "joins the image"),
        ("border", "a different number of pixels at the border"),
        ("behind the logits", "must come from a classifier"),
    ],
)
def test_what_has_no_exact_form_is_refused_by_name(what: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        traced(Broken(what))
    assert "node '" in str(caught.value)
    assert "exact.enabled: false" in str(caught.value)
