"""The run: config -> data and network -> training -> bundle -> verdict. Each function is what one command does.

Takes typed configs and folders; speaks only through the console it is given.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import JsonValue

from export.bundle import Bundle, open_bundle, write_manifest
from export.errors import NotTheSameError, UsageError
from export.files import published_folder, write_file
from pipeline.assemble import ImageFacts, training_graph
from pipeline.config import Config, dump_config, load_config
from pipeline.data import DataSet, TrainingBatches, open_data
from pipeline.methods import Rewritten
from pipeline.staging import METRICS, Trained, write_bundle_files
from pipeline.training import Checkpoint, Settings, TrainingData, device_by_name, last_checkpoint, load_checkpoint, train
from pipeline.verification import Verification, verify_bundle
from pipeline.watching import Console, EpochLines

Start = Literal["auto", "resume", "fresh"]
"""auto: go on where the folder's run stopped, or begin where there is none. fresh: begin anew. resume: there must be a run to go on with."""


@dataclass(frozen=True)
class Outcome:
    """What a command found, as data and as text."""

    facts: Mapping[str, JsonValue]
    text: str


def train_only(config: Config, folder: Path, start: Start, console: Console) -> Outcome:
    """Train, and leave the run folder with its checkpoints."""
    trained = _trained(config, folder, start, console)
    accuracy = trained.metrics.get("test_accuracy")
    facts: dict[str, JsonValue] = {"run": str(folder), "metrics": dict(trained.metrics)}
    return Outcome(facts, f"trained: {accuracy:.2%} of the test set; run folder {folder}")


def train_export(config: Config, folder: Path, start: Start, required: tuple[str, ...], console: Console) -> Outcome:
    """Train, fold, export, verify, publish."""
    return _published(_trained(config, folder, start, console), folder, required, console)


def export_run(folder: Path, required: tuple[str, ...], console: Console) -> Outcome:
    """Fold, export, verify and publish the last checkpoint of a run folder."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise UsageError(f"{folder} holds no run: there is no {path}; train one with pipeline train CONFIG --out {folder}")
    config = load_config(path, ())
    return _published(_restored(config, folder, console), folder, required, console)


def verify(folder: Path, required: tuple[str, ...], network: str | None, report: Path | None, console: Console) -> Outcome:
    """Verify a bundle from its files alone; the bundle stays as it is, the verdict goes to `report` where one is named."""
    bundle = open_bundle(folder)
    found = verify_bundle(bundle, required, network, console)
    if report is not None:
        report.mkdir(parents=True, exist_ok=True)
        _write_verdict(report, found)
    return _outcome(found, folder, report or folder)


def _trained(config: Config, folder: Path, start: Start, console: Console) -> Trained:
    device = device_by_name(config.training.device)
    data = open_data(config.data, device, console.progress_over)
    for note in data.notes:
        console.say(f"data: {note}")
    network = training_graph(config, _image_facts(data))
    checkpoint = _checkpoint_to_resume(config, folder, start)
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "config.yaml", dump_config(config).encode())
    batches = TrainingBatches(data.train, config.data.batch_size, config.data.augment, config.training.seed)
    settings = Settings(training=config.training, folder=folder, config=_training_part(config))
    with console.watching(f"training {config.network.name} with {config.method.name} on {device}") as watcher:
        train(network, TrainingData(batches, data.test, data.width), settings, EpochLines(watcher), checkpoint)
    return _described(config, folder, data, network, device)


def _restored(config: Config, folder: Path, console: Console) -> Trained:
    device = device_by_name(config.training.device)
    data = open_data(config.data, device, console.progress_over)
    network = training_graph(config, _image_facts(data))
    load_checkpoint(last_checkpoint(folder), _training_part(config)).restore_graph(network.graph)
    network.graph.to(device).eval()
    return _described(config, folder, data, network, device)


def _image_facts(data: DataSet) -> ImageFacts:
    shape = (data.channels, data.height, data.width)
    return ImageFacts(shape, len(data.classes), data.normalisation.mean, data.normalisation.std)


def _training_part(config: Config) -> dict[str, JsonValue]:
    """What a checkpoint depends on; what is exported and verified may change between two runs of a command."""
    return config.model_dump(mode="json", include={"data", "network", "method", "training"})


def _checkpoint_to_resume(config: Config, folder: Path, start: Start) -> Checkpoint | None:
    path = last_checkpoint(folder)
    if start == "fresh" or (start == "auto" and not path.exists()):
        return None
    return load_checkpoint(path, _training_part(config))


def _described(config: Config, folder: Path, data: DataSet, network: Rewritten, device: torch.device) -> Trained:
    lines = (folder / "metrics.jsonl").read_bytes()
    return Trained(
        config=config,
        graph=network.graph,
        classes=data.classes,
        image_shape=(data.channels, data.height, data.width),
        test=data.test,
        metrics=json.loads(lines.splitlines()[-1]) if lines else {},
        metrics_lines=lines,
        device=str(device),
    )


def _published(trained: Trained, folder: Path, required: tuple[str, ...], console: Console) -> Outcome:
    """Only a bundle that passed takes the name `bundle`; one that failed is kept beside it, to be looked at."""
    console.say("folding and exporting")
    with folder_in_work(folder) as staged:
        write_bundle_files(staged, trained)
        write_manifest(staged, trained.facts)
        found = verify_bundle(open_bundle(staged), test_set(trained), Trust(trained.config.network.name, required), console)
        write_verdict(staged, found)
        write_manifest(staged, trained.facts)
        target = folder / ("bundle" if found.passed else "bundle-failed")
        publish_folder(staged, target)
    return _outcome(found, target)
