"""Every path and every module that a document names exists, and its lines have at most 100
columns."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from documents import DOCUMENTS
from pydantic import BaseModel

from docs.rooms import ROOT
from pipeline.config import Config

FOLDERS = ("pipeline", "export", "deploy", "tests", "benchmarks", "docs", "configs")
_PATH = re.compile(rf"(?<![\w./])(?:{'|'.join(FOLDERS)})/[\w./*-]*")
_DOTTED = re.compile(r"(?<![\w./])(?:pipeline|export|deploy|benchmarks)(?:\.\w+)+(?![\w/])")
_TO_BE_WRITTEN = frozenset({"pipeline/methods/layergain.py"})
"""What docs/adding.md tells a reader to write."""
LONGEST = 100


def named(text: str) -> Iterator[str]:
    """Paths and dotted names in backticks; blocks of code are not prose."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for span in re.findall(r"`([^`\n]+)`", prose):
        yield from _PATH.findall(span)
        yield from _DOTTED.findall(span)


def exists(name: str) -> bool:
    """Whether a path, a module, something in a module, or a value of the config has this name."""
    if "/" in name:
        return name in _TO_BE_WRITTEN or any(ROOT.glob(name.rstrip("/.")))
    return _is_in_the_code(name) or _is_in_the_config(Config, name.split("."))


def _is_in_the_code(name: str) -> bool:
    *parts, last = name.split(".")
    whole, module = ROOT.joinpath(*parts, last), ROOT.joinpath(*parts)
    if whole.is_dir() or whole.with_suffix(".py").is_file():
        return True
    sources = [path for path in (module.with_suffix(".py"), module / "__init__.py") if path.is_file()]
    return any(re.search(rf"^(?:def |class )?{last}\b", path.read_text(encoding="utf-8"), flags=re.MULTILINE) for path in sources)


def _is_in_the_config(section: Any, keys: list[str]) -> bool:
    if not keys:
        return True
    if isinstance(section, type) and issubclass(section, BaseModel):
        field = section.model_fields.get(keys[0])
        return field is not None and _is_in_the_config(field.annotation, keys[1:])
    return any(_is_in_the_config(each, keys) for each in get_args(section))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_a_document_names_exists(document: Path) -> None:
    assert [name for name in named(document.read_text(encoding="utf-8")) if not exists(name)] == []


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("`deploy/verify/verdict.py`", []),
        ("`deploy/verify/verdicts.py`", ["deploy/verify/verdicts.py"]),
        ("`configs/cifar10/*-resnet20-6epochs.yaml`", []),
        ("`configs/cifar10/*-resnet21.yaml`", ["configs/cifar10/*-resnet21.yaml"]),
        ("`pipeline.bundle.make`, `pipeline.bundle.make.TrainedRun`", []),
        ("`pipeline.staging`, `pipeline.bundle.make.Trained`", ["pipeline.staging", "pipeline.bundle.make.Trained"]),
        ("`export.batch.max` and `export.tensorrt: auto`", []),
        ("`export.batch.most`", ["export.batch.most"]),
        ("`torch.export.save`", []),
        ("`python -m benchmarks.house.walks --tree .`", []),
        ("`python -m benchmarks.walks`", ["benchmarks.walks"]),
    ],
)
def test_what_is_missing_is_found(text: str, missing: list[str]) -> None:
    assert [name for name in named(text) if not exists(name)] == missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_lines_of_prose_are_short(document: Path) -> None:
    """Tables, code, and links that cannot be broken are left out."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    lines = [line for line in text.splitlines() if not line.startswith(("|", "    ", "!["))]
    assert [line for line in lines if len(line) > LONGEST and " " in line.strip("- ")[LONGEST // 2 : LONGEST]] == []
