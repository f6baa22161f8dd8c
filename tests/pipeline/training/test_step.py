"""The step: the update against the formula, the order of the rules, the rate shares, the seeds."""

from collections.abc import Sequence

import pytest
import torch
from torch import nn
from torch.fx import GraphModule, symbolic_trace
from torch.nn import functional as F

from pipeline.config.sections import Training
from pipeline.methods.method import ParameterGroup, RewrittenGraph, TrainingRules
from pipeline.training.step import TrainingStep, seed_step


class _Spy(TrainingRules):
    """Records when it is called, and the first weight at that time."""

    def __init__(self, graph: GraphModule) -> None:
        weights = tuple(p for name, p in graph.named_parameters() if name.endswith("weight"))
        biases = tuple(p for name, p in graph.named_parameters() if name.endswith("bias"))
        self.groups = (
            ParameterGroup(name="weights", parameters=weights, weight_decay=0.01),
            ParameterGroup(name="biases", parameters=biases, rate_share=0.25),
            ParameterGroup(name="none", parameters=()),
        )
        self.calls: list[str] = []
        self.before = weights[0].detach().clone()

    @property
    def parameter_groups(self) -> Sequence[ParameterGroup]:
        return self.groups

    def add_penalty_gradient(self) -> torch.Tensor:
        self._note("penalty")
        return torch.tensor(3.0)

    def correct_gradients(self) -> None:
        self._note("correct")

    def project(self) -> None:
        self._note("project")

    def _note(self, name: str) -> None:
        first = self.groups[0].parameters[0]
        assert first.grad is not None
        self.calls.append(f"{name} {'before' if torch.equal(first, self.before) else 'after'} the update")


def _step(options: Training) -> tuple[TrainingStep, _Spy]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    graph = symbolic_trace(network).to(memory_format=torch.channels_last)
    rules = _Spy(graph)
    return TrainingStep(RewrittenGraph(graph, rules), options, torch.device("cpu"), None), rules


IMAGES, LABELS = torch.linspace(-1, 1, 5 * 2 * 16).reshape(5, 2, 4, 4), torch.tensor([0, 1, 2, 0, 1])


def test_the_rules_are_called_in_the_documented_order() -> None:
    step, rules = _step(Training(learning_rate=0.1))
    step.backward(IMAGES, LABELS)
    assert step.update() == 3.0
    assert rules.calls == ["penalty before the update", "correct before the update", "project after the update"]


def test_the_figures_are_those_of_the_batch() -> None:
    step, _ = _step(Training())
    logits = step.graph(IMAGES)
    loss, num_correct = step.backward(IMAGES, LABELS).read()
    assert loss == F.cross_entropy(logits, LABELS).item()
    assert num_correct == (logits.argmax(1) == LABELS).sum()


def test_label_smoothing_reaches_the_loss() -> None:
    step, _ = _step(Training(label_smoothing=0.2))
    expected = F.cross_entropy(step.graph(IMAGES), LABELS, label_smoothing=0.2)
    assert step.backward(IMAGES, LABELS).read()[0] == expected.item()


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_update_is_sgd_with_momentum_decay_and_shares(nesterov: bool) -> None:
    step, rules = _step(Training(learning_rate=0.1, momentum=0.9, nesterov=nesterov))
    parameters = [(group, p) for group in rules.groups for p in group.parameters]
    expected = [p.detach().double().clone() for _, p in parameters]
    velocity = [torch.zeros_like(value) for value in expected]
    for rate in (0.1, 0.05):
        step.set_learning_rate(rate)
        step.backward(IMAGES, LABELS)
        for (group, p), value, v in zip(parameters, expected, velocity, strict=True):
            assert p.grad is not None
            gradient = p.grad.double() + group.weight_decay * value
            v.mul_(0.9).add_(gradient)
            value.sub_(rate * group.rate_share * (gradient + 0.9 * v if nesterov else v))
        step.update()
    # float32 against float64: two steps of a handful of roundings each, on values of size one
    for (_, p), value in zip(parameters, expected, strict=True):
        torch.testing.assert_close(p.detach().double(), value, rtol=0, atol=2e-7)


def test_channels_last_weights_are_updated_like_contiguous_ones() -> None:
    last, _ = _step(Training())
    plain, _ = _step(Training())
    plain.graph.to(memory_format=torch.contiguous_format)
    assert last.graph.get_parameter("0.weight").stride() != plain.graph.get_parameter("0.weight").stride()
    for step in (last, plain):
        for parameter in step.graph.parameters():
            parameter.grad = torch.empty_like(parameter).copy_(torch.arange(parameter.numel()).reshape(parameter.shape))
        step.update()
    for one, other in zip(last.graph.parameters(), plain.graph.parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_a_step_draws_depends_on_seed_and_step_alone() -> None:
    drawn: dict[tuple[int, int], float] = {}
    for seed, number in [(0, 0), (0, 1), (1, 0), (0, 1)]:
        torch.rand(number + 3)
        seed_step(seed, number)
        value = torch.rand(1).item()
        assert drawn.setdefault((seed, number), value) == value
    assert len(set(drawn.values())) == 3


def test_bfloat16_is_used_in_the_forward_pass_only_where_asked() -> None:
    step, _ = _step(Training())
    with step.autocast():
        assert step.graph(IMAGES).dtype == torch.float32
    half = TrainingStep(RewrittenGraph(step.graph, step.rules), Training(), torch.device("cpu"), torch.bfloat16)
    with half.autocast():
        assert half.graph(IMAGES).dtype == torch.bfloat16
