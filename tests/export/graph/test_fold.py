"""The training graph with its noise off, the evaluation graph and the folded graph agree in bits.

They do so before and after training. `test_every_pair.py` tests all pairs of method and network.
"""

import copy
from functools import lru_cache

import pytest
import torch
from graphs import DEFAULTS, NOT_FOLDABLE, REFUSED, STARTS_AT_ZERO, Shape, images, rewrite, rewritten, scatter, step, traced
from torch import nn

from export.graph.fold import fold
from export.graph.layers import FoldableLayer, TrainingPart, not_foldable_parts, training_only_parts_off
from pipeline.methods import METHODS

NETWORKS = [
    ("small", (1, 8, 8)),
    ("resnet20", (3, 32, 32)),
    ("preactresnet18", (3, 8, 8)),
    *((f"torchvision:{name}", (3, 48, 48)) for name in ("resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "squeezenet1_1")),
]
PAIRS = [(method, network, shape) for network, shape in NETWORKS for method in METHODS]
traced_once = lru_cache(maxsize=1)(traced)


@pytest.mark.parametrize(("method", "network", "shape"), [pair for pair in PAIRS if pair[1] not in REFUSED.get(pair[0], ())])
@pytest.mark.parametrize("trained", [False, True])
def test_training_evaluation_and_folded_graph_have_the_same_bits(method: str, network: str, shape: Shape, trained: bool) -> None:
    training = rewrite(copy.deepcopy(traced_once(network, shape)), DEFAULTS[method])
    if trained:
        step(training, images(4, shape), rate=1e-3)
        scatter(training)
    batch = images(2, shape, seed=1)
    folded = fold(training.graph)
    training.graph.train()
    with training_only_parts_off(training.graph):
        with_gradients = training.graph(batch)
        with torch.no_grad():
            without_gradients = training.graph(batch)
    evaluation = training.graph.eval()(batch)
    with torch.inference_mode():
        deployed = folded(batch)
    assert torch.isfinite(deployed).all()
    assert deployed.std() > 0 or (method in STARTS_AT_ZERO and not trained)
    for other in (with_gradients, without_gradients, evaluation):
        assert torch.equal(other, deployed)


@pytest.mark.parametrize("method", METHODS)
def test_only_plain_layers_are_left(method: str) -> None:
    training = rewritten("resnet20", (3, 32, 32), DEFAULTS[method])
    folded = fold(training.graph)
    assert not [m for m in folded.modules() if isinstance(m, (FoldableLayer, TrainingPart, nn.BatchNorm2d))]
    assert bool(not_foldable_parts(folded)) == (method in NOT_FOLDABLE)
    assert not folded.training
    assert not any(parameter.requires_grad for parameter in folded.parameters())


def test_folding_leaves_the_training_graph_as_it_was() -> None:
    training = rewritten("small", (1, 8, 8), DEFAULTS["czmig"])
    before = {name: value.clone() for name, value in training.graph.state_dict().items()}
    num_nodes = len(training.graph.graph.nodes)
    folded = fold(training.graph)
    folded.get_parameter("network.conv1.weight").data.zero_()
    assert len(training.graph.graph.nodes) == num_nodes
    assert all(torch.equal(value, before[name]) for name, value in training.graph.state_dict().items())
