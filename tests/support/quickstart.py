"""The shortened quickstart for tests. `finished_run` in conftest.py is a run of these options."""

from pathlib import Path

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
SHORT = ("training.epochs=3", "training.schedule={name: constant}", "verify.samples=100")


def typed(*overrides: str) -> list[str]:
    """The options as typed on a command line."""
    return [part for override in overrides for part in ("--set", override)]
