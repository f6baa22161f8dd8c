"""Single changes to code: the possible ones, a random choice, and the same change in another tree.

Takes source text. A change is known by the function it is in and by the tokens of its line, never
by a file or a line number, so that it is found again after files have moved. Knows nothing of
tests.
"""

import ast
import hashlib
import io
import random
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

AREAS: dict[str, tuple[str, ...]] = {
    "comparing": ("deploy/verify/compare.py", "deploy/verify/tolerance.py", "deploy/verify/judging.py"),
    "budgets": ("deploy/verify/budget.py", "deploy/verify/covered.py"),
    "fold": ("export/fold.py", "export/derived.py", "export/exact/fold.py"),
    "grid": ("export/exact/grid.py", "export/exact/rewrite.py", "export/exact/calibration.py"),
    "certificate": (
        "deploy/verify/certificate.py",
        "deploy/verify/certifying.py",
        "deploy/verify/layer_sums.py",
        "deploy/verify/grid_values.py",
        "deploy/verify/node_forms.py",
        "export/exact/certificate.py",
    ),
    "bundle": ("export/bundle.py", "export/files.py", "pipeline/staging.py", "pipeline/stored_verdict.py"),
    "training loop": ("pipeline/training/loop.py", "pipeline/training/step.py", "pipeline/training/checkpoint.py"),
}
"""The areas that are changed, by their place in the tree from which the changes are drawn."""

_FEWEST_TOKENS = 6
"""A shorter line says too little to be found again in a function of another name."""

_PAIRS = (
    ("<", "<="),
    (">", ">="),
    ("==", "!="),
    ("is", "is not"),
    ("in", "not in"),
    ("+", "-"),
    ("*", "/"),
    ("<<", ">>"),
    ("+=", "-="),
    ("*=", "/="),
)
_OTHER_OPERATOR = {
    **{one: other for pair in (*_PAIRS, ("and", "or")) for one, other in (pair, pair[::-1])},
    **dict.fromkeys(("//", "%", "**"), "*"),
    "//=": "*=",
    "&": "|",
}  # not "|", which mostly joins types and dictionaries

Position = tuple[int, int]
"""Line from 1, column from 0, in characters."""


@dataclass(frozen=True)
class Token:
    """A token of a program."""

    text: str
    start: Position
    end: Position


@dataclass(frozen=True)
class Function:
    """A function of a tree, with its tokens."""

    file: str
    name: str
    """The qualified name, as its code object has it."""
    node: ast.FunctionDef | ast.AsyncFunctionDef
    tokens: tuple[Token, ...]

    @property
    def digest(self) -> str:
        """A hash that is equal for functions of the same tokens, however they are laid out."""
        return hashlib.sha256("\0".join(token.text for token in self.tokens).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Mutation:
    """A change at one place."""

    id: int
    area: str
    kind: str
    file: str
    """The file of the function when this was drawn; elsewhere the function is found by its name."""
    function: str
    digest: str
    """The hash of the function as it was."""
    line: str
    """The line, for a reader."""
    words: tuple[str, ...]
    """The tokens of that line."""
    occurrence: int
    """Which of the equal lines of the function it is, counted from 0."""
    first: int
    end: int
    """The end of the tokens that are replaced."""
    new: str

    @property
    def old(self) -> str:
        return " ".join(self.words[self.first : self.end])


@dataclass(frozen=True)
class Place:
    """The place of a change in a tree."""

    function: Function
    start: Position
    end: Position


class NotPlacedError(Exception):
    """A tree has no place, or several places, for a change."""


def functions_of(file: str, source: str) -> list[Function]:
    """Return every function and method of a file, including inner ones."""
    tokens = _tokens(source)
    found = []
    for name, node in _definitions(ast.parse(source), ""):
        assert node.end_lineno is not None
        inside = tuple(token for token in tokens if node.lineno <= token.start[0] <= node.end_lineno)
        found.append(Function(file, name, node, inside))
    return found


def _definitions(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{prefix}{child.name}", child
            yield from _definitions(child, f"{prefix}{child.name}.<locals>.")
        else:
            yield from _definitions(child, f"{prefix}{child.name}." if isinstance(child, ast.ClassDef) else prefix)


_LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def _tokens(source: str) -> list[Token]:
    found = tokenize.generate_tokens(io.StringIO(source).readline)
    return [Token(token.string, token.start, token.end) for token in found if token.type not in _LAYOUT]


def drawn(root: Path, number: int, seed: int) -> list[Mutation]:
    """Return `number` changes, with the same share from each area as far as it has them.

    The same seed and sources give the same changes.
    """
    lots = {area: [each for file in files for each in mutations_of(area, file, (root / file).read_text("utf-8"))] for area, files in AREAS.items()}
    generator = random.Random(seed)
    for lot in lots.values():
        generator.shuffle(lot)
    chosen: list[Mutation] = []
    while len(chosen) < number and any(lots.values()):
        chosen += [lot.pop() for lot in lots.values() if lot][: number - len(chosen)]
    order = list(AREAS)
    chosen.sort(key=lambda each: (order.index(each.area), each.file, each.function, each.occurrence, each.line, each.first, each.kind))
    return [replace(each, id=index) for index, each in enumerate(chosen)]


def mutations_of(area: str, file: str, source: str) -> list[Mutation]:
    """Return every change that can be made to the functions of a file."""
    lines, found = source.splitlines(), []
    for function in functions_of(file, source):
        for kind, first, end, new in _changes(function, source):
            row = function.tokens[first].start[0]
            on_line = [index for index, token in enumerate(function.tokens) if token.start[0] == row]
            words = tuple(function.tokens[index].text for index in on_line)
            if end - 1 > on_line[-1]:
                continue  # it extends over several lines
            occurrence = _matches(function.tokens, words).index(on_line[0])
            text, span = lines[row - 1].strip(), (first - on_line[0], end - on_line[0])
            found.append(Mutation(-1, area, kind, file, function.name, function.digest, text, words, occurrence, *span, new))
    return found


def _matches(tokens: Sequence[Token], words: Sequence[str]) -> list[int]:
    """Return where in a function these tokens follow one another."""
    texts, wanted = [token.text for token in tokens], list(words)
    return [start for start in range(len(texts) - len(wanted) + 1) if texts[start : start + len(wanted)] == wanted]


Change = tuple[str, int, int, str]
"""The kind, the first token that is replaced, the one after the last, and the replacement."""


def _changes(function: Function, source: str) -> Iterator[Change]:
    words = _Words(function, source)
    for node in _mutable(function.node):
        yield from _of_operators(node, words)
        match node:
            case ast.Constant(value=bool() | int() | float() as value):
                yield "constant", *words.span(words.start(node), words.end(node)), _other_constant(value)
            case ast.If() | ast.While() | ast.IfExp():
                yield from words.condition(node.test)
            case ast.comprehension():
                for test in node.ifs:
                    yield from words.condition(test)


def _of_operators(node: ast.AST, words: "_Words") -> Iterator[Change]:
    match node:
        case ast.Compare():
            for before, behind in pairwise([node.left, *node.comparators]):
                yield from words.operator(before, behind, "comparison")
        case ast.BoolOp():
            for before, behind in pairwise(node.values):
                yield from words.operator(before, behind, "logic")
        case ast.BinOp() if not (_is_text(node.left) or _is_text(node.right) or _is_path(node.left)):
            yield from words.operator(node.left, node.right, "arithmetic")
        case ast.AugAssign():
            yield from words.operator(node.target, node.value, "arithmetic")
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            first, _ = words.span(words.start(node), words.end(node))
            yield "logic" if isinstance(node.op, ast.Not) else "arithmetic", first, first + 1, ""


class _Words:
    """The tokens of a function, found by the nodes of its syntax tree."""

    def __init__(self, function: Function, source: str) -> None:
        self._tokens, self._rows = function.tokens, source.splitlines()

    def _at(self, row: int, column: int) -> Position:
        return row, len(self._rows[row - 1].encode()[:column].decode())  # ast counts bytes, tokens count characters

    def start(self, node: ast.expr | ast.stmt) -> Position:
        return self._at(node.lineno, node.col_offset)

    def end(self, node: ast.expr | ast.stmt) -> Position:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._at(node.end_lineno, node.end_col_offset)

    def span(self, start: Position, end: Position) -> tuple[int, int]:
        """Return the first token between two positions, and the one after the last."""
        inside = [index for index, token in enumerate(self._tokens) if start <= token.start and token.end <= end]
        return inside[0], inside[-1] + 1

    def operator(self, before: ast.expr, behind: ast.expr, kind: str) -> Iterator[Change]:
        """Yield a change of the operator between two operands; there may be parentheses around
        it."""
        first, end = self.span(self.end(before), self.start(behind))
        while self._tokens[first].text == ")":
            first += 1
        while self._tokens[end - 1].text == "(":
            end -= 1
        if other := _OTHER_OPERATOR.get(" ".join(token.text for token in self._tokens[first:end])):
            yield kind, first, end, other

    def condition(self, test: ast.expr) -> Iterator[Change]:
        """Yield the opposite of a condition that is on one line."""
        start, end = self.start(test), self.end(test)
        if start[0] == end[0] and not _is_turned_by_its_operator(test):
            yield "condition", *self.span(start, end), f"not ({self._rows[start[0] - 1][start[1] : end[1]]})"


def _is_turned_by_its_operator(test: ast.expr) -> bool:
    """Return whether another change already does what `not` would do.

    That is a change of its own operator, or of the constant that it is.
    """
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        return not isinstance(test.ops[0], ast.Lt | ast.LtE | ast.Gt | ast.GtE)
    return isinstance(test, ast.Constant) or (isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not))


def _other_constant(value: float) -> str:
    if isinstance(value, bool):
        return repr(not value)
    return repr(value + 1) if isinstance(value, int) else repr(2 * value if value else 1.0)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _is_path(node: ast.expr) -> bool:
    """Return whether a node is a path, by its name.

    Any operation on a path except "/" is an error at once, which any test catches.
    """
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return any(word in name for word in ("folder", "path", "parent"))


def _mutable(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the parts of a function that compute.

    These exclude types, defaults, messages of errors, and inner functions, which are listed
    themselves.
    """
    left_out = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Raise, ast.Assert, ast.JoinedStr)
    children: list[ast.AST] = [*node.body] if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else list(ast.iter_child_nodes(node))
    if isinstance(node, ast.AnnAssign):
        children = [node.value] if node.value else []
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("isinstance", "issubclass", "cast"):
        children = []
    elif isinstance(node, ast.arguments):
        children = []  # a lambda has no statements
    for child in children:
        if not isinstance(child, left_out):
            yield child
            yield from _mutable(child)


def placed(functions: Sequence[Function], mutation: Mutation, renamed: Mapping[str, str] | None = None) -> Place:
    """Return where the same change goes in a tree.

    It is found by the function's name and the line, or by the line if only one function has it.
    """
    name = (renamed or {}).get(mutation.function, mutation.function)
    of_that_name = [place for function in functions if function.name == name for place in _places(function, mutation)]
    if of_that_name:
        return _only_one(of_that_name, mutation)
    if len(mutation.words) < _FEWEST_TOKENS:
        raise NotPlacedError(f"no function {name} has the line, which is too short to look for it elsewhere")
    last = name.rpartition(".")[2]
    elsewhere = [place for function in functions for place in _places(function, mutation)]
    if not elsewhere:
        raise NotPlacedError("no function has the line")
    return _only_one([place for place in elsewhere if place.function.name.rpartition(".")[2] == last] or elsewhere, mutation)


def _places(function: Function, mutation: Mutation) -> list[Place]:
    matches = _matches(function.tokens, mutation.words)
    if mutation.occurrence >= len(matches):
        return []
    start = matches[mutation.occurrence]
    first, last = function.tokens[start + mutation.first], function.tokens[start + mutation.end - 1]
    return [Place(function, first.start, last.end)]


def _only_one(places: Sequence[Place], mutation: Mutation) -> Place:
    """Return the one place of several: in the unchanged function, or in the same file.

    Lines of an inner function also belong to the outer one.
    """
    for wanted in (
        lambda place: place.function.digest == mutation.digest,
        lambda place: place.function.file == mutation.file,
        lambda place: Path(place.function.file).name == Path(mutation.file).name,
    ):
        spots = {(place.function.file, place.start) for place in places}
        if len(spots) == 1:
            break
        places = [place for place in places if wanted(place)] or places
    if len({(place.function.file, place.start) for place in places}) > 1:
        raise NotPlacedError(f"the line is at {len(places)} places: {', '.join(f'{place.function.file}:{place.start[0]}' for place in places)}")
    return max(places, key=lambda place: len(place.function.name))


def mutated(source: str, place: Place, new: str) -> str:
    """Return the text with the change in it, which must be a different program."""
    lines = source.splitlines(keepends=True)
    (row, start), (last_row, end) = place.start, place.end
    lines[row - 1 : last_row] = [lines[row - 1][:start] + new + lines[last_row - 1][end:]]
    changed = "".join(lines)
    if ast.dump(ast.parse(changed)) == ast.dump(ast.parse(source)):
        raise NotPlacedError("the change changes nothing")
    return changed
