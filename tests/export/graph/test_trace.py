from collections.abc import Callable

import pytest
import torch
from graphs import images, traced
from torch import nn
from torch.nn import functional as F

from export.errors import UsageError
from export.graph import Dropout, Normalise, trace
from export.graph.layers import GlobalAveragePool

SHAPE = (3, 16, 16)


class Small(nn.Module):
    """A network whose middle is given."""

    def __init__(self, middle: Callable[[torch.Tensor], torch.Tensor], num_classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.middle = middle
        self.classifier = nn.Linear(8, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.middle(self.conv(x))
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def trace_small(middle: Callable[[torch.Tensor], torch.Tensor], num_classes: int = 10) -> torch.fx.GraphModule:
    return trace(Small(middle, num_classes), Normalise((128.0,) * 3, (64.0,) * 3), SHAPE, 10)


def test_a_traced_network_computes_what_the_network_computes() -> None:
    torch.manual_seed(0)
    network = Small(F.relu).eval()
    graph = trace(network, Normalise((1.0, 2.0, 3.0), (4.0, 5.0, 6.0)), SHAPE, 10).eval()
    batch = images(4, SHAPE)
    mean, deviation = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0])
    features = F.relu(network.conv((batch.float() - mean.view(1, 3, 1, 1)) / deviation.view(1, 3, 1, 1)))
    assert torch.equal(graph(batch), network.classifier(features.mean(3).mean(2)))


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: F.adaptive_avg_pool2d(x, 1),
        lambda x: F.adaptive_avg_pool2d(x, (1, 1)),
        nn.AdaptiveAvgPool2d(1),
        nn.AdaptiveAvgPool2d((1, 1)),
        lambda x: x.mean([2, 3]).reshape(-1, 8, 1, 1),
    ],
)
def test_a_global_pool_adds_up_rows_then_columns(pool: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Adding one value after another over a whole image, as runtimes do, has ten times the rounding
    error.

    The comparison is with training.
    """
    graph = trace_small(nn.Sequential(nn.ReLU()) if isinstance(pool, nn.Module) else F.relu)
    assert sum(isinstance(layer, GlobalAveragePool) for layer in graph.modules()) == 1
    x = torch.randn(2, 8, 6, 5)
    assert torch.equal(GlobalAveragePool()(x), x.mean(3, keepdim=True).mean(2, keepdim=True))
    two_pools = trace_small(pool)
    assert sum(isinstance(layer, GlobalAveragePool) for layer in two_pools.modules()) == 2
    assert not any("adaptive" in str(node.target) or node.target == "mean" for node in two_pools.graph.nodes if node.op != "call_module")


def test_tracing_leaves_running_statistics_as_they_were() -> None:
    graph = traced("small", (1, 8, 8))
    assert torch.equal(graph.get_buffer("network.bn1.running_var"), torch.ones(16))
    assert graph.get_buffer("network.bn1.num_batches_tracked") == 0


def test_no_operation_of_a_traced_network_writes_into_its_input() -> None:
    graph = trace_small(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(inplace=True)))
    assert not any(layer.inplace for layer in graph.modules() if isinstance(layer, nn.ReLU))

    def add_in_place(x: torch.Tensor) -> torch.Tensor:
        y = F.relu(x, inplace=True)
        y += x
        return y

    for rectify in (add_in_place, lambda x: F.relu(x, True), lambda x: F.relu6(x, inplace=True)):
        graph = trace_small(rectify)
        flags = [each for node in graph.graph.nodes for each in (*node.args, *node.kwargs.values()) if isinstance(each, bool)]
        assert not any(flags)
    graph = trace_small(add_in_place)
    assert "iadd" not in {getattr(node.target, "__name__", "") for node in graph.graph.nodes}


def test_dropout_can_be_switched_off_in_training_mode() -> None:
    graph = trace_small(nn.Sequential(nn.ReLU(), nn.Dropout(0.5))).train()
    (dropout,) = (layer for layer in graph.modules() if isinstance(layer, Dropout))
    batch = images(4, SHAPE)
    assert not torch.equal(graph(batch), graph(batch))
    dropout.active = False
    assert torch.equal(graph(batch), graph(batch))
    assert "0.5" in dropout.summary


@pytest.mark.parametrize(
    ("middle", "named"),
    [
        (torch.sigmoid, "sigmoid"),
        (nn.Sequential(nn.GELU()), "GELU at network.middle.0"),
        (nn.Sequential(nn.GroupNorm(2, 8)), "GroupNorm at network.middle.0"),
        (lambda x: x * 2, "mul"),
        (lambda x: x.exp(), ".exp()"),
        (
            nn.Sequential(nn.Conv2d(8, 8, 3, padding="same")),
            "at network.middle.0 has padding='same', padding_mode='zeros', expected numbers and zeros",
        ),
        (nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")), "padding_mode='reflect'"),
    ],
)
def test_what_is_no_plain_layer_is_refused_by_name(middle: Callable[[torch.Tensor], torch.Tensor], named: str) -> None:
    with pytest.raises(UsageError) as caught:
        trace_small(middle)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_branch_on_values_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot be traced"):
        trace_small(lambda x: x if x.sum() > 0 else F.relu(x))


def test_a_wrong_number_of_logits_is_refused() -> None:
    with pytest.raises(UsageError, match=r"returns \(2, 7\) for 2 images of 10 classes"):
        trace_small(F.relu, num_classes=7)


def test_images_too_small_for_the_network_are_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="cannot run on images of 3 x 16 x 16") as caught:
        trace_small(nn.Sequential(nn.MaxPool2d(32)))
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().err == ""


def test_a_pool_to_more_pixels_than_there_are_is_refused() -> None:
    with pytest.raises(UsageError, match="pools 16 x 16 pixels to 7 x 7"):
        trace_small(nn.Sequential(nn.AdaptiveAvgPool2d(7)))


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.conv(x)
        return x, x


def test_a_network_that_returns_more_than_logits_is_refused() -> None:
    with pytest.raises(UsageError, match="returns tuple, not one tensor of logits"):
        trace(TwoOutputs(), Normalise((0.0,) * 3, (1.0,) * 3), SHAPE, 10)
