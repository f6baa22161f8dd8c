"""The run: config -> data and network -> training -> bundle -> verdict. Each public function is what one command does.

Takes typed configs and folders; speaks only through the console it is given.
"""

import functools
import json
import shutil
from pathlib import Path

from pydantic import JsonValue

from deploy.runners.table import require_runtimes
from deploy.verify.selection import BITWISE
from export.bundle import MANIFEST, open_bundle, write_manifest
from export.errors import UsageError
from export.files import folder_in_work, publish_folder, sole_use, write_file
from pipeline.assemble import ImageFacts, training_graph
from pipeline.config import Config, dump_config, load_config
from pipeline.data import DataSet, TrainingBatches, open_data
from pipeline.engine_stage import engines_of_a_run, require_engines, second_builds
from pipeline.exact_stage import FOLDER as EXACT_FOLDER
from pipeline.exact_stage import Exact, Place, exact_stage, why_not_exact
from pipeline.importing import Origin, import_run, training_part
from pipeline.methods import Rewritten
from pipeline.outcome import Outcome
from pipeline.staging import Trained, write_bundle_files
from pipeline.training import (
    Checkpoint,
    Settings,
    TrainingData,
    autocast_type,
    device_by_name,
    diagnosis_file,
    last_checkpoint,
    load_checkpoint,
    steps_per_epoch,
)
from pipeline.training import train as train_graph
from pipeline.training.freezing import require_usable_statistics
from pipeline.verification import Asked, test_set, verify_bundle
from pipeline.verified import Verification
from pipeline.watching import Console, EpochLines, shown


def train(config: Config, folder: Path, resume: bool | None, console: Console) -> Outcome:
    """Train, and leave the run folder with its checkpoints.

    `resume`: True wants a run to go on with, False begins anew, None goes on where there is a run and begins where there is none.
    """
    with sole_use(folder):
        trained = _trained(config, folder, resume, console)
    facts: dict[str, JsonValue] = {"run": str(folder), "metrics": dict(trained.metrics)}
    return Outcome(facts, f"trained; {_spoken_accuracy(trained)}\nrun folder: {folder}")


def train_export(config: Config, folder: Path, resume: bool | None, required: tuple[str, ...], console: Console) -> Outcome:
    """Train, fold, export, verify, publish. What the config or the command asks for and is not here is said before training."""
    required = (*required, *config.verify.runtimes)
    require_runtimes(name for name in required if name != BITWISE)
    require_engines(config)
    with sole_use(folder):
        _require_ours(folder)
        return _published(_trained(config, folder, resume, console), folder, required, console)


def export(folder: Path, required: tuple[str, ...], console: Console) -> Outcome:
    """Fold, export, verify and publish the last checkpoint of a run folder."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise UsageError(f"{folder} holds no run: there is no {path}; train one with pipeline train CONFIG --out {folder}")
    with sole_use(folder):
        _require_ours(folder)
        return _published(_restored(load_config(path), folder, console), folder, required, console)


def import_network(config: Config, weights: Path, folder: Path, required: tuple[str, ...], console: Console) -> Outcome:
    """A float network of any origin: fold its norms, put it onto the grid, certify, export, verify, publish."""
    required = (*required, *config.verify.runtimes)
    require_runtimes(name for name in required if name != BITWISE)
    with sole_use(folder):
        _require_ours(folder)
        _require_no_other_run(folder, config)
        data = open_data(config.data, device_by_name(config.training.device), functools.partial(shown, console))
        accuracy = import_run(config, data, Origin(weights), folder)
        console.say(f"{config.network.name} as it was given: {accuracy:.2%} of the test images")
        return _published(_restored(config, folder, console), folder, required, console)


def _require_no_other_run(folder: Path, config: Config) -> None:
    """An import may be done again; what was trained is never replaced by one."""
    path = folder / "config.yaml"
    if path.exists() and load_config(path).method != config.method:
        raise UsageError(f"{folder} holds another run; choose another --out")


def _trained(config: Config, folder: Path, resume: bool | None, console: Console) -> Trained:
    device = device_by_name(config.training.device)
    data = open_data(config.data, device, functools.partial(shown, console))
    for note in data.notes:
        console.say(f"data: {note}")
    network = training_graph(config, _image_facts(data))
    require_usable_statistics(network.graph, config.training, config.data.batch_size)
    no_exact = why_not_exact(config, _image_facts(data))
    batches = TrainingBatches(data.train, config.data.batch_size, config.data.augment, config.training.seed)
    num_steps = config.training.epochs * steps_per_epoch(batches, config.training)
    checkpoint = _checkpoint_to_resume(config, folder, resume)
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "config.yaml", dump_config(config).encode())
    settings = Settings(training=config.training, folder=folder, config=training_part(config))
    console.say(f"training {config.network.name} with {config.method.name} on {device}, run folder {folder}")
    with console.progress("training", num_steps) as progress:
        train_graph(network, TrainingData(batches, data.test, data.width), settings, EpochLines(progress), checkpoint)
    exact = no_exact or exact_stage(config, _image_facts(data), network.graph, data, Place(folder / EXACT_FOLDER, resume is False, console))
    return _described(config, folder, data, network, exact)


def _restored(config: Config, folder: Path, console: Console) -> Trained:
    device = device_by_name(config.training.device)
    data = open_data(config.data, device, functools.partial(shown, console))
    network = training_graph(config, _image_facts(data))
    load_checkpoint(last_checkpoint(folder), training_part(config)).restore_deployed(network.graph)
    network.graph.to(device).eval()
    place = Place(folder / EXACT_FOLDER, False, console)
    exact = why_not_exact(config, _image_facts(data)) or exact_stage(config, _image_facts(data), network.graph, data, place)
    return _described(config, folder, data, network, exact)


def _image_facts(data: DataSet) -> ImageFacts:
    shape = (data.channels, data.height, data.width)
    return ImageFacts(shape, len(data.classes), data.normalisation.mean, data.normalisation.std)


def _checkpoint_to_resume(config: Config, folder: Path, resume: bool | None) -> Checkpoint | None:
    path = last_checkpoint(folder)
    if resume is False or (resume is None and not path.exists()):
        return None
    return load_checkpoint(path, training_part(config))


def _described(config: Config, folder: Path, data: DataSet, network: Rewritten, exact: Exact | str) -> Trained:
    device = data.train.device
    lines, diagnosed = (folder / "metrics.jsonl").read_bytes(), diagnosis_file(folder)
    return Trained(
        config=config,
        graph=network.graph,
        classes=data.classes,
        image_shape=(data.channels, data.height, data.width),
        test=data.test,
        metrics=json.loads(lines.splitlines()[-1]) if lines else {},
        metrics_lines=lines,
        device=str(device),
        precision="bfloat16" if autocast_type(config.training.precision, device, data.width) else "float32",
        exact=exact,
        diagnosis_lines=diagnosed.read_bytes() if diagnosed.is_file() else b"",
    )


def _require_ours(folder: Path) -> None:
    """What a bundle will replace must be a bundle; said before hours of training."""
    for path in (folder / "bundle", folder / "bundle-failed"):
        if (path.exists() or path.is_symlink()) and not _is_bundle(path):
            raise UsageError(f"{path} is in the way: expected a bundle or nothing, got {_kind(path)}; move it away, or choose another --out")


def _is_bundle(path: Path) -> bool:
    return not path.is_symlink() and (path / MANIFEST).is_file()


def _kind(path: Path) -> str:
    if path.is_symlink():
        return "a link"
    return f"a folder without {MANIFEST}" if path.is_dir() else "a file"


def _published(trained: Trained, folder: Path, required: tuple[str, ...], console: Console) -> Outcome:
    """Only a bundle that passed takes the name `bundle`; one that failed is kept beside it, to be looked at."""
    console.say("folding and exporting")
    with folder_in_work(folder) as staged:
        write_bundle_files(staged, trained)
        built = engines_of_a_run(staged, trained.config, console)
        write_manifest(staged, trained.facts)
        asked = Asked(required=required, network=trained.config.network.name, second_builds=second_builds(built), inside=True)
        found = verify_bundle(open_bundle(staged), test_set(trained), asked, console)
        if found.verdict.interrupted:
            raise KeyboardInterrupt
        found.write(staged)
        write_manifest(staged, trained.facts)
        target = folder / ("bundle" if found.passed else "bundle-failed")
        publish_folder(staged, target)
    if found.passed and (folder / "bundle-failed").exists():
        shutil.rmtree(folder / "bundle-failed")
    console.say(_spoken_accuracy(trained))
    return _outcome(found, target)


def _outcome(found: Verification, bundle: Path) -> Outcome:
    facts: dict[str, JsonValue] = {"bundle": str(bundle), "verification": found.as_json}
    return Outcome(facts, f"{found.text}\nbundle: {bundle}", found.failure)


def _spoken_accuracy(trained: Trained) -> str:
    accuracy = trained.metrics.get("test_accuracy")
    spoken = f"accuracy on the test set: {accuracy:.2%}" if isinstance(accuracy, float) else "accuracy on the test set: not measured"
    if isinstance(trained.exact, str):
        return f"{spoken}; no exact form: {trained.exact}"
    return f"{spoken}; exact: {trained.exact.facts['test_accuracy']:.2%}"
