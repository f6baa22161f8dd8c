"""`pipeline doctor`: what this machine can run, by trying it, and what to do about what it cannot."""

from dataclasses import asdict

import click

from deploy.runners.probe import Findings
from deploy.runners.table import RUNTIMES
from export.errors import NotHereError
from pipeline.cli import options
from pipeline.cli.console import Console
from pipeline.cli.doctor.survey import installed_onnxruntimes, problems, survey

REMEDIES = {
    "cuda": "take a machine with an NVIDIA GPU and its driver, and a PyTorch built for CUDA",
    **{name: runtime.remedy for name, runtime in RUNTIMES.items()},
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
