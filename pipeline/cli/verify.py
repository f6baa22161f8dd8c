"""`pipeline verify`: its options."""

from pathlib import Path
from typing import Any

import click

from pipeline.cli import certificate as certificates
from pipeline.cli import options
from pipeline.cli.console import Console

_PRECISIONS = click.Choice(["float32", "tf32", "float16", "bfloat16"])
_OF_PAIRS = ("precision", "map_", "size", "runtime", "max_ulp", "atol", "rtol", "no_batch", "memory_limit", "time_limit")
_OF_BOTH = ("samples", "required", "only", "against", "report", "junit")
_WORDS = {"bundle": "a BUNDLE", "certificate": "--certificate", "reference": "--reference and --candidate"}
_IN_BRIEF = """\b
    pipeline verify BUNDLE
    pipeline verify --reference model.pt2 --candidate model.onnx --samples samples.npz
"""


@click.command("verify", epilog=_IN_BRIEF)
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@certificates.option
@click.option("--reference", metavar="FILE", type=click.Path(path_type=Path), help="What is right: .pt2, .onnx, .plan, bundle, recorded outputs.")
@click.option("--candidate", metavar="FILE", type=click.Path(path_type=Path), help="What must be the same function.")
@click.option("--samples", metavar="FILE|DIR|N", help="Inputs in .npz or .safetensors, a folder of such files, or so many random ones.")
@click.option("--map", "map_", multiple=True, metavar="A=B", help="The candidate calls the reference's A B. Repeatable.")
@click.option("--size", multiple=True, metavar="NAME=N", help="A free size of random samples. Repeatable.")
@click.option("--runtime", multiple=True, metavar="RUNTIME", help="Run an ONNX candidate in this.  [default: onnxruntime-cpu]")
@click.option("--max-ulp", type=click.IntRange(min=0), help="Allow so many units in the last place, instead of the derived budget.")
@click.option("--atol", type=click.FloatRange(min=0), help="Allow atol + rtol |reference|, instead of the derived budget.")
@click.option("--rtol", type=click.FloatRange(min=0), help="See --atol.")
@click.option("--precision", type=_PRECISIONS, help="What was asked of the candidate.  [default: the reference's]")
@click.option("--no-batch", is_flag=True, help="The first axis does not count samples.")
@click.option("--memory-limit", type=click.FloatRange(min=0), metavar="GIB", help="For each file's process; 0 for none.  [default: 16]")
@click.option("--time-limit", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="For opening a file, for a batch.  [default: 600]")
@options.required_or_bitwise
@click.option("--only", metavar="LINK", help="Check this link alone, such as 'folded graph -> ONNX file'.")
@click.option("--network", metavar="MODULE:FUNCTION", help="Let the bundle's network be built by this code of yours. A bundle alone runs no code.")
@click.option("--against", metavar="OLD.json", type=click.Path(path_type=Path), help="Say what changed since this verification.json.")
@click.option("--report", type=click.Path(path_type=Path, file_okay=False), help="Write verification.json and report.html here.")
@click.option("--junit", metavar="FILE", type=click.Path(path_type=Path), help="Write a JUnit report: a test case a link and output.")
@options.as_json
@click.pass_context
def command(
    context: click.Context,
    bundle: Path | None,
    certificate: Path | None,
    reference: Path | None,
    candidate: Path | None,
    samples: str | None,
    map_: tuple[str, ...],
    size: tuple[str, ...],
    runtime: tuple[str, ...],
    max_ulp: int | None,
    atol: float | None,
    rtol: float | None,
    precision: Any,
    no_batch: bool,
    memory_limit: float | None,
    time_limit: float | None,
    required: tuple[str, ...],
    only: str | None,
    network: str | None,
    against: Path | None,
    report: Path | None,
    junit: Path | None,
) -> None:
    """Check that a bundle's models, or any two forms of a model, give the same outputs."""
    _refuse_mixtures(context)
    console: Console = context.obj
    if certificate is not None:
        certificates.show(console, certificate)
        return
    from pipeline import checking
    from pipeline.pairs import Typed
    from pipeline.verification import Asked

    wanted = checking.Wanted(against=against, report=report, junit=junit)
    if bundle is not None:
        outcome = checking.verify(bundle, Asked(required=required, only=only, network=network, inside=report is not None), samples, wanted, console)
    else:
        assert reference is not None
        assert candidate is not None
        typed = Typed(
            reference=reference,
            candidate=candidate,
            samples=samples,
            maps=map_,
            sizes=size,
            runtimes=runtime,
            max_ulp=max_ulp,
            atol=atol,
            rtol=rtol,
            precision=precision,
            required=required,
            only=only,
            batched=not no_batch,
            inside=report is not None,
            memory_limit=16 if memory_limit is None else memory_limit,
            time_limit=600 if time_limit is None else time_limit,
        )
        outcome = checking.compare(typed, wanted, console)
    console.result(outcome.facts, outcome.text)
    outcome.raise_failure()


def _refuse_mixtures(context: click.Context) -> None:
    """A bundle has its own links; a pair has one, and both of its ends are named; a certificate is of one file."""
    given = {name for name, value in context.params.items() if value not in (None, (), False)}
    asked = [bool(given & names) for names in ({"bundle"}, {"certificate"}, {"reference", "candidate"})]
    if sum(asked) != 1 or 0 < len(given & {"reference", "candidate"}) < 2:
        raise click.UsageError("give a BUNDLE, or both --reference and --candidate, or --certificate FILE.onnx", context)
    others = {"bundle": _OF_PAIRS, "certificate": (*_OF_PAIRS, *_OF_BOTH, "network"), "reference": ("network",)}
    (kind,) = given & others.keys()
    for name in others[kind]:
        if name in given:
            raise click.UsageError(f"--{name.strip('_').replace('_', '-')} does not go with {_WORDS[kind]}", context)
