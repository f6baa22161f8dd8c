"""Every addition that docs/adding.md describes is made as it is written there, in a copy of the
project, and everything picks it up."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from additions import Addition, additions, copy_with, tried
from made_once import MadeOnce

from docs.rooms import ROOT

PAGE = (ROOT / "docs" / "adding.md").read_text(encoding="utf-8")
FILES = {"A method": 3, "A kind of layer": 2, "A data set": 3, "A runtime": 4, "A file of a bundle": 3}
"""How many files each addition changes, with its test; `make schema` and a line in the README come
on top."""
slow = pytest.mark.slow


def of(section: str) -> list[Addition]:
    return additions(PAGE, section)


@pytest.fixture(scope="module")
def found(made_once: MadeOnce) -> dict[str, Any]:
    """What the copy with all additions found out; one process for all tests."""

    def make(path: Path) -> None:
        path.mkdir()
        copy_with([each for section in FILES for each in of(section)], path / "copy")
        (path / "found.json").write_text(json.dumps(tried(path / "copy")), encoding="utf-8")

    content: dict[str, Any] = json.loads((made_once.path("adding", make) / "found.json").read_bytes())
    return content


def links(verification: dict[str, Any]) -> dict[str, str]:
    return {f"{link['from']} -> {link['to']}": link["status"] for link in verification["links"]}


@pytest.mark.parametrize(("section", "number"), FILES.items())
def test_an_addition_changes_so_many_files(section: str, number: int) -> None:
    assert len({each.path for each in of(section)}) == number


def test_every_block_of_code_on_the_page_is_applied() -> None:
    blocks = re.findall(r"^```(?:python|toml)$", PAGE, flags=re.MULTILINE)
    assert len(blocks) == sum(len(of(section)) for section in FILES)


def test_the_table_of_the_architecture_has_these_numbers() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.split("\n## What an addition touches\n")[1]
    told = dict(re.findall(r"^\| ([aA] [\w ]+?) \| (\d+) \|", table, flags=re.MULTILINE))
    assert told == {section.lower(): str(number) for section, number in FILES.items()}


def test_a_place_that_is_not_there_or_not_one_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\nx = 2\n", encoding="utf-8")
    for place in ("y", "x"):
        with pytest.raises(ValueError, match="to unpack"):
            Addition("a.py", place, "z = 3\n").apply(tmp_path)
    Addition("a.py", "x = 2", "z = 3\n").apply(tmp_path)
    assert (tmp_path / "a.py").read_text(encoding="utf-8") == "x = 1\nz = 3\nx = 2\n"


@slow
def test_a_method_trains_exports_and_verifies(found: dict[str, Any]) -> None:
    assert found["plan"]["network"]["method"] == "layergain"
    for verification in (found["run"], found["verify"]):
        assert verification["verdict"] == "pass"
        assert links(verification)["evaluation graph -> folded graph"] == "passed"
        assert links(verification)["exact folded graph -> exact ONNX file"] == "passed"
    assert '"layergain"' in found["schema"]


@slow
def test_a_data_set_is_opened(found: dict[str, Any]) -> None:
    data = found["plan"]["data"]
    assert (data["name"], data["training_images"], data["test_images"], data["shape"]) == ("stripes", 128, 32, [1, 8, 8])
    assert "- Pixels: those of the data set, gray, unchanged." in found["card"]
    assert '"stripes"' in found["schema"]


@slow
def test_a_runtime_is_known_to_doctor_schema_chain_and_pair(found: dict[str, Any]) -> None:
    assert found["doctor"]["here"]
    assert found["doctor"]["detail"].endswith(", computes")
    assert found["doctor"]["remedy"] == "pip install 'samegraph[reference]'"
    assert '"onnx-reference"' in found["schema"]
    for verification in (found["run"], found["verify"]):
        here = [link for link in verification["links"] if link["runtime"] == "onnx-reference"]
        assert [(link["status"], link["observed"]) for link in here] == [("passed", "budget"), ("passed", "bitwise")]
    (link,) = found["pair"]["links"]
    assert (link["runtime"], link["status"]) == ("onnx-reference", "passed")
    assert "onnx" in found["run"]["environment"]["packages"]


@slow
def test_a_file_of_a_bundle_is_hashed(found: dict[str, Any]) -> None:
    assert "training/packages.txt" in found["files"]


@slow
def test_a_kind_of_layer_keeps_its_bits(found: dict[str, Any]) -> None:
    """Under every method and on the exact grid: tests/export/graph/test_operations.py, which adds
    three rows, and test_every_pair.py."""
    assert found["layer"].keys() == {"layergain", "czmig"}
    for told in found["layer"].values():
        assert told["same bits"]
        assert "PRelu" in told["operators"]


@slow
def test_the_tests_that_come_with_the_additions_ran(found: dict[str, Any]) -> None:
    """Among them that a bundle is refused whose new file was changed."""
    written = {each.path for section in FILES for each in of(section) if Path(each.path).name.startswith("test_")}
    assert len(written) == 4
    assert set(found["tests"]) == written
