"""SVHN through torchvision's own reader, on a few images in the authors' format.

The format is MATLAB 5 files with images last, and with label 10 for the digit 0.
"""

from hashlib import md5
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import scipy.io
import torch
from torchvision.datasets import SVHN

from export.errors import DamagedError, UsageError
from pipeline.config.sections import Data
from pipeline.data import open_data

LABELS = {"train": (1, 10, 9, 5, 10), "test": (2, 10), "extra": (3, 7, 10)}
"""As the files have them."""


def pixels(split: str) -> np.ndarray:
    """Height x width x colour x number."""
    return np.random.default_rng(len(split)).integers(0, 256, (32, 32, 3, len(LABELS[split])), np.uint8)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with the three files, with their md5 in place of the published ones."""
    listed = {}
    for split, (url, name, _) in SVHN.split_list.items():
        labels = np.array(LABELS[split], np.uint8)[:, None]
        scipy.io.savemat(tmp_path / name, {"X": pixels(split), "y": labels}, do_compression=True)
        assert (tmp_path / name).read_bytes().startswith(b"MATLAB 5.0 MAT-file")
        listed[split] = [url, name, md5((tmp_path / name).read_bytes(), usedforsecurity=False).hexdigest()]
    monkeypatch.setattr(SVHN, "split_list", listed)
    return tmp_path


def options(root: Path, *, extra: bool = False, download: bool = False) -> Data:
    return Data(name="svhn", root=str(root), batch_size=2, extra=extra, download=download)


@pytest.mark.parametrize("extra", [False, True])
def test_every_pixel_and_label_arrives(root: Path, extra: bool) -> None:
    data = open_data(options(root, extra=extra), torch.device("cpu"))
    assert data.classes == tuple("0123456789")
    splits = ["train", "extra"] if extra else ["train"]
    images, labels = next(data.train.batches(100))
    assert images.shape[1:] == (3, 32, 32)
    assert torch.equal(images, torch.from_numpy(np.concatenate([pixels(split).transpose(3, 2, 0, 1) for split in splits])))
    assert labels.tolist() == [label % 10 for split in splits for label in LABELS[split]]
    images, labels = next(data.test.batches(100))
    assert torch.equal(images, torch.from_numpy(pixels("test").transpose(3, 2, 0, 1)))
    assert labels.tolist() == [2, 0]


def test_download_leaves_alone_what_is_there(root: Path) -> None:
    assert open_data(options(root, extra=True, download=True), torch.device("cpu")).train.num_samples == 8


@pytest.mark.parametrize(("missing", "extra"), [("train", False), ("test", False), ("extra", True)])
def test_a_missing_file_is_named_with_the_way_to_get_it(root: Path, missing: str, extra: bool) -> None:
    url, name, _ = SVHN.split_list[missing]
    (root / name).unlink()
    with pytest.raises(UsageError) as error:
        open_data(options(root, extra=extra), torch.device("cpu"))
    assert str(error.value) == f"no {missing} split of svhn at {root / name}; set data.download: true, or fetch {url} into {root}"


def test_the_extra_split_need_not_be_there(root: Path) -> None:
    (root / "extra_32x32.mat").unlink()
    assert open_data(options(root), torch.device("cpu")).train.num_samples == 5


def test_a_changed_byte_is_found_before_the_file_is_opened(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = root / "test_32x32.mat"
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(content)
    monkeypatch.setattr(scipy.io, "loadmat", lambda *_, **__: pytest.fail("a file was opened"))
    with pytest.raises(DamagedError, match=r"test_32x32.mat is not the data set's file: its md5 differs; remove it, then set data.download"):
        open_data(options(root), torch.device("cpu"))


def test_a_download_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise URLError("no route\nto host")

    monkeypatch.setattr("pipeline.data.svhn.download_url", no_network)
    with pytest.raises(UsageError) as error:
        open_data(options(tmp_path, download=True), torch.device("cpu"))
    assert "svhn could not be fetched" in str(error.value)
    assert "\n" not in str(error.value)


def test_extra_is_for_svhn_only() -> None:
    with pytest.raises(ValueError, match="extra: true is for svhn, which has an extra split; cifar10 has none"):
        Data(name="cifar10", extra=True)
