"""Every name of TensorRT that this project uses exists in both flavours.

The names are read from the classes of installed flavours. If the full one is not installed, they
are read from a recording of its bindings (`tests/support/recorded_api.py`); nothing of it is run.
"""

import importlib
import importlib.util
import inspect
import json
from pathlib import Path
from typing import Any, Protocol

import pytest
import recorded_api
from recorded_api import CLASSES, signatures

from export.tensorrt import api
from export.tensorrt.runtime import FLAVOURS

RECORDED: dict[str, Any] = json.loads(Path(recorded_api.__file__).with_suffix(".json").read_text(encoding="utf-8"))
USED = {cls: inspect.getdoc(cls) for _, cls in inspect.getmembers(api, inspect.isclass) if cls.__module__ == api.__name__ and Protocol in cls.__mro__}
NOT_A_CLASS = {"Members", "TensorRt", "TensorRtRtx"}
OF_RTX = {"IRuntimeConfig": api.RuntimeConfigOfRtx, "DynamicShapesKernelSpecializationStrategy": api.SpecialisationOfRtx}
BY_TENSORRTS_NAME = {
    str(doc).split(":")[0].split(",")[0].removesuffix("."): cls
    for cls, doc in USED.items()
    if cls.__name__ not in NOT_A_CLASS and cls not in OF_RTX.values()
}
INSTALLED = [name for name, flavour in FLAVOURS.items() if importlib.util.find_spec(flavour.module)]


def members(protocol: type) -> set[str]:
    """The members that one of our protocols requires."""
    found: set[str] = set()
    for cls in protocol.__mro__:
        if cls.__module__ == api.__name__:
            found |= {*inspect.get_annotations(cls), *(name for name, value in vars(cls).items() if inspect.isfunction(value))}
    return {name for name in found if not name.startswith("_")}


def missing(classes: dict[str, dict[str, list[str]]]) -> list[str]:
    return sorted(f"{name}.{member}" for name, cls in BY_TENSORRTS_NAME.items() for member in members(cls) - set(classes.get(name, {})))


def installed(name: str) -> dict[str, dict[str, list[str]]]:
    module = importlib.import_module(FLAVOURS[name].module)  # type: ignore[index]
    return {cls: signatures(getattr(module, cls)) for cls in BY_TENSORRTS_NAME}


def test_every_class_of_ours_is_named_after_one_of_tensorrts() -> None:
    assert set(BY_TENSORRTS_NAME) == set(CLASSES) == set(RECORDED["classes"])
    assert sum(len(members(cls)) for cls in BY_TENSORRTS_NAME.values()) > 50


def test_the_recorded_full_flavour_has_every_name() -> None:
    assert tuple(map(int, RECORDED["version"].split(".")[:2])) >= FLAVOURS["tensorrt"].least_version
    assert missing(RECORDED["classes"]) == []


@pytest.mark.parametrize("name", FLAVOURS)
def test_an_installed_flavour_has_every_name(name: str) -> None:
    if name not in INSTALLED:
        pytest.skip(f"not run: {FLAVOURS[name].module} is not installed")  # type: ignore[index]
    assert missing(installed(name)) == []
    module = importlib.import_module(FLAVOURS[name].module)
    assert [each for each in members(api.TensorRt) if not hasattr(module, each)] == []
    assert isinstance(module.__version__, str)


@pytest.mark.skipif("rtx" not in INSTALLED, reason="not run: tensorrt_rtx is not installed")
def test_rtx_has_the_names_that_are_used_with_it_alone() -> None:
    module = importlib.import_module("tensorrt_rtx")
    for name, protocol in OF_RTX.items():
        assert members(protocol) <= set(signatures(getattr(module, name)))
    assert members(api.TensorRtRtx) - members(api.TensorRt) == {"DynamicShapesKernelSpecializationStrategy"}


@pytest.mark.parametrize("name", INSTALLED)
def test_what_is_called_takes_the_same_arguments_in_both(name: str) -> None:
    """Undocumented arguments are not compared, so the number of comparisons is checked too."""
    found, compared = installed(name), 0
    for cls, protocol in BY_TENSORRTS_NAME.items():
        for member in members(protocol):
            if RECORDED["classes"][cls][member]:
                assert {*found[cls][member]} & {*RECORDED["classes"][cls][member]}, f"{cls}.{member}"
                compared += 1
    assert compared > 30


def test_a_name_that_one_of_them_lacks_is_found() -> None:
    lacking: dict[str, dict[str, list[str]]] = {name: {member: [] for member in members(cls)} for name, cls in BY_TENSORRTS_NAME.items()}
    assert missing(lacking) == []
    del lacking["ICudaEngine"]["num_io_tensors"], lacking["ITensor"]
    assert missing(lacking) == ["ICudaEngine.num_io_tensors", "ITensor.dtype", "ITensor.name", "ITensor.shape"]
