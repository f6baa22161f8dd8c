import torch
from graphs import images, rewritten

from pipeline.config.methods import CzmigOptions, CzmiOptions

SHAPE = (3, 32, 32)


def test_it_is_czmig_with_the_same_start_and_gradients_left_as_they_are() -> None:
    czmi = rewritten("resnet20", SHAPE, CzmiOptions(name="czmi", noise=0.0, luma=1e-3))
    czmig = rewritten("resnet20", SHAPE, CzmigOptions(name="czmig", noise=0.0, luma=1e-3, zmg=0.5))
    assert czmi.graph.state_dict().keys() == czmig.graph.state_dict().keys()
    for one, other in zip(czmi.graph.parameters(), czmig.graph.parameters(), strict=True):
        assert torch.equal(one, other)
    batch = images(4, SHAPE)
    changed = []
    for training in (czmi, czmig):
        training.graph(batch).square().sum().backward()
        before = [p.grad.clone() for p in training.graph.parameters() if p.grad is not None]
        training.rules.correct_gradients()
        after = [p.grad for p in training.graph.parameters() if p.grad is not None]
        changed.append(sum(not torch.equal(one, other) for one, other in zip(before, after, strict=True)))
    assert changed == [0, 18]
    assert czmi.rules.add_penalty_gradient() == czmig.rules.add_penalty_gradient()


def test_options_reach_the_rewrite() -> None:
    assert set(CzmiOptions.model_fields) == set(CzmigOptions.model_fields) - {"zmg", "zmg_form"}
    quiet = rewritten("resnet20", SHAPE, CzmiOptions(name="czmi", noise=0.0, biases="all"))
    assert sum(name.endswith("bias") for name, _ in quiet.graph.named_parameters()) == 20
    assert not [node for node in quiet.graph.graph.nodes if str(node.target).startswith("noise_")]
