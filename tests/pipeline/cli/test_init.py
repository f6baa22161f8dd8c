"""`pipeline init`: a shipped config and its schema, written where nothing is overwritten."""

import json
from pathlib import Path

import pytest
from commands import pipeline

from pipeline.config import json_schema, load_config
from pipeline.config.shipped import SCHEMA_FILE, config_names, config_path, configs_folder

CONFIGS = Path(__file__).parents[3] / "configs"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_without_a_name_it_is_the_quickstart(tmp_path: Path, capfd: Capture) -> None:
    done = pipeline(capfd, "init")
    assert done.code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"quickstart.yaml", SCHEMA_FILE}
    assert load_config("quickstart.yaml") == load_config(CONFIGS / "quickstart.yaml")
    assert done.out.splitlines()[-1] == "next: pipeline train-export quickstart.yaml"


@pytest.mark.parametrize("name", ["quickstart", "cifar10/czmig-resnet110"])
def test_the_first_line_names_the_schema_that_lies_beside_it(tmp_path: Path, capfd: Capture, name: str) -> None:
    assert pipeline(capfd, "init", name, "--out", "deep/my.yaml").code == 0
    ours, written = (CONFIGS / f"{name}.yaml").read_text().splitlines(), Path("deep/my.yaml").read_text().splitlines()
    assert written == [f"# yaml-language-server: $schema={SCHEMA_FILE}", *ours[1:]]
    assert json.loads((tmp_path / "deep" / SCHEMA_FILE).read_bytes()) == json_schema()


def test_the_list_has_every_config(capfd: Capture) -> None:
    assert configs_folder() == CONFIGS
    names = config_names()
    assert len(names) == len(list(CONFIGS.rglob("*.yaml")))
    done = pipeline(capfd, "init", "--list")
    assert [line.split()[0] for line in done.out.splitlines()] == ["name", *names]
    assert done.out.splitlines()[1].split() == ["quickstart", "digits", "small", "czmig", "30"]
    assert all(config_path(name).is_file() for name in names)


def test_nothing_is_written_over(tmp_path: Path, capfd: Capture) -> None:
    Path("quickstart.yaml").write_text("mine")
    done = pipeline(capfd, "init")
    assert (done.code, done.error) == (2, "error: quickstart.yaml exists; choose another --out, or move it away")
    Path("quickstart.yaml").unlink()
    Path("quickstart.yaml").symlink_to("nowhere")
    assert pipeline(capfd, "init").code == 2
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("content", ["mine", "[]", '{"title": "Config"}', '{"title": "Other", "required": ["method"]}'])
def test_a_schema_of_somebody_else_is_not_written_over(capfd: Capture, content: str) -> None:
    Path(SCHEMA_FILE).write_text(content)
    done = pipeline(capfd, "init")
    assert (done.code, "is not a schema of samegraph" in done.error) == (2, True)
    assert Path(SCHEMA_FILE).read_text() == content
    assert not Path("quickstart.yaml").exists()


def test_a_schema_of_an_earlier_version_is_replaced(capfd: Capture) -> None:
    Path(SCHEMA_FILE).write_text(json.dumps({**json_schema(), "properties": {}}))
    assert pipeline(capfd, "init").code == 0
    assert json.loads(Path(SCHEMA_FILE).read_bytes()) == json_schema()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cifar10/czmig-resnet11"], "no config 'cifar10/czmig-resnet11', did you mean cifar10/czmig-resnet110?"),
        (["zzz"], "no config 'zzz', pipeline init --list shows them"),
        (["images"], "images is a folder, expected the name of a config; pipeline init --list shows them"),
        (["../quickstart"], "no config '../quickstart', did you mean quickstart?"),
        (["quickstart", "--list"], "--list only shows names: leave out NAME and --out (see pipeline init --help)"),
    ],
)
def test_wrong_use_is_one_line(tmp_path: Path, capfd: Capture, arguments: list[str], message: str) -> None:
    (tmp_path / "images").mkdir()
    done = pipeline(capfd, "init", *arguments)
    assert (done.code, done.error) == (2, f"error: {message}")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_a_config_wins_over_a_folder_of_its_name(tmp_path: Path, capfd: Capture) -> None:
    (tmp_path / "quickstart").mkdir()
    assert pipeline(capfd, "init", "quickstart").code == 0
