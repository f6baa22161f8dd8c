"""One short run of the quickstart for all tests that need a bundle.

Each test gets a copy that it may damage. The tests cover what every machine can do and must not
depend on a GPU, so the GPU is hidden from them. What needs one is in benchmarks.gpu_acceptance,
which a test runs if there is one.
"""

import os
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from exported_files import ExportedFiles
from made_once import MadeOnce
from quickstart import QUICKSTART, SHORT
from torch.onnx._internal.exporter._registration import ONNXRegistry

from pipeline import run
from pipeline.cli.console import Console
from pipeline.config import load_config
from pipeline.run_folder import RunFolder
from pipeline.run_request import TrainExportRequest

os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session", autouse=True)
def operators_read_once() -> Iterator[None]:
    """Read the sources of torch.onnx's five hundred operators once.

    torch.onnx reads them again for each file, which takes as long as writing a small file.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(cache(ONNXRegistry.from_torchlib)))
        yield


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    return MadeOnce.of_this_run(tmp_path_factory)


@pytest.fixture(scope="session")
def exported_files(made_once: MadeOnce) -> ExportedFiles:
    return ExportedFiles(made_once)


@pytest.fixture(scope="session")
def finished_run(made_once: MadeOnce) -> Path:
    """A run folder with a bundle that passed. Do not change it."""

    def make(folder: Path) -> None:
        outcome = run.carry_out(TrainExportRequest(config=load_config(QUICKSTART, SHORT), folder=RunFolder(folder)), Console())
        assert outcome.failure is None

    return made_once.path("quickstart", make)


@pytest.fixture
def bundle(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the bundle."""
    return Path(shutil.copytree(finished_run / "bundle", tmp_path / "bundle"))
