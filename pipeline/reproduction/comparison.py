"""Any run folders as a result, grouped by their config without the seed.

Each group is named by the settings that tell the groups apart.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import JsonValue

from export.errors import UsageError
from pipeline.config import Config, training_part
from pipeline.reproduction.figures import RunFigures, run_figures
from pipeline.reproduction.result import Group, Result
from pipeline.run_folder import RunFolder

Flat = dict[str, JsonValue]


def comparison_of(folders: Sequence[Path]) -> Result:
    """Return the result of these runs; each folder counts once."""
    _require_different(folders)
    configs = [_config(folder) for folder in folders]
    groups: dict[str, list[tuple[Config, RunFigures]]] = {}
    for folder, config in zip(folders, configs, strict=True):
        groups.setdefault(json.dumps(_without_seed(config)), []).append((config, run_figures(folder, config.training.seed)))
    flat = [_without_seed(runs[0][0]) for runs in groups.values()]
    labels = labels_of(flat)
    found = tuple(_group(label, runs) for label, runs in zip(labels, groups.values(), strict=True))
    return Result(
        name="comparison",
        subject=f"Comparison of {len(folders)} runs",
        columns=("network", "method", "settings"),
        quantities=("accuracy", "train_accuracy", "memory", "minutes"),
        statistic="mean and std",
        memory_unit="MB",
        picture="epochs",
        groups=found,
        notes=(*_MEANINGS, *_differences_beside(labels, flat), *_same_seeds(found)),
        of_a_paper=False,
    )


_MEANINGS = (
    "Training accuracy: of the last epoch, while training, with augmentation.",
    "Peak memory: of tensors where a run was on CUDA; of the whole process where it was on a CPU, which compares nothing.",
)


def _require_different(folders: Sequence[Path]) -> None:
    seen: dict[Path, Path] = {}
    for folder in folders:
        if (same := seen.setdefault(folder.resolve(), folder)) is not folder:
            raise UsageError(f"{folder} and {same} are one run; give each once, or its spread is none")


def _config(folder: Path) -> Config:
    run = RunFolder(folder)
    run.require_run("give the folders that pipeline train wrote")
    return run.stored_config()


def _without_seed(config: Config) -> Flat:
    flat = _flat(training_part(config))
    del flat["training.seed"]
    return flat


def _flat(values: Mapping[str, JsonValue], above: str = "") -> Flat:
    found: Flat = {}
    for key, value in values.items():
        found |= _flat(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return found


def labels_of(configs: Sequence[Flat]) -> list[tuple[str, str, str]]:
    """Return network, method, and the settings in which groups with the same two differ."""
    labels = []
    for config in configs:
        alike = [other for other in configs if _head(other) == _head(config)]
        differing = [key for key in config if any(other.get(key) != config[key] for other in alike)]
        labels.append((*_head(config), ", ".join(f"{key}={json.dumps(config[key])}" for key in differing)))
    return labels


def _differences_beside(labels: Sequence[tuple[str, str, str]], configs: Sequence[Flat]) -> list[str]:
    """Describe how groups of different networks or methods are trained differently.

    Their names do not show it, and a comparison of methods depends on it.
    """
    if len({_head(config) for config in configs}) < 2:
        return []
    keys = dict.fromkeys(key for config in configs for key in config if not key.startswith("method.") and key != "network.name")
    differing = [key for key in keys if len({json.dumps(config.get(key)) for config in configs}) > 1]
    if not differing:
        return []
    settings = [{key: f"{key}={json.dumps(config[key])}" for key in differing if key in config} for config in configs]
    unsaid = [", ".join(text for text in each.values() if text not in label[2].split(", ")) for label, each in zip(labels, settings, strict=True)]
    return [f"Beside that, {' '.join(filter(None, label))} has {rest}" for label, rest in zip(labels, unsaid, strict=True) if rest]


def _head(config: Flat) -> tuple[str, str]:
    return str(config["network.name"]), str(config["method.name"])


def _group(label: tuple[str, str, str], runs: Sequence[tuple[Config, RunFigures]]) -> Group:
    training = runs[0][0].training
    figures = tuple(sorted((run for _, run in runs), key=lambda run: run.seed))
    return Group(
        name=" ".join(filter(None, label)),
        cells=label,
        epochs=training.epochs,
        num_planned=len(runs),
        runs=figures,
        rate=training.learning_rate,
    )


def _same_seeds(groups: Sequence[Group]) -> list[str]:
    """Report seeds that count twice, because they make a spread look smaller than it is."""
    notes = []
    for group in groups:
        seeds = [run.seed for run in group.runs]
        twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
        if twice:
            notes.append(f"{group.name}: seed {', '.join(map(str, twice))} is there more than once, so the spread is not one of seeds")
    return notes
