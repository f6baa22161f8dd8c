"""`pipeline doctor`: try what this machine can run, and say what to do about the rest.

Takes the runtimes that must run.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from export.errors import NotHereError
from pipeline.cli import options
from pipeline.cli.console import Console

if TYPE_CHECKING:
    from deploy.runners.probe import Findings

CUDA_REMEDY = "use a machine with an NVIDIA GPU and its driver, and a PyTorch built for CUDA"


def remedies() -> dict[str, str]:
    """Map each name that `--require` takes to the way to get it."""
    from deploy.runners.runtimes import RUNTIMES

    return {"cuda": CUDA_REMEDY, **{name: runtime.remedy for name, runtime in RUNTIMES.items()}}


class RuntimeName(click.ParamType[Any]):
    """A name in the table of runtimes.

    The table is read when the option is used, so that help needs as few imports as possible.
    """

    name = "runtime"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return click.Choice(list(remedies())).convert(value, param, ctx)


@click.command("doctor")
@click.option(
    "--require",
    "required",
    multiple=True,
    type=RuntimeName(),
    metavar="RUNTIME",
    help="Exit with 4 if this cannot run: cuda, or a runtime that this command lists. Repeatable.",
)
@options.as_json
@click.pass_obj
def doctor(console: Console, required: tuple[str, ...]) -> None:
    """Show what this machine can run."""
    from pipeline.cli.doctor.survey import installed_onnxruntimes, problems, survey

    found = survey()
    wrong = problems(installed_onnxruntimes())
    findings = {name: asdict(finding) for name, finding in found.items()}
    console.result({"findings": findings, "problems": wrong}, as_table(found, wrong))
    missing = [name for name in required if not found[name].here]
    if missing:
        raise NotHereError("; ".join(f"{name}: {found[name].detail}; {remedies()[name]}" for name in missing))


def as_table(found: "Findings", wrong: list[str]) -> str:
    """Return a line per finding, then the problems."""
    width = max(map(len, found))
    lines = [f"{name:{width}}  {'yes' if finding.here else 'no ':3}  {finding.detail}" for name, finding in found.items()]
    return "\n".join([*lines, *(f"problem: {problem}" for problem in wrong)])
