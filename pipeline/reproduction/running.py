"""Run a plan: each run is an ordinary one, in a folder of its own.

Takes a plan and a console; yields each run that it made. A finished run is read, an interrupted one
continues. Knows no table and no output.
"""

import gc
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from deploy.progress import Console
from deploy.verify.environment import cpu_model
from export.errors import SamegraphError, UsageError
from export.files import make_folder, write_file
from pipeline import run
from pipeline.config import Config, training_part
from pipeline.reproduction.figures import RunFigures, run_figures
from pipeline.reproduction.planned_runs import Plan, PlannedRun
from pipeline.run_folder import RunFolder
from pipeline.run_request import TrainRequest
from pipeline.training import device_by_name
from pipeline.training.checkpoint import first_difference
from pipeline.training.finite import NotFiniteError


def run_plan(plan: Plan, console: Console) -> Iterator[PlannedRun]:
    """Yield every run of the plan that was not finished yet, after running it."""
    runs = [(row, each) for row in plan.rows for each in row.runs]
    for number, (row, each) in enumerate(runs, start=1):
        if not is_finished(each):
            console.say(f"run {number} of {len(runs)}: {row.row.name}, seed {each.seed}, epochs: {each.config.training.epochs}")
            _run(each, console)
            yield each


def require_same_runs(plan: Plan) -> None:
    """Require that each folder of the plan holds its own run or nothing; call this first."""
    for row in plan.rows:
        for each in row.runs:
            require_same_run(each)


def is_finished(planned: PlannedRun) -> bool:
    """Return whether the folder holds all epochs of this run, or its divergence."""
    figures = run_figures(planned.folder, planned.seed)
    return figures.diverged is not None or len(figures.records) >= planned.config.training.epochs


def require_same_run(planned: PlannedRun) -> None:
    """Refuse a folder with a run of another config; it is neither continued nor read."""
    folder = RunFolder(planned.folder)
    if folder.config.is_file() and (difference := first_difference(training_part(folder.stored_config()), training_part(planned.config))):
        key, there, wanted = difference
        raise UsageError(f"{folder} holds a run with {key} = {there}, expected {wanted}; choose another --out, or remove that folder")


def finished_run(config: Config, folder: Path, seed: int, console: Console) -> RunFigures:
    """Return the figures of one run; it is trained if its folder does not hold them yet."""
    planned = PlannedRun(seed, config, folder)
    require_same_run(planned)
    if not is_finished(planned):
        _run(planned, console)
    return run_figures(folder, seed)


def _run(planned: PlannedRun, console: Console) -> None:
    _note_machine(planned)
    gc.collect()  # leftovers of the run before would count in this run's memory
    try:
        run.carry_out(TrainRequest(config=planned.config, folder=RunFolder(planned.folder)), console)
    except NotFiniteError as error:
        console.say(str(error))
        write_file(RunFolder(planned.folder).divergence, _json([{"epoch": error.epoch, "message": str(error)}]))
    except SamegraphError:
        _leave_no_trace(RunFolder(planned.folder))
        raise


def _leave_no_trace(folder: RunFolder) -> None:
    """Remove the folder of a run that was refused, which holds only its machine.

    The folders of its row and of all runs are removed too if they are empty.
    """
    if list(folder.path.iterdir()) == [folder.machines]:
        folder.machines.unlink()
        for each in (folder.path, *folder.path.parents[:2]):
            with suppress(OSError):
                each.rmdir()


def _note_machine(planned: PlannedRun) -> None:
    """Record where the run computes; both machines if it continues on another one."""
    before = list(run_figures(planned.folder, planned.seed).machines)
    here = machine(planned.config)
    if here not in before:
        make_folder(planned.folder)
        write_file(RunFolder(planned.folder).machines, _json([*before, here]))


def machine(config: Config) -> dict[str, Any]:
    """Return the device of a config on this machine, and the version that computes."""
    device = device_by_name(config.training.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()
    return {"device": device.type, "name": name, "precision": config.training.precision, "torch": torch.__version__}


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
