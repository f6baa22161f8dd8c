"""The configs that come with samegraph, by name: quickstart, cifar10/czmig-resnet110.

Takes names and paths; writes a config to start from. Trains nothing.
"""

import difflib
import json
from pathlib import Path

from export.errors import UsageError
from export.files import make_folder, write_file
from pipeline.config.loading import json_schema, json_schema_text

QUICKSTART = "quickstart"
SCHEMA_FILE = "samegraph.schema.json"
_LINE_FOR_EDITORS = "# yaml-language-server: $schema="
_PACKAGE = Path(__file__).parents[1]
_PLACES = (_PACKAGE / "configs", _PACKAGE.parent / "configs")


def configs_folder() -> Path:
    """Return the folder of the configs: inside an installed package, or at the top of a
    checkout."""
    for folder in _PLACES:
        if (folder / "schema.json").is_file():
            return folder
    raise UsageError(f"the configs that come with samegraph are missing, expected {_PLACES[0]}; install samegraph again")


def config_names() -> tuple[str, ...]:
    """Return the names of the configs: the quickstart first, then one folder per data set."""
    folder = configs_folder()
    names = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
    return (QUICKSTART, *(name for name in names if name != QUICKSTART))


def config_path(name: str) -> Path:
    """Return the file of a shipped config; an unknown name gives an error of one line."""
    names = config_names()
    if name in names:
        return configs_folder() / f"{name}.yaml"
    if Path(name).is_dir():
        raise UsageError(f"{name} is a folder, expected the name of a config; pipeline init --list shows them")
    near = difflib.get_close_matches(name, names, n=1)
    raise UsageError(f"no config {name!r}, {f'did you mean {near[0]}?' if near else 'pipeline init --list shows them'}")


def write_starting_config(name: str, path: Path) -> Path:
    """Write a shipped config to `path` and its schema next to it; return the schema's path.

    The schema is copied because a path into an installed package would be wrong on another machine
    and after the next installation.
    """
    content = config_path(name).read_text(encoding="utf-8")
    schema = path.with_name(SCHEMA_FILE)
    if path.exists() or path.is_symlink():
        raise UsageError(f"{path} exists; choose another --out, or move it away")
    if schema.exists() and not _is_a_schema_of_ours(schema):
        raise UsageError(f"{schema} exists and is not a schema of samegraph; choose another folder with --out, or move it away")
    make_folder(path.parent)
    write_file(schema, json_schema_text().encode())
    write_file(path, _for_editors(content).encode())
    return schema


def _for_editors(content: str) -> str:
    """Return the config with the line that leads an editor to the schema as its first line."""
    rest = content.partition("\n")[2] if content.startswith(_LINE_FOR_EDITORS) else content
    return f"{_LINE_FOR_EDITORS}{SCHEMA_FILE}\n{rest}"


def _is_a_schema_of_ours(path: Path) -> bool:
    """Accept a schema of any version; this version's schema replaces it."""
    try:
        found, ours = json.loads(path.read_bytes()), json_schema()
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and all(found.get(key) == ours[key] for key in ("$schema", "title", "required"))
