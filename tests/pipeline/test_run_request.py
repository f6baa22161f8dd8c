"""Refusals that need no torch come before torch is imported."""

import json
import subprocess
import sys
from pathlib import Path

from pipeline.run_request import Start

ROOT = Path(__file__).parents[2]
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")
REFUSED = {
    "the config": ["train", "config.yaml"],
    "a value of it": ["train-export", QUICKSTART, "--set", "training.epochs=0"],
    "no checkpoint": ["train", QUICKSTART, "--out", "run", "--resume"],
    "a runtime": ["train-export", QUICKSTART, "--require", "tensorrt"],
    "no such runtime": ["train-export", QUICKSTART, "--require", "tensorflow"],
    "no engines": ["train-export", QUICKSTART, "--set", "export.tensorrt=true"],
    "in the way": ["train-export", QUICKSTART, "--out", "way"],
    "no run": ["export", "run"],
    "no weights": ["export", "--network", "small", "--weights", "nowhere", "--calibrate", "images"],
    "another run": ["export", "--network", "small", "--weights", "weights", "--calibrate", "images", "--out", "other"],
    "no bundle": ["export", "--tensorrt", "run"],
    "a dry run": ["train", QUICKSTART, "--out", "run", "--resume", "--dry-run"],
    "no config of ours": ["init", "nothing"],
    "no table": ["reproduce", "nothing"],
}
SCRIPT = """
import json, sys
from pipeline.cli import group
from pipeline.cli.console import Console
from pipeline.cli.ending import exit_code_of

def run(arguments):
    with group.make_context("pipeline", arguments, obj=Console()) as context:
        group.invoke(context)

found = {name: [exit_code_of(lambda: run(arguments), Console()), "torch" in sys.modules] for name, arguments in json.loads(sys.argv[1]).items()}
print(json.dumps(found))
"""


def test_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("method: {name: czmug}\n")
    (tmp_path / "way").mkdir()
    (tmp_path / "way" / "bundle").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text("method: {name: czmig}\n")
    (tmp_path / "weights").touch()
    before = sorted(tmp_path.rglob("*"))
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{SCRIPT}", json.dumps(REFUSED)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    missing = {"a runtime": 4, "no such runtime": 4, "no engines": 4}
    assert json.loads(done.stdout) == {name: [missing.get(name, 2), False] for name in REFUSED}, done.stderr
    assert done.stderr.count("\n") == len(REFUSED)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_options_mean_one_start_each() -> None:
    assert [Start.of_option(each) for each in (True, False, None)] == [Start.RESUME, Start.FRESH, Start.EITHER]
