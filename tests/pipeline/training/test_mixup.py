"""Mixup: its places in the graph, what it computes, its draws and its loss.

Nothing is left where it does not act.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from graphs import DEFAULTS, NUM_CLASSES, images, rewritten
from torch import nn
from torch.fx import GraphModule

from export.errors import UsageError
from export.graph.fold import fold
from export.graph.layers import training_only_parts, training_only_parts_off
from export.onnx import onnx_from_graph
from pipeline.config import parse_config
from pipeline.config.sections import Mixup as MixupOptions
from pipeline.config.sections import Training
from pipeline.methods import METHODS
from pipeline.methods.method import RewrittenGraph
from pipeline.training.mixup import Mixer, Mixing, Mixup, draw, insert_mixup, mixed_loss, mixed_num_correct
from pipeline.training.step import TrainingStep
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
    """Return the node after which each place is inserted."""
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
    # Pixels are whole, and the normalisation is (p - 128) / 64, so nothing is rounded in either
    # way.
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


CPU = torch.device("cpu")
HIDDEN = MixupOptions(alpha=6.0, where="hidden", hidden_at="units")


def test_a_draw_depends_on_seed_and_batch_alone() -> None:
    first = draw(3, 7, 1.0, 4, 16)
    np.random.default_rng(0).random()
    torch.rand(5)
    again = draw(3, 7, 1.0, 4, 16)
    assert first[:2] == again[:2]
    assert np.array_equal(first[2], again[2])
    others = [draw(3, 8, 1.0, 4, 16), draw(4, 7, 1.0, 4, 16)]
    assert len({first[0], *(other[0] for other in others)}) == 3
    assert not any(np.array_equal(first[2], other[2]) for other in others)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 6.0])
def test_shares_are_those_of_a_beta_distribution(alpha: float) -> None:
    """Mean 1/2 and variance 1 / (4 (2 alpha + 1)).

    Ten standard errors of 4,000 draws are allowed.
    """
    shares = np.array([draw(0, batch, alpha, 1, 2)[0] for batch in range(4000)])
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(shares.mean() - 0.5) < 10 * np.sqrt(variance / 4000)
    fourth = np.mean((shares - 0.5) ** 4)
    assert abs(shares.var() - variance) < 10 * np.sqrt((fourth - variance**2) / 4000)


def test_places_and_partners_are_drawn_evenly() -> None:
    drawn = [draw(0, batch, 1.0, 4, 6) for batch in range(4000)]
    counts = np.bincount([place for _, place, _ in drawn], minlength=4)
    assert len(counts) == 4
    assert abs(counts - 1000).max() < 10 * np.sqrt(4000 * 0.25 * 0.75)
    partners = np.stack([each for _, _, each in drawn])
    assert np.array_equal(np.sort(partners, axis=1), np.tile(np.arange(6), (4000, 1)))
    of_the_first = np.bincount(partners[:, 0], minlength=6)
    assert abs(of_the_first - 4000 / 6).max() < 10 * np.sqrt(4000 * 5 / 36)


def cross_entropy(logits: "np.ndarray[tuple[int, int], np.dtype[np.float64]]", labels: list[int], smoothing: float) -> float:
    """The mean over samples of - sum_k q_k log p_k.

    q is 1 at the label and then smoothed towards 1/K.
    """
    exponentials = np.exp(logits)
    log_p = np.log(exponentials / exponentials.sum(axis=1, keepdims=True))
    wanted = (1 - smoothing) * np.eye(logits.shape[1])[labels] + smoothing / logits.shape[1]
    return float(-(wanted * log_p).sum(axis=1).mean())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_both_labels_with_their_shares(smoothing: float) -> None:
    logits = torch.linspace(-2, 2, 20, dtype=torch.float64).reshape(4, 5).sin() * 3
    labels, partners = [0, 3, 1, 4], [2, 0, 3, 1]
    own, other = cross_entropy(logits.numpy(), labels, smoothing), cross_entropy(logits.numpy(), [labels[n] for n in partners], smoothing)
    loss = mixed_loss(logits, torch.tensor(labels), Mixing(0.7, torch.tensor(partners)), smoothing)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(0.7 * own + 0.3 * other, rel=1e-14)
    assert mixed_loss(logits, torch.tensor(labels), None, smoothing).item() == pytest.approx(own, rel=1e-14)


def test_a_right_answer_counts_as_much_as_its_label_has_in_the_sample() -> None:
    logits = torch.eye(4, dtype=torch.float64)  # answers 0, 1, 2, 3
    labels, partners = torch.tensor([0, 0, 2, 2]), torch.tensor([1, 0, 3, 2])
    mixing = Mixing(0.75, partners)  # a count is a float32, in which these are exact
    assert mixed_num_correct(logits, labels, mixing).item() == 0.75 * 2 + 0.25 * 2
    assert mixed_num_correct(logits, torch.tensor([0, 1, 2, 2]), mixing).item() == 0.75 * 3 + 0.25 * 1
    assert mixed_num_correct(logits, labels, None) == 2


def network(options: MixupOptions) -> RewrittenGraph:
    rewrite = rewritten("resnet20", (3, 32, 32), DEFAULTS["nonorm"])
    insert_mixup(rewrite.graph, options)
    return rewrite


def test_one_place_mixes_while_it_lasts_and_none_afterwards() -> None:
    graph = network(HIDDEN).graph
    mixer = Mixer(graph, Training(mixup=HIDDEN, seed=5))
    for batch in range(5):
        share, place, partners = draw(5, batch, 6.0, 10, 8)
        with mixer.mixing(batch, 8, CPU) as mixing:
            assert mixing is not None
            assert mixing.share == share
            assert mixing.partners.tolist() == partners.tolist()
            assert [n for n in range(10) if graph.get_submodule(f"mixup_{n + 1}").mixing is not None] == [place]
        assert all(graph.get_submodule(f"mixup_{n + 1}").mixing is None for n in range(10))


def test_the_step_mixes_images_and_loss_alike() -> None:
    """With mixup at the images, a step on a batch is a step on the mixed batch under the mixed
    loss."""
    options = Training(mixup=MixupOptions(alpha=1.0), seed=2, label_smoothing=0.1)
    step = TrainingStep(network(options.mixup), options, CPU, None)
    step.graph.train()
    batch, labels = images(6, (3, 32, 32)), torch.tensor([0, 1, 2, 3, 4, 5])
    share, _, partners = draw(2, 11, 1.0, 1, 6)
    loss, num_correct = step.backward(batch, labels, 11).read()
    mixed = share * batch.double() + (1 - share) * batch.double()[partners]
    logits = step.graph(mixed.float()).detach().double()
    own, other = (cross_entropy(logits.numpy(), each.tolist(), 0.1) for each in (labels, labels[partners]))
    expected = share * own + (1 - share) * other
    assert loss == pytest.approx(expected, rel=1e-5)  # float32 against float64
    assert 0 <= num_correct <= 6


@pytest.mark.parametrize(("in_graph", "alpha"), [(True, 0.0), (False, 1.0)])
def test_places_without_options_and_options_without_places_are_a_bug(in_graph: bool, alpha: float) -> None:
    graph = network(HIDDEN).graph if in_graph else nn.Identity()
    with pytest.raises(ValueError, match="places in the graph"):
        Mixer(graph, Training(mixup=MixupOptions(alpha=alpha)))
