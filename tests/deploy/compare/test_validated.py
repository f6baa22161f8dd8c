"""Validated outputs: read from a bundle, and a difference found to the bit or beyond the budget."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from deploy.compare.bits import Array
from deploy.compare.validated import ValidatedOutputs, chosen_samples, images_of, validated_outputs
from export.bundle import OUTPUTS, Bundle, open_bundle
from export.errors import DamagedError


@pytest.fixture
def outputs(finished_run: Path) -> ValidatedOutputs:
    return validated_outputs(open_bundle(finished_run / "bundle"))


def test_those_of_a_bundle_are_its_own(outputs: ValidatedOutputs) -> None:
    assert len(outputs.images) == 256 + 19
    assert outputs.exact is not None
    assert outputs.difference("exact", outputs.exact) is None
    assert outputs.difference("float32", outputs.float32) is None


def test_one_bit_is_named(outputs: ValidatedOutputs) -> None:
    assert outputs.exact is not None
    other = outputs.exact.copy()
    other[7, 3] = np.nextafter(other[7, 3], np.float32(np.inf))
    found = outputs.difference("exact", other)
    assert found is not None
    assert "1 of 275 samples have other bits, first sample 7, value 3" in found
    negative_zero = np.zeros_like(outputs.exact)
    assert replace(outputs, exact=negative_zero).difference("exact", -negative_zero) is not None


def test_an_error_beyond_the_budget_is_found_and_one_within_is_not(outputs: ValidatedOutputs) -> None:
    allowed = outputs.budgets().outputs["logits"]
    assert allowed is not None
    values = outputs.float64.astype(np.float32)
    assert outputs.difference("float32", values) is None
    values[3, 1] += np.float32(2 * allowed.max)
    assert "the budget is" in str(outputs.difference("float32", values))
    values[3, 1] = np.nan
    assert outputs.difference("float32", values) is not None


@pytest.mark.parametrize("values", [np.zeros((275, 9), np.float32), np.zeros((275, 10)), np.zeros((0, 10), np.float32)])
def test_another_shape_or_type_is_a_difference(outputs: ValidatedOutputs, values: Array) -> None:
    assert "expected float32 of shape (275, 10)" in str(outputs.difference("exact", values))


def test_what_was_not_compared_is_no_pass(outputs: ValidatedOutputs) -> None:
    assert replace(outputs, exact=None).difference("exact", outputs.float32) is not None


def test_chosen_samples_are_spread_and_followed_by_hostile_ones() -> None:
    assert chosen_samples(3).tolist() == [0, 1, 2]
    spread = chosen_samples(1000)
    assert (len(spread), spread[0], spread[-1]) == (256, 0, 996)
    stored = np.arange(4 * 12, dtype=np.uint8).reshape(4, 3, 2, 2)
    assert np.array_equal(images_of(stored, np.array([1, 3]))[:2], stored[[1, 3]])


@pytest.mark.parametrize("damage", ["missing", "shape", "samples", "type"])
def test_what_does_not_fit_is_damage(finished_run: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = open_bundle(finished_run / "bundle")
    tensors = safetensors.numpy.load(bundle.read(OUTPUTS))
    if damage == "missing":
        del tensors["float64"]
    elif damage == "shape":
        tensors["exact"] = tensors["exact"][:-1]
    elif damage == "samples":
        tensors["sample"][0] += 1
    else:
        tensors["float32"] = tensors["float32"].astype(np.float64)
    read = Bundle.read
    monkeypatch.setattr(Bundle, "read", lambda self, name: safetensors.numpy.save(tensors) if name == OUTPUTS else read(self, name))
    with pytest.raises(DamagedError, match="export the bundle again"):
        validated_outputs(bundle)
