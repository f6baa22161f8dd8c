"""What a command will do, decided before its first step.

Opens device, images, graph, weights, exact stage, engines and the place of the bundle, and refuses
everything that can be refused. Making a plan reads files and writes none; `pipeline.run` carries it
out.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from pydantic import JsonValue

from deploy.progress import Console, shown
from deploy.verify.request import runtimes_among
from export.bundle import Bundle
from export.errors import NotHereError, UsageError
from export.tensorrt.runtime import Flavour
from pipeline.bundle.contents import bundle_config
from pipeline.bundle.engines import EngineOptions, building_flavour, precisions_of, require_buildable, runnable_flavour
from pipeline.config import Config, training_part
from pipeline.config.sections import Batch
from pipeline.data import DataSet, TrainingBatches, open_data
from pipeline.data.published import NotFetchedError
from pipeline.exact_training import ExactStage, NoExactForm, planned_stage
from pipeline.importing import GivenWeights
from pipeline.methods import RewrittenGraph
from pipeline.run_folder import BundlePlace, RunFolder
from pipeline.run_request import EngineExportRequest, ExportRequest, ImportRequest, RunRequest, Start, TrainExportRequest, TrainRequest
from pipeline.training import Checkpoint, autocast_type, device_by_name, load_checkpoint, require_same_steps, steps_per_epoch
from pipeline.training.freezing import require_usable_statistics
from pipeline.training_graph import ImageFacts, training_graph


@dataclass(frozen=True)
class PlannedTraining:
    """The weights will come from training, which starts at a checkpoint or from scratch."""

    batches: TrainingBatches
    epochs: int
    steps_per_epoch: int
    checkpoint: Checkpoint | None
    replaced: bool
    """Whether the folder holds a run that will be replaced."""

    @property
    def num_steps(self) -> int:
        return self.epochs * self.steps_per_epoch


@dataclass(frozen=True)
class StoredWeights:
    """The weights are those of a checkpoint, and are already in the graph."""

    checkpoint: Checkpoint


Weights = PlannedTraining | StoredWeights | GivenWeights


@dataclass(frozen=True)
class NoEngines:
    """A run builds no TensorRT engines, for this reason."""

    reason: str


@dataclass(frozen=True)
class Publication:
    """Where the bundle goes, and what must be in it and hold."""

    place: BundlePlace
    engines: Flavour | NoEngines
    required: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that a run needs, open and checked."""

    command: str
    config: Config
    folder: RunFolder
    data: DataSet
    network: RewrittenGraph
    weights: Weights
    exact: ExactStage | NoExactForm
    publication: Publication | None
    """None if there is only training."""

    @property
    def device(self) -> torch.device:
        return self.data.train.device

    @property
    def precision(self) -> str:
        """The precision of the training steps."""
        return "bfloat16" if autocast_type(self.config.training.precision, self.device, self.data.width) else "float32"

    @property
    def facts(self) -> dict[str, JsonValue]:
        """The plan for `--json`."""
        facts: dict[str, JsonValue] = {
            "command": self.command,
            "run": str(self.folder),
            "device": str(self.device),
            "data": {
                "name": self.data.name,
                "training_images": self.data.train.num_samples,
                "test_images": self.data.test.num_samples,
                "shape": list(self.data.shape),
                "classes": len(self.data.classes),
            },
            "network": {"name": self.config.network.name, "method": self.config.method.name, "parameters": self._num_parameters},
            "weights": _weights_facts(self.weights),
            "exact": self._exact_facts,
        }
        if isinstance(self.weights, PlannedTraining):
            facts["training"] = {"precision": self.precision, "epochs": self.weights.epochs, "steps": self.weights.num_steps}
        if self.publication is not None:
            facts["export"] = self._publication_facts(self.publication)
        return {"plan": facts}

    @property
    def text(self) -> str:
        """One line for each decision."""
        data, (channels, height, width) = self.data, self.data.shape
        lines = {
            "plan of": f"pipeline {self.command}; nothing has been done yet",
            "run folder": f"{self.folder}",
            "device": f"{self.device}",
            "data": f"{data.name}, {data.train.num_samples:,} training and {data.test.num_samples:,} test images of "
            f"{channels} x {height} x {width}, {len(data.classes)} classes",
            "network": f"{self.config.network.name} with {self.config.method.name}, {self._num_parameters:,} parameters",
            "weights": _spoken_weights(self.weights),
        }
        if isinstance(self.weights, PlannedTraining):
            epochs = f"{self.weights.epochs:,} epochs of {self.weights.steps_per_epoch:,} steps"
            lines["training"] = f"{epochs}, batches of {self.config.data.batch_size}, in {self.precision}"
        lines["exact stage"] = self._spoken_exact
        if self.publication is not None:
            lines |= self._spoken_publication(self.publication)
        return "\n".join(f"{what}: {decision}" for what, decision in lines.items())

    @property
    def _num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.network.graph.parameters())

    @property
    def _exact_facts(self) -> dict[str, JsonValue]:
        if isinstance(self.exact, NoExactForm):
            return dict(self.exact.facts)
        return {"epochs": self.config.exact.epochs, "layers": self.exact.num_layers, "run": str(self.exact.folder)}

    @property
    def _spoken_exact(self) -> str:
        if isinstance(self.exact, NoExactForm):
            return f"none, {self.exact.reason}"
        return f"{self.exact.num_layers} layers on the grid, {self.config.exact.epochs} epochs there"

    def _publication_facts(self, publication: Publication) -> dict[str, JsonValue]:
        return {
            "bundle": str(publication.place.path),
            "replaces_a_bundle": publication.place.path.exists(),
            "engines": _engines_facts(publication.engines),
            "runtimes": list(self.config.verify.runtimes),
            "required": list(dict.fromkeys(runtimes_among(publication.required))),
            "samples": self._num_samples,
        }

    def _spoken_publication(self, publication: Publication) -> Mapping[str, str]:
        engines, place = publication.engines, publication.place.path
        return {
            "engines": f"none, {engines.reason}" if isinstance(engines, NoEngines) else f"built for {engines.runtime}",
            "verification": f"on {self._num_samples:,} test images and hostile images, in {', '.join(self.config.verify.runtimes)}",
            "bundle": f"{place}" + (", which replaces the existing one" if place.exists() else ""),
        }

    @property
    def _num_samples(self) -> int:
        wanted, there = self.config.verify.samples, self.data.test.num_samples
        return there if wanted == "test" else min(wanted, there)


def plan_of(request: RunRequest, console: Console, *, fetch: bool = True) -> Plan:
    """Decide and refuse everything.

    Without `fetch`, missing images are not fetched either.
    """
    request.require_possible()
    planner = _Planner(console, fetch=fetch)
    match request:
        case TrainRequest():
            return planner.training(request, "train", None)
        case TrainExportRequest():
            return planner.training(request, "train-export", _publication(request.folder, request.config, request.all_required))
        case ExportRequest():
            return planner.export(request)
        case ImportRequest():
            return planner.import_(request)


@dataclass(frozen=True)
class _Planner:
    console: Console
    fetch: bool

    def training(self, request: TrainRequest | TrainExportRequest, command: str, publication: Publication | None) -> Plan:
        config, folder = request.config, request.folder
        data = self._opened(config)
        network = training_graph(config, _image_facts(data))
        require_usable_statistics(network.graph, config.training, config.data.batch_size)
        return Plan(
            command=command,
            config=config,
            folder=folder,
            data=data,
            network=network,
            weights=_training(config, data, folder, request.start),
            exact=planned_stage(config, network.graph, data.shape, folder, from_scratch=request.start is Start.FRESH),
            publication=publication,
        )

    def export(self, request: ExportRequest) -> Plan:
        config, folder = request.folder.stored_config(), request.folder
        data = self._opened(config)
        network = training_graph(config, _image_facts(data))
        checkpoint = load_checkpoint(folder.last_checkpoint, training_part(config))
        checkpoint.restore_deployed(network.graph)
        return self._untrained("export", config, folder, data, network, StoredWeights(checkpoint), request.required)

    def import_(self, request: ImportRequest) -> Plan:
        config, weights = request.config, GivenWeights(request.weights)
        data = self._opened(config)
        network = training_graph(config, _image_facts(data), weights.load_into)
        return self._untrained("export", config, request.folder, data, network, weights, request.all_required)

    def _untrained(
        self, command: str, config: Config, folder: RunFolder, data: DataSet, network: RewrittenGraph, weights: Weights, required: tuple[str, ...]
    ) -> Plan:
        exact = planned_stage(config, network.graph, data.shape, folder)
        network.graph.to(data.train.device).eval()
        return Plan(
            command=command,
            config=config,
            folder=folder,
            data=data,
            network=network,
            weights=weights,
            exact=exact,
            publication=_publication(folder, config, required),
        )

    def _opened(self, config: Config) -> DataSet:
        device = device_by_name(config.training.device)
        options = config.data if self.fetch else config.data.model_copy(update={"download": False})
        try:
            return open_data(options, device, functools.partial(shown, self.console))
        except NotFetchedError as error:
            if not config.data.download:
                raise
            raise UsageError(
                f"{options.name} is not in {options.root} yet, and a dry run does not fetch it; fetch it, or leave out --dry-run"
            ) from error


def _image_facts(data: DataSet) -> ImageFacts:
    return ImageFacts(data.shape, len(data.classes), data.normalisation.mean, data.normalisation.std)


def _training(config: Config, data: DataSet, folder: RunFolder, start: Start) -> PlannedTraining:
    batches = TrainingBatches(data.train, config.data.batch_size, config.data.augment, config.training.seed)
    steps, there = steps_per_epoch(batches, config.training), folder.last_checkpoint.exists()
    if start is Start.FRESH or not there:
        return PlannedTraining(batches, config.training.epochs, steps, None, replaced=there)
    checkpoint = load_checkpoint(folder.last_checkpoint, training_part(config))
    require_same_steps(checkpoint, steps)
    return PlannedTraining(batches, config.training.epochs, steps, checkpoint, replaced=False)


def _publication(folder: RunFolder, config: Config, required: tuple[str, ...]) -> Publication:
    return Publication(folder.bundle, _engines(config), required)


def _engines(config: Config) -> Flavour | NoEngines:
    """Return the TensorRT with which a run builds engines by itself."""
    if config.export.tensorrt is False:
        return NoEngines("switched off by export.tensorrt")
    try:
        return runnable_flavour()
    except NotHereError as error:
        return NoEngines(str(error))


def _engines_facts(engines: Flavour | NoEngines) -> dict[str, JsonValue]:
    return {"not_built": engines.reason} if isinstance(engines, NoEngines) else {"runtime": engines.runtime}


def _weights_facts(weights: Weights) -> dict[str, JsonValue]:
    match weights:
        case GivenWeights(path):
            return {"from": "file", "path": str(path)}
        case PlannedTraining(checkpoint=None, replaced=replaced):
            return {"from": "scratch", "replaces_a_run": replaced}
        case PlannedTraining(checkpoint=checkpoint) | StoredWeights(checkpoint=checkpoint):
            assert checkpoint is not None
            return {"from": "checkpoint", "path": str(checkpoint.path), "epoch": checkpoint.position["epoch"], "step": checkpoint.position["step"]}


def _spoken_weights(weights: Weights) -> str:
    match weights:
        case GivenWeights(path):
            return f"those of {path}"
        case PlannedTraining(checkpoint=None, replaced=replaced):
            return "from scratch" + (", which replaces the existing run" if replaced else "")
        case PlannedTraining(checkpoint=checkpoint):
            assert checkpoint is not None
            return f"continuing from {checkpoint.path}, after step {checkpoint.position['step']:,}"
        case StoredWeights(checkpoint):
            return f"those of {checkpoint.path}, after {checkpoint.position['epoch']:,} epochs"


@dataclass(frozen=True, kw_only=True)
class EnginePlan:
    """The engines that will be built into a bundle, and the means to build them."""

    bundle: Bundle
    place: BundlePlace
    options: EngineOptions
    """The options, with flavour and precisions set by the user or by default."""
    batch: Batch

    @property
    def facts(self) -> dict[str, JsonValue]:
        """The plan for `--json`."""
        return {
            "plan": {
                "command": "export --tensorrt",
                "bundle": str(self.place.path),
                "flavour": self.options.flavour,
                "precisions": list(self.options.precisions),
                "gpus": self.options.gpus,
            }
        }

    @property
    def text(self) -> str:
        """One line for each decision."""
        return (
            "plan of: pipeline export --tensorrt; nothing has been done yet\n"
            f"engines: {', '.join(self.options.precisions)}, built for {self.options.flavour}, GPUs: {self.options.gpus}\n"
            f"bundle: {self.place.path}, which replaces the existing one"
        )


def engine_plan(request: EngineExportRequest) -> EnginePlan:
    """Decide everything, and refuse what can be refused before a build."""
    bundle = request.require_possible()
    flavour = building_flavour(request.options.flavour)
    precisions = tuple(dict.fromkeys(request.options.precisions or precisions_of(bundle.folder)))
    options = replace(request.options, flavour=flavour.name, precisions=precisions)
    batch = bundle_config(bundle).export.batch
    require_buildable(bundle, flavour, options, batch)
    return EnginePlan(bundle=bundle, place=request.place, options=options, batch=batch)
