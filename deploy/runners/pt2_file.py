"""Examines a torch.export program (.pt2). Refuses it if loading could run code or reach outside.

Takes a path. Reads only the archive's own lists and texts, never anything pickled. Needs no torch.
"""

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from export.errors import DamagedError, UsageError

LARGEST_TEXT = 256 * 2**20
"""The most bytes of one JSON text. An archive may claim any size for it."""
LARGEST_ARCHIVE = 64 * 2**30
"""The most bytes of an archive, unpacked."""

_NOT_LOOKED_AT = ("metadata", "guards_code")
"""Notes of the exporter. The code of the guards is never built."""
_KNOWN_FILES = re.compile(
    r"(archive_format|archive_version|byteorder|\.format_version|\.data/\w+|models/[\w.-]+\.json|extra/.*"
    r"|data/(weights|constants)/[\w.-]+|data/sample_inputs/[\w.-]+\.pt)"
)
_TARGET = re.compile(
    r"torch\.ops\.(aten|prims|quantized_decomposed|higher_order|torchvision)\.\w+(\.\w+)?"
    r"|_operator\.(getitem|add|sub|mul|truediv|floordiv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|xor|not_)"
    r"|torch\.(_)?sym_\w+|math\.\w+"
)
_OF_FILES = re.compile(r"torch\.ops\.aten\.(from_file|save|load)\b.*")
_PIECE = re.compile(r"[\s\d+\-*/%(),<>=!&|~]|'[A-Za-z]\w*'|[A-Za-z]\w*")
_SYMBOL = re.compile(r"[suzf]\d+")
_SYMPY = frozenset(
    {
        *("Abs", "Add", "And", "CeilDiv", "CeilToInt", "CleanDiv", "Eq", "Equality", "False", "FloatPow", "FloatTrueDiv", "Float"),
        *("FloorDiv", "FloorToInt", "Ge", "GreaterThan", "Gt", "Identity", "Integer", "IntTrueDiv", "LShift", "Le", "LessThan", "Lt"),
        *("Max", "Min", "Mod", "ModularIndexing", "Mul", "Ne", "Not", "One", "Or", "Pow", "PowByNatural", "PythonMod", "RShift"),
        *("Rational", "RoundDecimal", "RoundToInt", "StrictGreaterThan", "StrictLessThan", "Symbol", "ToFloat", "True", "TruncToFloat"),
        *("TruncToInt", "Unequality", "Where", "ceiling", "floor", "int_oo", "integer", "log", "log2", "nonnegative", "oo", "positive"),
        *("precision", "real", "sqrt"),
    }
)
"""The words that sympy writes expressions of sizes with. Evaluating others could do anything."""
_ARGUMENT = re.compile(r"[\w.\- ]{0,64}")
_NAME = re.compile(r"[\w.+\-]{0,512}")
"""What names may look like. Some of them become the source text of a function."""
_TREE = re.compile(r"[\w\s.\-\[\]{}:,\"\\]*")


def require_harmless(path: Path) -> None:
    """Raise DamagedError unless loading the file means only reading numbers and a graph."""
    if not path.is_file():
        raise UsageError(f"{path} is not a file; give the path of a program that torch.export.save wrote")
    try:
        with zipfile.ZipFile(path) as archive:
            _check(path, archive)
    except (zipfile.BadZipFile, UnicodeDecodeError, json.JSONDecodeError, EOFError, NotImplementedError, RecursionError) as error:
        raise DamagedError(f"{path} is not a torch.export program: {error}; export it again") from error


def _check(path: Path, archive: zipfile.ZipFile) -> None:
    names = _inner_names(path, archive)
    for name in names:
        if not _KNOWN_FILES.fullmatch(name):
            raise _refused(path, f"a file {name!r} that programs do not hold")
    if sum(info.file_size for info in archive.infolist()) > LARGEST_ARCHIVE:
        raise _refused(path, f"more than {LARGEST_ARCHIVE} bytes")
    models = [name for name in names if name.startswith("models/")]
    if len(models) != 1:
        raise DamagedError(f"{path} holds {len(models)} programs, expected 1; save one with torch.export.save")
    for name, full in names.items():
        if name.startswith("data/") and name.endswith("_config.json"):
            _check_payloads(path, _json(path, archive, full))
        elif name.startswith(("data/weights/", "data/constants/")) and name.endswith(".pt"):
            raise _refused(path, f"pickled tensors ({name})")
    for what in _dangers(_json(path, archive, names[models[0]])):
        raise _refused(path, what)


def _inner_names(path: Path, archive: zipfile.ZipFile) -> dict[str, str]:
    """The names within the one folder that holds everything in an archive; and their full names."""
    names = archive.namelist()
    roots = {name.partition("/")[0] for name in names}
    if len(roots) != 1 or len(set(names)) != len(names):
        raise DamagedError(f"{path} is not a torch.export program: its files are not in one folder; export it again")
    return {name.partition("/")[2]: name for name in names}


def _json(path: Path, archive: zipfile.ZipFile, name: str) -> Any:
    if archive.getinfo(name).file_size > LARGEST_TEXT:
        raise _refused(path, f"{name} of more than {LARGEST_TEXT} bytes")
    return json.loads(archive.read(name))


def _check_payloads(path: Path, content: Any) -> None:
    config = content.get("config") if isinstance(content, dict) else None
    if not isinstance(config, dict):
        raise DamagedError(f"{path} is not a torch.export program: a list of its tensors is missing; export it again")
    for tensor, payload in config.items():
        kept = str(payload.get("path_name")) if isinstance(payload, dict) else ""
        if not kept.startswith(("weight_", "tensor_")) or payload.get("use_pickle") is not False:
            raise _refused(path, f"{tensor!r}, which is pickled")


def _dangers(value: Any, key: str = "") -> Iterator[str]:
    """What a program's text would run, import or look up besides operations on tensors, sizes."""
    if isinstance(value, dict):
        for inner, content in value.items():
            if not _NAME.fullmatch(inner):
                yield f"the name {inner[:80]!r}"
            elif inner == "as_custom_obj":
                yield "an object of a class of its own"
            elif inner not in _NOT_LOOKED_AT:
                yield from _dangers(content, inner)
    elif isinstance(value, list):
        for content in value:
            yield from _dangers(content, key)
    elif isinstance(value, str) and not _is_harmless(key, value):
        yield f"the text {value[:80]!r} ({key})"


def _is_harmless(key: str, text: str) -> bool:
    match key:
        case "target":
            return bool(_TARGET.fullmatch(text)) and not _OF_FILES.fullmatch(text)
        case "expr_str":
            return _is_expression(text)
        case "as_string" | "as_strings":
            return bool(_ARGUMENT.fullmatch(text))
        case "in_spec" | "out_spec":
            return bool(_TREE.fullmatch(text))
        case _:
            return bool(_NAME.fullmatch(text))


def _is_expression(text: str) -> bool:
    pieces = _PIECE.findall(text)
    words = [piece.strip("'") for piece in pieces if piece.strip("'")[:1].isalpha()]
    return "".join(pieces) == text and all(_SYMBOL.fullmatch(word) or word in _SYMPY for word in words)


def _refused(path: Path, what: str) -> DamagedError:
    return DamagedError(f"{path} holds {what}: loading it could run code or reach outside the file; export it again with torch.export.save")
