"""Load a config: files and `--set` overrides in, a validated `Config` out, and back to YAML.

Every mistake is a `UsageError` of one line: where it is, what was given and what is allowed.
"""

import json
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import JsonValue, ValidationError

from export.errors import UsageError
from pipeline.config import yaml_text
from pipeline.config.mistakes import in_one_line, key_path, shortened, shown
from pipeline.config.sections import Config
from pipeline.config.yaml_text import read_yaml, write_yaml

__all__ = ["dump_config", "json_schema", "load_config", "parse_config", "training_part"]


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `key.path=value` overrides and validate the result.

    A file must name its data set: a forgotten section must not start a training on other data.
    """
    return parse_config(_text_of(Path(path)), str(path), overrides, required=("data", "name"))


def parse_config(
    content: str | Mapping[str, object], source: str = "config", overrides: Sequence[str] = (), *, required: tuple[str, str] | None = None
) -> Config:
    """Do the same with YAML text or with values that are already parsed.

    `source` names the input in error messages. `required` is a key that must be written.
    """
    draft = _Draft.of(content, source)
    for override in overrides:
        draft.set(override)
    try:
        config = Config.model_validate(_with_tuples(draft.values))
    except ValidationError as error:
        raise UsageError(in_one_line(error, draft.values, json_schema(), draft.place_of)) from error
    if required is not None and not draft.has(required):
        raise UsageError(f"{source}: {'.'.join(required)} is missing; name the data set, or let pipeline init write a config to start from")
    return config


def dump_config(config: Config) -> str:
    """Return YAML that loads back to an equal config.

    Every default is written out, in the order of the sections.
    """
    return write_yaml(config.model_dump(mode="json"))


def training_part(config: Config) -> dict[str, JsonValue]:
    """Return the sections that a checkpoint depends on.

    The other sections (export, verify) may change from one command to the next.
    """
    return config.model_dump(mode="json", include={"data", "network", "method", "training"})


@dataclass
class _Draft:
    """Values that are not validated yet, and the place where each was written."""

    values: dict[str, object]
    source: str
    places: dict[yaml_text.Path, str]
    set_here: list[tuple[yaml_text.Path, str]] = field(default_factory=list)

    @classmethod
    def of(cls, content: str | Mapping[str, object], source: str) -> "_Draft":
        located = read_yaml(content, source) if isinstance(content, str) else yaml_text.LocatedText(content, {})
        if located.value is None:
            raise UsageError(f"{source}: empty; the shortest config is: method: {{name: czmig}}")
        if not isinstance(located.value, Mapping):
            raise UsageError(f"{source}: got {shown(located.value)}, expected sections such as method: {{name: czmig}}")
        places = {path: f"{source}:{line}" for path, line in located.lines.items()}
        return cls(_copied(located.value), source, places)

    def set(self, override: str) -> None:
        """Overwrite one value with `key.path=value`; a section given as {...} replaces the whole
        section."""
        place = f"--set {shortened(override)}"
        name, equals, text = override.partition("=")
        path = tuple(name.strip().split("."))
        if not equals or not all(path):
            raise UsageError(f"{place}: expected key.path=value, such as training.epochs=3")
        self._section(path[:-1], place)[path[-1]] = read_yaml(text, place).value
        self.set_here.append((path, place))

    def has(self, path: tuple[str, str]) -> bool:
        """Return whether a key of a section was written."""
        section = self.values.get(path[0])
        return isinstance(section, Mapping) and path[1] in section

    def place_of(self, path: yaml_text.Path) -> str:
        """Return where a value was written.

        That is the last `--set` at, above or below it, or else the nearest line of the file.
        """
        for written, place in reversed(self.set_here):
            if written[: len(path)] == path or path[: len(written)] == written:
                return place
        above = (path[:length] for length in range(len(path), 0, -1))
        return next((self.places[p] for p in above if p in self.places), self.source)

    def _section(self, path: tuple[str, ...], place: str) -> dict[str, object]:
        section = self.values
        for depth, key in enumerate(path, start=1):
            inner = section.setdefault(key, {})
            if not isinstance(inner, dict):
                raise UsageError(f"{place}: {key_path(path[:depth])} is {shown(inner)}, not a section")
            section = inner
        return section


def _text_of(path: Path) -> str:
    """Read the file, but no more of it than a config can have, so that a huge file costs
    nothing."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would block
            raise UsageError(f"{path}: not a regular file; give the path of a YAML config")
        with path.open("rb") as file:
            content = file.read(4 * yaml_text.MAX_CHARACTERS + 1)
        return content.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file; give the path of a YAML config") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); give the path of a YAML config") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text (byte {error.start}); give a YAML config") from error


def _copied(section: Mapping[str, object]) -> dict[str, object]:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in section.items()}


def _with_tuples(value: object) -> object:
    """Turn lists into tuples: sections are frozen, and the strict validator rejects a list for a
    tuple."""
    if isinstance(value, Mapping):
        return {key: _with_tuples(inner) for key, inner in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list | tuple) else value


def json_schema() -> dict[str, Any]:
    """Return the schema that `configs/schema.json` holds."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}


def json_schema_text() -> str:
    """Return the text of `configs/schema.json`."""
    return json.dumps(json_schema(), indent=2) + "\n"
