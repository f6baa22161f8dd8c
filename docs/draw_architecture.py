"""Draws docs/architecture.svg: the rooms of the three packages, one storey a package, and the
imports between them.

    python -m docs.draw_architecture > docs/architecture.svg

Every room stands above all rooms that it imports. Lines that a chain of others implies are left
out; the title of a room, which a browser shows under the pointer, names all its imports.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean

from docs.rooms import Imports, imports_of_modules, imports_of_rooms, without_detours

STOREYS = ("pipeline", "deploy", "export")
"""From top to bottom."""
BOX, ROW, GAP, BETWEEN, MARGIN, LABEL = 30, 62, 16, 18, 24, 84
"""In pixels: the height of a box, from row to row, between two boxes, between two storeys, at the
edges, and for the names of the storeys."""
SWEEPS = 24
STYLE = """\
svg{font:13px system-ui,sans-serif;background:#fff}text{fill:#1a1f2b;text-anchor:middle}.n{font-weight:600;font-size:15px;text-anchor:start}
rect{stroke-width:1.3}.f{fill:#f6f7f9;stroke:none}.pipeline{fill:#eef3fb;stroke:#2f5fa8}.deploy{fill:#e9f6ee;stroke:#1f7a45}
.export{fill:#f6f3ea;stroke:#8a7434}path{fill:none;stroke:#6b7585;stroke-width:1.2}#h path{fill:#6b7585;stroke:none}
@media(prefers-color-scheme:dark){svg{background:#0d1117}text{fill:#e6edf3}.f{fill:#151b23}.pipeline{fill:#12233f;stroke:#6ea0e6}
.deploy{fill:#10291b;stroke:#56b881}.export{fill:#2b2615;stroke:#c7ab57}path{stroke:#8b95a5}#h path{fill:#8b95a5}}"""


@dataclass(eq=False)
class Spot:
    """A place in a row: a room, or a line that passes by on its way down."""

    room: str
    """Of a line: empty."""
    row: int
    x: float = 0.0
    """Of its middle."""
    above: list["Spot"] = field(default_factory=list)
    below: list["Spot"] = field(default_factory=list)

    @property
    def width(self) -> float:
        return 22 + 7.3 * len(self.label) if self.room else 6

    @property
    def label(self) -> str:
        return self.room.partition(".")[2]


def main() -> None:
    """Print the picture."""
    sys.stdout.write(drawn(imports_of_rooms(imports_of_modules())))


def drawn(imports: Imports) -> str:
    """The picture of these imports, as SVG."""
    rows = laid_out(imports)
    rooms = {spot.room: spot for row in rows for spot in row if spot.room}
    width = round(max(spot.x + spot.width / 2 for row in rows for spot in row)) + MARGIN
    tops = _tops(rows)
    lines = (_line([spot, *_way(other)], tops) for spot in rooms.values() for other in spot.below)
    boxes = (_box(spot, tops, sorted(imports[room])) for room, spot in rooms.items())
    return "\n".join([*_head(width, tops[-1] + BOX + MARGIN), *_floors(rows, tops, width), *lines, *boxes, "</svg>"]) + "\n"


def laid_out(imports: Imports) -> list[list[Spot]]:
    """The rows from top to bottom, each from left to right."""
    rows = _rows(imports)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for row in rows if down else reversed(rows):
            row.sort(key=lambda spot: fmean(each.x for each in beside) if (beside := spot.above if down else spot.below) else spot.x)
            _spread(row, [spot.x for spot in row])
    for _ in range(SWEEPS):
        for row in rows:
            _spread(row, [fmean(each.x for each in (*spot.above, *spot.below, spot)) for spot in row])
    _shift(rows)
    return rows


def _rows(imports: Imports) -> list[list[Spot]]:
    """Every room in its row, and a spot for each line in every row that it passes."""
    heights = _heights(imports)
    rows: list[list[Spot]] = [[] for _ in range(max(heights.values()) + 1)]
    spots = {room: Spot(room, len(rows) - 1 - heights[room]) for room in sorted(imports)}
    for spot in spots.values():
        rows[spot.row].append(spot)
    for room, others in without_detours(imports).items():
        for other in sorted(others):
            way = [spots[room], *(Spot("", row) for row in range(spots[room].row + 1, spots[other].row)), spots[other]]
            for upper, lower in pairwise(way):
                upper.below.append(lower)
                lower.above.append(upper)
            for passing in way[1:-1]:
                rows[passing.row].append(passing)
    for row in rows:
        _spread(row, [0.0] * len(row))
    return rows


def _heights(imports: Imports) -> dict[str, int]:
    """How many rows a room stands above the ground: above all that it imports, and on the storey of
    its package."""
    heights: dict[str, int] = {}
    for storey in reversed(STOREYS):
        ground = max(heights.values(), default=-1) + 1
        here = [room for room in imports if room.startswith(f"{storey}.")]
        while left := [room for room in here if room not in heights]:
            for room in left:
                inside = [other for other in imports[room] if other in here]
                if all(other in heights for other in inside):
                    heights[room] = max((heights[other] + 1 for other in inside), default=ground)
    return heights


def _spread(row: Sequence[Spot], wanted: Sequence[float]) -> None:
    """Put the spots of a row as near as can be to where they are wanted, in their order, without
    touching."""
    offsets = [0.0]
    for left, right in pairwise(row):
        offsets.append(offsets[-1] + (left.width + right.width) / 2 + GAP)
    blocks: list[list[float]] = []
    for want, offset in zip(wanted, offsets, strict=True):
        blocks.append([want - offset])
        while len(blocks) > 1 and fmean(blocks[-2]) >= fmean(blocks[-1]):
            last = blocks.pop()
            blocks[-1].extend(last)
    places = [fmean(block) for block in blocks for _ in block]
    for spot, place, offset in zip(row, places, offsets, strict=True):
        spot.x = place + offset


def _shift(rows: Iterable[Iterable[Spot]]) -> None:
    """Move everything so that the leftmost spot is at the edge."""
    spots = [spot for row in rows for spot in row]
    least = min(spot.x - spot.width / 2 for spot in spots)
    for spot in spots:
        spot.x += MARGIN + LABEL - least


def _way(spot: Spot) -> list[Spot]:
    """A line from its first spot below a room down to the room that it ends at."""
    return [spot] if spot.room else [spot, *_way(spot.below[0])]


def _tops(rows: Sequence[Sequence[Spot]]) -> list[int]:
    """How far below the top each row begins; storeys stand apart."""
    tops, storey = [MARGIN + 8], _storey(rows[0])
    for row in rows[1:]:
        tops.append(tops[-1] + ROW + (BETWEEN if _storey(row) != storey else 0))
        storey = _storey(row)
    return tops


def _storey(row: Iterable[Spot]) -> str:
    return next(spot.room for spot in row if spot.room).partition(".")[0]


def _head(width: int, height: int) -> list[str]:
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'aria-label="The rooms of pipeline, deploy and export, each above those that it imports">',
        f"<style>\n{STYLE}\n</style>",
        '<defs><marker id="h" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">',
        '<path d="M0 0L8 4L0 8z"/></marker></defs>',
    ]


def _floors(rows: Sequence[Sequence[Spot]], tops: Sequence[int], width: int) -> list[str]:
    """A field and a name for each storey."""
    lines = []
    for storey in STOREYS:
        here = [top for row, top in zip(rows, tops, strict=True) if _storey(row) == storey]
        top, height = here[0] - 14, here[-1] - here[0] + BOX + 28
        lines.append(f'<rect class="f" x="8" y="{top}" width="{width - 16}" height="{height}" rx="8"/>')
        lines.append(f'<text class="n" x="20" y="{top + 24}">{storey}/</text>')
    return lines


def _line(way: Sequence[Spot], tops: Sequence[int]) -> str:
    """Curves from row to row; beside the boxes of a row it goes straight down."""
    x, y = _port(way[0], way[0].below, way[1]), tops[way[0].row] + BOX
    path = f"M{x:.0f} {y}"
    for above, spot in pairwise(way):
        to, top = _port(spot, spot.above, above), tops[spot.row]
        middle = (y + top) / 2
        path += f"C{x:.0f} {middle:.0f} {to:.0f} {middle:.0f} {to:.0f} {top}"
        x, y = to, top
        if not spot.room:
            y = top + BOX
            path += f"V{y}"
    return f'<path d="{path}" marker-end="url(#h)"/>'


def _port(spot: Spot, neighbours: Sequence[Spot], neighbour: Spot) -> float:
    """Where along a box the line to one of its neighbours begins or ends."""
    place = sorted(neighbours, key=lambda each: each.x).index(neighbour)
    return spot.x + (place + 0.5 - len(neighbours) / 2) * min(14.0, (spot.width - 12) / len(neighbours)) if spot.room else spot.x


def _box(spot: Spot, tops: Sequence[int], imports: Sequence[str]) -> str:
    top = tops[spot.row]
    title = f"<title>{spot.room} imports {', '.join(imports) or 'nothing of ours'}</title>"
    shape = (
        f'<rect class="{spot.room.partition(".")[0]}" x="{spot.x - spot.width / 2:.0f}" y="{top}" width="{spot.width:.0f}" height="{BOX}" rx="6"/>'
    )
    return f'<g>{title}{shape}<text x="{spot.x:.0f}" y="{top + 20}">{spot.label}</text></g>'


if __name__ == "__main__":
    main()
