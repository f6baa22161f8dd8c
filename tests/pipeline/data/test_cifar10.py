"""CIFAR-10 through torchvision's own reader, on a few images in the real on-disk format of 2009."""

import pickle
from hashlib import md5
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

from export.errors import DamagedError, UsageError
from pipeline.config.sections import Data
from pipeline.data import open_data

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PER_FILE = 4
NAMES = [name for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list]]
PIXELS = np.random.default_rng(0).integers(0, 256, (len(NAMES), PER_FILE, 3072), np.uint8)
LABELS = [[(i + j) % 10 for j in range(PER_FILE)] for i in range(len(NAMES))]


def old_pickle(content: dict[str, Any]) -> bytes:
    """As the authors' files are: protocol 2, with NumPy's names and dtype arguments (0 for False) of their day."""
    today = pickle.dumps(content, protocol=2)
    old = today.replace(b"numpy._core.", b"numpy.core.").replace(b"\x89\x88\x87", b"K\x00K\x01\x87")
    assert old != today or "data" not in content
    return old


def write(path: Path, content: dict[str, Any]) -> str:
    path.write_bytes(old_pickle(content))
    return md5(path.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with all seven files, their md5 put in the place of the published ones."""
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    batches = zip(NAMES, PIXELS, LABELS, strict=True)
    listed = [[name, write(folder / name, {"data": data, "labels": labels})] for name, data, labels in batches]
    monkeypatch.setattr(CIFAR10, "train_list", listed[:-1])
    monkeypatch.setattr(CIFAR10, "test_list", listed[-1:])
    meta = write(folder / "batches.meta", {"label_names": CLASSES, "num_vis": 3072})
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": meta})
    return tmp_path


def options(root: Path, *, download: bool = False) -> Data:
    return Data(name="cifar10", root=str(root), batch_size=4, download=download)


def test_every_pixel_and_label_arrives(root: Path) -> None:
    data = open_data(options(root), torch.device("cpu"))
    assert data.classes == tuple(CLASSES)
    assert (data.train.num_samples, data.test.num_samples) == (20, 4)
    images, labels = next(data.train.batches(20))
    assert torch.equal(images, torch.from_numpy(PIXELS[:5].reshape(20, 3, 32, 32)))
    assert labels.tolist() == [label for labels in LABELS[:5] for label in labels]
    images, labels = next(data.test.batches(20))
    assert torch.equal(images, torch.from_numpy(PIXELS[5].reshape(4, 3, 32, 32)))
    assert labels.tolist() == LABELS[5]


def test_download_leaves_alone_what_is_there(root: Path) -> None:
    assert open_data(options(root, download=True), torch.device("cpu")).test.num_samples == 4


def test_without_the_files_it_says_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        open_data(options(tmp_path), torch.device("cpu"))
    how = f"set data.download: true, or unpack cifar-10-python.tar.gz into {tmp_path}"
    assert str(error.value) == f"no cifar10 at {tmp_path}/cifar-10-batches-py; {how}"


def test_a_changed_byte_is_found_before_the_pickle_is_opened(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = root / CIFAR10.base_folder / "data_batch_3"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("a pickle was opened"))
    with pytest.raises(DamagedError, match="data_batch_3 is not the data set's file: its md5 differs; remove"):
        open_data(options(root), torch.device("cpu"))


@pytest.mark.parametrize("name", ["test_batch", "batches.meta"])
def test_a_missing_file_is_named(root: Path, name: str) -> None:
    (root / CIFAR10.base_folder / name).unlink()
    with pytest.raises(DamagedError, match=f"{name} is missing; remove"):
        open_data(options(root), torch.device("cpu"))


def test_a_download_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise URLError("no route\nto host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", no_network)
    with pytest.raises(UsageError) as error:
        open_data(options(tmp_path, download=True), torch.device("cpu"))
    assert "could not be fetched" in str(error.value)
    assert "\n" not in str(error.value)
