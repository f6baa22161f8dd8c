"""On the tie-free grid, a runtime's rounding mode and omitted quantisers cannot matter.

The quantisers are those in front of a join. Off the grid both matter.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
from exact_files import DIALECTS, calibrated, changed, constant_of, joined, set_constant
from graphs import images
from hypothesis import given, settings
from hypothesis import strategies as st
from integer_evaluator import ROUNDINGS, Rounding, Scaled, branches_of_joins, evaluate, rounded
from numpy.typing import NDArray

from deploy.certificate.walk import certificate_of
from deploy.runners.onnxruntime import OnnxRuntimeRunner

SMALL = (1, 8, 8)
"""The image of the network `small`, which joins a branch behind its rectifier, as ResNets do."""


def small_images(number: int) -> NDArray[np.uint8]:
    return images(number, SMALL).numpy()


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    grid = calibrated("small", SMALL)
    return {name: write(grid, SMALL, 10, {}) for name, write in DIALECTS.items()}


def by_rounding(content: bytes, batch: NDArray[np.uint8]) -> list[bytes]:
    return [evaluate(content, batch, rounding).tobytes() for rounding in ROUNDINGS]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_mode_of_rounding_gives_the_bits_of_the_runtime(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], dialect: str
) -> None:
    path = tmp_path_factory.mktemp("exact") / "model.onnx"
    path.write_bytes(files[dialect])
    batch = small_images(16)
    with OnnxRuntimeRunner(path, threads=1) as runner:
        expected = runner.run({"image": batch})["logits"].tobytes()
    assert by_rounding(files[dialect], batch) == [expected] * len(ROUNDINGS)


@pytest.mark.parametrize(("network", "shape"), [("resnet20", (3, 16, 16)), ("torchvision:shufflenet_v2_x0_5", (3, 32, 32))])
def test_every_mode_of_rounding_gives_the_same_bits(network: str, shape: tuple[int, int, int]) -> None:
    content = DIALECTS["unsigned"](calibrated(network, shape), shape, 10, {})
    assert len(set(by_rounding(content, images(4, shape).numpy()))) == 1


def _one_more(name: str, place: int) -> Callable[[onnx.GraphProto], None]:
    def change(graph: onnx.GraphProto) -> None:
        value = constant_of(graph, name)
        value.reshape(-1)[place] += 1
        set_constant(graph, name, value)

    return change


@pytest.mark.parametrize("what", ["weight", "bias"])
def test_one_odd_weight_or_even_bias_and_the_mode_matters(files: dict[str, bytes], what: str) -> None:
    broken = changed(files["unsigned"], _one_more(f"network.stages.0.0.conv2.{what}", 0))
    assert len(set(by_rounding(broken, small_images(64)))) == len(ROUNDINGS)


def test_a_branch_may_be_added_unrounded(files: dict[str, bytes]) -> None:
    for content in files.values():
        branches = branches_of_joins(content)
        assert len(branches) == 3
        batch = small_images(64)
        assert np.array_equal(evaluate(content, batch), evaluate(content, batch, without=branches))


@pytest.mark.parametrize("what", ["weight", "bias"])
def test_one_odd_weight_or_even_bias_and_an_unrounded_branch_is_another(files: dict[str, bytes], what: str) -> None:
    content, batch = files["unsigned"], small_images(64)
    broken = changed(content, _one_more(f"network.stages.0.0.conv2.{what}", 0))
    assert not np.array_equal(evaluate(broken, batch), evaluate(broken, batch, without=branches_of_joins(broken)))


@pytest.mark.parametrize(
    ("clipped_at_0", "other", "same"),
    [(True, "identity", True), (False, "identity", False), (True, "projection", False), (False, "projection", False)],
)
def test_an_unclipped_branch_matters_where_the_certificate_says(tmp_path: Path, clipped_at_0: bool, other: str, same: bool) -> None:
    """Behind a rectifier it is clipped again. If result or other side is signed, it matters."""
    content = joined(clipped_at_0, other)
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    (join,) = certificate_of(path).joins
    assert (join.without_branch_quantiser == "the same") == same
    batch = np.random.default_rng(0).integers(0, 256, (64, 2, 4, 4), dtype=np.uint8)
    for branch in branches_of_joins(content):
        assert np.array_equal(evaluate(content, batch), evaluate(content, batch, without=[branch])) == same


ROUNDED: dict[Rounding, Callable[[Fraction], int]] = {
    "half to even": round,
    "half away from zero": lambda x: int(abs(x) + Fraction(1, 2)) * (1 if x > 0 else -1),
    "half up": lambda x: math.floor(x + Fraction(1, 2)),
}


@pytest.mark.parametrize("rounding", ROUNDINGS)
@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-(2**24), 2**24), min_size=1), st.integers(-12, 12), st.integers(-12, 12))
def test_the_evaluators_rounding(rounding: Rounding, integers: list[int], exponent: int, target: int) -> None:
    found = rounded(Scaled(np.array(integers), np.array(exponent)), np.array(target), rounding)
    assert found.tolist() == [ROUNDED[rounding](number * Fraction(2) ** (exponent - target)) for number in integers]
