"""The formulas are compared in float64 with the paper's own block.

The block is written out with its scalars as separate operations.
"""

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from graphs import PreActivation, images, rewritten, scatter, step
from torch import nn
from torch.nn import functional as F

from export.errors import UsageError
from export.graph import Normalise, trace
from export.graph.fold import fold
from export.graph.layers import DerivedConv2d, DerivedLinear, ScalarBias, training_only_parts
from export.onnx import onnx_from_graph
from pipeline.config.methods import FixupOptions
from pipeline.methods import RewrittenGraph, method_from_options
from pipeline.methods.fixup import FixupWeights

SHAPE = (3, 32, 32)


def fixup(network: str = "resnet20", **changes: object) -> RewrittenGraph:
    shape = SHAPE if ":" not in network else (3, 64, 64)
    return rewritten(network, shape, FixupOptions.model_validate({"name": "fixup", **changes}))


def derivation(training: RewrittenGraph, name: str) -> FixupWeights:
    layer = training.graph.get_submodule(name)
    assert isinstance(layer, (DerivedConv2d, DerivedLinear))
    assert isinstance(layer.derivation, FixupWeights)
    return layer.derivation


def nodes_with_a_scalar(training: RewrittenGraph) -> list[str]:
    return [name for name, layer in training.graph.named_modules() if isinstance(layer, ScalarBias)]


@pytest.mark.parametrize("groups", [1, 2])
def test_scalars_on_the_weight_are_those_around_the_convolution(groups: int) -> None:
    torch.manual_seed(0)
    layer = FixupWeights(torch.randn(6, 4 // groups, 3, 3), scaled=True, biased_before=True, biased_behind=True, per_output=False).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    assert layer.scale is not None
    assert layer.bias_before is not None
    assert layer.bias_behind is not None
    x = torch.randn(2, 4, 7, 7, dtype=torch.float64)
    as_written = F.conv2d(x + layer.bias_before, layer.weight, groups=groups) * layer.scale + layer.bias_behind
    weight, bias = layer()
    assert (F.conv2d(x, weight, bias, groups=groups) - as_written).abs().max() < 1e-13
    raw = layer.weight.detach().numpy()
    s, a, b = (each.item() for each in (layer.scale, layer.bias_before, layer.bias_behind))
    assert bias is not None
    assert np.abs(bias.detach().numpy() - (a * s * raw.sum(axis=(1, 2, 3)) + b)).max() < 1e-13


def by_the_paper(training: RewrittenGraph, batch: torch.Tensor, num_blocks: int) -> torch.Tensor:
    """A CIFAR ResNet with Fixup, block by block: biases 1a, 1b, 2a, 2b and a multiplier in each."""
    graph = training.graph

    def scalar(name: str) -> torch.Tensor:
        return graph.get_parameter(f"bias_before_network_{name}.bias")

    stem = derivation(training, "network.conv1")
    assert stem.bias_behind is not None
    x = F.relu(F.conv2d((batch.double() - 128) / 64, stem.weight, padding=1) + stem.bias_behind)
    for stage in range(3):
        for number in range(num_blocks):
            place, node = f"network.stages.{stage}.{number}", f"stages_{stage}_{number}"
            first, second = derivation(training, f"{place}.conv1"), derivation(training, f"{place}.conv2")
            assert first.bias_behind is not None
            assert second.bias_behind is not None
            assert second.scale is not None
            stride = 2 if stage and not number else 1
            biased = x + scalar(f"{node}_conv1")
            out = F.relu(F.conv2d(biased, first.weight, None, stride, 1) + first.bias_behind)
            out = F.conv2d(out + scalar(f"{node}_conv2"), second.weight, None, 1, 1) * second.scale + second.bias_behind
            if stride == 2:
                x = F.avg_pool2d(biased, 1, 2)
                x = torch.cat([x, torch.zeros_like(x)], 1)
            x = F.relu(out + x)
    classifier = derivation(training, "network.classifier")
    assert classifier.bias_before is not None
    return F.linear(x.mean((2, 3)) + classifier.bias_before, classifier.weight, classifier.bias)


def test_a_network_is_the_papers_network() -> None:
    training = fixup()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in training.graph.double().parameters():
            parameter.normal_(0, parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.5)
    batch = images(3, SHAPE)
    expected = by_the_paper(training, batch, 3)
    assert expected.std() > 0.1
    for graph in (training.graph.train(), training.graph.eval(), fold(training.graph)):
        assert (graph(batch) - expected).abs().max() < 1e-12 * expected.abs().max()


@pytest.mark.parametrize(("network", "number"), [("resnet20", 267_696 + 650 + 9 * 5 + 2), ("resnet110", 1_719_216 + 650 + 54 * 5 + 2)])
def test_parameter_counts(network: str, number: int) -> None:
    """Count the parameters: convolutions, classifier, four biases and a multiplier per block, two
    biases.

    One bias is after the first layer and one in front of the classifier.
    """
    assert sum(p.numel() for p in fixup(network).graph.parameters()) == number


@pytest.mark.parametrize(
    ("network", "inner", "last", "share"),
    [
        ("resnet110", "network.stages.2.1.conv1", "network.stages.2.1.conv2", 54 ** (-1 / 2)),
        ("torchvision:resnet50", "network.layer4.1.conv2", "network.layer4.1.conv3", 16 ** (-1 / 4)),
    ],
)
def test_initial_deviations(network: str, inner: str, last: str, share: float) -> None:
    training = fixup(network)
    weight = derivation(training, inner).weight.detach().double().numpy()
    he = np.sqrt(2 / (weight.shape[0] * weight.shape[2] * weight.shape[3]))
    assert abs(weight.std() / (he * share) - 1) < 0.02  # at least 36,864 draws
    for zero in (derivation(training, last).weight, *derivation(training, "network.classifier" if ":" not in network else "network.fc").parameters()):
        assert not zero.any()
    scales = [layer.scale for layer in training.graph.modules() if isinstance(layer, FixupWeights) and layer.scale is not None]
    assert [scale.item() for scale in scales] == [1.0] * (54 if network == "resnet110" else 16)


def test_depthwise_convolutions_are_drawn_for_the_outputs_of_their_own_channel() -> None:
    weight = derivation(fixup("torchvision:mobilenet_v2"), "network.features.17.conv.1.0").weight.detach().double().numpy()
    assert weight.shape == (960, 1, 3, 3)
    assert abs(weight.std() / np.sqrt(2 / 9) - 1) < 0.05  # features.17 adds nothing, so it is no branch


def test_convolutions_outside_of_branches_are_drawn_as_he_does() -> None:
    weight = derivation(fixup("torchvision:resnet50"), "network.layer4.0.downsample.0").weight.detach().double().numpy()
    assert abs(weight.std() / np.sqrt(2 / 2048) - 1) < 0.01


def test_only_what_pads_with_zeros_keeps_a_node_of_its_own() -> None:
    training = fixup("torchvision:resnet50")
    nodes = nodes_with_a_scalar(training)
    assert len(nodes) == 16
    assert all(name.endswith("conv2") for name in nodes)
    one_by_one = [derivation(training, f"network.layer1.0.{name}") for name in ("conv1", "conv3", "downsample.0")]
    assert all(layer.bias_before is not None for layer in one_by_one)
    assert [layer.bias_behind is not None for layer in one_by_one] == [True, True, False]
    stem = derivation(training, "network.conv1")
    assert (stem.bias_before, len(nodes_with_a_scalar(fixup("torchvision:resnet50", first_layer_bias=True)))) == (None, 17)


def test_a_relu_that_reads_no_layer_of_its_own_has_a_node() -> None:
    graph = trace(PreActivation(), Normalise((128.0,) * 3, (64.0,) * 3), (3, 16, 16), 10)
    training = method_from_options(FixupOptions(name="fixup")).rewrite(graph, torch.Generator().manual_seed(0))
    assert nodes_with_a_scalar(training) == ["bias_before_network_conv", "bias_before_relu"]
    assert derivation(training, "network.conv").bias_behind is None
    scatter(training, 0.5)
    batch = images(4, (3, 16, 16))
    assert torch.equal(training.graph.train()(batch), fold(training.graph)(batch))


def test_the_node_of_a_bias_is_an_addition_in_the_file_and_nothing_else_is_added() -> None:
    training = fixup("small")
    scatter(training, 0.5)
    model = onnx.load_from_string(onnx_from_graph(fold(training.graph), SHAPE, {}))
    operations = Counter(node.op_type for node in model.graph.node)
    assert operations["Add"] == len(nodes_with_a_scalar(training)) + 3  # three residual units
    assert "Mul" not in operations


def test_logits_start_at_zero_and_every_part_moves_within_four_steps() -> None:
    training = fixup("small")
    batch = images(8, SHAPE)
    assert not training.graph(batch).any()
    before = {name: p.detach().clone() for name, p in training.graph.named_parameters()}
    for _ in range(4):
        step(training, batch, rate=0.5)
    assert not [name for name, p in training.graph.named_parameters() if torch.equal(p, before[name])]


def test_biases_and_multipliers_learn_at_a_tenth_of_the_rate() -> None:
    weights, others = fixup().rules.parameter_groups
    assert (weights.rate_share, others.rate_share) == (1.0, 0.1)
    assert (weights.weight_decay, others.weight_decay) == (5e-4, 5e-4)
    assert {p.dim() for p in others.parameters} == {0, 1}
    assert len(weights.parameters) == 20
    assert len(weights.parameters) + len(others.parameters) == len(list(fixup().graph.parameters()))
    weights, others = fixup(slow_share=1.0, decay_on="weights").rules.parameter_groups
    assert (others.rate_share, others.weight_decay, weights.weight_decay) == (1.0, 0.0, 5e-4)


def test_nothing_is_training_only() -> None:
    assert not training_only_parts(fixup().graph)


class Straight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.classifier = nn.Conv2d(3, 8, 3), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(torch.relu(self.conv(x)), 1), 1))


def test_networks_without_residual_branches_are_refused() -> None:
    graph = trace(Straight(), Normalise((128.0,) * 3, (64.0,) * 3), (3, 16, 16), 10)
    with pytest.raises(UsageError, match="method fixup scales residual branches, and the network has none"):
        method_from_options(FixupOptions(name="fixup")).rewrite(graph, torch.Generator())
