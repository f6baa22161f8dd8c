"""What `pipeline reproduce` and `pipeline compare` do after their options are read.

Takes a plan or folders, and a console.
"""

from collections.abc import Sequence
from pathlib import Path

from deploy.progress import Console, Outcome
from export.files import sole_use
from pipeline.reproduction.comparison import comparison_of
from pipeline.reproduction.outputs import json_facts, markdown, require_same_table, write_outputs
from pipeline.reproduction.planned_runs import Plan
from pipeline.reproduction.result import Result, result_of
from pipeline.reproduction.running import require_same_runs, run_plan


def reproduce(plan: Plan, folder: Path, console: Console) -> Outcome:
    """Run the missing runs of a plan.

    The files are written after every run, so that a kill leaves those of the earlier runs.
    """
    with sole_use(folder):
        require_same_table(plan.table.name, folder)
        require_same_runs(plan)
        interrupted = _was_interrupted(plan, folder, console)
        result = result_of(plan)
        return _outcome(result, write_outputs(result, folder), interrupted=interrupted)


def _was_interrupted(plan: Plan, folder: Path, console: Console) -> bool:
    try:
        for _ in run_plan(plan, console):
            write_outputs(result_of(plan), folder)
    except KeyboardInterrupt:
        return True
    return False


def compare(folders: Sequence[Path], out: Path | None) -> Outcome:
    """Return the table of any runs, and write its files if a folder is given."""
    result = comparison_of(folders)
    return _outcome(result, () if out is None else write_outputs(result, out))


def _outcome(result: Result, paths: Sequence[Path], *, interrupted: bool = False) -> Outcome:
    files = [str(path) for path in paths]
    text = markdown(result) + "".join(f"\nwritten: {path}" for path in files)
    return Outcome(json_facts(result) | {"files": files}, text, interrupted=interrupted)
