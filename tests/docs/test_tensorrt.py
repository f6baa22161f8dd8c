"""The figures in docs/tensorrt.md for an H200 are those of the result file.

So is the text next to them.
"""

import json
import re
from pathlib import Path
from typing import Any

from documents import in_one_line

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tensorrt.md").read_text(encoding="utf-8")
SECTION = PAGE.split("\n## Speed on an H200\n")[1].split("\n## ")[0]
RESULT: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / "gpu_acceptance.json").read_bytes())
PROSE = in_one_line(SECTION)
SPEED = RESULT["speed"]
HEAD, _, *ROWS = [line.split(" | ") for line in re.findall(r"^\| ?(.+) ?\|$", SECTION, flags=re.MULTILINE)]
SIZES = HEAD[2:6]


def outputs(name: str) -> str:
    form, runtime = name.split(", ", 1)
    if form == "exact":
        same = SPEED["same_bits_of_exact"][runtime]
        return "the same bits at every batch size" if [same[size] for size in SIZES] == [True] * len(SIZES) else "other bits"
    return f"within {SPEED['errors'][name]['max_abs_from_torch_cpu']:.2g}"


def test_the_table_is_that_of_the_result() -> None:
    assert {f"{form}, {runtime}": [cell.strip() for cell in cells] for form, runtime, *cells in ROWS} == {
        name: [*(f"{found[size]['images_per_second']:,.0f}" if size in found else "failed" for size in SIZES), outputs(name)]
        for name, found in SPEED["measured"].items()
    }
    assert (SIZES, len(ROWS)) == (["1", "8", "64", "256"], 9)


def test_hardware_versions_and_network_are_those_of_the_result() -> None:
    gpu, versions = RESULT["gpu"], RESULT["environment"]
    stated = f"{gpu['name']} (driver {gpu['driver']}, CUDA {gpu['cuda']}, torch {versions['torch']}, onnxruntime-gpu {versions['onnxruntime-gpu']})"
    assert f"on one {stated}" in PROSE
    assert (SPEED["network"], SPEED["images"]) == ("resnet18", "3 x 32 x 32")
    assert f"a ResNet-18 with initial weights on {SPEED['images']} images, medians over {SPEED['rounds']} interleaved rounds" in PROSE
    assert {f"whose largest is {each['largest_output']:.2f};" for each in SPEED["errors"].values()} == {"whose largest is 2.96;"}
    assert "whose largest is 2.96;" in PROSE


def test_only_what_has_no_figures_failed_and_it_is_said() -> None:
    without = [name for name, found in SPEED["measured"].items() if set(found) != set(SIZES)]
    assert without == ["float32, torch, compiled"]
    (reason,) = RESULT["failed"]
    assert reason.startswith("float32, torch, compiled, batch 1: ")
    assert "failed at batch 1 in PyTorch's own compiler" in PROSE


def test_no_tensorrt_was_there_and_it_is_said() -> None:
    assert all(version.startswith("not here: ") for version in RESULT["tensorrt"].values())
    absent = ("tensorrt", "tensorrt-rtx", "onnxruntime-tensorrt")
    assert set(SPEED["not_run"]) == {f"{form}, {runtime}" for form in ("float32", "float16", "exact") for runtime in absent}
    assert RESULT["bundle"]["engines"] == {}
    assert "No row is one of TensorRT" in PROSE
    assert "So no engine has been run on a GPU." in PAGE


def test_what_ran_of_the_links_held() -> None:
    links = RESULT["bundle"]["links"]
    assert {link["status"] for link in links} == {"passed"}
    assert {link["runtime"] for link in links} == {"torch", "onnxruntime-cpu", "onnxruntime-cuda"}
    on_the_gpu = [link for link in links if link["device"].startswith("cuda")]
    assert {(link["required"], link["observed"]) for link in on_the_gpu if link["to"].startswith("exact")} == {("bitwise", "bitwise")}


def test_the_exact_form_of_pytorch_is_the_slowest_of_large_batches() -> None:
    for size in ("64", "256"):
        ranked = sorted((name for name, found in SPEED["measured"].items() if found), key=lambda name: SPEED["measured"][name][size]["median_ms"])
        assert set(ranked[-2:]) == {"exact, torch", "exact, torch, compiled"}
