"""The chains of a bundle: its forms, and the links between forms that must be the same function.

Takes forms that were rebuilt or checked. Knows which links are bitwise and which have a budget;
`deploy.verify` does the comparing. Needs no torch.
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
"""The suffix that the exact writer appends to the name of a node whose bytes it converts back into
numbers."""

Arithmetic = Literal["float", "grid"]


@dataclass(frozen=True)
class EachRuntime:
    """Each requested runtime, with the file that it reads."""


@dataclass(frozen=True)
class EachEngine:
    """Each engine of these precisions."""

    precisions: tuple[EnginePrecision, ...]


@dataclass(frozen=True)
class LinkRow:
    """A link of every chain, and what it must hold in each arithmetic; None if there is no such
    link."""

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
"""The links from the training graph to every runtime. On the grid, a runtime that reads the signed
file is linked to that file instead."""


@dataclass(frozen=True, kw_only=True)
class Graphs:
    """The forms that PyTorch runs, and what budgets are based on."""

    training: Form
    evaluation: Form
    folded: Form
    reference: Form | None
    """The float64 evaluation of the function; None if there is none."""
    source: Form | None = None
    """The function of the training weights with its inner tensors. It sets the mark, so that a
    stored fold that differs from these weights cannot move it."""
    budget_from: str
    """The form whose error sets the budgets."""
    uncertain: bool = False
    """Whether the float64 evaluation is other code than that form's."""
    folded_here: bool = True
    """Whether the stored fold was made on a device of this kind; on another kind, e^g has other
    bits."""


def missing_graphs(model: Path | None) -> Graphs:
    """Return the forms without PyTorch.

    In float the file stands for the function, as a foreign file does. On the grid no budget is
    needed.
    """
    missing = MissingForm(runtime=TORCH, reason=NO_TORCH)
    reference = None if model is None else OnnxFloat64Form(runtime="onnx.reference", precision="float64", path=model)
    return Graphs(training=missing, evaluation=missing, folded=missing, reference=reference, budget_from=FILE, uncertain=True)


@dataclass(frozen=True, kw_only=True)
class Engines:
    """The engines of a bundle by name, and second builds of some of them."""

    files: Mapping[str, EngineFile]
    second_builds: Mapping[str, EngineFile]
    wanted: bool
    """Whether a verdict mentions that there are no engines."""

    def forms(self, precisions: Sequence[EnginePrecision]) -> dict[str, EngineForm]:
        """Return the engines of these precisions, by name."""
        return {name: engine_form(file, self.second_builds.get(name)) for name, file in self.files.items() if file.record.precision in precisions}


@dataclass(frozen=True, kw_only=True)
class BundleForms:
    """The forms of a bundle in one arithmetic, and the hops between them that follow from the table
    of links."""

    arithmetic: Arithmetic
    graphs: Graphs
    model: Path
    signed_model: Path | None = None
    float16_model: Path | None = None
    runtimes: tuple[str, ...]
    engines: Engines
    beyond_plain: Counter[str] | None = None
    """The operations that files may hold besides plain layers; None if that is not checked."""

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
            # On CPUs without VNNI, fused kernels for signed bytes add pairs of products in
            # saturating 16 bits, for which this file is not made. So the file is compared without
            # these optimisations.
            found[SIGNED_FILE] = replace(signed, choices=tuple(choice for choice in signed.choices if choice != "optimisation"))
        if self.float16_model is not None:
            found[FLOAT16_FILE] = replace(self.in_runtime(self.float16_model, "onnxruntime-cpu", optimisation=False), precision="float16")
        return found

    def in_runtime(self, path: Path, runtime: str, *, optimisation: bool) -> OnnxForm:
        """Return a file in a runtime.

        Whether it has the form of a folded graph is checked when it is opened.
        """
        beyond = self.beyond_plain
        if beyond is None:
            return onnx_form(path, runtime, optimisation=optimisation)
        from export.onnx import require_folded_form  # imports torch, which is present because it rebuilt the graph

        return onnx_form(path, runtime, optimisation=optimisation, require=lambda model: require_folded_form(model, beyond))

    def hops(self) -> "Iterator[Hop]":
        """Yield one hop for each form that a row of the table leads to."""
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
        """Return the name of a form in the verdict."""
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
    """A hop from a form of the table to another, under the name that the verdict gives it."""

    from_: str
    to: str
    form: Form
    required: Requirement
    profile: tuple[int, ...] = ()


def chain_of(forms: BundleForms) -> Chain:
    """Return stages in the order in which links reach them, and the links between them."""
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
    """Return the link of a hop.

    A fold that was made on another kind of device has other bits, so only its error as a whole is
    judged.
    """
    if hop.to == FOLDED and not forms.graphs.folded_here:
        return Link(source, hop.to, "budget", pairs=None)
    pairs: Pairs | None = paired
    if hop.to == FLOAT16_FILE or isinstance(hop.form, EngineForm | MissingForm):
        pairs = None
    elif hop.to == f"{EXACT} {FILE}":
        pairs = _paired_by_numbers
    return Link(source, hop.to, hop.required, pairs=pairs)


def _paired_by_numbers(nodes: Sequence[Point], tensors: Sequence[Point]) -> list[Pairing]:
    """Pair a graph on the grid with its file, wherever the file holds numbers.

    Of bytes and the numbers made from them, the numbers are paired; they come later.
    """
    known = {point.name for point in nodes}
    numbers = {point.name.removesuffix(_DEQUANTISED): point.name for point in tensors}
    return pairings_of(tensors, {name: node for node, name in numbers.items() if node in known})


def _sizes_over(record: EngineRecord) -> tuple[int, ...]:
    """Return batch sizes at which kernels may change.

    These are the ends of the profile, the size it was tuned for, the powers of two, and a large odd
    size.
    """
    least, most = record.batches[0], record.batches[-1]
    (shapes,) = record.profile.values()
    powers = (2**exponent for exponent in range(most.bit_length()))
    return tuple(sorted({least, shapes.best[0], most, max(least, most - 1), *(size for size in powers if size in record.batches)}))


def _why_no_engine() -> str:
    """Say what is missing: a GPU, TensorRT, or only the engine."""
    try:
        return f"there is no tensorrt engine; {runnable_flavour().runtime} is available, so build one: {_BUILD}"
    except NotHereError as error:
        return f"there is no tensorrt engine: {error}"
