"""TensorFloat-32 keeps 11 bits of each factor. On the grid no factor needs more: same bits.

The rounding of TF32 is done here on the CPU, in front of every layer. The rest is float32.
"""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from deploy.certificate.walk import certificate_of
from export.exact import rewrite
from export.exact.calibration import calibrate, coarsen_steps
from export.exact.dialects import exact_onnx, exact_tensorrt_onnx
from export.exact.grid import GridBits, off_grid
from export.exact.rewrite import grid_graph
from export.graph.fold import fold
from pipeline.config import parse_config
from pipeline.training_graph import ImageFacts, training_graph

SHAPE, CLASSES = (3, 32, 32), 10
NETWORKS = ("small", "resnet20", "wrn-10-1", "resnet18", "preactresnet18", "vgg11", "squeezenet", "shufflenetv2_x0_5", "mobilenetv2")
DROPPED = 13
"""How many of the 23 bits behind the leading bit are dropped."""


def in_tf32(values: torch.Tensor) -> torch.Tensor:
    """The values rounded half to even, as the hardware's conversion rounds."""
    bits = values.contiguous().view(torch.int32)
    half = (1 << (DROPPED - 1)) - 1 + ((bits >> DROPPED) & 1)
    return ((bits + half) >> DROPPED << DROPPED).view(torch.float32)


def with_tf32_products(graph: GraphModule, images: torch.Tensor) -> torch.Tensor:
    for layer in graph.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.weight.data = in_tf32(layer.weight.data)
            layer.register_forward_pre_hook(lambda _, inputs: tuple(map(in_tf32, inputs)))
    logits: torch.Tensor = graph(images)
    return logits


def folded(network: str, shape: tuple[int, int, int] = SHAPE) -> tuple[GraphModule, torch.Tensor]:
    """A network on the grid with initial weights, and some images."""
    config = parse_config({"network": {"name": network}, "method": {"name": "mimicnorm"}})
    torch.manual_seed(0)
    graph = training_graph(config, ImageFacts(shape, CLASSES, (128.0,) * shape[0], (64.0,) * shape[0])).graph.eval()
    images = torch.randint(0, 256, (4, *shape), dtype=torch.uint8)
    grid = grid_graph(graph, shape, GridBits())
    calibrate(grid, lambda: [images])
    coarsen_steps(grid)
    return fold(grid.graph), images


def test_the_rounding_is_that_of_tf32() -> None:
    steps = torch.tensor([1.0, 1 + 2**-10, 1 + 2**-11, 1 + 3 * 2**-11, -(1 + 2**-11 + 2**-20), 2047.0, 2049.0, 2051.0])
    assert in_tf32(steps).tolist() == [1.0, 1 + 2**-10, 1.0, 1 + 2**-9, -(1 + 2**-10), 2047.0, 2048.0, 2052.0]


@pytest.mark.parametrize("network", NETWORKS)
def test_products_in_tf32_have_the_same_bits(network: str) -> None:
    graph, images = folded(network)
    with torch.inference_mode():
        assert torch.equal(graph(images).view(torch.int32), with_tf32_products(graph, images).view(torch.int32))


@pytest.mark.parametrize("size", [28, 36, 64])
def test_over_other_counts_too(size: int) -> None:
    graph, images = folded("resnet20", (3, size, size))
    with torch.inference_mode():
        assert torch.equal(graph(images).view(torch.int32), with_tf32_products(graph, images).view(torch.int32))


def test_a_classifier_behind_a_wide_pool_would_have_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewrite, "LARGEST_IN_TF32", 2**24)
    graph, images = folded("resnet20", (3, 64, 64))
    with torch.inference_mode():
        assert not torch.equal(graph(images), with_tf32_products(graph, images))


def test_off_the_grid_a_classifier_in_front_of_its_pool_is_the_same_function() -> None:
    """Compared in float64, where only the order of sums differs.

    One count is a power of two, and one is not.
    """
    for size in (32, 28):
        shape = (3, size, size)
        config = parse_config({"network": {"name": "resnet20"}, "method": {"name": "mimicnorm"}})
        torch.manual_seed(0)
        graph = training_graph(config, ImageFacts(shape, CLASSES, (128.0,) * 3, (64.0,) * 3)).graph.eval().double()
        images = torch.randint(0, 256, (4, *shape), dtype=torch.uint8)
        with torch.no_grad():
            before = graph(images)
            grid = grid_graph(graph, shape, GridBits())
            assert grid.layers[-1].positions == (size // 4) ** 2
            grid.pixels.register_forward_hook(lambda _, inputs, pixels: pixels.double())
            with off_grid(grid.graph):
                after = grid.graph(images)
        torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)


def test_both_files_say_that_tf32_may_stay_on(tmp_path: Path) -> None:
    config = parse_config({"network": {"name": "resnet20"}, "method": {"name": "mimicnorm"}})
    graph = training_graph(config, ImageFacts(SHAPE, CLASSES, (128.0,) * 3, (64.0,) * 3)).graph.eval()
    grid = grid_graph(graph, SHAPE, GridBits())
    calibrate(grid, lambda: [torch.randint(0, 256, (4, *SHAPE), dtype=torch.uint8)])
    coarsen_steps(grid)
    for write in (exact_onnx, exact_tensorrt_onnx):
        path = tmp_path / f"{write.__name__}.onnx"
        path.write_bytes(write(grid, SHAPE, CLASSES, {}))
        certificate = certificate_of(path)
        assert certificate.refusals == ()
        assert all(row.tf32_safe for row in certificate.layers)
