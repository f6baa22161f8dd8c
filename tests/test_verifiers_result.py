"""The table of verifiers that docs/verifying.md shows is that of the result file, and the result is what the text says of it."""

import json
from pathlib import Path
from typing import Any

from benchmarks.corpus import FAULTS, HARMLESS, UNCOMPARABLE
from benchmarks.verifiers import SCALES, table

ROOT = Path(__file__).parents[1]
RESULT: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / "verifiers.json").read_bytes())


def test_the_table_is_that_of_the_result() -> None:
    assert table(RESULT) in (ROOT / "docs" / "verifying.md").read_text(encoding="utf-8")


def test_the_result_is_of_the_whole_corpus_of_today() -> None:
    cases = [case.name for case in (*FAULTS, *UNCOMPARABLE, *HARMLESS)] + ["other names inside"]
    assert [(each["case"], each["logits"]) for each in RESULT["rows"]] == [(case, f"2^{scale}") for scale in SCALES for case in cases]


def test_every_fault_was_found_and_placed_and_nothing_harmless_was_reported() -> None:
    for each in RESULT["rows"]:
        found = each["samegraph"]
        assert found["found"] is (each["kind"] != "harmless"), each["case"]
        if each["kind"] == "fault":
            assert found["layer"] == each["layer"], each["case"]
