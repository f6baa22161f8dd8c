"""A bundle made ready to serve: form and runtime chosen, sessions opened, outputs as validated.

Takes an opened bundle and options; returns a `LoadedModel`, or refuses. Knows no protocol and no
requests.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from deploy.compare.bits import Array, ordered_bits
from deploy.compare.validated import Form, ValidatedOutputs, validated_outputs
from deploy.report.stored import require_its_own_verdict
from deploy.runners.runner import Runner
from deploy.runners.runtimes import ENGINE_RUNTIMES, RUNTIMES, RunOptions, open_file
from deploy.runners.tensorrt import LoadedEngine, TensorRtRunner, stored_engines
from deploy.server.protocol import ModelSpec, TensorShape
from export.bundle import EXACT_MODEL, EXACT_TENSORRT_MODEL, MANIFEST, MODEL, VERIFICATION, Bundle
from export.errors import DamagedError, NotHereError, NotTheSameError, UsageError
from export.files import sha256_of
from export.tensorrt.record import EnginePrecision
from export.tensorrt.runtime import FLAVOURS, gpu_here

Batching = Literal["exact", "fast"]
AUTO = "auto"
PREFERRED = (*ENGINE_RUNTIMES, "onnxruntime-cuda", "openvino-cpu", "onnxruntime-cpu")
"""The runtimes that serve, in the order in which they are tried."""
_PRECISION: Mapping[Form, EnginePrecision] = {"exact": "exact", "float32": "float32"}


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What of a bundle is served, and by what."""

    runtime: str = AUTO
    form: Literal["auto", "exact", "float32"] = "auto"
    batching: Batching = "exact"
    """exact: nobody's neighbours in a batch change anybody's bits. fast: in float they may."""
    workers: int = 1
    threads: int = 0
    """Of each worker; 0: the cores, shared out."""
    max_batch_size: int = 64
    max_rows: int = 1024
    """The most rows of one request."""
    unverified: bool = False
    """Serve also what is not verified, or does not verify here, and say so."""
    name: str | None = None
    """None: the network's name."""


@dataclass(frozen=True)
class _Candidate:
    """A way to run the bundle, before it was tried."""

    runtime: str
    form: Form
    open: Callable[[int], Runner]
    """Takes a number of threads."""


@dataclass
class LoadedModel:
    """Sessions that run, one for each worker, and what is known about them."""

    spec: ModelSpec
    form: Form
    runtime: str
    batching: Batching
    runners: list[Runner]
    verified: bool
    """Whether these very sessions gave the outputs of the validation."""
    why: str
    """What was chosen, and why."""
    sha256: str
    """The hash of the bundle's manifest, which has the hash of every file."""
    sizes: tuple[int, ...] = ()
    """The batch sizes that are run; smaller batches are padded. Empty: all up to the largest."""
    max_batch_size: int = 64
    labels: tuple[str, ...] = ()
    bundle: Bundle | None = None

    @property
    def bits(self) -> str:
        """What a client may rely on, as the response header says it."""
        return self.form if self.verified else f"{self.form}, unverified"

    @property
    def neighbours_count(self) -> bool:
        """Whether the rows of others may change the bits of a row."""
        return self.form != "exact" and self.batching == "fast"

    def run(self, worker: int, rows: Array) -> Array:
        """Run rows in the session of one worker."""
        runner, number = self.runners[worker], len(rows)
        size = next((size for size in self.sizes if size >= number), number)
        if size > number:
            rows = np.concatenate([rows, np.zeros((size - number, *rows.shape[1:]), rows.dtype)])
        outputs = runner.run({runner.inputs[0].name: rows})
        return outputs[runner.outputs[0].name][:number]

    def warm_up(self, worker: int) -> None:
        """Run every size that is used often, so that no request waits for memory to be found."""
        image = np.zeros((1, *self.spec.input.sizes), self.spec.input.dtype)
        for size in self.sizes or sorted({1, min(2, self.max_batch_size), self.max_batch_size}):
            self.run(worker, np.repeat(image, size, axis=0))

    def close(self) -> None:
        for runner in self.runners:
            runner.close()
        self.runners = []


def open_model(bundle: Bundle, options: ModelOptions) -> LoadedModel:
    """Open a bundle for serving: choose, open one session a worker, and hold each to the outputs
    of the validation."""
    _require_served(options)
    passed = _require_a_pass(bundle, unverified=options.unverified)
    expected = _expected(bundle, unverified=options.unverified)
    candidate, runners, why = _opened(bundle, options)
    try:
        model = LoadedModel(
            spec=_spec(bundle, options, candidate),
            form=candidate.form,
            runtime=candidate.runtime,
            batching=options.batching,
            runners=runners,
            verified=False,
            why=why,
            sha256=sha256_of((bundle.folder / MANIFEST).read_bytes()),
            max_batch_size=_largest_batch(runners[0], options.max_batch_size),
            labels=tuple(bundle.manifest.classes),
            bundle=bundle,
        )
        if expected is not None:
            model.verified = _verified(model, expected, unverified=options.unverified) and passed
            if model.form != "exact" and options.batching == "exact":
                model.sizes = _steady_sizes(model, expected.images)
        elif model.form != "exact" and options.batching == "exact":
            model.sizes = (1,)
        for worker in range(len(runners)):
            model.warm_up(worker)
    except BaseException:
        for runner in runners:
            runner.close()
        raise
    return model


def _require_served(options: ModelOptions) -> None:
    if options.runtime not in (AUTO, *PREFERRED):
        raise UsageError(f"--runtime {options.runtime} cannot serve; choose auto or one of {', '.join(PREFERRED)}")
    if min(options.workers, options.max_batch_size, options.max_rows) < 1 or options.threads < 0:
        raise UsageError("workers, batch size and rows must be at least 1, threads at least 0")


def _require_a_pass(bundle: Bundle, *, unverified: bool) -> bool:
    """Require that the bundle's own verdict is on this bundle, and a pass."""
    try:
        if not bundle.has(VERIFICATION):
            raise DamagedError(f"{bundle.folder} has no {VERIFICATION}; export the bundle again, or serve it with --unverified")
        require_its_own_verdict(bundle)
        verdict = json.loads(bundle.read(VERIFICATION)).get("verdict")
        if verdict != "pass":
            raise DamagedError(f"{bundle.folder / VERIFICATION} says {verdict!r}, expected 'pass'; fix the model, or serve it with --unverified")
    except DamagedError:
        if not unverified:
            raise
        return False
    return True


def _expected(bundle: Bundle, *, unverified: bool) -> ValidatedOutputs | None:
    try:
        return validated_outputs(bundle)
    except DamagedError:
        if not unverified:
            raise
        return None


def _opened(bundle: Bundle, options: ModelOptions) -> tuple[_Candidate, list[Runner], str]:
    """Open the first candidate that runs here, one session for each worker."""
    form: Form = "exact" if options.form == "exact" or (options.form == "auto" and bundle.has(EXACT_MODEL)) else "float32"
    if form == "exact" and not bundle.has(EXACT_MODEL):
        raise UsageError(f"{bundle.folder} has no exact form; use --form float32")
    threads = options.threads or max(1, (os.cpu_count() or 1) // options.workers)
    reasons: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for candidate in _candidates(bundle, form, options.runtime, Path(folder), reasons):
            try:
                runners = _sessions(candidate, options.workers, threads)
            except NotHereError as error:
                reasons.append(f"{candidate.runtime}: {error}")
                continue
            return candidate, runners, _why(candidate, form, options, reasons)
    asked = "no runtime can serve here" if options.runtime == AUTO else f"--runtime {options.runtime} cannot serve here"
    raise NotHereError(f"{asked}: {'; '.join(reasons)}")


def _sessions(candidate: _Candidate, workers: int, threads: int) -> list[Runner]:
    runners: list[Runner] = []
    try:
        for _ in range(workers):
            runners.append(candidate.open(threads))  # noqa: PERF401  # those that were opened are closed if the next one fails
    except BaseException:
        for runner in runners:
            runner.close()
        raise
    return runners


def _candidates(bundle: Bundle, form: Form, runtime: str, folder: Path, reasons: list[str]) -> Iterator[_Candidate]:
    for name in _without_cuda(reasons) if runtime == AUTO else (runtime,):
        if name in ENGINE_RUNTIMES:
            yield from _engines(bundle, form, name, reasons)
        else:
            signed = form == "exact" and RUNTIMES[name].reads == "signed file"
            path = _laid_out(bundle, EXACT_TENSORRT_MODEL if signed else EXACT_MODEL if form == "exact" else MODEL, folder)
            yield _Candidate(name, form, _opener(name, path))


def _without_cuda(reasons: list[str]) -> tuple[str, ...]:
    """Return the preferred runtimes; those for GPUs only where there is one, since they are slow to
    say that there is none."""
    try:
        gpu_here()
    except NotHereError:
        reasons.append("no NVIDIA GPU here")
        return tuple(name for name in PREFERRED if RUNTIMES[name].device != "cuda")
    return PREFERRED


def _opener(runtime: str, path: Path) -> Callable[[int], Runner]:
    return lambda threads: open_file(runtime, path, RunOptions(threads=threads))


def _engines(bundle: Bundle, form: Form, runtime: str, reasons: list[str]) -> Iterator[_Candidate]:
    """Yield the engine of this form for this runtime; all workers share it."""
    fitting = [
        file for _, file in stored_engines(bundle) if FLAVOURS[file.record.flavour].runtime == runtime and file.record.precision == _PRECISION[form]
    ]
    if not fitting:
        reasons.append(f"{runtime}: the bundle has no {_PRECISION[form]} engine for it, build one: pipeline export BUNDLE --tensorrt")
        return
    loaded: list[LoadedEngine] = []

    def open_one(threads: int) -> Runner:
        if not loaded:
            loaded.append(LoadedEngine(fitting[0]))
        return TensorRtRunner(loaded[0])

    yield _Candidate(runtime, form, open_one)


def _laid_out(bundle: Bundle, name: str, folder: Path) -> Path:
    """Write a model file to disk: the bytes that were hashed are the bytes that are run."""
    path = folder / name
    path.write_bytes(bundle.read(name))
    return path


def _why(candidate: _Candidate, form: Form, options: ModelOptions, reasons: list[str]) -> str:
    of_form = "as requested" if options.form == form else "the bundle has it" if form == "exact" else "the bundle has no exact form"
    of_runtime = "as requested" if options.runtime != AUTO else "; ".join(reasons) or "the first choice"
    return f"{form} ({of_form}) in {candidate.runtime} ({of_runtime})"


def _spec(bundle: Bundle, options: ModelOptions, candidate: _Candidate) -> ModelSpec:
    given, result = bundle.manifest.input, bundle.manifest.output
    kind = "onnx" if RUNTIMES[candidate.runtime].open is not None else "tensorrt_plan"
    return ModelSpec(
        name=options.name or _plain(bundle.manifest.network),
        input=TensorShape(given.name, given.dtype, tuple(size or 0 for size in given.shape[1:])),
        output=TensorShape(result.name, result.dtype, tuple(size or 0 for size in result.shape[1:])),
        labels=tuple(bundle.manifest.classes),
        max_rows=options.max_rows,
        platform={"onnx": f"onnx_{candidate.runtime.partition('-')[0]}", "tensorrt_plan": "tensorrt_plan"}[kind],
    )


def _plain(name: str) -> str:
    """Return a name that can stand in a path: a network of the user's own has a colon in it."""
    return "".join(sign if sign.isalnum() or sign in "-_." else "-" for sign in name) or "model"


def _largest_batch(runner: Runner, wanted: int) -> int:
    allowed = runner.batch_sizes
    return wanted if allowed is None else min(wanted, allowed[-1])


def _verified(model: LoadedModel, expected: ValidatedOutputs, *, unverified: bool) -> bool:
    """Run the samples of the bundle through every session that will serve."""
    for worker, runner in enumerate(model.runners):
        values = _in_batches(model, worker, expected.images)
        found = expected.difference(model.form, values)
        if found is None:
            continue
        if unverified:
            return False
        raise NotTheSameError(f"{runner.name} does not give the validated outputs here: {found}; use another --runtime, or --unverified")
    return True


def _in_batches(model: LoadedModel, worker: int, images: Array) -> Array:
    size = model.max_batch_size
    return np.concatenate([model.run(worker, images[start : start + size]) for start in range(0, len(images), size)])


def _steady_sizes(model: LoadedModel, images: Array) -> tuple[int, ...]:
    """Return the batch sizes in which a row has the bits that it has alone, at any place.

    Kernels are chosen by shape, so a size that gives the same bits for these images, in other
    company each time, gives them for all. Size 1 always does.
    """
    alone = np.concatenate([model.run(0, images[row : row + 1]) for row in range(len(images))])
    sizes = {1}
    for size in sorted({*(2**power for power in range(1, model.max_batch_size.bit_length())), model.max_batch_size}):
        if _is_steady(model, images, alone, size):
            sizes.add(size)
    return tuple(sorted(sizes))


def _is_steady(model: LoadedModel, images: Array, alone: Array, size: int) -> bool:
    for shift in (0, 1, size // 2):
        order = np.roll(np.arange(max(len(images), size)) % len(images), shift)
        for start in range(0, len(order) - size + 1, size):
            rows = order[start : start + size]
            if not np.array_equal(ordered_bits(model.run(0, images[rows])), ordered_bits(alone[rows])):
                return False
    return True


def request_hash(rows: Array) -> str:
    """Return the hash by which a log names the rows of a request."""
    return hashlib.sha256(np.ascontiguousarray(rows).tobytes()).hexdigest()
