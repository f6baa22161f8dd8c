"""`pipeline verify`: its options and their meaning.

Code that compares is imported only when the command runs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from export.errors import NotTheSameError, UsageError
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
@click.option(
    "--certificate",
    type=click.Path(path_type=Path),
    metavar="FILE.onnx",
    help="Instead of a bundle: prove from an exact file alone that no sum in it depends on the order of its terms.",
)
@click.option("--reference", metavar="FILE", type=click.Path(path_type=Path), help="The correct form: .pt2, .onnx, .plan, bundle, recorded outputs.")
@click.option("--candidate", metavar="FILE", type=click.Path(path_type=Path), help="The form that must be the same function.")
@click.option("--samples", metavar="FILE|DIR|N", help="Inputs in .npz or .safetensors, a folder of such files, or a number of random ones.")
@click.option("--map", "map_", multiple=True, metavar="A=B", help="The candidate calls the reference's A B. Repeatable.")
@click.option("--size", multiple=True, metavar="NAME=N", help="A free size of random samples. Repeatable.")
@click.option("--runtime", multiple=True, metavar="RUNTIME", help="Run an ONNX candidate in this runtime.  [default: onnxruntime-cpu]")
@click.option("--max-ulp", type=click.IntRange(min=0), help="Allow this many units in the last place, instead of the derived budget.")
@click.option("--atol", type=click.FloatRange(min=0), help="Allow atol + rtol |reference|, instead of the derived budget.")
@click.option("--rtol", type=click.FloatRange(min=0), help="See --atol.")
@click.option("--precision", type=_PRECISIONS, help="The precision requested of the candidate.  [default: the reference's]")
@click.option("--no-batch", is_flag=True, help="The first axis does not count samples.")
@click.option("--memory-limit", type=click.FloatRange(min=0), metavar="GIB", help="Memory of each file's process; 0 for no limit.  [default: 16]")
@click.option(
    "--time-limit", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="Time to open a file, and for each batch.  [default: 600]"
)
@options.required_or_bitwise
@click.option("--only", metavar="LINK", help="Check this link alone, such as 'folded graph -> ONNX file'.")
@click.option("--network", metavar="MODULE:FUNCTION", help="Build the bundle's network by this code of yours. A bundle alone runs no code.")
@click.option("--against", metavar="OLD.json", type=click.Path(path_type=Path), help="Show what changed since this verification.json.")
@click.option("--report", type=click.Path(path_type=Path, file_okay=False), help="Write verification.json and report.html here.")
@click.option("--junit", metavar="FILE", type=click.Path(path_type=Path), help="Write a JUnit report: one test case per link and output.")
@options.as_json
@click.pass_context
def verify(
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
        _show_certificate(console, certificate)
        return
    from deploy.report.publish import Destinations, published, published_pair
    from deploy.verify.request import BITWISE, BundleRequest, PairRequest, runtimes_among

    of_both: dict[str, Any] = {
        "samples": samples,
        "require": runtimes_among(required),
        "bitwise": BITWISE in required,
        "only": only,
        "inside": report is not None,
    }
    destinations = Destinations(against=against, report=report, junit=junit)
    if bundle is None:
        outcome = published_pair(PairRequest(**of_both, **_of_a_pair(context.params)), destinations, console)
    else:
        from pipeline.bundle.verify_bundle import verify_folder

        request = BundleRequest(**of_both, folder=bundle, network=network)
        outcome = published(request.subject, lambda: verify_folder(request, console), destinations)
    console.result(outcome.facts, outcome.text)
    outcome.raise_failure()


def _show_certificate(console: Console, path: Path) -> None:
    """Print the table, or under --json the content of certificate.json; run nothing of the file.

    Raises NotTheSameError if the certificate does not hold.
    """
    from deploy.certificate.certificate import as_table
    from deploy.certificate.walk import certificate_of

    certificate = certificate_of(path)
    console.result(certificate.to_json(), as_table(certificate))
    if not certificate.holds:
        raise NotTheSameError(f"{path}: {certificate.failure}")


def _of_a_pair(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a request that the options of a pair describe."""
    from deploy.compare.tolerance import Tolerance
    from deploy.sandbox.process import Limits

    bounds = {name: given[name] for name in ("max_ulp", "atol", "rtol")}
    states_tolerance = any(each is not None for each in bounds.values())
    limits = Limits(gibibytes=_or(given["memory_limit"], 16), seconds=_or(given["time_limit"], 600))
    return {
        "reference": given["reference"],
        "candidate": given["candidate"],
        "names": _each_once([_split(text, "--map", "REFERENCE=CANDIDATE") for text in given["map_"]]),
        "runtimes": _runtimes(given["candidate"], given["runtime"]),
        "tolerance": Tolerance(**bounds) if states_tolerance else None,
        "precision": given["precision"],
        "sizes": {name: _positive(text, name) for name, text in (_split(text, "--size", "NAME=NUMBER") for text in given["size"])},
        "batched": not given["no_batch"],
        "limits": limits,
    }


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _runtimes(candidate: Path, asked: tuple[str, ...]) -> tuple[str, ...]:
    if asked and candidate.suffix and candidate.suffix != ".onnx" and not candidate.is_dir():
        raise UsageError(f"--runtime names the runtime of an ONNX candidate, and {candidate.name} is not one; drop it")
    return tuple(dict.fromkeys(asked)) or ("onnxruntime-cpu",)


def _refuse_mixtures(context: click.Context) -> None:
    """Refuse options that do not go together.

    A bundle has its own links; a pair has one link and needs both ends; a certificate is of one
    file.
    """
    given = {name for name, value in context.params.items() if value not in (None, (), False)}
    asked = [bool(given & names) for names in ({"bundle"}, {"certificate"}, {"reference", "candidate"})]
    if sum(asked) != 1 or 0 < len(given & {"reference", "candidate"}) < 2:
        raise click.UsageError("give a BUNDLE, or both --reference and --candidate, or --certificate FILE.onnx", context)
    others = {"bundle": _OF_PAIRS, "certificate": (*_OF_PAIRS, *_OF_BOTH, "network"), "reference": ("network",)}
    (kind,) = given & others.keys()
    for name in others[kind]:
        if name in given:
            raise click.UsageError(f"--{name.strip('_').replace('_', '-')} does not go with {_WORDS[kind]}", context)


def _split(text: str, option: str, form: str) -> tuple[str, str]:
    left, equals, right = text.partition("=")
    if not (left and equals and right):
        raise UsageError(f"{option} {text!r} is not of the form {form}")
    return left, right


def _each_once(pairs: list[tuple[str, str]]) -> dict[str, str]:
    for side in zip(*pairs, strict=True):
        if twice := [name for name in side if side.count(name) > 1]:
            raise UsageError(f"--map names {twice[0]!r} twice on one side; map every name to one other")
    return dict(pairs)


def _positive(text: str, name: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--size {name}={text} is not a size; give a whole number of at least 1")
    return int(text)
