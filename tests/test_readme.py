"""The README's commands run, in their order, in a folder that holds what the README says it holds."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import pipeline
from PIL import Image

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def write_named_files(folder: Path) -> list[str]:
    """Blocks whose first line is a comment with a file name are files."""
    names = []
    for block in [*blocks("python"), *blocks("yaml")]:
        if named := re.match(r"# (\S+\.\w+)\n", block):
            (folder / named[1]).write_text(block, encoding="utf-8")
            names.append(named[1])
    return names


def write_pets(folder: Path) -> None:
    """Two classes that can be told apart: dark and bright noise."""
    generator = np.random.default_rng(0)
    for split, number in (("train", 64), ("test", 8)):
        for name, base in (("cat", 40), ("dog", 180)):
            place = folder / "data" / "pets" / split / name
            place.mkdir(parents=True)
            for index in range(number):
                pixels = generator.integers(base - 40, base + 40, (40, 36, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{index}.jpg")


@pytest.mark.slow
def test_the_commands_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    assert write_named_files(tmp_path) == ["my_net.py", "my.yaml"]
    write_pets(tmp_path)
    commands = [line for block in blocks("sh") for line in block.splitlines() if line]
    assert len(commands) == 6
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "pipeline"
        done = pipeline(capfd, *arguments)
        assert done.code == 0, (command, done.err)
    assert (tmp_path / "runs" / "my" / "bundle" / "manifest.json").is_file()
    (use_of_the_model,) = (block for block in blocks("python") if "onnxruntime" in block)
    found: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = {}
    exec(use_of_the_model, found)
    assert found["logits"].shape == (1, 10)


def test_the_two_commands_at_the_top_are_in_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^    make (\w+) ", README, flags=re.MULTILINE)
    assert targets == ["demo", "test"]
    assert all(f"\n{target}:" in makefile for target in targets)


def test_links_lead_somewhere() -> None:
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        links = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text(encoding="utf-8"))
        missing = [link for link in links if not (document.parent / link).exists()]
        assert not missing, document


def test_the_exit_codes_are_those_of_the_errors() -> None:
    from export.errors import SamegraphError

    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", README, flags=re.MULTILINE)}
    assert {each.exit_code for each in SamegraphError.__subclasses__()} | {0, 1, 130} == listed
