"""The files of docs/serving say what the command line, Ray's application and KServe take."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from pipeline.cli.serve import serve

FOLDER = Path(__file__).parents[2] / "docs" / "serving"
PAGE = FOLDER.with_suffix(".md").read_text(encoding="utf-8")


def parsed(arguments: list[str]) -> dict[str, Any]:
    """Parse the arguments behind `pipeline serve` as the command line does."""
    context = serve.make_context("serve", list(arguments))
    return context.params


def command_of(name: str) -> list[str]:
    text = (FOLDER / name).read_text(encoding="utf-8")
    if name == "Containerfile":
        (line,) = re.findall(r"^ENTRYPOINT (\[.*\])$", text, flags=re.MULTILINE)
        return [str(each) for each in yaml.safe_load(line)]
    if name == "samegraph.service":
        (line,) = re.findall(r"^ExecStart=(.*)$", text, flags=re.MULTILINE)
        return shlex.split(line)
    runtime, _ = yaml.safe_load_all(text)
    (container,) = runtime["spec"]["containers"]
    return [*container["command"], *container["args"]]


@pytest.mark.parametrize("name", ["Containerfile", "samegraph.service", "kserve.yaml"])
def test_each_command_is_one_that_the_command_line_takes(name: str) -> None:
    program, command, *arguments = command_of(name)
    assert Path(program).name == "pipeline"
    assert command == "serve"
    assert parsed(arguments)["bundle"].is_absolute()
    with pytest.raises(click.NoSuchOption):
        parsed([*arguments, "--no-such-option"])


def test_kserves_objects_have_the_fields_without_which_no_runtime_is_found() -> None:
    runtime, service = yaml.safe_load_all((FOLDER / "kserve.yaml").read_text(encoding="utf-8"))
    assert (runtime["apiVersion"], runtime["kind"]) == ("serving.kserve.io/v1alpha1", "ServingRuntime")
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    model = service["spec"]["predictor"]["model"]
    (supported,) = runtime["spec"]["supportedModelFormats"]
    assert model["modelFormat"]["name"] == supported["name"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    (container,) = runtime["spec"]["containers"]
    assert container["name"] == "kserve-container"
    assert str(container["ports"][0]["containerPort"]) == container["args"][container["args"].index("--port") + 1]


@pytest.mark.filterwarnings("ignore")  # of Ray and what it brings
def test_rays_arguments_are_those_of_the_application() -> None:
    from deploy.server.ray_serve import _options

    (application,) = yaml.safe_load((FOLDER / "ray.yaml").read_text(encoding="utf-8"))["applications"]
    module, _, name = application["import_path"].partition(":")
    assert (module, name) == ("deploy.server.ray_serve", "app")
    options, of_ray = _options(application["args"])
    assert options.bundle == Path("/srv/bundle")
    assert of_ray["replicas"] == 2


def test_the_page_names_every_option() -> None:
    """Except those that need no explanation beyond their help."""
    plain = {"--runtime", "--name", "--host", "--port", "--no-grpc", "--threads", "--max-connections", "--log-level", "--json", "--help"}
    options = {option for parameter in serve.params for option in parameter.opts if option.startswith("--")} - plain
    assert sorted(option for option in options if option not in PAGE) == ["--drain-timeout"]


def test_the_figures_are_those_of_the_result_files() -> None:
    results = Path(__file__).parents[2] / "benchmarks" / "results"
    cost = json.loads((results / "serving_cost.json").read_bytes())["figures"]
    throughput = json.loads((results / "serving_throughput_onnxruntime.json").read_bytes())["figures"]
    apart = {name: throughput[f"{name}, the client's time counted apart"]["median"] for name in ("saturated / loop", "overload / saturated")}
    shown = dict(re.findall(r"^\| ([^|]+?) \| ([\d.]+)(?: ms)? \|$", PAGE.partition("## What it costs")[2], flags=re.MULTILINE))
    assert shown == {
        "HTTP, binary, 16 connections": f"{cost['ours, 16 connections']['cpu_us']['median']:.0f}",
        "HTTP, binary, 1 connection": f"{cost['ours, 1 connections']['cpu_us']['median']:.0f}",
        "gRPC, 16 channels": f"{cost['ours, gRPC, 16 channels']['cpu_us']['median']:.0f}",
        "for comparison: a bare ASGI application, 16 connections": f"{cost['bare ASGI, 16 connections']['cpu_us']['median']:.0f}",
        "one-image requests at saturation, as a share of a loop over full batches in one process": f"{throughput['saturated / loop']['median']:.2f}",
        "the same, with the client's CPU time counted apart": f"{apart['overload / saturated']:.2f}",
        "at four times that rate, as a share of the saturated rate": f"{throughput['overload / saturated']['median']:.2f}",
        "added to a call in the process, at 20 requests a second": f"{throughput['added when idle, ms']['median']:.1f}",
    }
    assert f"{apart['saturated / loop']:.2f} |" in PAGE
    bits = json.loads((results / "serving_bits.json").read_bytes())
    assert bits["wrong"] == 0
    assert bits["images"] == 10_000
    crowds = [row for row in bits["rows"] if row["check"].startswith("random sizes")]
    assert {(row["form"], row["runtime"]) for row in crowds} == {(a, b) for a in ("exact", "float32") for b in ("onnxruntime-cpu", "openvino-cpu")}
    assert all(row["requests"] >= row["requests_of_all_images"] for row in crowds), "all images were asked for"
