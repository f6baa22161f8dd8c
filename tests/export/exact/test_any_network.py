"""Networks of supported layers with integers that the certificate allows agree everywhere in bits.

Any network and any such integers will do. Beyond the edge of the certificate they do not agree.
"""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import pytest
import torch
from exact_files import PIXEL_STEP, Sketch
from graphs import images
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from integer_evaluator import ROUNDINGS, evaluate
from numpy.typing import NDArray
from random_networks import CLASSES, Form, Head, Residual, SideBySide, forms, on_grid, single_convolutions
from torch import nn

from deploy.certificate.certificate import EXACT_BELOW
from deploy.certificate.walk import certificate_of
from deploy.runners.onnxruntime import OnnxRuntimeRunner, Optimisation
from deploy.runners.openvino import OpenVinoRunner
from export.exact.dialects import exact_onnx, exact_tensorrt_onnx
from export.exact.grid import GridGraph
from export.exact.writer import Convolution, sees_only_padding
from export.graph.fold import fold
from export.graph.layers import DerivedConv2d
from export.graph.rewriting import shape_of

Logits = NDArray[np.float32]
Batch = NDArray[np.uint8]
LEVELS: tuple[Optimisation, ...] = ("none", "basic", "extended", "all")
Threads = tuple[int, ...]
Pair = tuple[int, int]
FILES: tuple[tuple[Callable[..., bytes], tuple[Optimisation, ...], Threads], ...] = (
    (exact_onnx, LEVELS, (1, 2)),
    (exact_tensorrt_onnx, ("none", "all"), (1,)),
)
ALONE = slice(1, 2)
"""One image of the batch."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exact")


def bits(logits: Logits) -> bytes:
    return logits.tobytes()


def in_pytorch(grid: GridGraph, batch: torch.Tensor) -> Iterator[tuple[str, Logits]]:
    folded = fold(grid.graph)
    with torch.no_grad():
        yield "folded", folded(batch).numpy()
        yield "training", grid.graph.train()(batch).numpy()
        if not any(map(pytorch_fails_on, convolutions_of(grid))):
            yield "channels last", folded(batch.to(memory_format=torch.channels_last)).numpy()
        yield "float64", fold(grid.graph).double()(batch).float().numpy()


def convolutions_of(grid: GridGraph) -> Iterator[tuple[DerivedConv2d, Pair, Pair]]:
    """Each convolution, with the sizes of its input and output."""
    layers = {layer.name: layer.layer for layer in grid.layers}
    for node in grid.graph.graph.nodes:
        layer = layers.get(str(node.target))
        if isinstance(layer, DerivedConv2d):
            before, after = shape_of(node.all_input_nodes[0]), shape_of(node)
            yield layer, (before[2], before[3]), (after[2], after[3])


def pytorch_fails_on(convolution: tuple[DerivedConv2d, Pair, Pair]) -> bool:
    """Whether PyTorch 2.14's own float32 kernel for channels_last fails on this convolution.

    It gives wrong numbers (one channel in, one column out), or crashes on padding.
    """
    layer, before, after = convolution
    pads = layer.padding * 2
    form = Convolution(layer.derivation()[0].detach().numpy(), layer.groups, layer.stride, layer.dilation, (pads[0], pads[1], pads[2], pads[3]))
    return sees_only_padding(form, before) or (form.channels == 1 and form.kernel[1] > 1 and after[1] == 1)


def in_onnxruntime(path: Path, batch: Batch, levels: tuple[Optimisation, ...], threads: Threads) -> Iterator[tuple[str, Logits, Logits]]:
    """The logits of the whole batch, and of one image alone."""
    for level in levels:
        for number in threads:
            with OnnxRuntimeRunner(path, optimisation=level, threads=number) as runner:
                both = [runner.run({"image": rows})["logits"] for rows in (batch, batch[ALONE])]
            yield f"{path.name}, {level}, {number} threads", both[0], both[1]


def in_openvino(path: Path, batch: Batch) -> Logits:
    with OpenVinoRunner(path, threads=1) as runner:
        return runner.run({"image": batch})["logits"]


def in_reference(content: bytes, batch: Batch) -> Logits:
    with np.errstate(invalid="ignore"):  # it pads bytes with NaN in front of a max pool, which becomes 0, the lowest byte
        (logits,) = onnx.reference.ReferenceEvaluator(onnx.load_model_from_string(content)).run(None, {"image": batch})
    return np.asarray(logits)


def assert_the_same_bits_everywhere(folder: Path, form: Form, seed: int) -> None:
    grid, batch = on_grid(form, seed), images(3, form.image, seed=seed)
    found = dict(in_pytorch(grid, batch))
    wanted, rows = found["folded"], batch.numpy()
    for writer, levels, threads in FILES:
        path = folder / f"{writer.__name__}.onnx"
        path.write_bytes(content := writer(grid, form.image, CLASSES, {}))
        certificate = certificate_of(path)
        assert certificate.refusals == ()
        found |= {f"integers, {mode}, {path.name}": evaluate(content, rows, mode) for mode in ROUNDINGS}
        for name, together, alone in in_onnxruntime(path, rows, levels, threads):
            found[name] = together
            assert bits(alone) == bits(wanted[ALONE]), f"{name}, alone"
    content = (folder / "exact_onnx.onnx").read_bytes()
    if importlib.util.find_spec("openvino") is not None:
        found["OpenVINO"] = in_openvino(folder / "exact_onnx.onnx", rows)
    assert bits(in_reference(content, rows[ALONE])) == bits(wanted[ALONE]), "onnx's reference"
    assert {name for name, logits in found.items() if bits(logits) != bits(wanted)} == set()


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(forms(), st.integers(0, 2**31))
def test_every_network_has_the_same_bits_everywhere(folder: Path, form: Form, seed: int) -> None:
    assert_the_same_bits_everywhere(folder, form, seed)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(single_convolutions(), st.integers(0, 2**31))
def test_every_convolution_has_the_same_bits_everywhere(folder: Path, form: Form, seed: int) -> None:
    assert_the_same_bits_everywhere(folder, form, seed)


def _form(*blocks: nn.Module, channels: int, size: int, activation_bits: int = 7) -> Form:
    return Form((3, 6, 6), 128.0, blocks, Head("flat", channels, size), activation_bits)


def _on_gray(*blocks: nn.Module, last: Head, shape: tuple[int, int, int] = (1, 5, 5)) -> Form:
    return Form(shape, 128.0, blocks, last, 7)


class _ReadForNothing(nn.Module):
    """Rectifies what a layer also reads, but nothing reads the result."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.layer(x)
        return torch.relu(x)


FOUND = {
    "few bits of activations": lambda: _form(nn.Conv2d(3, 4, 3), nn.ReLU(), channels=4, size=4, activation_bits=5),
    "a signed value beside a rectified one of 8 bits": lambda: _form(
        SideBySide(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())), channels=8, size=4, activation_bits=8
    ),
    "a pool whose last windows reach beyond the padding": lambda: _form(
        nn.Conv2d(3, 4, 1), nn.MaxPool2d(3, 2, 1, ceil_mode=True), channels=4, size=4
    ),
    "a signed value that is only rectified, with 8 bits": lambda: _form(
        nn.Conv2d(3, 4, 3), _ReadForNothing(), nn.Conv2d(4, 4, 1), nn.ReLU(), channels=4, size=4, activation_bits=8
    ),
    "a mean of signed values that goes on into layers": lambda: _form(
        nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 6, 1), channels=6, size=1
    ),
    "padding in front of a pool of signed values": lambda: _form(
        nn.Conv2d(3, 4, 3), nn.ZeroPad2d((1, 0, 0, 1)), nn.MaxPool2d(2, 2, ceil_mode=True), channels=4, size=3
    ),
    "one channel in each of two groups": lambda: _on_gray(
        nn.Sequential(nn.Conv2d(1, 2, 1, 2), nn.ReLU()),
        Residual(nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU()), nn.Conv2d(2, 2, 1), False),
        nn.Sequential(nn.Conv2d(2, 4, 2, groups=2), nn.ReLU()),
        last=Head("flat", 4, 2),
    ),
    "one channel, many filters": lambda: _on_gray(
        nn.Conv2d(1, 1, 1), nn.Conv2d(1, 16, (3, 4), (1, 3)), nn.ReLU(), shape=(1, 6, 6), last=Head("flat", 16, 4, 1)
    ),
    "groups in one column": lambda: _on_gray(
        nn.Conv2d(1, 4, 1), nn.Conv2d(4, 8, (2, 1), (2, 3), groups=2), nn.ReLU(), shape=(1, 3, 1), last=Head("flat", 8, 1)
    ),
    "a stride over padding": lambda: _on_gray(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1, 2, 1), nn.ReLU(), last=Head("flat", 2, 4)),
    "columns of padding alone": lambda: _on_gray(
        nn.Conv2d(1, 6, 1), nn.Conv2d(6, 6, 2, (1, 3), 1, (1, 2), groups=3), nn.ReLU(), shape=(1, 3, 1), last=Head("flat", 6, 4, 1)
    ),
}
"""Cases that random networks found, made as small as possible."""


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("what", FOUND)
def test_what_was_once_found_to_differ(folder: Path, what: str, seed: int) -> None:
    assert_the_same_bits_everywhere(folder, FOUND[what](), seed)


FEATURES = 60 * 64


def _balanced(signs: NDArray[np.int64]) -> bytes:
    """A sum of many terms that cancel and an odd bias of 1. In a white image all inputs are 127."""
    step, sketch = 2.0**-5, Sketch(1, 8)
    stem = sketch.layer(sketch.pixels(), "stem", np.full((FEATURES // 64, 1, 1, 1), 64, np.int8), [1] * (FEATURES // 64), PIXEL_STEP, step)
    x = sketch.flattened(sketch.quantised(stem, step, 0, 127), FEATURES)
    last = sketch.layer(x, "last", np.tile(126 * signs, (4, 1)).astype(np.int8), [1] * 4, step)
    return sketch.content(sketch.quantised(last, step * 2.0**-6, 128))


POSITIVE_FIRST = np.where(np.arange(FEATURES) < FEATURES // 2, 1, -1)
IN_TURN = np.where(np.arange(FEATURES) % 2 == 0, 1, -1)


def test_one_bit_beyond_the_edge_is_refused_and_the_bits_differ(tmp_path: Path) -> None:
    """The same terms in two orders. One order passes 2^24 on its way, and the odd bias is lost."""
    terms = 126 * 127 * FEATURES // 2
    assert EXACT_BELOW < terms < 2 * EXACT_BELOW
    white = np.full((8, 1, 8, 8), 255, np.uint8)
    found = set()
    for signs in (POSITIVE_FIRST, IN_TURN):
        path = tmp_path / "model.onnx"
        path.write_bytes(content := _balanced(signs))
        (refusal,) = certificate_of(path).refusals
        assert (refusal.node, str(terms + 1) in refusal.reason) == ("last", True)
        assert (evaluate(content, white) == 2.0**-11).all()
        for _, together, _ in in_onnxruntime(path, white, ("none",), (1,)):
            found |= {bits(row) for row in together}
    assert len(found) > 1


def test_float32_loses_beyond_the_edge_what_it_keeps_within() -> None:
    for count, same in ((2 * 1048, True), (FEATURES, False)):
        assert (126 * 127 * count // 2 + 1 < EXACT_BELOW) == same
        terms = np.float32(126 * 127) * np.array([1, -1], np.float32).repeat(count // 2)
        orders = [np.cumsum(np.concatenate([[1], ordered]), dtype=np.float32)[-1] for ordered in (terms, terms.reshape(2, -1).T.ravel())]
        assert (orders[0] == orders[1]) == same
