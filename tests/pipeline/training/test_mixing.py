"""What mixup draws and makes of the loss: the distribution, the literal formula in float64, and that (seed, batch) decide alone."""

import numpy as np
import pytest
import torch
from graphs import DEFAULTS, images, rewritten
from torch import nn

from pipeline.config.sections import Mixup as MixupOptions
from pipeline.config.sections import Training
from pipeline.methods.base import RewrittenGraph
from pipeline.training.mixup import Mixer, Mixing, draw, insert_mixup, mixed_loss, mixed_num_correct
from pipeline.training.step import TrainingStep

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
    """Mean 1/2 and variance 1 / (4 (2 alpha + 1)); ten standard errors of 4,000 draws are allowed."""
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
    """The mean over samples of - sum_k q_k log p_k, q being 1 at the label and then smoothed towards 1/K."""
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
    """With mixup at the images a step on a batch is a step on the mixed batch under the mixed loss."""
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
