"""The options of `pipeline export BUNDLE --tensorrt`, and what they mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.console import Console

if TYPE_CHECKING:
    from collections.abc import Callable

_ONLY = "With --tensorrt:"


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """These options belong together and to this module; the command they are on does not see them one by one."""
    context.meta.setdefault(__name__, {})[parameter.name] = value


_OPTIONS = (
    click.option(
        "--tensorrt",
        expose_value=False,
        callback=_keep,
        is_flag=True,
        help="Build TensorRT engines into the bundle that is named as RUN, and verify it with them.",
    ),
    click.option(
        "--flavour",
        expose_value=False,
        callback=_keep,
        type=click.Choice(["tensorrt", "rtx"]),
        help=f"{_ONLY} which one.  [default: whichever runs here]",
    ),
    click.option(
        "--precision",
        "precisions",
        expose_value=False,
        callback=_keep,
        multiple=True,
        type=click.Choice(["float32", "tf32", "float16", "exact"]),
        help=f"{_ONLY} of the engine. Repeatable.  [default: float32, and exact where there is an exact file]",
    ),
    click.option(
        "--gpus",
        expose_value=False,
        callback=_keep,
        type=click.Choice(["same", "capability", "ampere+"]),
        help=f"{_ONLY} which GPUs must run it.  [default: same]",
    ),
    click.option(
        "--version-compatible", expose_value=False, callback=_keep, is_flag=True, help=f"{_ONLY} for later versions of the same major one, too."
    ),
    click.option(
        "--error-on-cache-miss",
        expose_value=False,
        callback=_keep,
        is_flag=True,
        help=f"{_ONLY} use only the timings of earlier builds, so that builds repeat.",
    ),
    click.option("--one-build", expose_value=False, callback=_keep, is_flag=True, help=f"{_ONLY} do not build a second time to compare."),
)


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """All of them on one command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def _given() -> dict[str, Any]:
    given: dict[str, Any] = click.get_current_context().meta[__name__]
    return given


def asked_for() -> bool:
    """Whether engines are wanted; what only goes with them is refused without."""
    given = _given()
    if not given["tensorrt"] and any(given.values()):
        raise click.UsageError("--flavour, --precision, --gpus, --version-compatible, --error-on-cache-miss and --one-build go with --tensorrt")
    return bool(given["tensorrt"])


def build(console: Console, bundle: Path | None, network: str | None, required: tuple[str, ...]) -> None:
    """Build them, verify the bundle, publish it, and show the verdict."""
    given = _given()
    if bundle is None:
        raise click.UsageError("--tensorrt needs a bundle; name the folder RUN/bundle")
    from pipeline.engine_stage import export_engines
    from pipeline.engines import EngineOptions

    wanted = EngineOptions(
        flavour=given["flavour"],
        precisions=given["precisions"],
        gpus=given["gpus"] or "same",
        version_compatible=given["version_compatible"],
        error_on_cache_miss=given["error_on_cache_miss"],
        twice=not given["one_build"],
    )
    outcome = export_engines(bundle, wanted, network, required, console)
    console.result(outcome.facts, outcome.text)
    outcome.raise_failure()
