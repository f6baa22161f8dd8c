"""Arrays in files and random samples, read and cut into the batches that a model takes.

They are read as NumPy and safetensors read them. What a model does not take is one line.
"""

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
from deploy.compare.inputs import SampleSource, batches_of, kept_in, random_samples, samples_for, samples_in
from deploy.runners.runner import TensorSpec
from export.errors import UsageError

X = TensorSpec("x", "float32", ("n", 2))
TOKENS, MASK = TensorSpec("tokens", "int64", ("n", "length")), TensorSpec("mask", "bool", ("n", "length"))
ROWS = np.arange(14, dtype=np.float32).reshape(7, 2)


def sizes(given: SampleSource, name: str = "x") -> list[int]:
    return [len(batch[name]) for batch in given.batches()]


def saved(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def test_a_file_is_cut_into_batches_as_often_as_asked(tmp_path: Path) -> None:
    given = samples_in([X], saved(tmp_path / "a.npz", x=ROWS, labels=np.arange(7)), 3)
    assert sizes(given) == sizes(given) == [3, 3, 1]
    assert (given.num_batches, given.num_samples) == (3, 7)
    assert given.description == "7 samples from a.npz (not used: labels)"


def test_a_folder_is_its_files_in_order(tmp_path: Path) -> None:
    for name, rows in (("b", ROWS[:2]), ("a", ROWS[2:])):
        saved(tmp_path / f"{name}.npz", x=rows)
    given = samples_for([X], str(tmp_path), 4, {})
    assert np.array_equal(np.concatenate([batch["x"] for batch in given.batches()]), np.concatenate([ROWS[2:], ROWS[:2]]))
    assert (given.num_samples, given.num_batches) == (7, 3)


def test_a_model_for_batches_of_two_gets_batches_of_two(tmp_path: Path) -> None:
    fixed = TensorSpec("x", "float32", (2, 2))
    assert sizes(samples_in([fixed], saved(tmp_path / "a.npz", x=ROWS[:6]), 64)) == [2, 2, 2]
    with pytest.raises(UsageError, match="holds 7 samples, the model takes 2 at once; give a multiple of 2"):
        samples_in([fixed], saved(tmp_path / "a.npz", x=ROWS), 64)


def test_an_input_without_axes_makes_the_file_one_run(tmp_path: Path) -> None:
    given = samples_in([X, TensorSpec("rate", "float32", ())], saved(tmp_path / "a.npz", x=ROWS, rate=np.float32(3)), 2)  # type: ignore[arg-type]
    (batch,) = given.batches()
    assert (batch["x"].shape, float(batch["rate"]), given.num_batches) == ((7, 2), 3.0, 1)


@pytest.mark.parametrize(
    ("arrays", "found"),
    [
        ({"y": ROWS}, r"holds \['y'\], the model takes \['x'\]: 'x' is missing; names must match exactly"),
        ({"x": ROWS.astype(np.float64)}, "'x' is float64, 7 x 2; the model takes x .float32, n x 2."),
        ({"x": ROWS[:, :1]}, "'x' is float32, 7 x 1; the model takes"),
        ({"x": ROWS[0]}, "'x' is float32, 2; the model takes"),
        ({"x": ROWS[:0]}, "holds no sample; a comparison of nothing is a failure"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_runs(tmp_path: Path, arrays: dict[str, np.ndarray], found: str) -> None:
    with pytest.raises(UsageError, match=found) as caught:
        samples_in([X], saved(tmp_path / "a.npz", **arrays), 3)
    assert "\n" not in str(caught.value)


def test_inputs_must_have_one_number_of_samples(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz", tokens=np.zeros((3, 4), np.int64), mask=np.zeros((2, 4), bool))
    with pytest.raises(UsageError, match="inputs differ in their number of samples"):
        samples_in([TOKENS, MASK], path, 3)


def test_nan_is_refused_with_its_sample(tmp_path: Path) -> None:
    rows = ROWS.copy()
    rows[5, 1] = np.nan
    with pytest.raises(UsageError, match=r"a\.npz: sample 5 of 'x' holds NaN"):
        sizes(samples_in([X], saved(tmp_path / "a.npz", x=rows), 3))


def test_infinity_may_be_meant(tmp_path: Path) -> None:
    rows = ROWS.copy()
    rows[5, 1] = -np.inf
    assert sizes(samples_in([X], saved(tmp_path / "a.npz", x=rows), 3)) == [3, 3, 1]


class TestRandom:
    def test_the_same_every_time_and_as_described(self) -> None:
        given = random_samples([X, TOKENS, MASK, TensorSpec("image", "uint8", ("n", 8))], 5, 3, {"length": 6})
        one, other = (list(given.batches()) for _ in range(2))
        assert [len(batch["x"]) for batch in one] == [3, 2]
        for a, b in zip(one, other, strict=True):
            assert {name: rows.tobytes() for name, rows in a.items()} == {name: rows.tobytes() for name, rows in b.items()}
        first = one[0]
        assert (first["tokens"].shape, first["mask"].dtype, set(np.unique(first["tokens"]))) == ((3, 6), np.dtype(bool), {0, 1})
        assert first["image"].max() > 1
        assert given.description.startswith("5 random samples: NumPy's PCG64, seed 0; ")

    def test_a_free_size_must_be_stated(self) -> None:
        with pytest.raises(UsageError, match=r"tokens \(int64, n x length\) has a free size; say how large it is with --size length=NUMBER"):
            random_samples([TOKENS], 5, 3, {})

    def test_a_size_that_is_asked_for_must_be_used(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="--size width=3: the inputs have no such free size, only length; drop it"):
            samples_for([TOKENS], "5", 3, {"width": 3})
        with pytest.raises(UsageError, match="has sizes of its own; drop it"):
            samples_for([TOKENS], str(saved(tmp_path / "a.npz", tokens=np.zeros((2, 4), np.int64))), 3, {"length": 3})

    def test_batches_of_a_fixed_size_are_whole(self) -> None:
        given = random_samples([TensorSpec("x", "float32", (4, 2))], 6, 64, {})
        assert (sizes(given), given.num_samples) == ([4, 4], 8)

    def test_none_would_compare_nothing(self) -> None:
        with pytest.raises(UsageError, match="--samples 0 would compare nothing"):
            samples_for([X], "0", 3, {})


def test_neither_file_nor_folder_nor_number(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'nowhere' is neither a file, nor a folder, nor a number"):
        samples_for([X], "nowhere", 3, {})
    with pytest.raises(UsageError, match="holds no file of"):
        samples_for([X], str(tmp_path), 3, {})


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
    """Bits are compared in this machine's byte order."""
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
