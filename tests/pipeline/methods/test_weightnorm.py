"""The formula w = (g / |v|) v is compared with NumPy in float64."""

import numpy as np
import torch
from graphs import images, rewritten, step
from torch import nn

from export.graph.fold import fold
from export.graph.layers import training_only_parts
from pipeline.config.methods import WeightnormOptions
from pipeline.methods import RewrittenGraph
from pipeline.methods.weightnorm import NormedWeights

SHAPE = (3, 32, 32)


def weightnorm(network: str = "resnet20", **changes: object) -> RewrittenGraph:
    shape = SHAPE if ":" not in network else (3, 64, 64)
    return rewritten(network, shape, WeightnormOptions.model_validate({"name": "weightnorm", **changes}))


def test_the_weight_is_the_papers_formula() -> None:
    torch.manual_seed(0)
    derivation = NormedWeights(torch.randn(8, 4, 3, 3)).double()
    nn.init.normal_(derivation.gain)
    nn.init.normal_(derivation.bias)
    direction, gain = derivation.direction.detach().numpy(), derivation.gain.detach().numpy()
    expected = gain[:, None, None, None] * direction / np.sqrt((direction**2).sum(axis=(1, 2, 3)))[:, None, None, None]
    weight, bias = derivation()
    assert np.abs(weight.detach().numpy() - expected).max() < 1e-15 * np.abs(expected).max() * 4
    assert bias is derivation.bias


def test_layers_start_as_they_were_drawn() -> None:
    direction = torch.randn(8, 4, 3, 3)
    weight, _ = NormedWeights(direction)()
    assert torch.equal(weight, direction)


def test_every_convolution_is_normalised_and_the_classifier_is_not() -> None:
    training = weightnorm("torchvision:resnet18")
    normalised = [m for m in training.graph.modules() if isinstance(m, NormedWeights)]
    assert len(normalised) == 20  # the first, 16 in branches, 3 on shortcuts
    assert isinstance(training.graph.get_submodule("network.fc"), nn.Linear)


def test_a_step_along_the_direction_changes_nothing() -> None:
    """The gradient of v is orthogonal to v, as the paper of weight normalisation says."""
    training = weightnorm()
    step(training, images(4, SHAPE), rate=0.0)
    for layer in training.graph.modules():
        if isinstance(layer, NormedWeights):
            assert layer.direction.grad is not None
            along = (layer.direction.grad * layer.direction).flatten(1).sum(1)
            lengths = layer.direction.grad.flatten(1).norm(dim=1) * layer.direction.flatten(1).norm(dim=1)
            assert (along.abs() <= 1e-5 * lengths).all()


def test_dropout_stands_in_front_of_the_last_convolution_of_each_branch() -> None:
    training = weightnorm("torchvision:resnet50", dropout=0.2)
    parts = training_only_parts(training.graph)
    assert [part.summary for part in parts.values()] == ["dropout with probability 0.2"] * 16
    readers = [str(user.target) for node in training.graph.graph.nodes if node.target in parts for user in node.users]
    assert len(readers) == 16
    assert all(reader.endswith(".conv3") for reader in readers)
    assert not training_only_parts(weightnorm(dropout=0.0).graph)


def test_folding_stores_the_weight() -> None:
    training = weightnorm()
    weight, _ = training.graph.get_submodule("network.conv1").derivation()  # type: ignore[operator]
    assert torch.equal(fold(training.graph).get_parameter("network.conv1.weight"), weight)
