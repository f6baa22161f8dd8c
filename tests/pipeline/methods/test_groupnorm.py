"""The formula is compared with NumPy in float64, written from the paper.

A file may hold what this graph needs, and no more.
"""

import copy
from collections import Counter

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from graphs import DEFAULTS, images, rewritten, scatter
from onnx import helper
from torch import nn

from deploy.compare.budget import ErrorMeter, budget
from export.errors import UsageError
from export.graph import Normalise, trace
from export.graph.fold import fold
from export.graph.layers import not_foldable_parts, training_only_parts
from export.onnx import NotFoldedError, onnx_from_graph, operations_beyond_plain, require_folded_form
from pipeline.config.methods import GroupnormOptions
from pipeline.methods import RewrittenGraph, method_from_options
from pipeline.methods.groupnorm import GroupNormLayer

SHAPE = (3, 32, 32)
SMALL = (1, 8, 8)


def groupnorm(network: str = "resnet20", shape: tuple[int, int, int] = SHAPE, **changes: object) -> RewrittenGraph:
    return rewritten(network, shape, GroupnormOptions.model_validate({"name": "groupnorm", **changes}))


def groups_of(training: RewrittenGraph) -> Counter[tuple[int, int]]:
    """How many norms have how many channels in how many groups."""
    norms = [part.norm for part in training.graph.modules() if isinstance(part, GroupNormLayer)]
    return Counter((norm.num_channels, norm.num_groups) for norm in norms)


@pytest.mark.parametrize(("shape", "groups"), [((4, 6, 5, 3), 3), ((4, 6, 5, 3), 1), ((2, 8), 4)])
def test_it_is_the_papers_formula(shape: tuple[int, ...], groups: int) -> None:
    """mu and sigma over (C / G, H, W) of each sample and group; y = gamma x^ + beta.

    gamma and beta are per channel.
    """
    torch.manual_seed(0)
    like = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(shape[1], eps=1e-3)
    layer = GroupNormLayer(groups, like).double()
    with torch.no_grad():
        layer.norm.weight.normal_()
        layer.norm.bias.normal_()
    x = torch.randn(shape, dtype=torch.float64) * 3 + 2
    grouped = x.numpy().reshape(shape[0], groups, -1)
    mean, variance = grouped.mean(axis=2, keepdims=True), grouped.var(axis=2, keepdims=True)
    per_channel = (1, -1, *[1] * (len(shape) - 2))
    gamma, beta = (each.detach().numpy().reshape(per_channel) for each in (layer.norm.weight, layer.norm.bias))
    expected = gamma * ((grouped - mean) / np.sqrt(variance + 1e-3)).reshape(shape) + beta
    for form in (layer.train(), layer.eval(), layer.written_out()):
        assert np.abs(form(x).detach().numpy() - expected).max() < 1e-12


def test_without_affine_nothing_is_multiplied_in() -> None:
    layer = GroupNormLayer(2, nn.BatchNorm2d(6, affine=False))
    x = torch.randn(3, 6, 4, 4, dtype=torch.float64)
    assert (layer.written_out()(x) - layer(x)).abs().max() < 1e-12
    assert layer.onnx_operations == {"Sqrt": 1, "Mul": 1}


def test_a_sample_does_not_see_its_batch() -> None:
    training = groupnorm()
    assert not training_only_parts(training.graph)
    graph = training.graph.double().train()
    batch = images(4, SHAPE)
    assert (graph(batch)[:1] - graph(batch[:1])).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {(16, 16): 7, (32, 32): 6, (64, 32): 6}),
        ({"size": 8}, {(16, 8): 7, (32, 8): 6, (64, 8): 6}),
        ({"size": 16, "group_by": "channels"}, {(16, 1): 7, (32, 2): 6, (64, 4): 6}),
        ({"size": 24, "group_by": "channels"}, {(16, 1): 7, (32, 2): 6, (64, 4): 6}),
    ],
)
def test_the_number_of_groups(changes: dict[str, object], expected: dict[tuple[int, int], int]) -> None:
    options = GroupnormOptions.model_validate({"name": "groupnorm", **changes})
    assert groups_of(rewritten("resnet20", SHAPE, options)) == expected


def test_where_32_does_not_divide_the_next_smaller_divisor_counts() -> None:
    found = groups_of(groupnorm("torchvision:shufflenet_v2_x0_5", (3, 64, 64)))
    assert set(found) == {(24, 24), (48, 24), (96, 32), (1024, 32)}


def test_every_norm_is_replaced_and_listed() -> None:
    training = groupnorm("torchvision:resnet18", (3, 64, 64))
    parts = not_foldable_parts(training.graph)
    assert len(parts) == 20
    assert {part.summary for part in parts.values()} == {"group normalisation, statistics of each sample"}
    assert not [layer for layer in training.graph.modules() if isinstance(layer, (nn.BatchNorm2d, nn.BatchNorm1d))]


class NormOfFeatures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.norm, self.classifier = nn.Linear(64, 12), nn.BatchNorm1d(12), nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.relu(self.norm(self.hidden(torch.flatten(x, 1)))))


def test_groups_of_one_value_are_refused() -> None:
    def rewrite(**changes: object) -> RewrittenGraph:
        graph = trace(NormOfFeatures(), Normalise((128.0,), (64.0,)), SMALL, 10)
        options = GroupnormOptions.model_validate({"name": "groupnorm", **changes})
        return method_from_options(options).rewrite(graph, torch.Generator().manual_seed(0))

    with pytest.raises(UsageError, match=r"norm 'network\.norm' would have 12 groups of one value each.*its 12 channels"):
        rewrite()
    training = rewrite(size=4)
    batch = images(3, SMALL)
    assert torch.equal(training.graph.train()(batch), fold(training.graph)(batch))


def test_a_network_without_norms_is_refused() -> None:
    with pytest.raises(UsageError, match="method groupnorm replaces norms, and the network has none"):
        groupnorm("torchvision:squeezenet1_1", (3, 64, 64))


def file_of(training: RewrittenGraph) -> onnx.ModelProto:
    return onnx.load_from_string(onnx_from_graph(fold(training.graph), SMALL, {}))


def test_the_file_holds_the_norms_and_no_more_than_they_need() -> None:
    training = groupnorm("small", SMALL)
    scatter(training)
    allowed = operations_beyond_plain(training.graph)
    assert allowed == {"Sqrt": 7, "Mul": 14}
    model = file_of(training)
    require_folded_form(model, allowed)
    model.graph.node.append(helper.make_node("Mul", ["image", "image"], ["unused"]))
    with pytest.raises(NotFoldedError, match=r"operations \['Mul'\]"):
        require_folded_form(model, allowed)


def test_large_and_nearly_constant_maps_stay_inside_the_budget() -> None:
    """A white image: the variance of its maps is that of their borders, small against the mean.

    Sums of a whole map lose it.
    """
    shape = (3, 160, 160)
    training = groupnorm("small", shape)
    scatter(training)
    folded, batch = fold(training.graph), images(2, shape)
    batch[0] = 255
    with torch.no_grad():
        ours, reference = folded(batch).numpy(), copy.deepcopy(folded).double()(batch).numpy()
    meters = []
    for outputs in (ours, run_on_onnxruntime(onnx_from_graph(folded, shape, {}), batch)):
        meter = ErrorMeter()
        meter.update({"logits": reference}, {"logits": outputs})
        meters.append(meter.result)
    allowed = budget(meters[0], "float32", "float32")
    assert allowed is not None
    assert allowed.covers(meters[1])


def run_on_onnxruntime(file: bytes, batch: torch.Tensor) -> npt.NDArray[np.float32]:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": batch.numpy()})[0])


def test_what_one_graph_may_hold_no_other_may() -> None:
    model = file_of(groupnorm("small", SMALL))
    folded = fold(rewritten("small", SMALL, DEFAULTS["czmig"]).graph)
    assert not operations_beyond_plain(folded)
    for beyond in (operations_beyond_plain(folded), Counter[str]()):
        with pytest.raises(NotFoldedError, match=r"operations \['Mul', 'Sqrt'\]"):
            require_folded_form(model, beyond)
    with pytest.raises(NotFoldedError, match=r"operations \['Mul', 'Sqrt'\]"):
        require_folded_form(model)
