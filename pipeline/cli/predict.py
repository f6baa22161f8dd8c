"""`pipeline predict`: the classes that a bundle's model gives image files.

Code that decodes and runs is imported only when the command runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from export.errors import DamagedError, UsageError
from pipeline.cli import options
from pipeline.cli.console import Console

if TYPE_CHECKING:
    from deploy.predict.predictor import LogitSource, Prediction
    from export.bundle import Bundle


@click.command("predict")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="How many classes to show for each image.")
@click.option("--form", type=click.Choice(["exact", "float32"]), help="Which model of the bundle.  [default: exact if there is one]")
@click.option("--runtime", metavar="RUNTIME", help="Run it in this runtime.  [default: onnxruntime-cpu]")
@click.option("--url", metavar="URL", help="Ask this server of the Open Inference Protocol instead: http://HOST:PORT[/v2/models/NAME].")
@options.as_json
@click.pass_obj
def predict(
    console: Console, bundle: Path, images: tuple[str, ...], top: int, form: Literal["exact", "float32"] | None, runtime: str | None, url: str | None
) -> None:
    """Show which classes a bundle's model gives image files."""
    if url is not None and (form or runtime):
        raise UsageError("--url asks a server, which has chosen its own form and runtime; leave out --form and --runtime")
    from deploy.predict.predictor import Predictor
    from export.bundle import open_bundle
    from export.preprocess import ImageError

    opened = open_bundle(bundle)
    with _source(opened, form, runtime, url) as source:
        found = list(zip(images, Predictor(opened.manifest, source).predict_each(images), strict=True))
    unusable = [f"{path} cannot be used: {each}; fix or remove it" for path, each in found if isinstance(each, ImageError)]
    usable = [(path, each) for path, each in found if not isinstance(each, ImageError)]
    told = [{"image": path, "error": str(each)} if isinstance(each, ImageError) else _facts(path, each, top) for path, each in found]
    facts: dict[str, Any] = {"bundle": str(bundle), **source.facts, "predictions": told}
    console.result(facts, "\n".join(_table(usable, top)))
    _raise_for(unusable, len(found), console)


@contextmanager
def _source(bundle: Bundle, form: Literal["exact", "float32"] | None, runtime: str | None, url: str | None) -> Iterator[LogitSource]:
    if url is not None:
        from deploy.predict.remote import served_at

        yield served_at(url, bundle.manifest)
        return
    from deploy.predict.predictor import DEFAULT_RUNTIME, opened_here

    with opened_here(bundle, runtime or DEFAULT_RUNTIME, form) as source:
        yield source


def _facts(path: str, found: Prediction, top: int) -> dict[str, object]:
    return {"image": path, "sha256_of_pixels": found.sha256_of_pixels, "classes": [asdict(each) for each in found.classes[:top]]}


def _table(found: list[tuple[str, Prediction]], top: int) -> Iterator[str]:
    """Yield a header and a line for each class; the image's name is in the first of its lines."""
    if not found:
        return
    rows = [("image", "class", "logit", "probability")]
    for path, prediction in found:
        for place, each in enumerate(prediction.classes[:top]):
            rows.append(("" if place else _printable(path), _printable(each.name), f"{each.logit:.4f}", f"{each.probability:.2%}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for image, name, logit, probability in rows:
        yield f"{image:{widths[0]}}  {name:{widths[1]}}  {logit:>{widths[2]}}  {probability:>{widths[3]}}"


def _printable(text: str) -> str:
    return text if text.isprintable() else ascii(text)


def _raise_for(unusable: list[str], number: int, console: Console) -> None:
    """Name each file that cannot be used, once, and end with exit code 5."""
    if not unusable:
        return
    if len(unusable) == 1:
        raise DamagedError(unusable[0])
    for line in unusable:
        console.say(_printable(line))
    raise DamagedError(f"{len(unusable)} of {number} images cannot be used, each is named above")
