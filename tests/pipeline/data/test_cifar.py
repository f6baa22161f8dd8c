"""CIFAR-10 and -100 through torchvision's own readers, on a few images in the formats of 2009."""

import pickle
from dataclasses import dataclass
from hashlib import md5
from pathlib import Path
from typing import Any, Literal
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, CIFAR100

from export.errors import DamagedError, UsageError
from pipeline.config.sections import Data
from pipeline.data import open_data

PER_FILE = 4


@dataclass(frozen=True)
class Form:
    """One of the two data sets: torchvision's class, and the form of its authors' files."""

    name: Literal["cifar10", "cifar100"]
    published: type[CIFAR10]
    classes: tuple[str, ...]
    labels_key: str
    others: dict[str, list[int]]
    """What each file holds besides the labels that are used."""

    @property
    def files(self) -> list[str]:
        return [name for name, _ in [*self.published.train_list, *self.published.test_list]]

    @property
    def pixels(self) -> np.ndarray:
        return np.random.default_rng(0).integers(0, 256, (len(self.files), PER_FILE, 3072), np.uint8)

    @property
    def labels(self) -> list[list[int]]:
        return [[(7 * i + j) % len(self.classes) for j in range(PER_FILE)] for i in range(len(self.files))]


DIGIT_LIKE = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FORMS = [
    Form("cifar10", CIFAR10, DIGIT_LIKE, "labels", {}),
    Form("cifar100", CIFAR100, tuple(f"fine_{i}" for i in range(100)), "fine_labels", {"coarse_labels": [19, 3, 3, 0]}),
]


def old_pickle(content: dict[str, Any]) -> bytes:
    """Write files like the authors': protocol 2, with NumPy's names and dtype arguments of that
    time.

    The arguments have 0 for False.
    """
    today = pickle.dumps(content, protocol=2)
    old = today.replace(b"numpy._core.", b"numpy.core.").replace(b"\x89\x88\x87", b"K\x00K\x01\x87")
    assert old != today or "data" not in content
    return old


def write(path: Path, content: dict[str, Any]) -> str:
    path.write_bytes(old_pickle(content))
    return md5(path.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.fixture(params=FORMS, ids=[form.name for form in FORMS])
def form(request: pytest.FixtureRequest) -> Form:
    found: Form = request.param
    return found


@pytest.fixture
def root(form: Form, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with all the files, with their md5 in place of the published ones."""
    folder = tmp_path / form.published.base_folder
    folder.mkdir()
    batches = zip(form.files, form.pixels, form.labels, strict=True)
    listed = [[name, write(folder / name, {"data": data, form.labels_key: labels, **form.others})] for name, data, labels in batches]
    monkeypatch.setattr(form.published, "train_list", listed[:-1])
    monkeypatch.setattr(form.published, "test_list", listed[-1:])
    meta = form.published.meta
    coarse = {"coarse_label_names": ["aquatic_mammals"]} if form.others else {"num_vis": 3072}
    written = write(folder / meta["filename"], {meta["key"]: list(form.classes), **coarse})
    monkeypatch.setattr(form.published, "meta", {**meta, "md5": written})
    return tmp_path


def options(form: Form, root: Path, *, download: bool = False) -> Data:
    return Data(name=form.name, root=str(root), batch_size=4, download=download)


def test_the_forms_are_those_of_the_published_files() -> None:
    assert [form.files for form in FORMS] == [[*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], ["train", "test"]]
    assert [form.published.base_folder for form in FORMS] == ["cifar-10-batches-py", "cifar-100-python"]


def test_every_pixel_and_label_arrives(form: Form, root: Path) -> None:
    data = open_data(options(form, root), torch.device("cpu"))
    num_train = PER_FILE * (len(form.files) - 1)
    assert data.classes == form.classes
    assert (data.train.num_samples, data.test.num_samples) == (num_train, PER_FILE)
    images, labels = next(data.train.batches(num_train))
    assert torch.equal(images, torch.from_numpy(form.pixels[:-1].reshape(num_train, 3, 32, 32)))
    assert labels.tolist() == [label for labels in form.labels[:-1] for label in labels]
    images, labels = next(data.test.batches(20))
    assert torch.equal(images, torch.from_numpy(form.pixels[-1].reshape(PER_FILE, 3, 32, 32)))
    assert labels.tolist() == form.labels[-1]


def test_download_leaves_alone_what_is_there(form: Form, root: Path) -> None:
    assert open_data(options(form, root, download=True), torch.device("cpu")).test.num_samples == PER_FILE


def test_without_the_files_it_says_how_to_get_them(form: Form, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        open_data(options(form, tmp_path), torch.device("cpu"))
    archive = {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}[form.name]
    how = f"set data.download: true, or unpack {archive} into {tmp_path}"
    assert str(error.value) == f"no {form.name} at {tmp_path}/{form.published.base_folder}; {how}"


def test_a_changed_byte_is_found_before_the_pickle_is_opened(form: Form, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = form.files[-2]
    path = root / form.published.base_folder / name
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("a pickle was opened"))
    with pytest.raises(DamagedError, match=f"{name} is not the data set's file: its md5 differs; remove"):
        open_data(options(form, root), torch.device("cpu"))


@pytest.mark.parametrize("which", ["test", "meta"])
def test_a_missing_file_is_named(form: Form, root: Path, which: str) -> None:
    name = form.files[-1] if which == "test" else form.published.meta["filename"]
    (root / form.published.base_folder / name).unlink()
    with pytest.raises(DamagedError, match=f"{name} is missing; remove"):
        open_data(options(form, root), torch.device("cpu"))


def test_a_download_that_fails_is_one_line(form: Form, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise URLError("no route\nto host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", no_network)
    with pytest.raises(UsageError) as error:
        open_data(options(form, tmp_path, download=True), torch.device("cpu"))
    assert f"{form.name} could not be fetched" in str(error.value)
    assert "\n" not in str(error.value)
