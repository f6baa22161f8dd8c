"""Samples from files and at random: cut as the model takes them, and one line for what it does not take."""

from pathlib import Path

import numpy as np
import pytest

from deploy.compare.inputs import SampleSource, random_samples, samples_for, samples_in
from deploy.runners.base import TensorSpec
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
    assert given.description == "7 samples from a.npz (beside them and not used: labels)"


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
