"""`pipeline export`: its options."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli import engines, options
from pipeline.cli.console import Console

if TYPE_CHECKING:
    from pipeline.config import Config  # takes long to import, and the help does without


_SIZE, _RESIZED = 224, 256 / 224
"""Of images that torchvision's networks take, and how much larger an image is before its centre is cut out."""


@click.command("export")
@click.argument("run_folder", metavar="[RUN]", required=False, type=click.Path(path_type=Path))
@click.option("--network", metavar="NAME", help="Instead of a run: a network, such as torchvision:resnet18, that was trained elsewhere.")
@click.option("--weights", metavar="FILE", type=click.Path(path_type=Path), help="Its weights, as safetensors.")
@click.option("--calibrate", "images", metavar="DIR", type=click.Path(path_type=Path), help="Images for it: DIR/train/CLASS/*, DIR/test/CLASS/*.")
@click.option("--finetune", metavar="EPOCHS", type=click.IntRange(min=0), default=0, help="Train on the exact grid for so long.  [default: 0]")
@engines.options
@options.out
@options.overrides
@options.required
@options.as_json
@click.pass_obj
def command(
    console: Console,
    run_folder: Path | None,
    network: str | None,
    weights: Path | None,
    images: Path | None,
    finetune: int,
    out: Path | None,
    overrides: tuple[str, ...],
    required: tuple[str, ...],
) -> None:
    """Fold, export and verify a training run's last checkpoint, or a network trained elsewhere."""
    if engines.asked_for():
        _refuse_options_of_import(weights, images, finetune, out, overrides)
        engines.build(console, run_folder, network, required)
        return
    if run_folder is None:
        config = config_of_import(network, weights, images, finetune, overrides)
    from pipeline import run

    if run_folder is None:
        assert weights is not None
        outcome = run.import_network(config, weights, out or Path("runs") / config.network.name.replace(":", "-"), required, console)
    else:
        _refuse_options_of_import(network, weights, images, finetune, out, overrides)
        outcome = run.export(run_folder, required, console)
    console.result(outcome.facts, outcome.text)
    outcome.raise_failure()


def config_of_import(network: str | None, weights: Path | None, images: Path | None, finetune: int, overrides: tuple[str, ...]) -> Config:
    """The config that the run of an imported network gets; `--set` changes it like any other."""
    from pipeline.config import parse_config

    given = {"--network": network, "--weights": weights, "--calibrate": images}
    if missing := [name for name, value in given.items() if value is None]:
        raise click.UsageError(f"give a run folder, or --network, --weights and --calibrate together: {', '.join(missing)} is missing")
    if any(override.startswith("method.name") for override in overrides):
        raise click.UsageError("a network trained elsewhere is folded from its own norms, as the method batchnorm: leave --set method.name out")
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
        raise click.UsageError("--finetune trains on the exact grid, which --set exact.enabled=false leaves out: leave out one of them")
    if ours and not any(override.startswith("data.resize") for override in overrides):
        data["resize"] = round(config.data.image_size * _RESIZED) if config.data.image_size else None
        return parse_config(values, place, overrides)
    return config


def _refuse_options_of_import(*values: object) -> None:
    if any(values):
        raise click.UsageError("--network, --weights, --calibrate, --finetune, --out and --set are for a network trained elsewhere, not for a run")
