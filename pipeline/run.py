"""What each command does, end to end: config -> data and network -> training -> bundle -> engines -> verdict.

Takes typed configs and folders; speaks only through the console it is given.
"""

import functools
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from pydantic import JsonValue
from torch import nn

from deploy.report.verification import Verification
from deploy.runners.table import require_runtimes
from deploy.runners.tensorrt import EngineFile
from deploy.verify.request import BITWISE, BundleRequest, runtimes_among
from export.bundle import MANIFEST, REPORT, VERIFICATION, Bundle, Facts, Manifest, open_bundle, write_manifest
from export.errors import DamagedError, NotHereError, UsageError
from export.files import folder_in_work, publish_folder, sole_use, write_file
from export.tensorrt.record import plan_name
from pipeline.bundle.contents import bundle_config, stored_samples
from pipeline.bundle.engines import BuiltEngine, EngineOptions, build_engines, facts_of, precisions_of, runnable_flavour
from pipeline.bundle.make import TrainedRun, test_set, write_bundle_files
from pipeline.bundle.verify import verify_bundle
from pipeline.config import Config, dump_config, load_config
from pipeline.data import DataSet, TrainingBatches, open_data
from pipeline.exact_training import FOLDER as EXACT_FOLDER
from pipeline.exact_training import ExactFolder, ExactRun, exact_stage, why_not_exact
from pipeline.methods import RewrittenGraph
from pipeline.progress import Console, EpochLines, Outcome, shown
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
from pipeline.training.checkpoint import checkpoint_bytes, write_checkpoint
from pipeline.training.evaluation import BATCH_SIZE, evaluate
from pipeline.training.freezing import require_usable_statistics
from pipeline.training.metrics import Tally
from pipeline.training.step import sgd
from pipeline.training_graph import ImageFacts, training_graph


@dataclass(frozen=True)
class Origin:
    """A network's trained weights, under the names that the network itself has for them."""

    path: Path

    def load_into(self, network: nn.Module) -> None:
        """Every tensor, or one line that says which does not fit."""
        try:
            network.load_state_dict(self._without_counters(network), strict=True)
        except RuntimeError as error:
            first, *more = str(error).splitlines()[1].strip().split(", ")
            first = ", ".join([first, *more[:2], *([f"and {len(more) - 2} more"] if len(more) > 2 else [])])
            raise UsageError(
                f"{self.path} does not fit the network and the classes of the images: {first}; give the weights of this network"
            ) from error

    def _without_counters(self, network: nn.Module) -> dict[str, torch.Tensor]:
        """How many batches a norm has seen matters to no output, and many files leave it out."""
        counters = {name: value for name, value in network.state_dict().items() if name.endswith("num_batches_tracked")}
        return counters | self._tensors()

    def _tensors(self) -> dict[str, torch.Tensor]:
        if not self.path.is_file():
            raise UsageError(f"{self.path} is not a file; give a safetensors file with the network's weights")
        try:
            return safetensors.torch.load(self.path.read_bytes())
        except safetensors.SafetensorError as error:
            how = "save it with safetensors.torch.save_file(network.state_dict(), FILE); pickles are not read, because they run code"
            raise DamagedError(f"{self.path} is not a safetensors file ({error}); {how}") from error


def import_run(config: Config, data: DataSet, origin: Origin, folder: Path) -> float:
    """Write the run folder, and return the accuracy that the network has on the test images."""
    facts = ImageFacts((data.channels, data.height, data.width), len(data.classes), data.normalisation.mean, data.normalisation.std)
    network = training_graph(config, facts, origin.load_into)
    graph = network.graph.to(data.train.device)
    found = evaluate(graph, data.test.batches(BATCH_SIZE), data.train.device)
    position: dict[str, object] = {
        "epoch": 0,
        "step": 0,
        "steps_per_epoch": data.train.num_samples // config.data.batch_size // config.training.accumulate,
        "tally": Tally().as_dict(),
        "records": [],
    }
    optimiser = sgd([group for group in network.rules.parameter_groups if group.parameters], config.training)
    folder.mkdir(parents=True, exist_ok=True)
    write_checkpoint(last_checkpoint(folder), checkpoint_bytes(graph, optimiser, position, training_part(config)))
    record = {"epoch": 0, "step": 0, "test_loss": found.loss, "test_accuracy": found.accuracy}
    write_file(folder / "metrics.jsonl", (json.dumps(record) + "\n").encode())
    write_file(folder / "config.yaml", dump_config(config).encode())
    return found.accuracy


def training_part(config: Config) -> dict[str, JsonValue]:
    """What a checkpoint depends on; what is exported and verified may change from one call of a command to the next."""
    return config.model_dump(mode="json", include={"data", "network", "method", "training"})


def require_engines(config: Config) -> None:
    """Where the config will not do without engines, say at once that they cannot be had."""
    if config.export.tensorrt is True:
        try:
            runnable_flavour()
        except NotHereError as error:
            raise NotHereError(f"export.tensorrt: true asks for engines, and none can be built and run here: {error}") from error


def engines_of_a_run(staged: Path, config: Config, console: Console) -> list[BuiltEngine]:
    """Engines for a bundle in the making, where they can be built and run; the verdict says why where not."""
    if config.export.tensorrt is False:
        return []
    try:
        flavour = runnable_flavour()
    except NotHereError:
        return []
    built = []
    for precision in precisions_of(staged):
        try:
            built += build_engines(staged, EngineOptions(flavour=flavour.name, precisions=(precision,)), config.export.batch, console)
        except (NotHereError, UsageError) as error:
            if config.export.tensorrt is True:
                raise
            console.say(f"no {precision} engine: {error}")
    return built


def second_builds(built: list[BuiltEngine]) -> dict[str, EngineFile]:
    """The engines that were built to be compared with those that are kept."""
    return {
        each.name: EngineFile(f"the second build of {plan_name(each.name)}", each.second.plan, each.second.record)
        for each in built
        if each.second is not None
    }


def export_engines(folder: Path, options: EngineOptions, network: str | None, required: tuple[str, ...], console: Console) -> Outcome:
    """Build engines into a bundle, verify it anew from its files alone, and put it in the place of the old one where it passed."""
    folder = folder.resolve()  # the parent of "." is not in its name
    bundle, failed = open_bundle(folder), folder.with_name(f"{folder.name}-failed")
    require_runtimes(runtimes_among(required))
    if failed.exists() and not (failed / "manifest.json").is_file():
        raise UsageError(f"{failed} is in the way: expected a bundle or nothing; move it away")
    with sole_use(folder.parent), folder_in_work(folder.parent) as staged:
        _copy(bundle, staged)
        built = build_engines(staged, options, bundle_config(bundle).export.batch, console)
        facts = _facts(bundle.manifest)
        write_manifest(staged, facts)
        with_engines = open_bundle(staged)
        request = BundleRequest(folder=staged, require=runtimes_among(required), bitwise=BITWISE in required, network=network, inside=True)
        found = verify_bundle(with_engines, stored_samples(with_engines), request, console, second_builds(built))
        if found.verdict.interrupted:
            raise KeyboardInterrupt
        found.write(staged)
        write_manifest(staged, facts)
        target = folder if found.passed else failed
        publish_folder(staged, target)
    told: dict[str, JsonValue] = {"bundle": str(target), "engines": dict(facts_of(built)), "verification": found.as_json}
    return Outcome(told, f"{found.text}\nengines: {', '.join(each.name for each in built)}\nbundle: {target}", found.failure)


def _copy(bundle: Bundle, folder: Path) -> None:
    """All but the verdict, which was on the bundle as it was."""
    for name in bundle.manifest.files.keys() - {VERIFICATION, REPORT}:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, bundle.read(name))


def _facts(manifest: Manifest) -> Facts:
    return Facts.model_validate({name: getattr(manifest, name) for name in Facts.model_fields})


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
    require_runtimes(runtimes_among(required))
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
    require_runtimes(runtimes_among(required))
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


def _trained(config: Config, folder: Path, resume: bool | None, console: Console) -> TrainedRun:
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
    exact = no_exact or exact_stage(config, _image_facts(data), network.graph, data, ExactFolder(folder / EXACT_FOLDER, resume is False, console))
    return _described(config, folder, data, network, exact)


def _restored(config: Config, folder: Path, console: Console) -> TrainedRun:
    device = device_by_name(config.training.device)
    data = open_data(config.data, device, functools.partial(shown, console))
    network = training_graph(config, _image_facts(data))
    load_checkpoint(last_checkpoint(folder), training_part(config)).restore_deployed(network.graph)
    network.graph.to(device).eval()
    place = ExactFolder(folder / EXACT_FOLDER, False, console)
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


def _described(config: Config, folder: Path, data: DataSet, network: RewrittenGraph, exact: ExactRun | str) -> TrainedRun:
    device = data.train.device
    lines, diagnosed = (folder / "metrics.jsonl").read_bytes(), diagnosis_file(folder)
    return TrainedRun(
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


def _published(trained: TrainedRun, folder: Path, required: tuple[str, ...], console: Console) -> Outcome:
    """Only a bundle that passed takes the name `bundle`; one that failed is kept beside it, to be looked at."""
    console.say("folding and exporting")
    with folder_in_work(folder) as staged:
        write_bundle_files(staged, trained)
        built = engines_of_a_run(staged, trained.config, console)
        write_manifest(staged, trained.facts)
        network = trained.config.network.name
        request = BundleRequest(folder=staged, require=runtimes_among(required), bitwise=BITWISE in required, network=network, inside=True)
        found = verify_bundle(open_bundle(staged), test_set(trained), request, console, second_builds(built))
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


def _spoken_accuracy(trained: TrainedRun) -> str:
    accuracy = trained.metrics.get("test_accuracy")
    spoken = f"accuracy on the test set: {accuracy:.2%}" if isinstance(accuracy, float) else "accuracy on the test set: not measured"
    if isinstance(trained.exact, str):
        return f"{spoken}; no exact form: {trained.exact}"
    return f"{spoken}; exact: {trained.exact.facts['test_accuracy']:.2%}"
