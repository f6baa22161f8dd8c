"""One short run of the quickstart for all tests that need a bundle; each test gets a copy that it may damage.

The tests are of what every machine can do, and must not come out otherwise where there is a GPU: it is hidden from them. What needs one is in
benchmarks.gpu_acceptance, which a test runs where there is one.
"""

import os
import shutil
from pathlib import Path

import pytest

from pipeline import run
from pipeline.cli.console import Console
from pipeline.config import load_config
from pipeline.request import TrainExportRequest
from pipeline.run_folder import RunFolder

os.environ["CUDA_VISIBLE_DEVICES"] = ""
ROOT = Path(__file__).parents[1]
SHORT = ("training.epochs=3", "training.schedule={name: constant}", "verify.samples=100")


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a bundle that passed. Not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "quickstart"
    outcome = run.carry_out(TrainExportRequest(config=load_config(ROOT / "configs" / "quickstart.yaml", SHORT), folder=RunFolder(folder)), Console())
    assert outcome.failure is None
    return folder


@pytest.fixture
def bundle(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the bundle."""
    return Path(shutil.copytree(finished_run / "bundle", tmp_path / "bundle"))
