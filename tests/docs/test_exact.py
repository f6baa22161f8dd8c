"""The figures in docs/exact.md are those of the result files, and the targets named there are
met."""

import json
import re
from pathlib import Path
from typing import Any

from documents import prose

from benchmarks import exact_bits
from pipeline.networks import NETWORKS

ROOT = Path(__file__).parents[2]


def result(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_bytes())


def rows_of(section: str) -> list[list[str]]:
    """Return the table below a heading of docs/exact.md, without its head."""
    text = (ROOT / "docs" / "exact.md").read_text(encoding="utf-8").split(f"## {section}\n")[1].split("\n## ")[0]
    lines = re.findall(r"^\| (.+) \|$", text, flags=re.MULTILINE)
    return [line.split(" | ") for line in lines[1:]]


def test_the_accuracies_are_those_of_the_result() -> None:
    runs = result("exact_accuracy")["runs"]
    assert rows_of("What it costs in accuracy") == [
        [
            f"`{run['method']}`",
            *(f"{100 * run[key]:.2f} %" for key in ("float32", "exact_at_once", "exact")),
            f"{run['room_bits']['mean_gain_of_signs']:.3f}",
            f"{run['room_bits']['least']:.3f}",
        ]
        for run in runs
    ]
    assert {run["method"] for run in runs} == {"czmig", "mimicnorm", "batchnorm"}


def test_the_targets_of_accuracy_are_met() -> None:
    found = result("exact_accuracy")
    for run in found["runs"]:
        assert run["verdict"] == "pass"
        assert run["points_lost"] <= found["targets"]["points lost after training on the grid"]
        assert run["points_lost_at_once"] <= found["targets"]["points lost at once"]
        ran = [said for said in run["exact_links"].values() if said != "not run"]
        assert ran == ["passed, max_ulp 0"] * 5


SPEEDS = ("onnxruntime, batch 1", "onnxruntime, batch 64", "openvino, batch 1", "openvino, batch 64")


def test_the_speeds_and_sizes_are_those_of_the_result() -> None:
    networks = result("exact_speed")["networks"]
    assert rows_of("Speed and size")[1:] == [
        [f"`{name}`", *(f"{found['times_as_fast'][key]['median']:.2f}" for key in SPEEDS), f"{found['size']:.3f}"] for name, found in networks.items()
    ]
    assert set(NETWORKS) <= set(networks)
    assert all(found["same_bits_in_both_runtimes"] for found in networks.values())


def test_what_bounds_the_speed_is_that_of_the_result() -> None:
    resnet = result("exact_speed")["networks"]["resnet18"]
    products, shares = resnet["large_matrix_products"], resnet["share_of_large_products"]
    text = prose("exact")
    assert f"are {products['int8'] / products['float32']:.2f} times as fast here" in text
    assert f"at {100 * shares['float32, onnxruntime, batch 64']:.0f} % of the float32 rate" in text
    assert (
        f"{100 * shares['exact, onnxruntime, batch 64']:.0f} % of the int8 rate there and {100 * shares['exact, openvino, batch 64']:.0f} %" in text
    )


def test_the_aims_that_are_said_to_be_met_are() -> None:
    found = result("exact_speed")
    resnet, aims = found["networks"]["resnet18"], found["targets"]["resnet18"]
    assert resnet["size"] <= aims["size"]
    assert resnet["times_as_fast"]["onnxruntime, batch 64"]["median"] >= aims["onnxruntime"]["64"]


def test_the_networks_with_the_same_bits_are_those_of_the_result() -> None:
    found = result("exact_bits")
    text = prose("exact").split("## The same bits, measured ")[1].split(" ## ")[0]
    stated = text.split("The same bits throughout, for ")[1].split(": ")[0]
    assert re.findall(r"`(\S+?)`", stated) == list(found["networks"])
    assert set(found["networks"]) == set(exact_bits.NETWORKS)
    assert (found["images"], found["images_in_all_combinations"]) == (10_019, 519)
    for network in found["networks"].values():
        assert (network["same"], network["different"], len(network["forms_on_all_images"]), len(network["forms_in_all_combinations"])) == (
            True,
            [],
            13,
            25,
        )
