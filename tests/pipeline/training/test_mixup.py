"""Mixup as a part of the graph: where it stands, what it computes, and that nothing of it is left where it does not act."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from graphs import DEFAULTS, NUM_CLASSES, images, rewritten
from torch.fx import GraphModule

from export.errors import UsageError
from export.fold import fold
from export.layers import training_only_parts, training_only_parts_off
from export.onnx import onnx_from_graph
from pipeline.config import parse_config
from pipeline.config.sections import Mixup as MixupOptions
from pipeline.methods import METHODS
from pipeline.training.mixup import Mixing, Mixup, insert_mixup
from pipeline.training_graph import ImageFacts, training_graph

SHAPE = (3, 32, 32)
Options = dict[str, object]
INPUT: Options = {"alpha": 1.0}
STAGES: Options = {"alpha": 6.0, "where": "hidden"}
UNITS: Options = {"alpha": 6.0, "where": "hidden", "hidden_at": "units"}


def mixed(network: str, method: str, options: Options, shape: tuple[int, int, int] = SHAPE) -> GraphModule:
    graph = rewritten(network, shape, DEFAULTS[method]).graph
    insert_mixup(graph, MixupOptions.model_validate(options))
    return graph


def places(graph: GraphModule) -> list[Mixup]:
    return [part for part in graph.modules() if isinstance(part, Mixup)]


def read_at(graph: GraphModule) -> list[str]:
    """Behind which node each place stands."""
    return [str(node.all_input_nodes[0]) for node in graph.graph.nodes if str(node.target).startswith("mixup_")]


@pytest.mark.parametrize("method", METHODS)
def test_the_places_are_the_images_and_the_starts_of_stages_or_units(method: str) -> None:
    assert read_at(mixed("resnet20", method, INPUT)) == ["normalise"]
    stages, units = read_at(mixed("resnet20", method, STAGES)), read_at(mixed("resnet20", method, UNITS))
    assert len(stages) == 1 + 2
    assert len(units) == 1 + 9
    assert [units[number] for number in (0, 4, 7)] == stages


def test_the_stages_of_manifold_mixup_in_a_larger_network() -> None:
    assert len(read_at(mixed("torchvision:resnet18", "batchnorm", STAGES, (3, 64, 64)))) == 1 + 3


def test_whoever_reads_a_unit_reads_it_mixed() -> None:
    graph = mixed("resnet20", "nonorm", UNITS)
    for node in graph.graph.nodes:
        if str(node.target).startswith("mixup_"):
            assert list(node.all_input_nodes[0].users) == [node]
            assert node.users


@pytest.mark.parametrize(
    ("network", "options", "remedy"),
    [
        ("torchvision:shufflenet_v2_x0_5", STAGES, "set where: input"),
        ("torchvision:shufflenet_v2_x0_5", UNITS, "set where: input"),
        ("torchvision:mobilenet_v2", STAGES, "set hidden_at: units, or where: input"),
    ],
)
def test_a_network_without_such_places_is_refused_in_one_line(network: str, options: Options, remedy: str) -> None:
    with pytest.raises(UsageError, match=r"training\.mixup mixes in front of residual units.*no such residual unit") as caught:
        mixed(network, "nonorm", options, (3, 64, 64))
    assert str(caught.value).endswith(remedy)
    assert "\n" not in str(caught.value)


def values_at(graph: GraphModule, batch: torch.Tensor, place: Mixup) -> tuple[torch.Tensor, torch.Tensor]:
    """What goes into a place and what comes out."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def note(_: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        seen.append((inputs[0], output))

    with place.register_forward_hook(note):
        graph(batch)
    ((before, after),) = seen
    return before, after


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_place_computes_the_papers_formula_and_the_others_nothing(number: int) -> None:
    graph = mixed("resnet20", "nonorm", STAGES).double().train()
    partners, share = [2, 0, 3, 1], 0.3
    chosen = places(graph)[number]
    chosen.mixing = Mixing(share, torch.tensor(partners))
    for place in places(graph):
        before, after = (value.detach().numpy() for value in values_at(graph, images(4, SHAPE), place))
        expected = share * before + (1 - share) * before[partners] if place is chosen else before
        assert before.dtype == np.float64
        assert np.array_equal(after, expected)
        assert np.array_equal(after, before) == (place is not chosen)


def test_mixing_behind_the_normalisation_is_mixing_the_images() -> None:
    graph = mixed("small", "nonorm", INPUT).double().train()
    batch, partners = images(4, SHAPE), [1, 0, 3, 2]
    of_mixed_images = graph(0.25 * batch.double() + 0.75 * batch.double()[partners])
    places(graph)[0].mixing = Mixing(0.25, torch.tensor(partners))
    # Pixels are whole, and the normalisation is (p - 128) / 64: nothing is rounded on either way.
    assert torch.equal(graph(batch), of_mixed_images)
    assert not torch.equal(of_mixed_images, graph.eval()(batch))


def _never(graph: GraphModule) -> None:
    graph.eval()


def _off(graph: GraphModule) -> None:
    for part in training_only_parts(graph).values():
        part.active = False


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("switch_off", [_never, _off], ids=["evaluation", "switched off"])
def test_where_it_does_not_act_the_bits_are_those_without_it(method: str, switch_off: Callable[[GraphModule], None]) -> None:
    graph, plain = mixed("resnet20", method, STAGES).train(), rewritten("resnet20", SHAPE, DEFAULTS[method]).graph.train()
    batch = images(4, SHAPE)
    for place in places(graph):
        place.mixing = Mixing(0.5, torch.tensor([1, 2, 3, 0]))
    switch_off(graph)
    switch_off(plain)
    assert torch.equal(graph(batch), plain(batch))


def test_without_a_mixing_the_training_graph_passes_the_batch_on() -> None:
    graph, plain = mixed("resnet20", "nonorm", STAGES).train(), rewritten("resnet20", SHAPE, DEFAULTS["nonorm"]).graph.train()
    assert torch.equal(graph(images(4, SHAPE)), plain(images(4, SHAPE)))


@pytest.mark.parametrize("method", METHODS)
def test_it_leaves_no_trace_in_the_folded_graph(method: str) -> None:
    graph, plain = mixed("resnet20", method, UNITS), rewritten("resnet20", SHAPE, DEFAULTS[method]).graph
    assert list(graph.state_dict()) == list(plain.state_dict())
    assert {"mixup_1", "mixup_10"} <= set(training_only_parts(graph))
    folded, expected = fold(graph), fold(plain)
    assert [(node.name, node.op, str(node.target)) for node in folded.graph.nodes] == [
        (node.name, node.op, str(node.target)) for node in expected.graph.nodes
    ]
    assert torch.equal(folded(images(4, SHAPE)), expected(images(4, SHAPE)))


def test_the_exported_file_is_the_same_to_the_byte() -> None:
    graph, plain = mixed("small", "czmig", UNITS), rewritten("small", SHAPE, DEFAULTS["czmig"]).graph
    assert onnx_from_graph(fold(graph), SHAPE, {}) == onnx_from_graph(fold(plain), SHAPE, {})


def test_the_config_puts_it_in_and_the_report_can_name_it() -> None:
    config = parse_config("network: {name: resnet20}\nmethod: {name: nonorm}\ntraining: {mixup: {alpha: 6, where: hidden}}")
    graph = training_graph(config, ImageFacts(SHAPE, NUM_CLASSES, (0.0,) * 3, (1.0,) * 3)).graph
    parts = training_only_parts(graph)
    assert list(parts) == ["mixup_1", "mixup_2", "mixup_3"]
    assert parts["mixup_1"].summary.startswith("mixup with alpha 6: ")
    with training_only_parts_off(graph):
        assert torch.equal(graph.train()(images(2, SHAPE)), graph.eval()(images(2, SHAPE)))
