"""The chains of a bundle: which forms of the model there are, which of them must be the same function, and in what sense.

Takes forms that were rebuilt or checked; how a link is compared is decided in `deploy.verify`. Needs no torch.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from deploy.runners.forms import EngineForm, Form, MissingForm, OnnxFloat64Form, OnnxForm, engine_form, onnx_form
from deploy.runners.runner import Point
from deploy.runners.runtimes import RUNTIMES, TORCH
from deploy.runners.tensorrt import EngineFile
from deploy.verify.links import Chain, Link, Pairs, Stage
from deploy.verify.place import Pairing, paired, pairings_of
from deploy.verify.verdict import Requirement
from export.errors import NotHereError
from export.tensorrt.record import EnginePrecision, EngineRecord
from pipeline.bundle.engines import runnable_flavour

TRAINING, EVALUATION, FOLDED, FILE = "training graph", "evaluation graph", "folded graph", "ONNX file"
SIGNED_FILE, FLOAT16_FILE = "ONNX file for TensorRT", "float16 ONNX file"
REFERENCE = "float64 evaluation"
EXACT = "exact"
NO_TORCH = f"PyTorch is not installed, {RUNTIMES[TORCH].remedy}"
_BUILD = "pipeline export BUNDLE --tensorrt"
_DEQUANTISED = "_float"
"""What the exact writer appends to the name of a node whose bytes it turns back into numbers."""

Arithmetic = Literal["float", "grid"]


@dataclass(frozen=True)
class EachRuntime:
    """Each runtime that was requested, reading the file that is for it."""


@dataclass(frozen=True)
class EachEngine:
    """Each engine of these precisions."""

    precisions: tuple[EnginePrecision, ...]


@dataclass(frozen=True)
class LinkRow:
    """A link of every chain, and what it must hold; None where an arithmetic has no such link."""

    from_: str
    to: str | EachRuntime | EachEngine
    in_float: Requirement | None
    on_grid: Requirement | None


LINKS = (
    LinkRow(TRAINING, EVALUATION, "bitwise", "bitwise"),
    LinkRow(EVALUATION, FOLDED, "bitwise", "bitwise"),
    LinkRow(FOLDED, FILE, "budget", "bitwise"),
    LinkRow(FILE, EachRuntime(), "budget", "bitwise"),
    LinkRow(FILE, SIGNED_FILE, None, "bitwise"),
    LinkRow(FILE, EachEngine(("float32", "tf32")), "budget", None),
    LinkRow(FILE, FLOAT16_FILE, "budget", None),
    LinkRow(FLOAT16_FILE, EachEngine(("float16",)), "budget", None),
    LinkRow(SIGNED_FILE, EachEngine(("exact",)), None, "bitwise"),
)
"""From the training graph to every runtime. On the grid, a runtime that reads the signed file is linked to that file instead."""


@dataclass(frozen=True, kw_only=True)
class Graphs:
    """The forms that PyTorch runs, and what budgets rest on."""

    training: Form
    evaluation: Form
    folded: Form
    reference: Form | None
    """The float64 evaluation of the function; None where there is none."""
    source: Form | None = None
    """The function of the training weights by inner tensors: a stored fold that strays from them must not move the mark."""
    budget_from: str
    """The form whose error sets the budgets."""
    uncertain: bool = False
    """Whether the float64 evaluation is other code than that form's."""
    folded_here: bool = True
    """Whether the stored fold was made on a device of this kind; on another, e^g has other bits."""


def missing_graphs(model: Path | None) -> Graphs:
    """Where PyTorch is not installed. In float the file stands for the function, as a foreign one does; on the grid no budget is needed."""
    missing = MissingForm(runtime=TORCH, reason=NO_TORCH)
    reference = None if model is None else OnnxFloat64Form(runtime="onnx.reference", precision="float64", path=model)
    return Graphs(training=missing, evaluation=missing, folded=missing, reference=reference, budget_from=FILE, uncertain=True)


@dataclass(frozen=True, kw_only=True)
class Engines:
    """The engines of a bundle by name, and second builds of some of them."""

    files: Mapping[str, EngineFile]
    second_builds: Mapping[str, EngineFile]
    wanted: bool
    """Whether a verdict says so where there are none."""

    def forms(self, precisions: Sequence[EnginePrecision]) -> dict[str, EngineForm]:
        """Of these precisions, by name."""
        return {name: engine_form(file, self.second_builds.get(name)) for name, file in self.files.items() if file.record.precision in precisions}


@dataclass(frozen=True, kw_only=True)
class BundleForms:
    """The forms of a bundle in one arithmetic, and the hops between them that the table of links makes of them."""

    arithmetic: Arithmetic
    graphs: Graphs
    model: Path
    signed_model: Path | None = None
    float16_model: Path | None = None
    runtimes: tuple[str, ...]
    engines: Engines
    beyond_plain: Counter[str] | None = None
    """What the files may hold besides plain layers; None where that is not checked."""

    @cached_property
    def fixed(self) -> dict[str, Form]:
        """The forms that have a name of their own in the table."""
        found: dict[str, Form] = {
            TRAINING: self.graphs.training,
            EVALUATION: self.graphs.evaluation,
            FOLDED: self.graphs.folded,
            FILE: self.in_runtime(self.model, "onnxruntime-cpu", optimisation=False),
        }
        if self.signed_model is not None:
            signed = self.in_runtime(self.signed_model, "onnxruntime-cpu", optimisation=False)
            # On CPUs without VNNI its fused kernels for signed bytes add pairs of products in saturating 16 bits, for which this file is not
            # made. Its function is what is compared.
            found[SIGNED_FILE] = replace(signed, choices=tuple(choice for choice in signed.choices if choice != "optimisation"))
        if self.float16_model is not None:
            found[FLOAT16_FILE] = replace(self.in_runtime(self.float16_model, "onnxruntime-cpu", optimisation=False), precision="float16")
        return found

    def in_runtime(self, path: Path, runtime: str, *, optimisation: bool) -> OnnxForm:
        """A file in a runtime; whether it has the form of a folded graph is checked when it is opened."""
        beyond = self.beyond_plain
        if beyond is None:
            return onnx_form(path, runtime, optimisation=optimisation)
        from export.onnx import require_folded_form  # brings torch, which rebuilt the graph that says what is beyond plain

        return onnx_form(path, runtime, optimisation=optimisation, require=lambda model: require_folded_form(model, beyond))

    def hops(self) -> "Iterator[Hop]":
        """The rows of the table, one hop for each form that a row leads to."""
        for row in LINKS:
            required = row.in_float if self.arithmetic == "float" else row.on_grid
            if required is None:
                continue
            match row.to:
                case EachRuntime():
                    yield from self._to_runtimes(required)
                case EachEngine(precisions):
                    yield from self._to_engines(row.from_, precisions, required)
                case name if name in self.fixed:
                    yield Hop(row.from_, self.named(name), self.fixed[name], required)

    def named(self, name: str) -> str:
        """What a form is called in the verdict."""
        return name if self.arithmetic == "float" else f"{EXACT} {name}"

    def _to_runtimes(self, required: Requirement) -> "Iterator[Hop]":
        for runtime in self.runtimes:
            signed = self.signed_model if self.arithmetic == "grid" and RUNTIMES[runtime].reads == "signed file" else None
            form = self.in_runtime(signed or self.model, runtime, optimisation=True)
            yield Hop(SIGNED_FILE if signed else FILE, self.named(f"{runtime}, all optimisations"), form, required)

    def _to_engines(self, source: str, precisions: tuple[EnginePrecision, ...], required: Requirement) -> "Iterator[Hop]":
        forms = self.engines.forms(precisions)
        for name, form in forms.items():
            yield Hop(source, f"engine {name}", form, required, profile=_sizes_over(form.file.record))
        expected: EnginePrecision = "float32" if self.arithmetic == "float" else "exact"
        if self.engines.wanted and expected in precisions and not self.engines.forms((expected,)):
            absent = MissingForm(runtime="tensorrt", device="cuda", reason=_why_no_engine())
            yield Hop(source, "tensorrt float32" if expected == "float32" else f"{EXACT} tensorrt", absent, required)


@dataclass(frozen=True)
class Hop:
    """From a form of the table to another, under the name that the verdict gives it."""

    from_: str
    to: str
    form: Form
    required: Requirement
    profile: tuple[int, ...] = ()


def chain_of(forms: BundleForms) -> Chain:
    """Stages in the order in which links reach them, and the links between them."""
    of_a_stage: Requirement = "budget" if forms.arithmetic == "float" else "bitwise"
    stages: dict[str, Stage] = {}
    links = []
    for hop in forms.hops():
        source, checked = forms.named(hop.from_), not isinstance(hop.form, MissingForm) or hop.form.runtime == TORCH
        stages.setdefault(source, Stage(name=source, form=forms.fixed[hop.from_], invariance_required=of_a_stage))
        stages.setdefault(hop.to, Stage(name=hop.to, form=hop.form, invariance_required=of_a_stage if checked else None, profile=hop.profile))
        links.append(_link(forms, source, hop))
    graphs = forms.graphs
    return Chain(
        stages=tuple(stages.values()),
        links=tuple(links),
        reference=None if graphs.reference is None else Stage(name=forms.named(REFERENCE), form=graphs.reference),
        training=forms.named(graphs.budget_from),
        source=graphs.source,
        uncertain=graphs.uncertain,
    )


def _link(forms: BundleForms, source: str, hop: Hop) -> Link:
    """A fold that was made on another kind of device has other bits; then its error is what can be judged, as a whole."""
    if hop.to == FOLDED and not forms.graphs.folded_here:
        return Link(source, hop.to, "budget", pairs=None)
    pairs: Pairs | None = paired
    if hop.to == FLOAT16_FILE or isinstance(hop.form, EngineForm | MissingForm):
        pairs = None
    elif hop.to == f"{EXACT} {FILE}":
        pairs = _paired_by_numbers
    return Link(source, hop.to, hop.required, pairs=pairs)


def _paired_by_numbers(nodes: Sequence[Point], tensors: Sequence[Point]) -> list[Pairing]:
    """A graph on the grid and its file, wherever the file holds numbers: of bytes and their numbers the latter, which come later."""
    known = {point.name for point in nodes}
    numbers = {point.name.removesuffix(_DEQUANTISED): point.name for point in tensors}
    return pairings_of(tensors, {name: node for node, name in numbers.items() if node in known})


def _sizes_over(record: EngineRecord) -> tuple[int, ...]:
    """Where kernels change, if they do: the ends of the profile, the size it was tuned for, the powers of two, and one that is odd and large."""
    least, most = record.batches[0], record.batches[-1]
    (shapes,) = record.profile.values()
    powers = (2**exponent for exponent in range(most.bit_length()))
    return tuple(sorted({least, shapes.best[0], most, max(least, most - 1), *(size for size in powers if size in record.batches)}))


def _why_no_engine() -> str:
    """What is missing: a GPU, TensorRT, or only the engine."""
    try:
        return f"there is no tensorrt engine; {runnable_flavour().runtime} is here, so build one: {_BUILD}"
    except NotHereError as error:
        return f"there is no tensorrt engine: {error}"
