"""Recomputed statistics against NumPy in float64 on all values at once.

When they are frozen, the training graph is the folded graph to the last bit.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
import torch
from graphs import DEFAULTS, PreActivation, images, rewritten, scatter, step, traced
from torch import nn
from torch.nn import functional as F

from export.graph import Dropout, Normalise, trace
from export.graph.fold import fold
from export.graph.layers import training_only_parts
from pipeline.config.methods import EquinormOptions
from pipeline.methods import RewrittenGraph, method_from_options
from pipeline.methods.equinorm import BalancedConv2d, BalancedWeights
from pipeline.methods.statistics import Moments, Statistics, freeze_statistics, recompute_statistics, statistics_parts

SHAPE = (3, 32, 32)
Array = npt.NDArray[np.float64]
WITH_STATISTICS = [
    ("batchnorm", "resnet20", SHAPE),
    ("batchnorm", "torchvision:mobilenet_v2", (3, 64, 64)),
    ("mimicnorm", "resnet20", SHAPE),
    ("mimicnorm", "torchvision:squeezenet1_1", (3, 64, 64)),
    ("equinorm", "resnet20", SHAPE),
    ("equinorm", "torchvision:resnet50", (3, 64, 64)),
]
on_each = pytest.mark.parametrize(("method", "network", "shape"), WITH_STATISTICS)


def several_batches(shape: tuple[int, int, int] = SHAPE) -> list[torch.Tensor]:
    """Batches of unequal size and unlike each other."""
    return [images(size, shape, seed=seed) // (seed + 1) for seed, size in enumerate((6, 5, 4))]


def stored(training: RewrittenGraph) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in training.graph.named_buffers()}


def frozen_after_training(method: str, network: str, shape: tuple[int, int, int]) -> RewrittenGraph:
    training = rewritten(network, shape, DEFAULTS[method])
    step(training, images(8, shape), rate=1e-3)
    scatter(training)
    recompute_statistics(training.graph, several_batches(shape))
    freeze_statistics(training.graph)
    return training


# ---- moments -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7, 5), (7, 5, 3, 2)])
def test_moments_are_those_of_all_values_at_once(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    batches = [torch.randn(size, *shape[1:], dtype=torch.float64) * (size + 1) + 100 * size for size in (shape[0], 1, 4)]
    moments = Moments()
    for batch in batches:
        moments.add(batch)
    whole = np.concatenate([batch.numpy() for batch in batches])
    axes = (0, *range(2, whole.ndim))
    assert np.abs(moments.mean.numpy() / whole.mean(axis=axes) - 1).max() < 1e-14
    assert np.abs(moments.variance.numpy() / whole.var(axis=axes) - 1).max() < 1e-13


def test_moments_of_nothing_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="no values were added"):
        _ = Moments().variance


# ---- recomputing ---------------------------------------------------------------------------------


class Inputs:
    """Return the inputs of the layers of a plain network, by name."""

    def __init__(self, network: nn.Module, kinds: tuple[type[nn.Module], ...]) -> None:
        self.seen: dict[str, list[Array]] = {}
        for name, layer in network.named_modules():
            if isinstance(layer, kinds):
                layer.register_forward_pre_hook(lambda _, given, name=name: self.seen.setdefault(name, []).append(given[0].detach().numpy()))

    def pooled(self, name: str) -> Array:
        return np.concatenate(self.seen[name])


def test_batchnorm_stores_the_moments_of_the_whole_set() -> None:
    """Compare with the network as it is written.

    It runs in training mode on the same batches, and the inputs of each norm are kept.
    """
    training = rewritten("small", SHAPE, DEFAULTS["batchnorm"])
    scatter(training, 0.3)
    plain, source = traced("small", SHAPE).double(), training.graph.double().state_dict()
    renamed = {}
    for key in plain.state_dict():
        layer, _, kind = key.rpartition(".")
        if ".bn" in key:
            renamed[key] = source[f"{layer.replace('.bn', '.conv')}.operation.derivation.norm.{kind}"]
        else:
            renamed[key] = source[f"{layer}.operation.derivation.{kind}" if ".conv" in key else key]
    plain.load_state_dict(renamed)
    inputs = Inputs(plain, (nn.BatchNorm2d,))
    with torch.no_grad():
        for batch in several_batches():
            plain.train()(batch)
    recompute_statistics(training.graph, several_batches())
    after = stored(training)
    assert len(inputs.seen) == 7
    for name in inputs.seen:
        whole, prefix = inputs.pooled(name), f"{name.replace('.bn', '.conv')}.operation.derivation.norm"
        assert np.abs(after[f"{prefix}.running_mean"].numpy() - whole.mean(axis=(0, 2, 3))).max() < 1e-12
        assert np.abs(after[f"{prefix}.running_var"].numpy() / whole.var(axis=(0, 2, 3)) - 1).max() < 1e-12


def test_mimicnorm_stores_the_moments_of_the_logits() -> None:
    normed, plain = (rewritten("small", SHAPE, DEFAULTS["mimicnorm"].model_copy(update={"last_norm": on})).graph.double() for on in (True, False))
    with torch.no_grad():
        logits = np.concatenate([plain.eval()(batch).numpy() for batch in several_batches()])
    recompute_statistics(normed, several_batches())
    (mean,) = (value for name, value in normed.named_buffers() if name.endswith("running_mean"))
    (variance,) = (value for name, value in normed.named_buffers() if name.endswith("running_var"))
    assert np.abs(mean.numpy() - logits.mean(0)).max() < 1e-12
    assert np.abs(variance.numpy() / logits.var(0) - 1).max() < 1e-12
    with torch.no_grad():
        deployed = np.concatenate([normed.eval()(batch).numpy() for batch in several_batches()])
    assert np.abs(deployed.mean(0)).max() < 1e-10
    assert np.abs(deployed.var(0) - logits.var(0) / (logits.var(0) + 1e-5)).max() < 1e-10


@pytest.mark.parametrize("statistics", ["batch", "first_quarter"])
def test_equinorm_stores_the_means_of_every_image(statistics: str) -> None:
    """The layers in front use the statistics of training.

    The stored statistics are those of all images, not of a quarter.
    """
    options = EquinormOptions.model_validate({"name": "equinorm", "statistics": statistics})
    training, other = (rewritten("small", SHAPE, options) for _ in range(2))
    inputs = Inputs(other.graph.double().train(), (BalancedConv2d,))
    with torch.no_grad():
        for batch in several_batches():
            other.graph(batch)
    recompute_statistics(training.graph.double(), several_batches())
    found = {name: layer for name, layer in training.graph.named_modules() if isinstance(layer, BalancedConv2d)}
    assert found.keys() == inputs.seen.keys()
    for name, layer in found.items():
        assert isinstance(layer.operation.derivation, BalancedWeights)
        means = layer.operation.derivation.running_means.numpy()
        assert np.abs(means - inputs.pooled(name).mean(axis=(0, 2, 3))).max() < 1e-12


@on_each
def test_what_was_stored_before_makes_no_difference(method: str, network: str, shape: tuple[int, int, int]) -> None:
    found = []
    for before in (0.5, 3.0):
        training = rewritten(network, shape, DEFAULTS[method])
        with torch.no_grad():
            for name, value in training.graph.named_buffers():
                if "running" in name:
                    value.fill_(before)
        recompute_statistics(training.graph, several_batches(shape))
        found.append({name: value for name, value in stored(training).items() if "running" in name})
    assert found[0].keys() == found[1].keys() != set()
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name
        assert not (value == 0.5).all()


def test_noise_and_dropout_are_off_while_statistics_are_recomputed() -> None:
    training = rewritten("torchvision:squeezenet1_1", (3, 64, 64), DEFAULTS["mimicnorm"])
    (dropout,) = (part for part in training.graph.modules() if isinstance(part, Dropout))
    batches = several_batches((3, 64, 64))
    found = []
    for seed in range(2):
        torch.manual_seed(seed)
        recompute_statistics(training.graph, batches)
        found.append(stored(training))
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
    assert dropout.active


def test_a_pass_that_is_broken_off_leaves_everything_as_it_was() -> None:
    training = rewritten("small", SHAPE, DEFAULTS["batchnorm"])
    step(training, images(8, SHAPE))
    before = stored(training)

    def broken() -> Iterator[torch.Tensor]:
        yield images(4, SHAPE)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recompute_statistics(training.graph, broken())
    assert all(torch.equal(value, before[name]) for name, value in stored(training).items())
    training.graph.train()(images(4, SHAPE))
    name = "network.conv1.operation.derivation.norm.running_mean"
    assert not torch.equal(stored(training)[name], before[name])


def test_statistics_of_no_images_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="no values were added"):
        recompute_statistics(rewritten("small", SHAPE, DEFAULTS["batchnorm"]).graph, [])


# ---- frozen --------------------------------------------------------------------------------------


@on_each
def test_frozen_the_training_graph_has_the_bits_of_the_folded_graph(method: str, network: str, shape: tuple[int, int, int]) -> None:
    """In training mode, with gradients, and every part active except those that draw random
    numbers."""
    training = frozen_after_training(method, network, shape)
    batch = images(4, shape, seed=7)
    for part in training_only_parts(training.graph).values():
        part.active = not isinstance(part, Dropout)
    assert statistics_parts(training.graph)
    before = stored(training)
    graph = training.graph.train()
    trained = graph(batch)
    assert trained.requires_grad
    deployed = fold(graph)(batch)
    assert torch.equal(trained, deployed)
    assert torch.equal(graph(batch[:1]), fold(graph)(batch[:1]))
    assert all(torch.equal(value, before[name]) for name, value in stored(training).items())
    for part in statistics_parts(graph).values():
        part.frozen = False
    assert not torch.equal(graph(batch), deployed)


def test_a_norm_that_stands_alone_freezes_as_well() -> None:
    graph = trace(PreActivation(), Normalise((128.0,) * 3, (64.0,) * 3), (3, 16, 16), 10)
    training = method_from_options(DEFAULTS["batchnorm"]).rewrite(graph, torch.Generator().manual_seed(0))
    batch = images(4, (3, 16, 16))
    recompute_statistics(training.graph, [batch])
    freeze_statistics(training.graph)
    assert torch.equal(training.graph.train()(batch), fold(training.graph)(batch))


@on_each
def test_training_goes_on_through_the_weights(method: str, network: str, shape: tuple[int, int, int]) -> None:
    """Every parameter gets a gradient, and the statistics stay.

    After a step the bits are those of the new fold.
    """
    training = frozen_after_training(method, network, shape)
    statistics = {name: value for name, value in stored(training).items() if "running" in name}
    before = {name: parameter.detach().clone() for name, parameter in training.graph.named_parameters()}
    step(training, images(8, shape, seed=3), rate=0.5)
    assert not [name for name, parameter in training.graph.named_parameters() if parameter.requires_grad and torch.equal(parameter, before[name])]
    assert all(torch.equal(value, stored(training)[name]) for name, value in statistics.items())
    for part in training_only_parts(training.graph).values():
        part.active = isinstance(part, Statistics)
    batch = images(4, shape, seed=8)
    assert torch.equal(training.graph.train()(batch), fold(training.graph)(batch))


def test_frozen_gradients_are_those_of_the_weights_written_out() -> None:
    """In float64: y = conv(x, W gamma / sigma) + beta - mean gamma / sigma.

    mean and sigma are constants.
    """
    training = frozen_after_training("batchnorm", "small", SHAPE)
    layer = training.graph.double().train().get_submodule("network.stages.0.0.conv1")
    parameters = dict(layer.named_parameters())
    names = {"weight": "operation.derivation.weight", "gamma": "operation.derivation.norm.weight", "beta": "operation.derivation.norm.bias"}
    leaves = {key: parameters[name].detach().clone().requires_grad_() for key, name in names.items()}
    buffers = dict(layer.named_buffers())
    mean, variance = (buffers[f"operation.derivation.norm.{kind}"] for kind in ("running_mean", "running_var"))
    x = torch.randn(2, 16, 6, 6, dtype=torch.float64)
    factor = leaves["gamma"] / torch.sqrt(variance + 1e-5)
    expected = F.conv2d(x, leaves["weight"] * factor.view(-1, 1, 1, 1), leaves["beta"] - mean * factor, padding=1)
    found = layer(x)
    assert (found - expected).abs().max() < 1e-12
    wanted = torch.autograd.grad(expected.square().sum(), list(leaves.values()))
    got = torch.autograd.grad(found.square().sum(), [parameters[name] for name in names.values()])
    for one, other in zip(got, wanted, strict=True):
        assert (one - other).abs().max() < 1e-10 * other.abs().max()


@pytest.mark.parametrize("method", ["czmig", "czmi", "skipinit", "weightnorm", "scaledws", "fixup", "groupnorm", "nonorm"])
def test_the_other_methods_have_nothing_to_freeze(method: str) -> None:
    assert not statistics_parts(rewritten("small", SHAPE, DEFAULTS[method]).graph)
