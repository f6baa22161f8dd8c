"""What a .pt2 is checked for before torch loads it.

Covers every way in which loading could run code or leave the file.
"""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from programs import exported, exported_two_ends, small_net, write_program

from deploy.runners.pt2_file import require_harmless
from export.errors import DamagedError, UsageError


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_program(tmp_path_factory.mktemp("programs") / "net.pt2", exported(small_net()))


def changed(program: Path, folder: Path, change: Callable[[dict[str, bytes]], object]) -> Path:
    with zipfile.ZipFile(program) as archive:
        files = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(files)
    path = folder / "net.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"net/{name}", content)
    return path


def in_text(change: Callable[[Any], object], name: str = "models/model.json") -> Callable[[dict[str, bytes]], object]:
    def rewrite(files: dict[str, bytes]) -> None:
        content = json.loads(files[name])
        change(content)
        files[name] = json.dumps(content).encode()

    return rewrite


def node(content: Any) -> Any:
    return content["graph_module"]["graph"]["nodes"][0]


def test_what_torch_saves_is_harmless(program: Path, tmp_path: Path) -> None:
    require_harmless(program)
    require_harmless(changed(program, tmp_path, lambda files: None))
    require_harmless(write_program(tmp_path / "two.pt2", exported_two_ends()))


def pickled_weight(content: Any) -> None:
    next(iter(content["config"].values()))["use_pickle"] = True


def own_object(content: Any) -> None:
    content["config"]["thing"] = {"path_name": "opaque_obj_0", "use_pickle": False}


WEIGHTS, CONSTANTS = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (in_text(lambda c: node(c).update(target="torch.hub.load")), r"the text 'torch.hub.load' \(target\)"),
        (in_text(lambda c: node(c).update(target="torch.ops.aten.from_file.default")), "from_file"),
        (in_text(lambda c: node(c).update(target="_operator.attrgetter")), "attrgetter"),
        (in_text(lambda c: node(c).update(target="os.system")), "os.system"),
        (in_text(lambda c: node(c)["inputs"][0]["arg"].update(as_expr={"expr_str": "__import__('os').system('id')"})), "__import__"),
        (in_text(lambda c: node(c)["inputs"][0]["arg"].update(as_expr={"expr_str": "Symbol('s0').func.evalf"})), "func.evalf"),
        (in_text(lambda c: node(c)["inputs"][0]["arg"].update(as_expr={"expr_str": "lambdify(1, 2)"})), "lambdify"),
        (in_text(lambda c: node(c)["inputs"][0]["arg"].update(as_string="/etc/passwd")), "/etc/passwd"),
        (in_text(lambda c: node(c)["inputs"][0]["arg"].update(as_custom_obj={"name": "x"})), "an object of a class of its own"),
        (in_text(lambda c: node(c).update(name="x=exec('1')")), "exec"),
        (in_text(lambda c: c["graph_module"]["graph"]["tensor_values"].update({"x): import os": {}})), "import os"),
        (in_text(pickled_weight, WEIGHTS), "which is pickled"),
        (in_text(own_object, CONSTANTS), "'thing', which is pickled"),
        (lambda files: files.update({"data/weights/model.pt": b"x"}), "pickled tensors"),
        (lambda files: files.update({"data/aotinductor/model/x.so": b"x"}), "a file 'data/aotinductor/model/x.so'"),
        (lambda files: files.update({"../../etc/cron.d/x": b"x"}), "a file '../../etc/cron.d/x'"),
    ],
)
def test_what_could_run_code_is_refused_in_one_line(program: Path, tmp_path: Path, change: Callable[[dict[str, bytes]], object], found: str) -> None:
    with pytest.raises(DamagedError, match=found) as caught:
        require_harmless(changed(program, tmp_path, change))
    assert "could run code or reach outside the file" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda files: files.update({"models/model.json": b"{"}), "is not a torch.export program"),
        (lambda files: files.update({WEIGHTS: b"[]"}), "a list of its tensors is missing"),
        (lambda files: files.pop("models/model.json"), "holds 0 programs, expected 1"),
    ],
)
def test_a_damaged_archive(program: Path, tmp_path: Path, change: Callable[[dict[str, bytes]], object], found: str) -> None:
    with pytest.raises(DamagedError, match=found):
        require_harmless(changed(program, tmp_path, change))


def test_a_text_and_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.pt2").write_text("hello")
    with pytest.raises(DamagedError, match=r"is not a torch\.export program: File is not a zip file"):
        require_harmless(tmp_path / "a.pt2")
    with pytest.raises(UsageError, match="is not a file"):
        require_harmless(tmp_path / "none.pt2")
