"""Engines for a bundle: one that is being made gets them before it is verified, one that is there is made anew with them.

Takes folders; a bundle that fails with its engines never takes the place of the one that is there.
"""

from pathlib import Path

from pydantic import JsonValue

from deploy.runners.table import require_runtimes
from deploy.runners.tensorrt import EngineFile
from deploy.verify.selection import BITWISE
from export.bundle import Bundle, Facts, Manifest, open_bundle, write_manifest
from export.engines.record import plan_name
from export.errors import NotHereError, UsageError
from export.files import folder_in_work, publish_folder, sole_use, write_file
from pipeline.config import Config
from pipeline.engines import BuiltEngine, EngineOptions, build_engines, facts_of, precisions_of, runnable_flavour
from pipeline.layout import REPORT, VERIFICATION
from pipeline.outcome import Outcome
from pipeline.verification import Asked, bundle_config, stored_samples, verify_bundle
from pipeline.watching import Console


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
    require_runtimes(name for name in required if name != BITWISE)
    if failed.exists() and not (failed / "manifest.json").is_file():
        raise UsageError(f"{failed} is in the way: expected a bundle or nothing; move it away")
    with sole_use(folder.parent), folder_in_work(folder.parent) as staged:
        _copy(bundle, staged)
        built = build_engines(staged, options, bundle_config(bundle).export.batch, console)
        facts = _facts(bundle.manifest)
        write_manifest(staged, facts)
        with_engines = open_bundle(staged)
        asked = Asked(required=required, network=network, second_builds=second_builds(built), inside=True)
        found = verify_bundle(with_engines, stored_samples(with_engines), asked, console)
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
