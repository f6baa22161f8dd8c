import numpy as np
import torch
from graphs import DEFAULTS, PreActivation, images, rewritten, step, traced
from torch import nn
from torch.nn import functional as F

from export.graph import Normalise, trace
from export.graph.fold import fold
from export.graph.layers import training_only_parts, training_only_parts_off
from pipeline.methods import method_from_options
from pipeline.methods.batchnorm import NormedLayer, NormInWeight

SHAPE = (3, 32, 32)


def test_in_training_it_is_the_network_as_it_is_written() -> None:
    plain = traced("resnet20", SHAPE)
    training = rewritten("resnet20", SHAPE, DEFAULTS["batchnorm"])
    for name, layer in plain.named_modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight = training.graph.get_parameter(f"{name}.operation.derivation.weight")
    for key in ("weight", "bias"):
        setattr(plain.get_submodule("network.classifier"), key, training.graph.get_parameter(f"network.classifier.{key}"))
    batch = images(8, SHAPE)
    assert torch.equal(training.graph.train()(batch), plain.train()(batch))


def test_training_statistics_and_fold_are_the_papers_formulas() -> None:
    """In float64: biased variance to normalise, unbiased variance for the running values.

    The variance is taken over samples and pixels, and the running values move by a share of 0.1.
    """
    torch.manual_seed(0)
    layer = NormedLayer(nn.Conv2d(3, 5, 3, bias=True), nn.BatchNorm2d(5, eps=1e-3)).double().train()
    derivation = layer.operation.derivation
    assert isinstance(derivation, NormInWeight)
    assert isinstance(derivation.norm, nn.BatchNorm2d)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64) + 1
    gamma, beta, weight = (each.detach().numpy() for each in (derivation.norm.weight, derivation.norm.bias, derivation.weight))
    y = F.conv2d(x, derivation.weight, derivation.bias).detach().numpy()
    mean, variance = y.mean(axis=(0, 2, 3)), y.var(axis=(0, 2, 3))
    normalised = (y - mean[:, None, None]) / np.sqrt(variance + 1e-3)[:, None, None]
    expected = gamma[:, None, None] * normalised + beta[:, None, None]
    assert np.abs(layer(x).detach().numpy() - expected).max() < 1e-12
    n = y.size // 5
    running_mean, running_variance = 0.1 * mean, 0.9 + 0.1 * variance * n / (n - 1)
    assert derivation.norm.running_mean is not None
    assert derivation.norm.running_var is not None
    assert np.abs(derivation.norm.running_mean.numpy() - running_mean).max() < 1e-14
    assert np.abs(derivation.norm.running_var.numpy() - running_variance).max() < 1e-14
    found_weight, found_bias = derivation()
    assert found_bias is not None
    assert derivation.bias is not None
    factor = gamma / np.sqrt(running_variance + 1e-3)
    assert np.abs(found_weight.detach().numpy() - weight * factor[:, None, None, None]).max() < 1e-13
    assert np.abs(found_bias.detach().numpy() - ((derivation.bias.detach().numpy() - running_mean) * factor + beta)).max() < 1e-13


def test_each_norm_is_listed_as_training_only() -> None:
    training = rewritten("resnet20", SHAPE, DEFAULTS["batchnorm"])
    assert len(training_only_parts(training.graph)) == 19


def test_with_frozen_statistics_training_has_the_bits_of_the_folded_graph() -> None:
    training = rewritten("resnet20", SHAPE, DEFAULTS["batchnorm"])
    step(training, images(16, SHAPE))
    batch = images(8, SHAPE, seed=1)
    training.graph.train()
    statistics = {name: value.clone() for name, value in training.graph.named_buffers()}
    with training_only_parts_off(training.graph):
        frozen = training.graph(batch)
    assert all(torch.equal(value, statistics[name]) for name, value in training.graph.named_buffers())
    assert torch.equal(frozen, fold(training.graph)(batch))


def test_the_fold_is_the_norm_of_evaluation_up_to_rounding() -> None:
    """Compare with nn.BatchNorm2d itself, in float64, so that rounding cannot hide a wrong
    formula."""
    training = rewritten("resnet20", SHAPE, DEFAULTS["batchnorm"])
    step(training, images(16, SHAPE))
    plain = traced("resnet20", SHAPE)
    source = training.graph.state_dict()
    renamed = {}
    for key in plain.state_dict():
        layer, _, kind = key.rpartition(".")
        if ".bn" in key:
            conv = layer.replace(".bn", ".conv")
            renamed[key] = source[f"{conv}.operation.derivation.norm.{kind}"]
        elif ".conv" in key:
            renamed[key] = source[f"{layer}.operation.derivation.weight"]
        else:
            renamed[key] = source[key]
    plain.load_state_dict(renamed)
    batch = images(8, SHAPE, seed=1)
    expected = plain.double().eval()(batch)
    assert (training.graph.double().eval()(batch) - expected).abs().max() < 1e-12 * expected.abs().max()


def test_a_norm_that_stands_alone_becomes_a_depthwise_convolution() -> None:
    graph = trace(PreActivation(), Normalise((128.0,) * 3, (64.0,) * 3), (3, 16, 16), 10)
    training = method_from_options(DEFAULTS["batchnorm"]).rewrite(graph, torch.Generator().manual_seed(0))
    batch = images(8, (3, 16, 16))
    step(training, batch)
    folded = fold(training.graph)
    layer = folded.get_submodule("network.norm")
    assert isinstance(layer, nn.Conv2d)
    assert layer.groups == 8
    assert torch.equal(folded(batch), training.graph.eval()(batch))


def test_no_tensor_is_stored_under_two_names() -> None:
    state = rewritten("resnet20", SHAPE, DEFAULTS["batchnorm"]).graph.state_dict()
    addresses = [value.data_ptr() for value in state.values()]
    assert len(addresses) == len(set(addresses))
