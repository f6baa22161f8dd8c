"""YAML as configs use it: plain values, lists and sections, each with its line number.

Takes text; knows no key of any config. Stricter than YAML: a key appears once and is text; no
aliases, no tags. Numbers and booleans are those of YAML 1.2: 5e-4 is a number and `no` is a word.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from export.errors import UsageError

Path = tuple[str | int, ...]

MAX_CHARACTERS = 256 * 1024
MAX_DEPTH = 16

_SCALARS = (
    ("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), "~nN\0"),
    ("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    ("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        re.compile(r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan)$"),
        "-+.0123456789",
    ),
)


@dataclass(frozen=True)
class LocatedText:
    """The value of a text, and the line of each of its keys."""

    value: object
    lines: Mapping[Path, int]


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  PyYAML's own table, replaced

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise _refusal(self.current_event, "aliases (*) are not used here")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _refusal(self.current_event, "nested too deeply")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes any text that YAML 1.1 or 1.2 would read as something other than text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _first in _SCALARS:
    for _letter in _first:
        _Loader.yaml_implicit_resolvers.setdefault("" if _letter == "\0" else _letter, []).append((_tag, _pattern))
    _Dumper.add_implicit_resolver(_tag, _pattern, list(_first.replace("\0", "")))
_Dumper.add_representer(  # quotes what PyYAML would fold or lose in plain style, a NEL for one
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"'),
)
_Dumper.add_representer(list, lambda dumper, values: dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True))


def read_yaml(text: str, source: str) -> LocatedText:
    """Parse `text`; `source` names it in error messages, which are one line long."""
    if len(text) > MAX_CHARACTERS:
        raise UsageError(f"{source}: more than {MAX_CHARACTERS // 1024} KiB; a config is smaller")
    lines: dict[Path, int] = {}
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return LocatedText(None if node is None else _value(loader, node, (), lines), lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}" if mark and "\n" in text else source
        raise UsageError(f"{place}: not valid here: {_one_line(error.problem or error.context or 'YAML')}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{source}: not YAML: {_one_line(str(error))}") from error


def write_yaml(value: Mapping[str, object]) -> str:
    """Text that `read_yaml` reads back to equal values, in the order given."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1_000_000)


def _value(loader: _Loader, node: yaml.Node, path: Path, lines: dict[Path, int]) -> object:
    if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
        return dict(_items(loader, node, path, lines))
    if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
        return [_located(loader, item, (*path, index), lines) for index, item in enumerate(node.value)]
    return _scalar(loader, node)


def _items(loader: _Loader, node: yaml.MappingNode, path: Path, lines: dict[Path, int]) -> Iterator[tuple[str, object]]:
    seen = set()
    for key_node, value_node in node.value:
        key = _scalar(loader, key_node)
        if not isinstance(key, str):
            raise _refusal(key_node, f"a key must be a word, got {key}")
        if key in seen:
            raise _refusal(key_node, f"{key} appears twice")
        seen.add(key)
        lines[(*path, key)] = key_node.start_mark.line + 1
        yield key, _value(loader, value_node, (*path, key), lines)


def _located(loader: _Loader, node: yaml.Node, path: Path, lines: dict[Path, int]) -> object:
    lines[path] = node.start_mark.line + 1
    return _value(loader, node, path, lines)


def _scalar(loader: _Loader, node: yaml.Node) -> object:
    known = {tag for tag, _, _ in _SCALARS} | {"tag:yaml.org,2002:str"}
    if not isinstance(node, yaml.ScalarNode):
        raise _refusal(node, "a list or a section is not allowed here")
    if node.tag not in known:
        raise _refusal(node, f"the tag {node.tag.replace('tag:yaml.org,2002:', '!!')} is not used here")
    if node.tag == "tag:yaml.org,2002:int":
        return _integer(node)
    try:
        return loader.construct_object(node)
    except (ValueError, KeyError) as error:  # an explicit tag on text that does not fit it
        raise _refusal(node, f"{node.value[:40]!r} is not a {node.tag.rsplit(':', 1)[-1]}") from error


def _integer(node: yaml.ScalarNode) -> int:
    """Read a decimal integer as YAML 1.2 does; PyYAML would read 010 as eight."""
    if not re.fullmatch(r"[-+]?[0-9]{1,40}", node.value):
        raise _refusal(node, f"{node.value[:40]!r} is not a whole number of at most 40 digits")
    return int(node.value)


def _refusal(at: Any, problem: str) -> yaml.MarkedYAMLError:
    """Return the error; `at` is a node or an event of PyYAML, which share only their mark."""
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


def _one_line(text: str) -> str:
    return " ".join(text.split())
