"""The formulas are compared with NumPy in float64, written from the paper.

Section 3 (CZMI, CZMG) and section 3.4 (unit magnitude decay).
"""

import numpy as np
import pytest
import torch
from graphs import images, rewritten, step, traced
from probes import values_of
from torch import nn
from torch.nn import functional as F

from export.graph import find_parts
from export.graph.layers import DerivedConv2d, DerivedLinear, PlainDerivation, training_only_parts, training_only_parts_off
from pipeline.config.methods import CzmigOptions
from pipeline.methods import RewrittenGraph
from pipeline.methods.czmig import ExpScale
from pipeline.methods.new_layers import xavier_normal
from pipeline.methods.noise import Noise

SHAPE = (3, 32, 32)


def czmig(network: str = "resnet20", **options: object) -> RewrittenGraph:
    return rewritten(network, SHAPE, CzmigOptions.model_validate({"name": "czmig", **options}))


def derivation(training: RewrittenGraph, name: str) -> ExpScale | PlainDerivation:
    layer = training.graph.get_submodule(name)
    assert isinstance(layer, (DerivedConv2d, DerivedLinear))
    assert isinstance(layer.derivation, (ExpScale, PlainDerivation))
    return layer.derivation


def branch_filters(training: RewrittenGraph) -> list[nn.Parameter]:
    return [m.direction for m in training.graph.modules() if isinstance(m, ExpScale)]


@pytest.mark.parametrize(("network", "parameters"), [("resnet20", 269_034), ("resnet110", 1_723_914)])
def test_parameter_counts(network: str, parameters: int) -> None:
    assert sum(p.numel() for p in czmig(network).graph.parameters()) == parameters


def test_initial_filters_have_zero_mean_slices_and_unit_norm() -> None:
    filters = branch_filters(czmig())
    assert len(filters) == 18
    for weight in filters:
        assert weight.double().mean((2, 3)).abs().max() < 2.0**-25  # a rounding of values below 1/2
        assert (weight.double().flatten(1).norm(dim=1) - 1).abs().max() < 1e-6


def test_the_first_layer_is_plain_with_a_bias_and_not_centred() -> None:
    stem = derivation(czmig(), "network.conv1")
    assert isinstance(stem, PlainDerivation)
    assert stem.bias is not None
    assert stem.weight.mean((2, 3)).abs().max() > 0.01
    assert torch.allclose(stem.weight.flatten(1).norm(dim=1), torch.ones(16), atol=1e-6)


def test_options_of_the_first_layer() -> None:
    stem = derivation(czmig(first_layer_zero_mean=True, first_layer_scaled=True), "network.conv1")
    assert isinstance(stem, ExpScale)
    assert stem.direction.mean((2, 3)).abs().max() < 1e-7


def test_the_classifier_has_a_scale_only_where_asked() -> None:
    assert isinstance(derivation(czmig(), "network.classifier"), PlainDerivation)
    scaled = derivation(czmig(classifier_scaled=True), "network.classifier")
    assert isinstance(scaled, ExpScale)
    assert torch.allclose(scaled.log_scale.exp(), torch.full((10,), 0.8))


def test_pointwise_filters_are_centred_over_their_inputs_only_where_asked() -> None:
    name = "network.layer1.0.conv1"
    plain = derivation(rewritten("torchvision:resnet50", (3, 64, 64), CzmigOptions(name="czmig")), name)
    centred = derivation(rewritten("torchvision:resnet50", (3, 64, 64), CzmigOptions(name="czmig", pointwise_zero_mean=True)), name)
    assert isinstance(plain, ExpScale)
    assert isinstance(centred, ExpScale)
    assert plain.direction.mean(1).abs().max() > 0.01
    assert centred.direction.mean(1).abs().max() < 1e-7


def test_weights_are_e_to_the_g_times_v() -> None:
    layer = derivation(czmig(initial_scale=0.5), "network.stages.0.0.conv1").double()
    assert isinstance(layer, ExpScale)
    with torch.no_grad():
        layer.log_scale.copy_(torch.linspace(-1, 1, 16))
    weight, bias = layer()
    assert bias is None
    expected = np.exp(layer.log_scale.detach().numpy())[:, None, None, None] * layer.direction.detach().numpy()
    assert np.abs(weight.detach().numpy() - expected).max() < 1e-15


def test_biases_stand_at_the_ends_or_everywhere() -> None:
    def with_bias(training: RewrittenGraph) -> int:
        layers = [m for m in training.graph.modules() if isinstance(m, (DerivedConv2d, DerivedLinear))]
        return sum(layer.derivation()[1] is not None for layer in layers)

    assert with_bias(czmig()) == 2
    assert with_bias(czmig(biases="all")) == 20


def test_every_parameter_is_in_exactly_one_group_and_biases_and_classifier_are_slow() -> None:
    training = czmig()
    fast, slow = training.rules.parameter_groups
    grouped = [id(p) for group in (fast, slow) for p in group.parameters]
    assert sorted(grouped) == sorted(id(p) for p in training.graph.parameters())
    assert {tuple(p.shape) for p in slow.parameters} == {(16,), (10, 64), (10,)}
    assert (fast.rate_share, slow.rate_share) == (1.0, 0.25)
    assert fast.weight_decay == slow.weight_decay == 0.0


def _with_random_gradients(training: RewrittenGraph) -> None:
    """In float64."""
    torch.manual_seed(1)
    for parameter in training.graph.double().parameters():
        parameter.grad = torch.randn_like(parameter)


@pytest.mark.parametrize("form", ["paper", "code"])
@pytest.mark.parametrize(("mean_over", "axes"), [("slice", (2, 3)), ("filter", (1, 2, 3))])
def test_gradient_correction_is_the_papers_formula(form: str, mean_over: str, axes: tuple[int, ...]) -> None:
    training = czmig(zmg=0.85, zmg_form=form, mean_over=mean_over)
    _with_random_gradients(training)
    before = {name: p.grad.numpy().copy() for name, p in training.graph.named_parameters() if p.grad is not None}
    training.rules.correct_gradients()
    corrected = 0
    for name, parameter in training.graph.named_parameters():
        gradient = before[name]
        expected = gradient
        if name.endswith("direction"):
            mean = gradient.mean(axis=axes, keepdims=True)
            expected = gradient - 0.85 * mean if form == "paper" else gradient + 0.85 * (gradient - mean)
            corrected += 1
        assert parameter.grad is not None
        assert np.abs(parameter.grad.numpy() - expected).max() <= 1e-15 * np.abs(gradient).max()
    assert corrected == 18


def test_pointwise_and_first_layers_are_not_corrected() -> None:
    training = rewritten("torchvision:resnet50", (3, 64, 64), CzmigOptions(name="czmig", zmg=1.0))
    _with_random_gradients(training)
    before = {name: p.grad.clone() for name, p in training.graph.named_parameters() if p.grad is not None}
    training.rules.correct_gradients()
    changed = {name for name, p in training.graph.named_parameters() if p.grad is not None and not torch.equal(p.grad, before[name])}
    assert len(changed) == 16
    assert all(".conv2." in name for name in changed)


@pytest.mark.parametrize("zmg", [0.0, 1.0])
def test_correction_of_nothing_and_of_everything(zmg: float) -> None:
    training = czmig(zmg=zmg)
    _with_random_gradients(training)
    filters = branch_filters(training)
    before = [p.grad.clone() for p in filters if p.grad is not None]
    training.rules.correct_gradients()
    for parameter, gradient in zip(filters, before, strict=True):
        assert parameter.grad is not None
        if zmg == 0:
            assert torch.equal(parameter.grad, gradient)
        else:
            assert parameter.grad.mean((2, 3)).abs().max() < 1e-15


def test_the_penalty_and_its_gradient_are_the_papers_formula() -> None:
    """lambda (|V| - 1)^2 per filter and classifier row, with gradient 2 lambda (|V| - 1) V / |V|.

    Nothing else has a penalty.
    """
    training = czmig(luma=5e-4, classifier_luma=2e-3)
    step(training, images(4, SHAPE))
    parameters = dict(training.graph.double().named_parameters())
    value, expected = 0.0, {name: np.zeros(tuple(p.shape)) for name, p in parameters.items()}
    for name, parameter in parameters.items():
        parameter.data.mul_(1.3)
        parameter.grad = torch.zeros_like(parameter)
        strength = 5e-4 if name.endswith("direction") else 2e-3 if name == "network.classifier.derivation.weight" else 0.0
        for number, weight in enumerate(parameter.detach().numpy() if strength else ()):
            length = np.sqrt((weight**2).sum())
            value += strength * (length - 1) ** 2
            expected[name][number] = 2 * strength * (length - 1) * weight / length
    found = training.rules.add_penalty_gradient()
    assert found is not None
    assert abs(found.item() / value - 1) < 1e-14
    assert sum(bool(gradient.any()) for gradient in expected.values()) == 19
    for name, parameter in parameters.items():
        assert parameter.grad is not None
        assert np.abs(parameter.grad.numpy() - expected[name]).max() <= 1e-14 * np.abs(expected[name]).max(), name


def test_without_penalty_nothing_is_added() -> None:
    training = czmig(luma=0.0, classifier_luma=0.0)
    assert training.rules.add_penalty_gradient() is None


def test_a_filter_of_zeros_is_left_alone_by_the_penalty() -> None:
    training = czmig()
    weight = branch_filters(training)[0]
    with torch.no_grad():
        weight[0].zero_()
    for parameter in training.graph.parameters():
        parameter.grad = torch.zeros_like(parameter)
    training.rules.add_penalty_gradient()
    assert weight.grad is not None
    assert torch.isfinite(weight.grad).all()


def test_a_layer_rejects_a_shift_of_its_input_away_from_the_border() -> None:
    """In float64 the filters' means are those of their float32 roundings.

    `test_new_layers.py` has the same test without any rounding.
    """
    layer = czmig().graph.double().get_submodule("network.stages.0.0.conv1")
    x, shift = torch.randn(2, 16, 12, 12, dtype=torch.float64), torch.randn(1, 16, 1, 1, dtype=torch.float64)
    moved = (layer(x) - layer(x + shift)).abs()
    assert moved[:, :, 1:-1, 1:-1].max() < 1e-6
    assert min(edge.max() for edge in (moved[:, :, 0], moved[:, :, -1], moved[..., 0], moved[..., -1])) > 0.01


@pytest.mark.parametrize(("zmg", "stays"), [(1.0, True), (0.85, False)])
def test_slices_stay_at_zero_mean_only_where_the_whole_mean_is_taken_out(zmg: float, stays: bool) -> None:
    """The penalty pulls along the filter itself, so it adds no mean; with momentum, in float64."""
    training = rewritten("small", (1, 8, 8), CzmigOptions(name="czmig", zmg=zmg, noise=0.0, luma=5e-2))
    training.graph.double()
    filters = branch_filters(training)
    with torch.no_grad():
        for weight in filters:
            weight.sub_(weight.mean((2, 3), keepdim=True))
    optimiser = torch.optim.SGD(training.graph.parameters(), lr=0.1, momentum=0.9)
    before = [weight.detach().clone() for weight in filters]
    for seed in range(10):
        optimiser.zero_grad()
        F.cross_entropy(training.graph(images(8, (1, 8, 8), seed=seed)), torch.arange(8)).backward()  # type: ignore[no-untyped-call]
        training.rules.add_penalty_gradient()
        training.rules.correct_gradients()
        optimiser.step()
    assert all((weight - old).abs().max() > 1e-3 for weight, old in zip(filters, before, strict=True))
    means = max(weight.mean((2, 3)).abs().max().item() for weight in filters)
    assert means < 1e-15 if stays else means > 1e-4


@pytest.mark.parametrize(
    ("network", "initial_scale", "features", "logits"),
    [("resnet20", 0.8, 0.39, 0.32), ("resnet110", 0.5, 0.36, 0.55), ("resnet110", 0.8, 1.11, 2.2), ("resnet110", 1.0, 9.2, 17.4)],
)
def test_the_scale_of_activations_at_the_start(network: str, initial_scale: float, features: float, logits: float) -> None:
    """Standard deviations of the last stage and of the logits for N(0, 1) input.

    They are compared with a list from an earlier measurement. Draws of the filters differ by some
    percent (four seeds: at most 8). Ten rows of a classifier scatter by a quarter, and the listed
    logits are those of one draw, so they are compared with the mean of eight.
    """
    graph = czmig(network, noise=0.0, initial_scale=initial_scale).graph.eval()
    (pool,) = (node for node in graph.graph.nodes if node.name.startswith("global_pool"))
    torch.manual_seed(3)
    pixels = (torch.randn(32, *SHAPE) * 64 + 128).round().clamp(0, 255).to(torch.uint8)
    (last_stage,) = values_of(graph, pixels, pool.all_input_nodes[0].name)
    assert abs(last_stage.std().item() / features - 1) < 0.15
    pooled, draws = last_stage.mean((2, 3)), torch.Generator().manual_seed(0)
    found = np.mean([(pooled @ xavier_normal(torch.Size((10, 64)), draws).T).std().item() for _ in range(8)])
    assert 1 / 1.6 < found / logits < 1.6


def test_noise_stands_at_the_start_of_each_unit_and_the_shortcut_carries_it() -> None:
    training = czmig()
    noise = [node for node in training.graph.graph.nodes if str(node.target).startswith("noise_")]
    assert len(noise) == 9
    assert {user.op for user in noise[0].users} == {"call_module", "call_function"}
    branch_only = czmig(noise_on_shortcut=False)
    noise = [node for node in branch_only.graph.graph.nodes if str(node.target).startswith("noise_")]
    assert {user.op for user in noise[0].users} == {"call_module"}


def test_noise_is_uniform_around_one_per_sample_and_channel() -> None:
    torch.manual_seed(0)
    noise = Noise(0.1, per_element=False).train()
    factors = noise(torch.ones(64, 32, 5, 5))
    assert torch.equal(factors, factors[:, :, :1, :1].expand_as(factors))
    assert 0.9 <= factors.min() < 0.902
    assert 1.098 < factors.max() <= 1.1
    assert abs(factors[:, :, 0, 0].mean() - 1) < 0.005
    assert len(noise(torch.ones(2, 3, 4, 4)).unique()) == 6
    assert len(Noise(0.1, per_element=True).train()(torch.ones(2, 3, 4, 4)).unique()) == 96


def test_noise_can_stand_at_every_layer_but_the_first() -> None:
    training = czmig(noise_at="layers")
    noise = [node for node in training.graph.graph.nodes if str(node.target).startswith("noise_")]
    assert len(noise) == 19
    assert all(len(node.users) == 1 for node in noise)
    without_units = rewritten("torchvision:squeezenet1_1", (3, 64, 64), CzmigOptions(name="czmig", noise_at="layers"))
    assert len(training_only_parts(without_units.graph)) == 25 + 1  # and a dropout


def test_noise_is_training_only_and_can_be_switched_off() -> None:
    training = czmig()
    assert len(training_only_parts(training.graph)) == 9
    training.graph.train()
    batch = images(2, SHAPE)
    assert not torch.equal(training.graph(batch), training.graph(batch))
    with training_only_parts_off(training.graph):
        quiet = training.graph(batch)
    assert torch.equal(quiet, training.graph.eval()(batch))
    assert not training_only_parts(czmig(noise=0.0).graph)


def test_noise_follows_a_unit_whose_start_was_a_norm() -> None:
    graph = traced("torchvision:mobilenet_v2", (3, 64, 64))
    starts = {str(unit.start.target) for unit in find_parts(graph).units}
    assert "network.features.2.conv.3" in starts
    training = rewritten("torchvision:mobilenet_v2", (3, 64, 64), CzmigOptions(name="czmig"))
    training.graph.graph.lint()
    assert all(node.users for node in training.graph.graph.nodes if str(node.target).startswith("noise_"))
