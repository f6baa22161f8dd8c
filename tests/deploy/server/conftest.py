"""One server for the tests that only ask, in a process of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from server_process import ServerProcess, serving

from deploy.compare.validated import ValidatedOutputs, validated_outputs
from export.bundle import open_bundle


@pytest.fixture(scope="module")
def server(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("server")
    with serving(finished_run / "bundle", folder, "--runtime", "onnxruntime-cpu", "--max-queue-size", "1000", "--recheck", "0.1") as running:
        yield running


@pytest.fixture(scope="session")
def validated(finished_run: Path) -> ValidatedOutputs:
    """What the server must answer, and for which images."""
    return validated_outputs(open_bundle(finished_run / "bundle"))
