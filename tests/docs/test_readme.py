"""The README's commands run, in their order, in a folder with the files that the README names."""

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from commands import pipeline
from PIL import Image
from torch import nn
from torch.fx import Graph, GraphModule

from export.preprocess import SHORTER_SIDE, SIXTEENTHS, UNCHANGED, WHOLE, Recipe, recipe_for
from pipeline.bundle.make import TrainedRun, _model_card
from pipeline.config import parse_config
from pipeline.config.sections import Data
from pipeline.data import Split
from pipeline.data.images import MemoryImages
from pipeline.exact_training import NoExactForm
from pipeline.methods import METHODS
from pipeline.networks import FAMILIES, NETWORKS

ROOT = Path(__file__).parents[2]
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
    """Write two classes that are easy to tell apart: dark and bright noise."""
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
    assert len(commands) == 7
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "pipeline"
        done = pipeline(capfd, *arguments)
        assert done.code == 0, (command, done.err)
    assert (tmp_path / "runs" / "my" / "bundle" / "manifest.json").is_file()
    require_accuracy_and_bits(tmp_path / "runs" / "quickstart")
    (use_of_the_model,) = (block for block in blocks("python") if "onnxruntime" in block)
    found: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = {}
    exec(use_of_the_model, found)
    assert found["logits"].shape == (1, 10)


def require_accuracy_and_bits(quickstart: Path) -> None:
    verification = json.loads((quickstart / "bundle" / "verification.json").read_bytes())
    assert verification["verdict"] == "pass"
    assert verification["samples"]["count"] == 355 + 19
    last = json.loads((quickstart / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["epoch"] == 30
    assert last["test_accuracy"] >= 0.97


def test_the_two_commands_at_the_top_are_in_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^    make (\w+) ", README, flags=re.MULTILINE)
    assert targets == ["demo", "test"]
    assert all(f"\n{target}:" in makefile for target in targets)


def test_the_run_at_the_top_ends_in_the_form_in_which_runs_end(finished_run: Path) -> None:
    """Check each link in its order and with its kind of figure.

    The figures differ from machine to machine, and so does whether engines can run.
    """
    shown = re.findall(r"^    (.+ -> .+?): (passed|not run)[,:] (.+)$", README, flags=re.MULTILINE)
    links = json.loads((finished_run / "bundle" / "verification.json").read_text(encoding="utf-8"))["links"]
    assert len(shown) == len(links)
    of_kind = {"bitwise": r"the same bits", "budget": r"error against float64 \S+ of \S+ allowed"}
    for (name, status, how), link in zip(shown, links, strict=True):
        if link["runtime"].startswith("tensorrt"):
            assert status == "not run", "no engine has been run by those who wrote this README"
            assert how.startswith("there is no tensorrt engine: ")
        else:
            assert (name, status) == (f"{link['from']} -> {link['to']}", "passed")
            assert re.fullmatch(of_kind[link["observed"]], how), name
    _, first, *_, verdict, bundle = README.split("make demo` ends like this")[1].split("\n## ")[0].split("\n    ")
    assert first.startswith("accuracy on the test set: ")
    assert verdict.startswith("the outputs are the same, on ")
    assert bundle.strip() == "bundle: runs/quickstart/bundle"


def test_the_methods_are_those_of_the_table() -> None:
    listed = README.split("\n## Methods\n")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", listed, flags=re.MULTILINE) == list(METHODS)


@pytest.mark.parametrize(
    ("recipe", "network", "words"),
    [
        (replace(recipe_for((1, 8, 8)), trained_on=SIXTEENTHS), "small", ("min(16 v, 255)", "from these files alone")),
        (replace(recipe_for((3, 32, 32)), trained_on=UNCHANGED), "resnet20", ("RGB, unchanged",)),
        (
            recipe_for((3, 224, 224), framing=SHORTER_SIDE, resize=256),
            "torchvision:resnet50",
            ("the shorter side scaled to 256, bilinear", "and of that the 224 x 224 in the centre."),
        ),
        (recipe_for((3, 32, 32)), "my_net:build", ("RGB, upright", "centre square", "`python preprocess.py IMAGE...`", "--network my_net:build`")),
        (recipe_for((1, 20, 30), framing=WHOLE), "torchvision:resnet18", ("gray", "20 x 30, neither cropped nor scaled", "from these files alone")),
    ],
    ids=["digits", "a data set of pixels", "imagefolder as ImageNet", "imagefolder", "imagefolder as it is"],
)
def test_the_readme_of_a_bundle_says_what_to_feed_and_how_to_verify(recipe: Recipe, network: str, words: tuple[str, ...]) -> None:
    """The graph is not read: the card is written from the config, the recipe and the shapes."""
    config = parse_config({"network": {"name": network}, "method": {"name": "nonorm"}})
    pixels = torch.zeros((1, *recipe.shape), dtype=torch.uint8)
    test = Split(MemoryImages(pixels), torch.zeros(1, dtype=torch.int64), torch.device("cpu"))
    graph, no_exact = GraphModule(nn.Identity(), Graph()), NoExactForm("not wanted")
    trained = TrainedRun(config, graph, ("a", "b"), recipe.shape, test, {}, b"", "cpu", "float32", no_exact, recipe)
    card = _model_card(trained)
    assert all(each in card for each in words)


def test_the_networks_are_those_of_the_table() -> None:
    listed = README.split("\n## Networks\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ((?:`[^`]+` ?)+) \|", listed, flags=re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`([^`]+)`", row)} == {*NETWORKS, *(family.form for family in FAMILIES)}


def test_the_data_sets_are_those_of_the_config() -> None:
    listed = README.split("\n### Using the model\n")[1].split("\n## ")[0]
    named = {name for line in re.findall(r"^- ((?:`\w+`(?:, )?)+):", listed, flags=re.MULTILINE) for name in re.findall(r"`(\w+)`", line)}
    assert named == set(get_args(Data.model_fields["name"].annotation))


def test_links_lead_somewhere() -> None:
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        links = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text(encoding="utf-8"))
        missing = [link for link in links if not (document.parent / link).exists()]
        assert not missing, document


def test_the_exit_codes_are_those_of_the_errors() -> None:
    from export.errors import SamegraphError

    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", README, flags=re.MULTILINE)}
    assert {each.exit_code for each in SamegraphError.__subclasses__()} | {0, 1, 130} == listed
