"""`pipeline export`: its options, including those of engines, and the config of an imported
network.

Takes arguments; returns requests.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli import options
from pipeline.cli.console import Console

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.config import Config
    from pipeline.run_request import EngineExportRequest, ExportRequest, ImportRequest

_ONLY = "With --tensorrt:"


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Store the value of an option of engines in the context.

    These options belong together and to this module; their command does not receive them one by
    one.
    """
    context.meta.setdefault(__name__, {})[parameter.name] = value


_OPTIONS = (
    click.option(
        "--tensorrt",
        expose_value=False,
        callback=_keep,
        is_flag=True,
        help="Build TensorRT engines into the bundle that RUN names, and verify it with them.",
    ),
    click.option(
        "--flavour",
        expose_value=False,
        callback=_keep,
        type=click.Choice(["tensorrt", "rtx"]),
        help=f"{_ONLY} which TensorRT.  [default: the one that runs here]",
    ),
    click.option(
        "--precision",
        "precisions",
        expose_value=False,
        callback=_keep,
        multiple=True,
        type=click.Choice(["float32", "tf32", "float16", "exact"]),
        help=f"{_ONLY} precision of the engine. Repeatable.  [default: float32, and exact if there is an exact file]",
    ),
    click.option(
        "--gpus",
        expose_value=False,
        callback=_keep,
        type=click.Choice(["same", "capability", "ampere+"]),
        help=f"{_ONLY} the GPUs that must be able to run it.  [default: same]",
    ),
    click.option(
        "--version-compatible",
        expose_value=False,
        callback=_keep,
        is_flag=True,
        help=f"{_ONLY} make it run in later versions with the same major version too.",
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


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add all of them to one command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def _given() -> dict[str, Any]:
    given: dict[str, Any] = click.get_current_context().meta[__name__]
    return given


def engines_asked_for() -> bool:
    """Return whether engines are requested.

    Without them, options that only go with engines are refused.
    """
    given = _given()
    if not given["tensorrt"] and any(given.values()):
        raise click.UsageError("--flavour, --precision, --gpus, --version-compatible, --error-on-cache-miss and --one-build go with --tensorrt")
    return bool(given["tensorrt"])


def engine_request(bundle: Path | None, network: str | None, required: tuple[str, ...]) -> EngineExportRequest:
    """Return the request that the options of engines describe."""
    given = _given()
    if bundle is None:
        raise click.UsageError("--tensorrt needs a bundle; name the folder RUN/bundle")
    from pipeline.bundle.engines import EngineOptions
    from pipeline.run_request import EngineExportRequest

    wanted = EngineOptions(
        flavour=given["flavour"],
        precisions=given["precisions"],
        gpus=given["gpus"] or "same",
        version_compatible=given["version_compatible"],
        error_on_cache_miss=given["error_on_cache_miss"],
        twice=not given["one_build"],
    )
    return EngineExportRequest(bundle=bundle, options=wanted, network=network, required=required)


_SIZE, _RESIZED = 224, 256 / 224
"""The size of images that torchvision's networks take, and how much larger an image is before its
centre is cut out."""


@click.command("export")
@click.argument("run_folder", metavar="[RUN]", required=False, type=click.Path(path_type=Path))
@click.option("--network", metavar="NAME", help="Instead of a run: a network that was trained elsewhere, such as torchvision:resnet18.")
@click.option("--weights", metavar="FILE", type=click.Path(path_type=Path), help="Its weights, as safetensors.")
@click.option(
    "--calibrate", "images", metavar="DIR", type=click.Path(path_type=Path), help="Images to calibrate it: DIR/train/CLASS/*, DIR/test/CLASS/*."
)
@click.option(
    "--finetune", metavar="EPOCHS", type=click.IntRange(min=0), default=0, help="Train on the exact grid for this many epochs.  [default: 0]"
)
@engine_options
@options.out
@options.overrides
@options.required
@options.dry_run
@options.as_json
@click.pass_obj
def export(
    console: Console,
    run_folder: Path | None,
    network: str | None,
    weights: Path | None,
    images: Path | None,
    finetune: int,
    out: Path | None,
    overrides: tuple[str, ...],
    required: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Fold, export and verify a training run's last checkpoint, or a network trained elsewhere."""
    request: EngineExportRequest | ExportRequest | ImportRequest
    if engines_asked_for():
        _refuse_options_of_import(weights, images, finetune, out, overrides)
        request = engine_request(run_folder, network, required)
    elif run_folder is None:
        config = config_of_import(network, weights, images, finetune, overrides)
        request = import_request(config, weights, out, required)
    else:
        _refuse_options_of_import(network, weights, images, finetune, out, overrides)
        request = export_request(run_folder, required)
    options.carry_out(request, console, dry_run=dry_run)


def export_request(run_folder: Path, required: tuple[str, ...]) -> ExportRequest:
    from pipeline.run_folder import RunFolder
    from pipeline.run_request import ExportRequest

    return ExportRequest(folder=RunFolder(run_folder), required=required)


def import_request(config: Config, weights: Path | None, out: Path | None, required: tuple[str, ...]) -> ImportRequest:
    from pipeline.run_folder import RunFolder
    from pipeline.run_request import ImportRequest

    assert weights is not None  # `config_of_import` has refused None
    folder = out or Path("runs") / config.network.name.replace(":", "-")
    return ImportRequest(config=config, weights=weights, folder=RunFolder(folder), required=required)


def config_of_import(network: str | None, weights: Path | None, images: Path | None, finetune: int, overrides: tuple[str, ...]) -> Config:
    """Return the config of the run of an imported network; `--set` changes it like any other."""
    from pipeline.config import parse_config

    given = {"--network": network, "--weights": weights, "--calibrate": images}
    if missing := [name for name, value in given.items() if value is None]:
        raise click.UsageError(f"give a run folder, or --network, --weights and --calibrate together: {', '.join(missing)} is missing")
    if any(override.startswith("method.name") for override in overrides):
        raise click.UsageError("a network trained elsewhere is folded from its own norms, with the method batchnorm: leave --set method.name out")
    ours = str(network).startswith("torchvision:")
    data: dict[str, object] = {
        "name": "imagefolder",
        "root": str(images),
        "batch_size": 32,
        **({"normalisation": "imagenet", "image_size": _SIZE} if ours else {}),
    }
    values = {
        "data": data,
        "network": {"name": network},
        "method": {"name": "batchnorm", "initial_weights": "network"},
        "exact": {"enabled": True, "epochs": finetune},
    }
    place = "the imported network's config"
    config = parse_config(values, place, overrides)
    if finetune and config.exact.enabled is False:
        raise click.UsageError("--finetune trains on the exact grid, which --set exact.enabled=false switches off: leave out one of them")
    if ours and not any(override.startswith("data.resize") for override in overrides):
        data["resize"] = round(config.data.image_size * _RESIZED) if config.data.image_size else None
        return parse_config(values, place, overrides)
    return config


def _refuse_options_of_import(*values: object) -> None:
    if any(values):
        raise click.UsageError("--network, --weights, --calibrate, --finetune, --out and --set are for a network trained elsewhere, not for a run")
