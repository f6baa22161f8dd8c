"""Arrays in files: the same values as NumPy and safetensors read, in pieces, and one line for what cannot be read."""

import json
import struct
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
from safetensors.torch import save_file

from deploy.compare.bits import Array
from deploy.compare.inputs import batches_of, kept_in
from export.errors import UsageError

RNG = np.random.default_rng(0)
ARRAYS: dict[str, Array] = {
    "image": RNG.integers(0, 256, (7, 2, 3), dtype=np.uint8),
    "score": RNG.normal(size=(7, 4)).astype(np.float32),
    "wide": RNG.normal(size=(7,)),
    "flag": RNG.integers(0, 2, 7).astype(bool),
}


@pytest.mark.parametrize("compressed", [False, True])
def test_npz(tmp_path: Path, compressed: bool) -> None:
    save = np.savez_compressed if compressed else np.savez
    save(tmp_path / "a.npz", **ARRAYS)  # type: ignore[arg-type]
    kept = kept_in(tmp_path / "a.npz")
    assert {name: (each.dtype, each.shape) for name, each in kept.items()} == {name: (a.dtype, a.shape) for name, a in ARRAYS.items()}
    pieces = list(batches_of(kept, 3))
    assert [len(piece["image"]) for piece in pieces] == [3, 3, 1]
    for name, array in ARRAYS.items():
        assert np.array_equal(np.concatenate([piece[name] for piece in pieces]), array)
        assert np.array_equal(kept[name].whole(), array)


def test_safetensors(tmp_path: Path) -> None:
    safetensors.numpy.save_file(ARRAYS, tmp_path / "a.safetensors")
    kept = kept_in(tmp_path / "a.safetensors")
    for name, array in ARRAYS.items():
        assert np.array_equal(np.concatenate([piece[name] for piece in batches_of({name: kept[name]}, 2)]), array)


def test_safetensors_knows_bfloat16(tmp_path: Path) -> None:
    values = torch.tensor([[1.0, 2.5], [-3.0, 0.1]], dtype=torch.bfloat16)
    save_file({"x": values}, tmp_path / "a.safetensors")
    found = kept_in(tmp_path / "a.safetensors")["x"].whole()
    assert found.dtype == np.dtype(ml_dtypes.bfloat16)
    assert found.astype(np.float32).tolist() == values.float().tolist()


def test_npy_has_the_name_of_its_file(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", ARRAYS["score"])
    kept = kept_in(tmp_path / "x.npy")
    assert list(kept) == ["x"]
    assert np.array_equal(kept["x"].whole(), ARRAYS["score"])


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((20_000, 256), np.float32))
    tracemalloc.start()
    assert sum(len(piece["x"]) for piece in batches_of(kept_in(tmp_path / "a.npz"), 10)) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def pickled(path: Path) -> None:
    np.savez(path, x=np.array([{"a": 1}], dtype=object))


def fortran(path: Path) -> None:
    np.savez(path, x=np.asfortranarray(ARRAYS["score"]))


def cut_short(path: Path) -> None:
    np.savez(path, **ARRAYS)  # type: ignore[arg-type]
    path.write_bytes(path.read_bytes()[:300])


@pytest.mark.parametrize(
    ("write", "found"),
    [
        (pickled, "holds Python objects, which are pickled"),
        (fortran, "an array in Fortran's order"),
        (cut_short, r"cannot be read as .npz: File is not a zip file"),
        (lambda path: path.write_text("hello"), "cannot be read as .npz"),
        (lambda path: None, "is not a file"),
    ],
)
def test_one_line_for_a_bad_npz(tmp_path: Path, write: object, found: str) -> None:
    write(tmp_path / "a.npz")  # type: ignore[operator]
    with pytest.raises(UsageError, match=found) as caught:
        kept_in(tmp_path / "a.npz")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "head",
    [
        {"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}},
        {"x": {"dtype": "F3", "shape": [4], "data_offsets": [0, 16]}},
        {"x": {"dtype": "F32", "shape": [4]}},
        {"x": {"dtype": "F32", "shape": [-1, -4], "data_offsets": [0, 16]}},
        ["x"],
    ],
)
def test_one_line_for_a_bad_safetensors(tmp_path: Path, head: object) -> None:
    text = json.dumps(head).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
    with pytest.raises(UsageError, match=r"cannot be read as .safetensors"):
        kept_in(tmp_path / "a.safetensors")


def test_a_safetensors_file_that_ends_too_early(tmp_path: Path) -> None:
    text = json.dumps({"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(15))
    with pytest.raises(UsageError, match="it ends too early"):
        kept_in(tmp_path / "a.safetensors")["x"].whole()


def test_a_head_that_is_nested_without_end(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", 10**5) + b"[" * 10**5)
    with pytest.raises(UsageError, match=r"cannot be read as .safetensors"):
        kept_in(tmp_path / "a.safetensors")


def test_a_head_that_claims_gigabytes_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", 3 * 2**30) + b"{}")
    with pytest.raises(UsageError, match="its head claims 3221225472 bytes"):
        kept_in(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
def test_the_other_order_of_bytes(tmp_path: Path, name: str) -> None:
    """Whatever compares bits takes them as this machine has them."""
    values = np.linspace(0, 1, 12, dtype=">f4").reshape(3, 4)
    (np.savez(tmp_path / name, a=values) if name.endswith("z") else np.save(tmp_path / name, values))
    kept = kept_in(tmp_path / name)["a"]
    for found in (kept.whole(), *kept.rows(3)):
        assert found.dtype.isnative
        assert found.tobytes() == values.astype("=f4").tobytes()


def test_other_kinds_of_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    with pytest.raises(UsageError, match=r"is none of .npz, .npy, .safetensors"):
        kept_in(tmp_path / "a.csv")
