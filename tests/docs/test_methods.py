"""The memory figures in docs/methods.md are those of the result file."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMES = {"`czmig`, `czmi`": ("czmig", "czmi"), "`weightnorm` without its dropout": ("weightnorm-without-dropout",)}


def test_the_table_holds_the_ratios_of_the_result() -> None:
    section = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8").split("## Memory of a training step")[1].split("\n## ")[0]
    results = json.loads((ROOT / "benchmarks" / "results" / "memory.json").read_bytes())["results"]
    rows = re.findall(r"^\| (`.+?) \| (\S+) \| (\S+) \|$", section, flags=re.MULTILINE)
    stated = {name: columns for label, *columns in rows for name in NAMES.get(label, (label.strip("`"),))}
    assert stated == {
        name: [ratio(result["methods"][name]) for result in results.values()] for name in results["resnet18"]["methods"] if name != "batchnorm"
    }


def ratio(measured: dict[str, float]) -> str:
    return f"{measured['over_batchnorm']:.3f}" if "over_batchnorm" in measured else "refused"
