"""`pipeline doctor`: what this machine can run, by trying it, and what to do about what it cannot."""

from dataclasses import asdict

import click

from export.errors import NotHereError
from pipeline.cli import options
from pipeline.cli.console import Console
from pipeline.cli.doctor.probes import Findings
from pipeline.cli.doctor.survey import installed_onnxruntimes, problems, survey

REMEDIES = {
    "cuda": "take a machine with an NVIDIA GPU and its driver, and a PyTorch built for CUDA",
    "tensorrt": "pip install 'samegraph[tensorrt]', on a machine with an NVIDIA GPU",
    "tensorrt-rtx": "pip install tensorrt-rtx, on an NVIDIA GPU of compute capability 7.5, 8.x or 12.x",
    "onnxruntime-cpu": "pip install onnxruntime-gpu, which serves CPUs too",
    "onnxruntime-cuda": "pip install onnxruntime-gpu and nothing else of ONNX Runtime, on a machine with an NVIDIA GPU",
    "openvino-cpu": "pip install 'samegraph[openvino]'",
    "onnxruntime-tensorrt": "the same as for onnxruntime-cuda, and libraries of the TensorRT that it was built for on LD_LIBRARY_PATH",
}
"""What `--require` takes -> how to get it."""


@click.command("doctor")
@click.option(
    "--require",
    "required",
    multiple=True,
    type=click.Choice(list(REMEDIES)),
    metavar="RUNTIME",
    help=f"Exit with 4 where it cannot run: {', '.join(REMEDIES)}. Repeatable.",
)
@options.as_json
@click.pass_obj
def doctor(console: Console, required: tuple[str, ...]) -> None:
    """Say what this machine can run."""
    found = survey()
    wrong = problems(installed_onnxruntimes())
    findings = {name: asdict(finding) for name, finding in found.items()}
    console.result({"findings": findings, "problems": wrong}, as_table(found, wrong))
    missing = [name for name in required if not found[name].here]
    if missing:
        raise NotHereError("; ".join(f"{name}: {found[name].detail}; {REMEDIES[name]}" for name in missing))


def as_table(found: Findings, wrong: list[str]) -> str:
    """A line a finding, then the problems."""
    width = max(map(len, found))
    lines = [f"{name:{width}}  {'yes' if finding.here else 'no ':3}  {finding.detail}" for name, finding in found.items()]
    return "\n".join([*lines, *(f"problem: {problem}" for problem in wrong)])
