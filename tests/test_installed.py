"""An installed package is complete: a wheel is built from the sources, installed where no checkout is, and used from there."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from pipeline.config.shipped import config_names
from pipeline.reproduction.papers import TABLES

ROOT = Path(__file__).parents[1]
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "pipeline", "export", "deploy", "configs")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with the wheel in it; what the wheel needs is taken from the environment of the tests."""
    place = tmp_path_factory.mktemp("installed")
    _copy_sources(place / "sources")
    _pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", place, place / "sources")
    venv.create(place / "venv", with_pip=False)
    packages = next((place / "venv").glob("lib/python*/site-packages"))
    (packages / "of_the_tests.pth").write_text(sysconfig.get_path("purelib") + "\n")  # as a plain folder: an editable samegraph in it stays out
    (wheel,) = place.glob("*.whl")
    _pip("--python", place / "venv" / "bin" / "python", "install", "--no-deps", "--no-index", wheel)
    return place / "venv" / "bin"


def _copy_sources(place: Path) -> None:
    place.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, place)


def _pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def run(program: Path, *arguments: object, cwd: Path) -> str:
    """What a program of the environment prints, run outside the checkout."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [str(program), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_config_is_written_and_planned_and_tables_are_found(installed: Path, tmp_path: Path) -> None:
    imported = run(installed / "python", "-c", "import pipeline; print(pipeline.__file__)", cwd=tmp_path)
    assert Path(imported.strip()).is_relative_to(installed.parent)

    listed = json.loads(run(installed / "pipeline", "init", "--list", "--json", cwd=tmp_path))
    assert tuple(each["name"] for each in listed["configs"]) == config_names()

    run(installed / "pipeline", "init", cwd=tmp_path)
    first = (tmp_path / "quickstart.yaml").read_text().splitlines()[0]
    schema = tmp_path / first.removeprefix("# yaml-language-server: $schema=")
    assert json.loads(schema.read_bytes()) == json.loads((ROOT / "configs" / "schema.json").read_bytes())

    plan = json.loads(run(installed / "pipeline", "train-export", "quickstart.yaml", "--dry-run", "--json", cwd=tmp_path))["plan"]
    assert (plan["run"], plan["network"]["name"]) == ("runs/quickstart", "small")

    tables = json.loads(run(installed / "pipeline", "reproduce", "--list", "--json", cwd=tmp_path))["tables"]
    assert [each["table"] for each in tables] == list(TABLES)
    assert {path.name for path in tmp_path.iterdir()} == {"quickstart.yaml", schema.name}
