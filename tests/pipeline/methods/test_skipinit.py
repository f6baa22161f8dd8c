import pytest
import torch
from graphs import images, rewritten, step
from torch import nn

from export.errors import UsageError
from export.graph.layers import training_only_parts
from pipeline.config.methods import SkipinitOptions
from pipeline.methods import RewrittenGraph
from pipeline.methods.branches import BranchScale

SHAPE = (3, 32, 32)


def skipinit(network: str = "resnet20", **changes: object) -> RewrittenGraph:
    shape = SHAPE if ":" not in network else (3, 64, 64)
    return rewritten(network, shape, SkipinitOptions.model_validate({"name": "skipinit", **changes}))


def scales(training: RewrittenGraph) -> list[torch.Tensor]:
    return [m.scale for m in training.graph.modules() if isinstance(m, BranchScale)]


@pytest.mark.parametrize(("network", "num_units"), [("resnet20", 9), ("torchvision:resnet50", 16), ("torchvision:mobilenet_v2", 10)])
def test_each_branch_has_a_scale(network: str, num_units: int) -> None:
    assert [scale.item() for scale in scales(skipinit(network))] == [0.0] * num_units
    inverse_root = [scale.item() for scale in scales(skipinit(network, initial_scale="inverse_root"))]
    assert inverse_root == pytest.approx([num_units**-0.5] * num_units, rel=1e-6)


def test_a_network_starts_as_its_shortcuts() -> None:
    """With scales of zero no weight of a branch matters; after one step the scales have moved."""
    training = skipinit()
    batch = images(4, SHAPE)
    before = training.graph(batch)
    for layer in training.graph.modules():
        if isinstance(layer, BranchScale):
            nn.init.ones_(layer.weight)
    assert torch.equal(training.graph(batch), before)
    step(training, batch)
    assert all(scale != 0 for scale in scales(training))


def test_dropout_stands_in_front_of_the_classifier_where_asked() -> None:
    assert not training_only_parts(skipinit().graph)
    training = skipinit(dropout=0.6)
    (name,) = training_only_parts(training.graph)
    (classifier,) = (node for node in training.graph.graph.nodes if node.target == "network.classifier")
    assert [str(node.target) for node in classifier.all_input_nodes] == [name]


def test_networks_without_residual_branches_are_refused() -> None:
    with pytest.raises(UsageError, match="method skipinit scales residual branches, and the network has none"):
        skipinit("torchvision:squeezenet1_1")
