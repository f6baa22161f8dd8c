"""The code blocks of docs/adding.md: where each goes, a copy of the project that holds them, and
what the copy does.

Run as a script in such a copy, it tries every addition in one process and prints what it found as
JSON.
"""

import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
COPIED = ("pipeline", "export", "deploy", "tests/support", "configs", "pyproject.toml")
_FIRST_LINE = r"# (?P<path>[\w./]+)(?:, in front of: (?P<place>[^\n]+))?\n"
_BLOCK = re.compile(rf"^```(?:python|toml)\n{_FIRST_LINE}(?P<code>.*?)^```$", flags=re.MULTILINE | re.DOTALL)
SHORT = ("training.epochs=1", "training.schedule={name: constant}", "exact.epochs=1", "verify.samples=8")
NEW = ("data={name: stripes, batch_size: 32}", "method={name: layergain}", "verify.runtimes=[onnxruntime-cpu, onnx-reference]")


@dataclass(frozen=True)
class Addition:
    """A block of code, and where it goes."""

    path: str
    place: str | None
    """How the line begins that it goes in front of; None: it is a file."""
    code: str

    def apply(self, root: Path) -> None:
        path = root / self.path
        if self.place is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                file.write(self.code)
            return
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        (number,) = (number for number, line in enumerate(lines) if line.startswith(self.place))
        path.write_text("".join([*lines[:number], self.code, *lines[number:]]), encoding="utf-8")


def additions(page: str, section: str) -> list[Addition]:
    """Those of a section of docs/adding.md."""
    text = page.split(f"\n## {section}\n")[1].split("\n## ", maxsplit=1)[0]
    return [Addition(found["path"], found["place"], found["code"]) for found in _BLOCK.finditer(text)]


def copy_with(added: Iterable[Addition], folder: Path) -> None:
    """A copy of the project with these additions."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(ROOT / name, folder / name)
    for each in added:
        each.apply(folder)


def tried(folder: Path) -> dict[str, Any]:
    """What the copy finds out when it tries all that was added."""
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "tests/support/additions.py"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """In the copy: doctor, schema, a run, a verification of its bundle and of a pair, and the tests
    that were added."""
    bundle, model = "run/bundle", "run/bundle/model.onnx"
    options = [part for each in (*SHORT, *NEW) for part in ("--set", each)]
    report = {
        "doctor": _doctor("onnx-reference"),
        "schema": _schema(),
        "plan": _command("train-export", "configs/quickstart.yaml", "--out", "run", *options, "--dry-run")["plan"],
        "run": _command("train-export", "configs/quickstart.yaml", "--out", "run", *options)["verification"],
        "verify": _command("verify", bundle)["verification"],
        "pair": _command("verify", "--reference", model, "--candidate", model, "--samples", "4", "--runtime", "onnx-reference")["verification"],
        "card": Path(bundle, "README.md").read_text(encoding="utf-8"),
        "files": sorted(json.loads(Path(bundle, "manifest.json").read_bytes())["files"]),
        "layer": _layer("own_networks:prelu", ("layergain", "czmig")),
        "tests": sorted(_tests(Path("tests"), Path(bundle))),
    }
    sys.stdout.write(json.dumps(report))


def _command(*arguments: str) -> dict[str, Any]:
    """What a command tells. One that fails ends this process."""
    from pipeline.cli import group
    from pipeline.cli.console import Console

    class Kept(Console):
        facts: Mapping[str, Any]

        def result(self, facts: Mapping[str, object], text: str) -> None:
            self.facts = facts

    console = Kept()
    with group.make_context("pipeline", list(arguments), obj=console) as context:
        group.invoke(context)
    return dict(console.facts)


def _doctor(runtime: str) -> dict[str, Any]:
    """What `doctor` finds of a runtime, and how to get it; the others are not tried."""
    from pipeline.cli.doctor import remedies
    from pipeline.cli.doctor.survey import run_probe

    finding = run_probe(runtime)[runtime]
    return {"here": finding.here, "detail": finding.detail, "remedy": remedies()[runtime]}


def _schema() -> str:
    from pipeline.config.loading import json_schema_text

    return json_schema_text()


def _layer(network: str, methods: Iterable[str]) -> dict[str, Any]:
    """Whether a network with the new kind of layer keeps its bits through each method and the fold,
    and the operators of its file."""
    import onnx
    import torch
    from graphs import DEFAULTS, images, rewritten

    from export.graph.fold import fold
    from export.onnx import onnx_from_graph

    shape, found = (3, 16, 16), {}
    for method in methods:
        training = rewritten(network, shape, DEFAULTS[method])
        folded = fold(training.graph)
        with torch.no_grad():
            same = torch.equal(training.graph.eval()(images(4, shape)), folded(images(4, shape)))
        file = onnx.load_model_from_string(onnx_from_graph(folded, shape, {}))
        found[method] = {"same bits": same, "operators": sorted({node.op_type for node in file.graph.node})}
    return found


def _tests(folder: Path, bundle: Path) -> Iterator[str]:
    """Run every test that is there. They may ask for a copy of the bundle, and for a folder."""
    for path in sorted(folder.rglob("test_*.py")):
        for name, test in runpy.run_path(str(path)).items():
            if name.startswith("test_"):
                wanted = test.__code__.co_varnames[: test.__code__.co_argcount]
                place = Path("work", path.stem, name)
                place.mkdir(parents=True)
                given = {"tmp_path": place, "bundle": place / "bundle"}
                shutil.copytree(bundle, place / "bundle")
                test(**{each: given[each] for each in wanted})
                yield path.as_posix()


if __name__ == "__main__":
    main()
