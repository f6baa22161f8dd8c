"""The formulas are compared with NumPy in float64, written from the paper.

They are the weight mean, its gain, scaled branches and the last norm.
"""

import numpy as np
import pytest
import torch
from graphs import DEFAULTS, images, rewritten, scatter, step
from probes import values_of
from torch import nn
from torch.nn import functional as F

from export.errors import UsageError
from export.graph import Dropout, Normalise, trace
from export.graph.fold import fold
from export.graph.layers import DerivedConv2d, DerivedLinear, training_only_parts
from pipeline.config.methods import MimicnormOptions
from pipeline.methods import RewrittenGraph, method_from_options
from pipeline.methods.branches import BranchScale
from pipeline.methods.mimicnorm import MimicnormRules

SHAPE = (3, 32, 32)


def options(**changes: object) -> MimicnormOptions:
    return MimicnormOptions.model_validate({"name": "mimicnorm", **changes})


def mimicnorm(network: str = "resnet20", shape: tuple[int, int, int] = SHAPE, **changes: object) -> RewrittenGraph:
    return rewritten(network, shape, options(**changes))


def weights(training: RewrittenGraph) -> dict[str, torch.Tensor]:
    """The trained filters of each layer."""
    found: dict[str, torch.Tensor] = {}
    for name, layer in training.graph.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            found[name] = layer.weight.detach()
        elif isinstance(layer, (DerivedConv2d, DerivedLinear)):
            found[name] = layer.derivation.get_parameter("weight").detach()
    return found


def centred(training: RewrittenGraph) -> set[str]:
    means = {name: weight.double().flatten(1).mean(1).abs().max() for name, weight in weights(training).items()}
    return {name for name, mean in means.items() if mean < 1e-8}


def scales(training: RewrittenGraph) -> list[float]:
    return [m.scale.item() for m in training.graph.modules() if isinstance(m, BranchScale)]


def test_which_convolutions_are_centred() -> None:
    wide, ungrouped = centred(mimicnorm()), centred(mimicnorm(centred="ungrouped"))
    assert len(wide) == 18
    assert ungrouped == wide | {"network.conv1"}
    assert not centred(mimicnorm(weight_mean=False))


def test_filters_of_few_inputs_and_depthwise_ones_are_not_centred() -> None:
    squeezenet = mimicnorm("torchvision:squeezenet1_1", (3, 64, 64))
    assert "network.features.3.expand1x1" not in centred(squeezenet)  # 16 inputs
    assert "network.features.3.expand3x3" in centred(squeezenet)  # 144
    for rule in ("wide", "ungrouped"):
        shufflenet = mimicnorm("torchvision:shufflenet_v2_x0_5", (3, 64, 64), centred=rule)
        assert "network.stage2.1.branch2.3" not in centred(shufflenet)
        assert "network.stage4.1.branch2.0" in centred(shufflenet)


def test_the_mean_is_taken_out_again_after_each_step() -> None:
    training = mimicnorm()
    before = centred(training)
    step(training, images(8, SHAPE))
    assert centred(training) == before
    with torch.no_grad():
        for parameter in training.graph.double().parameters():
            parameter.add_(0.25)
    expected = {name: w.numpy().copy() for name, w in weights(training).items()}
    expected = {name: w - w.mean(axis=(1, 2, 3), keepdims=True) if name in before else w for name, w in expected.items()}
    training.rules.project()
    for name, weight in weights(training).items():
        assert np.abs(weight.numpy() - expected[name]).max() < 1e-15


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_post_step_in_forward_and_gradient_centring_agree(momentum: float) -> None:
    """Under SGD with momentum and decay the three forms agree after 50 steps, to 1e-12 in
    float64."""
    inputs, targets = torch.randn(16, 8, 5, 5, dtype=torch.float64), torch.randn(16, 6, 3, 3, dtype=torch.float64)
    start = torch.randn(6, 8, 3, 3, dtype=torch.float64) / 8
    start -= start.mean((1, 2, 3), keepdim=True)

    def trained(form: str) -> torch.Tensor:
        layer = nn.Conv2d(8, 6, 3, bias=False, dtype=torch.float64)
        layer.weight = nn.Parameter(start.clone())
        rules = MimicnormRules(layer, options(), [layer.weight])
        optimiser = torch.optim.SGD([layer.weight], lr=0.1, momentum=momentum, weight_decay=5e-3)
        for _ in range(50):
            optimiser.zero_grad()
            weight = layer.weight - layer.weight.mean((1, 2, 3), keepdim=True) if form == "in forward" else layer.weight
            (F.conv2d(inputs, weight) - targets).square().mean().backward()  # type: ignore[no-untyped-call]
            if form == "gradient":
                assert layer.weight.grad is not None
                layer.weight.grad -= layer.weight.grad.mean((1, 2, 3), keepdim=True)
            optimiser.step()
            if form == "post step":
                rules.project()
        return layer.weight.detach()

    projected = trained("post step")
    assert (projected - start).abs().max() > 1e-3
    for form in ("in forward", "gradient"):
        assert (trained(form) - projected).abs().max() < 1e-12
    assert (trained("none") - projected).abs().max() > 1e-6


@pytest.mark.parametrize(("gain", "factor"), [("paper", 1 / np.sqrt(1 - 1 / np.pi)), ("code", 1.0)])
def test_initial_variance_in_scaled_branches(gain: str, factor: float) -> None:
    weight = weights(mimicnorm(gain=gain))["network.stages.2.1.conv2"].double().numpy()
    assert abs(weight.std() / (factor * np.sqrt(2 / (64 * 9))) - 1) < 0.02  # 36,864 draws


def test_initial_variance_outside_of_scaled_branches() -> None:
    training = weights(mimicnorm("torchvision:squeezenet1_1", (3, 64, 64)))
    weight = training["network.features.12.expand3x3"].double().numpy()
    assert abs(weight.std() / np.sqrt(2.8 / (64 * 9)) - 1) < 0.01
    stem = weights(mimicnorm("torchvision:resnet18", (3, 64, 64)))["network.conv1"].double().numpy()
    assert abs(stem.std() / np.sqrt(2 / 147) - 1) < 0.03


@pytest.mark.parametrize(
    ("network", "rule", "expected"),
    [
        ("resnet20", "code", [1.44 / number for number in range(1, 10)]),
        ("resnet20", "paper", [number**-0.5 for number in range(1, 10)]),
        ("torchvision:resnet50", "code", [1.728 / number for number in range(1, 17)]),
        ("resnet20", "none", []),
    ],
)
def test_initial_scales_of_the_branches(network: str, rule: str, expected: list[float]) -> None:
    shape = SHAPE if network == "resnet20" else (3, 64, 64)
    assert np.allclose(scales(mimicnorm(network, shape, branch_scale=rule)), expected, rtol=1e-6, atol=0)


def test_shortcuts_have_a_scale_where_asked() -> None:
    plain = mimicnorm("torchvision:resnet18", (3, 64, 64), branch_scale="none")
    scaled = mimicnorm("torchvision:resnet18", (3, 64, 64), branch_scale="none", shortcut_scale=1.2)
    assert scales(plain) == []
    assert np.allclose(scales(scaled), [1.2] * 3, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("network", "shape"), [("shufflenetv2_x1_0", SHAPE), ("torchvision:shufflenet_v2_x0_5", (3, 64, 64))])
def test_joined_branches_have_a_scale_where_asked(network: str, shape: tuple[int, int, int]) -> None:
    """As in the authors' ShuffleNetV2: 1.2^2 on each branch, 1.2 on two others.

    Those are the other half of a reducing unit and the last convolution.
    """
    assert scales(mimicnorm(network, shape)) == []
    training = mimicnorm(network, shape, joined_scale="code", fan_channels=4)
    found = {name: layer.scale.item() for name, layer in training.graph.named_modules() if isinstance(layer, BranchScale)}
    expected = [value for units in (4, 8, 4) for value in (1.2, *[1.44] * units)] + [1.2]
    assert np.allclose(sorted(found.values()), sorted(expected), rtol=1e-6, atol=0)
    once = {name.removeprefix("network.").removesuffix(".derivation") for name, scale in found.items() if scale < 1.3}
    ours = {"units.0.reduction.conv2", "units.4.reduction.conv2", "units.12.reduction.conv2", "conv5"}
    assert once == (ours if ":" not in network else {*(f"stage{number}.0.branch1.2" for number in (2, 3, 4)), "conv5.0"})
    drawn = {name: weight.double().numpy() for name, weight in weights(training).items()}
    last = drawn["network.conv5" if ":" not in network else "network.conv5.0"]
    assert abs(last.std() / np.sqrt(2 / last[0].size) - 1) < 0.01  # plain He: the scale compensates
    scatter(training)
    batch = images(4, shape)
    assert torch.equal(training.graph.eval()(batch), fold(training.graph)(batch))


def test_networks_that_join_nothing_have_no_joined_scale() -> None:
    assert scales(mimicnorm(branch_scale="none", joined_scale="code")) == []


def test_the_scale_acts_on_weight_and_bias() -> None:
    derivation = BranchScale(torch.randn(4, 3, 3, 3), 0.72).double()
    with torch.no_grad():
        derivation.bias.normal_()
    weight, bias = derivation()
    assert bias is not None
    for got, raw in ((weight, derivation.weight), (bias, derivation.bias)):
        assert np.array_equal(got.detach().numpy(), raw.detach().numpy() * derivation.scale.item())


class Chain(nn.Module):
    """A rectifier followed by 16 residual blocks, and nothing else."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(16))
        self.second = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(16))
        self.classifier = nn.Linear(channels, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(x)
        for first, second in zip(self.first, self.second, strict=True):
            x = torch.relu(x + second(torch.relu(first(x))))
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def mean_squares_by_the_formulas(rule: str) -> list[float]:
    """E[h^2] after each block in the limit of many channels.

    Zero-mean filters see the variance of their input, not its square.
    """
    random = np.random.default_rng(0)

    def normal() -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
        return random.normal(size=400_000)

    gain = 1.0 if rule == "code" else 1 / (1 - 1 / np.pi)
    h, found = np.maximum(normal(), 0), []
    for number in range(1, 17):
        inner = np.maximum(np.sqrt(2 * gain * h.var()) * normal(), 0)
        scale = 1.44 / number if rule == "code" else 1 / np.sqrt(number)
        h = np.maximum(h + scale * np.sqrt(2 * gain * inner.var()) * normal(), 0)
        found.append(float((h**2).mean()))
    return found


@pytest.mark.parametrize(("rule", "listed"), [("code", (1.10, 1.98, 2.12)), ("paper", (1.12, 6.4, 13.5))])
def test_the_scale_of_activations_at_the_start(rule: str, listed: tuple[float, float, float]) -> None:
    """A finite width scatters by some percent between draws.

    `listed` are earlier measurements after blocks 1, 8 and 16.
    """
    graph = trace(Chain(256), Normalise((128.0,) * 256, (32.0,) * 256), (256, 2, 2), 10)
    training = method_from_options(options(gain=rule, branch_scale=rule)).rewrite(graph, torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    pixels = (torch.randn(64, 256, 2, 2) * 32 + 128).round().clamp(0, 255).to(torch.uint8)
    values = values_of(training.graph.eval(), pixels, "relu")
    found = [value.double().square().mean().item() for value in values[2::2]]
    assert np.allclose(found, mean_squares_by_the_formulas(rule), rtol=0.06, atol=0)
    assert np.allclose([found[number - 1] for number in (1, 8, 16)], listed, rtol=0.15, atol=0)


@pytest.mark.parametrize(("network", "shape"), [("resnet20", SHAPE), ("torchvision:squeezenet1_1", (3, 64, 64))])
def test_the_last_norm_is_that_of_the_logits(network: str, shape: tuple[int, int, int]) -> None:
    """In float64, against NumPy: the batch's statistics in training, the running ones in
    evaluation.

    The running ones act on the classifier's weight.
    """
    normed, plain = (mimicnorm(network, shape, last_norm=on).graph.double() for on in (True, False))
    for graph in (normed, plain):
        (bias,) = (each for name, each in graph.named_parameters() if ".classifier" in name and name.endswith("bias"))
        nn.init.normal_(bias, generator=torch.Generator().manual_seed(0))
    if network != "resnet20":
        (rectifier,) = (node for node in plain.graph.nodes if node.target == "network.classifier.2")
        rectifier.replace_all_uses_with(rectifier.all_input_nodes[0])
        plain.recompile()
    batch = images(6, shape)
    logits = plain.eval()(batch).detach().numpy()
    for part in training_only_parts(normed).values():
        part.active = not isinstance(part, Dropout)
    normed.train()
    expected = (logits - logits.mean(0)) / np.sqrt(logits.var(0) + 1e-5)
    assert np.abs(normed(batch).detach().numpy() - expected).max() < 1e-10
    running_mean, running_variance = 0.1 * logits.mean(0), 0.9 + 0.1 * logits.var(0, ddof=1)
    expected = (logits - running_mean) / np.sqrt(running_variance + 1e-5)
    assert np.abs(normed.eval()(batch).detach().numpy() - expected).max() < 1e-10


def test_only_the_last_norm_is_training_only() -> None:
    assert len(training_only_parts(mimicnorm().graph)) == 1
    assert not training_only_parts(mimicnorm(last_norm=False).graph)


@pytest.mark.parametrize("network", ["resnet20", "torchvision:squeezenet1_1"])
def test_no_tensor_is_stored_under_two_names(network: str) -> None:
    state = rewritten(network, (3, 64, 64), DEFAULTS["mimicnorm"]).graph.state_dict()
    addresses = [value.data_ptr() for value in state.values()]
    assert len(addresses) == len(set(addresses))


def test_parameter_count_and_biases() -> None:
    """ResNet-20: 267,696 + 688 of convolutions and their biases, 9 scales, 650 of the
    classifier."""
    training = mimicnorm()
    assert sum(p.numel() for p in training.graph.parameters()) == 267_696 + 688 + 9 + 650
    biases = [p for name, p in training.graph.named_parameters() if name.endswith("bias")]
    assert len(biases) == 20
    assert not any(p.any() for p in biases)


def test_decay_on_everything_or_on_weights() -> None:
    (everything,) = mimicnorm().rules.parameter_groups
    assert everything.weight_decay == 5e-4
    decayed, free = mimicnorm(decay_on="weights").rules.parameter_groups
    assert (decayed.weight_decay, free.weight_decay) == (5e-4, 0.0)
    assert len(decayed.parameters) == 20
    assert len(free.parameters) == 20 + 9
    assert len(everything.parameters) == 49


class PeakOfLogits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 10, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.flatten(F.max_pool2d(self.convs(x), 14), 1)


def test_logits_that_are_no_average_are_refused() -> None:
    def rewrite(**changes: object) -> RewrittenGraph:
        graph = trace(PeakOfLogits(), Normalise((128.0,) * 3, (64.0,) * 3), (3, 16, 16), 10)
        return method_from_options(options(**changes)).rewrite(graph, torch.Generator().manual_seed(0))

    with pytest.raises(UsageError, match=r"'max_pool2d' stands between the classifier and the logits.*method\.last_norm: false"):
        rewrite()
    assert rewrite(last_norm=False).graph(images(2, (3, 16, 16))).shape == (2, 10)
