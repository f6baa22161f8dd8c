import pytest
import torch
from graphs import PreActivation, Shape
from graphs import traced as traced_with_weights
from torch import nn
from torch.fx import GraphModule
from torch.nn import functional as F

from export.errors import UsageError
from export.graph import Normalise, Parts, find_parts, trace
from pipeline.methods.branches import last_convolutions


def traced(network: str, shape: Shape) -> GraphModule:
    """Build it without weights, on which no part depends: VGG has a hundred million."""
    with torch.device("meta"):
        return traced_with_weights(network, shape)


def kinds(parts: Parts) -> dict[str, int]:
    found: dict[str, int] = {}
    for layer in parts.convolutions:
        found[layer.kind] = found.get(layer.kind, 0) + 1
    return found


@pytest.mark.parametrize(
    ("network", "size", "expected", "num_norms", "num_units"),
    [
        ("resnet20", 32, {"first": 1, "spatial": 18, "classifier": 1}, 19, 9),
        ("resnet110", 32, {"first": 1, "spatial": 108, "classifier": 1}, 109, 54),
        ("resnet18", 16, {"first": 1, "spatial": 16, "pointwise": 3, "classifier": 1}, 20, 8),
        ("resnet101", 16, {"first": 1, "spatial": 33, "pointwise": 70, "classifier": 1}, 104, 33),
        ("vgg11", 32, {"first": 1, "spatial": 7, "linear": 2, "classifier": 1}, 8, 0),
        ("vgg16", 32, {"first": 1, "spatial": 12, "linear": 2, "classifier": 1}, 13, 0),
        ("squeezenet", 32, {"first": 1, "pointwise": 16, "spatial": 8, "classifier": 1}, 25, 3),
        ("shufflenetv2_x1_0", 32, {"first": 1, "pointwise": 36, "depthwise": 19, "classifier": 1}, 56, 0),
        ("mobilenetv2", 32, {"first": 1, "pointwise": 34, "depthwise": 17, "classifier": 1}, 52, 10),
        ("torchvision:resnet18", 64, {"first": 1, "spatial": 16, "pointwise": 3, "classifier": 1}, 20, 8),
        ("torchvision:resnet34", 64, {"first": 1, "spatial": 32, "pointwise": 3, "classifier": 1}, 36, 16),
        ("torchvision:resnet50", 64, {"first": 1, "spatial": 16, "pointwise": 36, "classifier": 1}, 53, 16),
        ("torchvision:resnet101", 64, {"first": 1, "spatial": 33, "pointwise": 70, "classifier": 1}, 104, 33),
        ("torchvision:vgg11", 224, {"first": 1, "spatial": 7, "linear": 2, "classifier": 1}, 0, 0),
        ("torchvision:vgg11_bn", 224, {"first": 1, "spatial": 7, "linear": 2, "classifier": 1}, 8, 0),
        ("torchvision:vgg16", 224, {"first": 1, "spatial": 12, "linear": 2, "classifier": 1}, 0, 0),
        ("torchvision:vgg16_bn", 224, {"first": 1, "spatial": 12, "linear": 2, "classifier": 1}, 13, 0),
        ("torchvision:mobilenet_v2", 64, {"first": 1, "pointwise": 34, "depthwise": 17, "classifier": 1}, 52, 10),
        ("torchvision:squeezenet1_0", 64, {"first": 1, "pointwise": 16, "spatial": 8, "classifier": 1}, 0, 0),
        ("torchvision:squeezenet1_1", 64, {"first": 1, "pointwise": 16, "spatial": 8, "classifier": 1}, 0, 0),
        ("torchvision:shufflenet_v2_x0_5", 64, {"first": 1, "pointwise": 36, "depthwise": 19, "classifier": 1}, 56, 0),
        ("torchvision:shufflenet_v2_x1_0", 64, {"first": 1, "pointwise": 36, "depthwise": 19, "classifier": 1}, 56, 0),
    ],
)
def test_the_parts_of_known_networks(network: str, size: int, expected: dict[str, int], num_norms: int, num_units: int) -> None:
    parts = find_parts(traced(network, (3, size, size)))
    assert kinds(parts) == expected
    assert len(parts.norms) == num_norms
    assert len(parts.units) == num_units
    assert all(norm.follows is not None for norm in parts.norms)


@pytest.mark.parametrize(
    ("network", "expected", "num_norms", "num_alone", "num_units"),
    [
        ("preactresnet18", {"first": 1, "spatial": 16, "pointwise": 3, "classifier": 1}, 16, 8, 8),
        ("preactresnet152", {"first": 1, "spatial": 50, "pointwise": 104, "classifier": 1}, 150, 49, 50),
        ("wrn20", {"first": 1, "spatial": 18, "pointwise": 2, "classifier": 1}, 19, 10, 9),
        ("wrn-16-4", {"first": 1, "spatial": 12, "pointwise": 3, "classifier": 1}, 13, 6, 6),
    ],
)
def test_the_parts_of_pre_activation_networks(network: str, expected: dict[str, int], num_norms: int, num_alone: int, num_units: int) -> None:
    """Find norms that stand alone: in front of a unit they read a sum, or a stem that the shortcut
    reads too.

    Each branch ends in a convolution.
    """
    parts = find_parts(traced(network, (3, 16, 16)))
    assert kinds(parts) == expected
    assert (len(parts.norms), sum(norm.follows is None for norm in parts.norms), len(parts.units)) == (num_norms, num_alone, num_units)
    assert list(last_convolutions(parts.units)) == [unit.branch[-1].node for unit in parts.units]
    assert [norm.follows for norm in parts.norms if norm.follows] == [layer.node for layer in parts.convolutions if layer.norm]


def test_a_pre_activation_unit_with_a_projection_begins_behind_its_first_norm() -> None:
    first, second, *_ = find_parts(traced("wrn-16-4", (3, 16, 16))).units
    assert first.start.name == "relu"
    assert [layer.name for layer in first.branch] == ["network.stages.0.0.conv1", "network.stages.0.0.conv2"]
    assert [layer.name for layer in first.shortcut] == ["network.stages.0.0.projection"]
    assert second.start is first.add is second.shortcut_end


def test_a_residual_unit_knows_its_start_its_branch_and_its_shortcut() -> None:
    first, *_ = find_parts(traced("torchvision:resnet50", (3, 64, 64))).units
    assert first.start.name == "network_maxpool"
    assert [layer.name for layer in first.branch] == [f"network.layer1.0.conv{i}" for i in (1, 2, 3)]
    assert [layer.name for layer in first.shortcut] == ["network.layer1.0.downsample.0"]
    assert first.branch_end.name == "network_layer1_0_bn3"


def parts_of(network: nn.Module) -> Parts:
    return find_parts(trace(network, Normalise((0.0,) * 3, (1.0,) * 3), (3, 16, 16), 10))


def test_a_norm_whose_input_has_another_reader_stands_alone() -> None:
    parts = parts_of(PreActivation())
    (norm,) = parts.norms
    assert norm.follows is None
    (unit,) = parts.units
    assert unit.start.name == "network_stem"
    assert {node.name for node in unit.inside_branch} == {"network_norm", "relu", "network_conv"}
    assert unit.inside == unit.inside_branch | {unit.add}


class UsedTwice(PreActivation):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(self.conv(self.stem(x)))
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class EqualWays(PreActivation):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.conv(x) + self.other(x)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class AddsAConstant(PreActivation):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x) + 3
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class TwoClassifiers(PreActivation):
    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.flatten(F.adaptive_avg_pool2d(self.stem(x), 1), 1)
        return self.classifier(x) + self.second(x)


class NothingToTrain(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1), (0, 7))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (UsedTwice(), "layer 'network.conv' is used at more than one place"),
        (EqualWays(), "node 'add' joins two paths of equal length"),
        (AddsAConstant(), "node 'add' adds (3,)"),
        (TwoClassifiers(), "found network.classifier, network.second"),
        (NothingToTrain(), "nothing to train"),
    ],
)
def test_what_cannot_be_placed_is_refused_by_name(network: nn.Module, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parts_of(network)
    assert message in str(caught.value)
