"""A copy of a training graph is trained like the graph itself, and separately from it.

Its rules hold its own parameters.
"""

import copy

import pytest
import torch

from pipeline.config import parse_config
from pipeline.methods import METHODS, RewrittenGraph
from pipeline.training.step import TrainingStep, seed_step
from pipeline.training_graph import ImageFacts, training_graph


def state(network: RewrittenGraph) -> dict[str, torch.Tensor]:
    named = (*network.graph.named_parameters(), *network.graph.named_buffers())
    return {name: value.detach().clone() for name, value in named}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("method", METHODS)
def test_a_copy_is_trained_by_the_same_rules(method: str) -> None:
    config = parse_config({"network": {"name": "resnet20"}, "method": {"name": method}, "training": {"learning_rate": 0.01}})
    network = training_graph(config, ImageFacts((3, 8, 8), 4, (128.0,) * 3, (64.0,) * 3))
    copied = copy.deepcopy(network)
    before = state(network)
    trained = {}
    for name, each in (("copy", copied), ("itself", network)):
        step = TrainingStep(each, config.training, torch.device("cpu"), autocast=None)
        step.set_learning_rate(0.01)
        each.graph.train()
        for number in range(2):
            seed_step(0, number)
            images = torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8)
            step.backward(images, torch.arange(8) % 4)
            step.update()
        trained[name] = state(each)
        assert same(state(network), before) == (name == "copy")
    assert same(trained["copy"], trained["itself"])
