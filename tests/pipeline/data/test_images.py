"""Reading in worker processes: the same results, in order, and errors that arrive as one line."""

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from export.errors import DamagedError, UsageError
from pipeline.config.sections import Data
from pipeline.data import open_data
from pipeline.data.decoding import Decoder, DecodeRequest
from pipeline.data.images import WorkerPool

MakeFolder = Callable[..., Path]


def joined(paths: Sequence[str]) -> str:
    return "+".join(paths)


def killed(paths: Sequence[str]) -> str:
    os.kill(os.getpid(), signal.SIGKILL)
    return joined(paths)


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_order_and_a_pool_reads_again(workers: int) -> None:
    pool = WorkerPool(joined, workers)
    assert list(pool.read([["f", "a"], ["b"], ["c", "d", "e"]])) == ["f+a", "b", "c+d+e"]
    assert next(pool.read([["a"], ["b"], ["c"], ["d"], ["e"], ["f"]])) == "a"
    assert list(pool.read([["c"], ["b"]])) == ["c", "b"]
    assert list(pool.read([])) == []


def test_reading_leaves_the_global_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    list(WorkerPool(joined, workers=0).read([["a"], ["b"]]))
    assert torch.equal(before, torch.get_rng_state())


def test_a_worker_that_is_killed_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"died, often for want of memory; lower data.workers \(DataLoader worker") as error:
        list(WorkerPool(killed, workers=1).read([["a"]]))
    assert "\n" not in str(error.value)


def test_streaming_gives_what_residence_gives_and_names_what_is_damaged(image_folder: MakeFolder) -> None:
    root = image_folder(size=(60, 60))
    options = Data(name="imagefolder", root=str(root), batch_size=2, workers=1, residence="stream")
    streamed = open_data(options, torch.device("cpu"))
    resident = open_data(options.model_copy(update={"residence": "device"}), torch.device("cpu"))
    order = torch.tensor([4, 0, 3, 3, 1])
    pairs = zip(streamed.train.batches_in_order(order, 2), resident.train.batches_in_order(order, 2), strict=True)
    for (a, one), (b, other) in pairs:
        assert torch.equal(a, b)
        assert torch.equal(one, other)
    path = root / "train/dog/2.png"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DamagedError) as error:
        list(streamed.train.batches(2))
    assert str(error.value).startswith(f"{path} cannot be used: ")
    assert "\n" not in str(error.value)


def test_loops_share_a_pool_one_after_the_other_but_not_at_once(image_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def counted(decoder: Decoder, workers: int, *, pinned: bool) -> WorkerPool[DecodeRequest, object]:
        started.append(workers)
        return WorkerPool(decoder, workers, pinned=pinned)

    options = Data(name="imagefolder", root=str(image_folder()), batch_size=2, workers=0, residence="stream")
    split = open_data(options, torch.device("cpu")).train
    monkeypatch.setattr("pipeline.data.images.WorkerPool", counted)
    assert len(list(split.batches(2))) == len(list(split.batches(2))) == 3
    assert started == [0]
    for (a, _), (b, _) in zip(split.batches(2), split.batches(2), strict=True):
        assert torch.equal(a, b)
    assert started == [0, 0]
