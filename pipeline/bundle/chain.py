"""The chains of a bundle: which forms of the model there are, which of them must be the same function, and in what sense.

Takes graphs, files and engines that were rebuilt or checked; how a link is compared is decided in `deploy.verify`.
"""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from torch import nn
from torch.fx import GraphModule

from deploy.runners.base import Precision
from deploy.runners.base import Runner, TensorSpec
from deploy.runners.onnx_file import checked_bytes
from deploy.runners.table import FILE_RUNTIMES, RunOptions, open_file
from deploy.runners.tensorrt import EngineFile, open_engine
from deploy.runners.torch import TorchRunner
from deploy.verify.invariance import Variant
from deploy.verify.links import Chain, Link, Stage, file_variants, torch_variants
from deploy.verify.verdict import Requirement
from export.errors import NotHereError
from export.exact.grid import GridGraph
from export.fold import fold
from export.layers import training_only_parts
from export.onnx import operations_beyond_plain, require_folded_form
from export.tensorrt.record import EnginePrecision, EngineRecord
from export.tensorrt.runtime import FLAVOURS
from pipeline.bundle.cut import ExportedProgramCut, File, Graph, between_files, between_graphs, exact_graph_to_file, file_to_runtime, graph_to_file
from pipeline.bundle.engines import runnable_flavour
from pipeline.methods.statistics import is_frozen

TRAINING, EVALUATION, FOLDED, FILE = "training graph", "evaluation graph", "folded graph", "ONNX file"
REFERENCE = "float64 evaluation"
EXACT = "exact"
_PLAIN, _ALL = RunOptions(optimisation="none"), RunOptions()
TENSORRT_FILE = "exact ONNX file for TensorRT"


@dataclass(frozen=True)
class ChainSetting:
    """Where PyTorch's stages run, what goes in and out of every stage, and which runtimes are asked for."""

    device: str
    input: TensorSpec
    output: TensorSpec
    runtimes: tuple[str, ...]
    plain_sums: bool = False
    """Whether PyTorch is kept from algorithms that do not add up the products as they are; see `TorchRunner`."""

    def torch_stage(self, name: str, module: nn.Module, required: Requirement, *, gradients: bool = False) -> Stage:
        """A module on the device, in true float32."""

        def opened(*, threads: int = 0, channels_last: bool = False) -> Runner:
            return TorchRunner(
                module,
                (self.input,),
                (self.output,),
                name=name,
                device=self.device,
                gradients=gradients,
                threads=threads,
                channels_last=channels_last,
                plain_sums=self.plain_sums,
            )

        return Stage(
            name=name,
            runtime="torch",
            device=self.device,
            precision="float32",
            open=opened,
            invariance_required=required,
            variants=torch_variants(self.device, opened),
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Of one image."""
        channels, height, width = (int(size or 0) for size in self.input.shape[1:])
        return channels, height, width

    def cuttable(self, module: GraphModule, *, gradients: bool = False) -> Graph:
        """A graph on the device that can be run up to one of its nodes."""
        return Graph(module, self.device, self.input, gradients, self.plain_sums)

    def reference(self, name: str, module: nn.Module) -> Stage:
        """A folded module in float64, on the CPU."""

        def opened() -> Runner:
            return TorchRunner(module, (self.input,), (self.output,), name=name, precision="float64")

        return Stage(name=name, runtime="torch", device="cpu", precision="float64", open=opened)


@dataclass(frozen=True)
class FileForm:
    """A model file that was checked against its hash."""

    path: Path
    beyond_plain: Counter[str] | None
    """What it may hold besides plain layers; None where it has not the form of a folded graph."""

    def cuttable(self, runtime: str, options: RunOptions = _ALL) -> File:
        """The file in a runtime, to be run up to one of its tensors."""
        return File(self.path, runtime, options)

    def stage(self, name: str, runtime: str, options: RunOptions, required: Requirement) -> Stage:
        def opened(options: RunOptions) -> Runner:
            if self.beyond_plain is not None:
                require_folded_form(onnx.load_model_from_string(checked_bytes(self.path)), self.beyond_plain)
            return open_file(runtime, self.path, options)

        return Stage(
            name=name,
            runtime=runtime,
            device=FILE_RUNTIMES[runtime].device,
            precision="float32",
            open=lambda: opened(options),
            invariance_required=required,
            variants=file_variants(runtime, options, opened),
        )


def float_chain(place: ChainSetting, graph: GraphModule, folded: GraphModule, model: Path, *, folded_here: bool) -> Chain:
    """Bits in PyTorch, a derived budget from there on. `folded` has the stored weights, `graph` those of training."""
    training, evaluation = copy.deepcopy(graph).train(), copy.deepcopy(graph).eval()
    for part in training_only_parts(training).values():
        part.active = is_frozen(part)  # what training froze is left as training leaves it: it must make no difference
    file = FileForm(model, operations_beyond_plain(graph))
    to_folded = between_graphs(place.cuttable(evaluation), place.cuttable(folded))
    trained, plain = ExportedProgramCut(fold(graph), place.image_shape), file.cuttable("onnxruntime-cpu", _PLAIN)
    runtimes = [file.stage(f"{runtime}, all optimisations", runtime, RunOptions(), "budget") for runtime in place.runtimes]
    return Chain(
        stages=(
            place.torch_stage(TRAINING, training, "budget", gradients=True),
            place.torch_stage(EVALUATION, evaluation, "budget"),
            place.torch_stage(FOLDED, folded, "budget"),
            file.stage(FILE, "onnxruntime-cpu", RunOptions(optimisation="none"), "budget"),
            *runtimes,
        ),
        links=(
            Link(TRAINING, EVALUATION, "bitwise", places=between_graphs(place.cuttable(training, gradients=True), place.cuttable(evaluation))),
            Link(EVALUATION, FOLDED, "bitwise", places=to_folded) if folded_here else Link(EVALUATION, FOLDED, "budget"),
            Link(FOLDED, FILE, "budget", places=graph_to_file(trained, ExportedProgramCut(folded, place.image_shape), plain)),
            *(Link(FILE, stage.name, "budget", places=file_to_runtime(trained, plain, file.cuttable(stage.runtime))) for stage in runtimes),
        ),
        # The function is that of the training weights: a stored fold that strays from them must not move the mark.
        reference=place.reference(REFERENCE, fold(graph)),
        training=TRAINING,
    )


@dataclass(frozen=True)
class ExactForms:
    """The exact forms of a model: the training graph, the plain graph of the stored integers, and the two files."""

    grid: GridGraph
    folded: GraphModule
    model: Path
    tensorrt_model: Path
    rounded_on: str | None
    """The device on which the integers were rounded, where that is not of the kind that is here."""


def exact_chain(place: ChainSetting, forms: ExactForms) -> Chain:
    """The same bits from the training graph to every runtime; there is no budget in it."""
    place = replace(place, plain_sums=True)
    training, evaluation = copy.deepcopy(forms.grid.graph).train(), copy.deepcopy(forms.grid.graph).eval()
    file, other_file = FileForm(forms.model, None), FileForm(forms.tensorrt_model, None)
    plain = file.cuttable("onnxruntime-cpu", _PLAIN)
    names = [f"{EXACT} {name}" for name in (TRAINING, EVALUATION, FOLDED, FILE)]
    read_by = {runtime: (other_file, TENSORRT_FILE) if _has_no_bytes(runtime) else (file, names[-1]) for runtime in place.runtimes}
    runtimes = {
        runtime: read.stage(f"{EXACT} {runtime}, all optimisations", runtime, RunOptions(), "bitwise") for runtime, (read, _) in read_by.items()
    }
    to_runtimes = [
        Link(name, runtimes[runtime].name, "bitwise", places=between_files(read.cuttable("onnxruntime-cpu", _PLAIN), read.cuttable(runtime)))
        for runtime, (read, name) in read_by.items()
    ]
    first, second, third, fourth = names
    graphs = [place.torch_stage(first, training, "bitwise", gradients=True), place.torch_stage(second, evaluation, "bitwise")]
    if forms.rounded_on is not None:
        graphs = [_not_here(stage, forms.rounded_on) for stage in graphs]
    return Chain(
        stages=(
            *graphs,
            place.torch_stage(third, forms.folded, "bitwise"),
            file.stage(fourth, "onnxruntime-cpu", RunOptions(optimisation="none"), "bitwise"),
            *runtimes.values(),
            _unoptimised(other_file.stage(TENSORRT_FILE, "onnxruntime-cpu", RunOptions(optimisation="none"), "bitwise")),
        ),
        links=(
            Link(first, second, "bitwise", places=between_graphs(place.cuttable(training, gradients=True), place.cuttable(evaluation))),
            Link(second, third, "bitwise", places=between_graphs(place.cuttable(evaluation), place.cuttable(forms.folded))),
            Link(third, fourth, "bitwise", places=exact_graph_to_file(place.cuttable(forms.folded), plain)),
            *to_runtimes,
            Link(fourth, TENSORRT_FILE, "bitwise", places=between_files(plain, other_file.cuttable("onnxruntime-cpu", _PLAIN))),
        ),
        reference=place.reference(f"{EXACT} {REFERENCE}", forms.folded),
        training=third,
    )


def _has_no_bytes(runtime: str) -> bool:
    """ONNX Runtime's kernels for NVIDIA's GPUs take no padded bytes and no int32 bias, TensorRT no unsigned bytes: they read the signed file,
    whose layers compute in float32.
    """
    return FILE_RUNTIMES[runtime].device == "cuda"


def _unoptimised(stage: Stage) -> Stage:
    """Without the variants in which ONNX Runtime fuses its nodes: on CPUs without VNNI its kernels for signed bytes add pairs of products in
    saturating 16 bits, for which the signed file is not made. Its function is what is compared.
    """
    return replace(stage, variants=tuple(variant for variant in stage.variants if variant.check != "optimisation"))


def _not_here(stage: Stage, device: str) -> Stage:
    """Weights such as e^g have other bits on another kind of device, and the nearest integer may then be another."""

    def opened() -> Runner:
        raise NotHereError(f"its integers were rounded on {device}, and another kind of device may round to others; verify it there")

    return replace(stage, open=opened)


FLOAT16_FILE = "float16 ONNX file"
BUILDS = "builds"
_PRECISIONS: Mapping[EnginePrecision, Precision] = {"float32": "float32", "tf32": "tf32", "float16": "float16", "exact": "float32"}
_BUILD = "pipeline export BUNDLE --tensorrt"


@dataclass(frozen=True)
class Engines:
    """The engines of a bundle by name, second builds of some of them, and the ONNX file of those in float16."""

    files: Mapping[str, EngineFile]
    second_builds: Mapping[str, EngineFile]
    float16_model: Path | None
    wanted: bool
    """Whether a verdict says so where there are none."""
    beyond_plain: Counter[str]
    """What the file in float16 may hold besides plain layers."""

    def of(self, *precisions: EnginePrecision) -> dict[str, EngineFile]:
        return {name: file for name, file in self.files.items() if file.record.precision in precisions}


def with_float_engines(chain: Chain, engines: Engines) -> Chain:
    """The chain of the float forms, with links to the engines in float32, TF32 and float16."""
    stages, links = _stages(engines, engines.of("float32", "tf32"), FILE, "budget")
    if not engines.of("float32") and engines.wanted:
        stages, links = _with_absent(stages, links, "tensorrt float32", FILE, "budget")
    if engines.float16_model is not None:
        file = FileForm(engines.float16_model, engines.beyond_plain).stage(FLOAT16_FILE, "onnxruntime-cpu", RunOptions(optimisation="none"), "budget")
        halves, half_links = _stages(engines, engines.of("float16"), FLOAT16_FILE, "budget")
        stages, links = [*stages, replace(file, precision="float16"), *halves], [*links, Link(FILE, FLOAT16_FILE, "budget"), *half_links]
    return _longer(chain, stages, links)


def with_exact_engines(chain: Chain, engines: Engines) -> Chain:
    """The chain of the exact forms, with links to the exact engines."""
    stages, links = _stages(engines, engines.of("exact"), TENSORRT_FILE, "bitwise")
    if not stages and engines.wanted:
        stages, links = _with_absent(stages, links, f"{EXACT} tensorrt", TENSORRT_FILE, "bitwise")
    return _longer(chain, stages, links)


def _longer(chain: Chain, stages: Sequence[Stage], links: Sequence[Link]) -> Chain:
    return replace(chain, stages=(*chain.stages, *stages), links=(*chain.links, *links))


def _stages(engines: Engines, files: Mapping[str, EngineFile], source: str, required: Requirement) -> tuple[list[Stage], list[Link]]:
    stages = [_stage(name, file, engines.second_builds.get(name), required) for name, file in files.items()]
    return stages, [Link(source, stage.name, required) for stage in stages]


def _stage(name: str, file: EngineFile, second: EngineFile | None, required: Requirement) -> Stage:
    def opened(file: EngineFile = file) -> Runner:
        return open_engine(file)

    variants = () if second is None else (Variant(check=BUILDS, setting="a second build", open=lambda: opened(second)),)
    return Stage(
        name=f"engine {name}",
        runtime=FLAVOURS[file.record.flavour].runtime,
        device="cuda",
        precision=_PRECISIONS[file.record.precision],
        open=opened,
        invariance_required=required,
        profile=_sizes_over(file.record),
        variants=variants,
    )


def _sizes_over(record: EngineRecord) -> tuple[int, ...]:
    """Where kernels change, if they do: the ends of the profile, the size it was tuned for, the powers of two, and one that is odd and large."""
    least, most = record.batches[0], record.batches[-1]
    (shapes,) = record.profile.values()
    powers = (2**exponent for exponent in range(most.bit_length()))
    return tuple(sorted({least, shapes.best[0], most, max(least, most - 1), *(size for size in powers if size in record.batches)}))


def _with_absent(stages: list[Stage], links: list[Link], name: str, source: str, required: Requirement) -> tuple[list[Stage], list[Link]]:
    stage = Stage(name=name, runtime="tensorrt", device="cuda", precision="float32", open=_no_engine, invariance_required=None)
    return [*stages, stage], [*links, Link(source, name, required)]


def _no_engine() -> Runner:
    """What is missing: a GPU, TensorRT, or only the engine."""
    try:
        runtime = runnable_flavour().runtime
    except NotHereError as error:
        raise NotHereError(f"there is no tensorrt engine: {error}") from error
    raise NotHereError(f"there is no tensorrt engine; {runtime} is here, so build one: {_BUILD}")
