"""What each command does, end to end: make a plan and carry it out.

Takes requests. The order is: data and network, training, bundle, engines, verdict. Prints only
through the console it is given.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import JsonValue

from deploy.compare.inputs import SampleSource
from deploy.progress import Console, Outcome
from deploy.report.verification import Verification
from deploy.verify.request import BundleRequest, runtimes_among
from export.bundle import REPORT, VERIFICATION, Bundle, Facts, Manifest, open_bundle, write_manifest
from export.files import sole_use, write_file
from export.tensorrt.runtime import Flavour
from pipeline.bundle.contents import stored_samples
from pipeline.bundle.engines import BuiltEngine, build_engines, engines_of_a_run, facts_of, second_builds
from pipeline.bundle.make import TrainedRun, test_set, write_bundle_files
from pipeline.bundle.verify_bundle import verify_bundle
from pipeline.config import training_part
from pipeline.exact_training import ExactRun, ExactStage, NoExactForm, trained_on_the_grid
from pipeline.importing import GivenWeights, store_as_run
from pipeline.plan import Plan, PlannedTraining, Publication, StoredWeights, engine_plan, plan_of
from pipeline.run_request import EngineExportRequest, RunRequest, bitwise
from pipeline.training import EpochLines, Settings, TrainingData
from pipeline.training import train as train_graph


def carry_out(request: RunRequest | EngineExportRequest, console: Console) -> Outcome:
    """Carry out `train`, `train-export`, `export RUN` or `export --network`.

    They differ in where the weights come from and in what is left behind.
    """
    if isinstance(request, EngineExportRequest):
        return export_engines(request, console)
    with request.folder.sole_use():
        plan = plan_of(request, console)
        trained = _trained(plan, console)
        return _kept(plan, trained) if plan.publication is None else _published(plan, plan.publication, trained, console)


def dry_run(request: RunRequest | EngineExportRequest, console: Console) -> Outcome:
    """Return the plan and do nothing else: no file is made or changed, and no lock is taken."""
    with _without_bytecode():
        if isinstance(request, EngineExportRequest):
            engines = engine_plan(request)
            return Outcome(engines.facts, engines.text)
        request.folder.require_makeable()
        plan = plan_of(request, console, fetch=False)
        return Outcome(plan.facts, plan.text)


@contextmanager
def _without_bytecode() -> Iterator[None]:
    """Importing a network of the user's own would otherwise leave a __pycache__ next to it."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def _trained(plan: Plan, console: Console) -> TrainedRun:
    """Return the graph with its weights, its form on the grid, and everything that a bundle says
    about them."""
    match plan.weights:
        case PlannedTraining() as training:
            _train(plan, training, console)
        case GivenWeights():
            accuracy = store_as_run(plan.network, plan.config, plan.data, plan.folder)
            console.say(f"{plan.config.network.name} as it was given: {accuracy:.2%} of the test images")
        case StoredWeights():
            pass  # the plan has loaded them into the graph
    return _described(plan, _on_the_grid(plan, console))


def _train(plan: Plan, training: PlannedTraining, console: Console) -> None:
    for note in plan.data.notes:
        console.say(f"data: {note}")
    plan.folder.store_config(plan.config)
    data = TrainingData(training.batches, plan.data.test, plan.data.width)
    settings = Settings(training=plan.config.training, folder=plan.folder, config=training_part(plan.config))
    console.say(f"training {plan.config.network.name} with {plan.config.method.name} on {plan.device}, run folder {plan.folder}")
    with console.progress("training", training.num_steps) as progress:
        train_graph(plan.network, data, settings, EpochLines(progress), training.checkpoint)


def _on_the_grid(plan: Plan, console: Console) -> ExactRun | NoExactForm:
    match plan.exact:
        case ExactStage() as stage:
            return trained_on_the_grid(stage, plan.config, plan.network, plan.data, console)
        case NoExactForm() as none:
            return none


def _described(plan: Plan, exact: ExactRun | NoExactForm) -> TrainedRun:
    diagnosis = plan.folder.diagnosis
    return TrainedRun(
        config=plan.config,
        graph=plan.network.graph,
        classes=plan.data.classes,
        image_shape=plan.data.shape,
        test=plan.data.test,
        metrics=plan.folder.last_record(),
        metrics_lines=plan.folder.metrics.read_bytes(),
        device=str(plan.device),
        precision=plan.precision,
        exact=exact,
        recipe=plan.data.recipe,
        test_files=plan.data.test_files,
        diagnosis_lines=diagnosis.read_bytes() if diagnosis.is_file() else b"",
    )


def _kept(plan: Plan, trained: TrainedRun) -> Outcome:
    """Return the outcome of a command that only fills the run folder."""
    facts: dict[str, JsonValue] = {"run": str(plan.folder), "metrics": dict(trained.metrics)}
    return Outcome(facts, f"trained; {_spoken_accuracy(trained)}\nrun folder: {plan.folder}")


def _published(plan: Plan, publication: Publication, trained: TrainedRun, console: Console) -> Outcome:
    """Fold, export and verify.

    Only a bundle that passed is published under the name `bundle`.
    """
    console.say("folding and exporting")
    with publication.place.in_work() as staged:
        write_bundle_files(staged, trained)
        built = _engines(staged, plan, publication, console)
        write_manifest(staged, trained.facts)
        bundle = open_bundle(staged)
        verified = _verified(bundle, test_set(trained), publication.required, plan.config.network.name, built, console)
        write_manifest(staged, trained.facts)  # again, with the verdict and the report
        target = publication.place.publish(staged, passed=verified.passed)
    if verified.passed:
        publication.place.forget_failed()
    console.say(_spoken_accuracy(trained))
    facts: dict[str, JsonValue] = {"bundle": str(target), "verification": verified.as_json}
    return Outcome(facts, f"{verified.text}\nbundle: {target}", verified.failure)


def _engines(staged: Path, plan: Plan, publication: Publication, console: Console) -> list[BuiltEngine]:
    match publication.engines:
        case Flavour() as flavour:
            return engines_of_a_run(staged, flavour, plan.config.export, console)
        case _:
            return []  # the verdict says why


def _verified(
    bundle: Bundle, samples: SampleSource, required: tuple[str, ...], network: str | None, built: list[BuiltEngine], console: Console
) -> Verification:
    """Return the bundle's verdict, from its files alone, and write it among them.

    An interruption publishes nothing.
    """
    request = BundleRequest(folder=bundle.folder, require=runtimes_among(required), bitwise=bitwise(required), network=network, inside=True)
    found = verify_bundle(bundle, samples, request, console, second_builds(built))
    if found.verdict.interrupted:
        raise KeyboardInterrupt
    found.write(bundle.folder)
    return found


def _spoken_accuracy(trained: TrainedRun) -> str:
    accuracy = trained.metrics.get("test_accuracy")
    spoken = f"{accuracy:.2%}" if isinstance(accuracy, float) else "not measured"
    return f"accuracy on the test set: {spoken}; {trained.exact}"


def export_engines(request: EngineExportRequest, console: Console) -> Outcome:
    """Run `export --tensorrt`: build engines into a copy of a bundle, verify it, and replace the
    bundle.

    The copy is verified from its files alone.
    """
    request.require_possible()  # before the lock, which would make the folder around a missing bundle
    with sole_use(request.place.path.parent):
        plan = engine_plan(request)
        with plan.place.in_work() as staged:
            _copy(plan.bundle, staged)
            built = build_engines(staged, plan.options, plan.batch, console)
            facts = _facts(plan.bundle.manifest)
            write_manifest(staged, facts)
            bundle = open_bundle(staged)
            verified = _verified(bundle, stored_samples(bundle), request.required, request.network, built, console)
            write_manifest(staged, facts)
            target = plan.place.publish(staged, passed=verified.passed)
    told: dict[str, JsonValue] = {"bundle": str(target), "engines": dict(facts_of(built)), "verification": verified.as_json}
    return Outcome(told, f"{verified.text}\nengines: {', '.join(each.name for each in built)}\nbundle: {target}", verified.failure)


def _copy(bundle: Bundle, folder: Path) -> None:
    """Copy everything except the verdict, which was on the bundle as it was."""
    for name in bundle.manifest.files.keys() - {VERIFICATION, REPORT}:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, bundle.read(name))


def _facts(manifest: Manifest) -> Facts:
    return Facts.model_validate({name: getattr(manifest, name) for name in Facts.model_fields})
