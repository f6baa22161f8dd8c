"""A user's own images: ROOT/train/CLASS/*.png and ROOT/test/CLASS/*.png (or ROOT/val).

The sorted folders are the classes. Every file's header is read first, so problems are reported at
the start. Names that begin with a dot are ignored; files that are not images are counted and listed
in the notes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from export.errors import DamagedError, UsageError
from export.preprocess import CENTRE_SQUARE, SHORTER_SIDE, WHOLE, Recipe, recipe_for
from pipeline.config.sections import Data
from pipeline.data.dataset import LabelledImages, Progress, Source
from pipeline.data.decoding import SUFFIXES, Decoder, Header, UnreadableImage, printable, read_headers
from pipeline.data.images import FileImages, WorkerPool

_HEADERS_AT_ONCE = 256
_FILES_FOR_WORKERS = 2**18
"""One process reads this many headers in about ten seconds; starting workers takes about three."""
_SHOWN = 5
_LAYOUT = "wanted: ROOT/train/CLASS/*.png and ROOT/test/CLASS/*.png (or ROOT/val), ROOT being data.root"


@dataclass(frozen=True)
class _Listing:
    """The files of one split."""

    classes: tuple[str, ...]
    paths: tuple[str, ...]
    labels: tuple[int, ...]
    others: tuple[str, ...]


def read(options: Data, progress: Progress) -> Source:
    """Open an image folder: list it, read all headers, and choose one size and one colour for all
    images."""
    root = Path(options.root)
    train_folder, test_folder, unused = _split_folders(root)
    train, test = _listed(train_folder), _listed(test_folder)
    _require_same_classes(train.classes, test.classes, test_folder)
    headers = _headers(train.paths + test.paths, options, progress)
    recipe = _recipe(headers, options)
    decoder = Decoder(recipe, options.augment.resized_crop)

    def labelled(listing: _Listing) -> LabelledImages:
        num_pixels = sum(headers[path].width * headers[path].height for path in listing.paths)
        images = FileImages(listing.paths, decoder, options.workers, num_pixels)
        return LabelledImages(images, torch.tensor(listing.labels, dtype=torch.int64))

    notes = (*_conversions(headers, recipe, root), *_left_out(train.others + test.others + unused, root))
    return Source(train.classes, labelled(train), labelled(test), notes, recipe)


def _split_folders(root: Path) -> tuple[Path, Path, tuple[str, ...]]:
    if not root.is_dir():
        raise UsageError(f"data.root: there is no folder {root}; {_LAYOUT}")
    train, tests = root / "train", [root / name for name in ("test", "val") if (root / name).is_dir()]
    if not train.is_dir() or not tests:
        raise UsageError(f"{root} has no {'test' if train.is_dir() else 'train'} folder; {_LAYOUT}")
    used = {train, tests[0]}
    return train, tests[0], tuple(str(entry) for entry in _visible(root) if entry not in used)


def _listed(folder: Path) -> _Listing:
    entries = _visible(folder)
    classes = [entry for entry in entries if entry.is_dir()]
    paths, labels, others = [], [], [str(entry) for entry in entries if not entry.is_dir()]
    for label, class_folder in enumerate(classes):
        images, rest = _images_in(class_folder)
        paths += images
        labels += [label] * len(images)
        others += rest
    if not classes:
        raise UsageError(f"{folder} holds no class folders; {_LAYOUT}")
    return _Listing(tuple(entry.name for entry in classes), tuple(paths), tuple(labels), tuple(others))


def _images_in(folder: Path) -> tuple[list[str], list[str]]:
    """Return the images of a class and the other files in its folder.

    A class is one folder deep: a folder inside it has no clear meaning.
    """
    if not folder.name.isprintable():
        where = printable(str(folder))
        raise UsageError(f"the name of the class folder {where} holds unprintable characters; rename it")
    images: list[str] = []
    others: list[str] = []
    for entry in _visible(folder):
        if entry.is_dir():
            raise UsageError(f"{printable(str(entry))} is a folder inside a class; move its images up or remove it; {_LAYOUT}")
        (images if entry.suffix.lower() in SUFFIXES else others).append(str(entry))
    if not images:
        raise UsageError(f"the class folder {folder} holds no images ({' '.join(SUFFIXES)}); fill it or remove it")
    return images, others


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise UsageError(f"{printable(str(folder))} cannot be listed: {error.strerror}") from error


def _require_same_classes(train: tuple[str, ...], test: tuple[str, ...], test_folder: Path) -> None:
    if train != test:
        only = [f"only in {where}: {_some(sorted(names))}" for where, names in _one_sided(train, test, test_folder.name) if names]
        raise UsageError(f"train and {test_folder.name} must have the same class folders; {'; '.join(only)}")


def _one_sided(train: tuple[str, ...], test: tuple[str, ...], test_name: str) -> Iterator[tuple[str, set[str]]]:
    yield "train", set(train) - set(test)
    yield test_name, set(test) - set(train)


def _headers(paths: tuple[str, ...], options: Data, progress: Progress) -> dict[str, Header]:
    chunks = [list(paths[start : start + _HEADERS_AT_ONCE]) for start in range(0, len(paths), _HEADERS_AT_ONCE)]
    read = partial(read_headers, sixteen_bits=options.sixteen_bits)
    pool = WorkerPool(read, options.workers if len(paths) > _FILES_FOR_WORKERS else 0)
    what = f"checking {len(paths):,} images"
    found = [header for some in progress(pool.read(chunks), what, len(chunks)) for header in some]
    _require_readable(found)
    return {path: header for path, header in zip(paths, found, strict=True) if isinstance(header, Header)}


def _require_readable(found: list[Header | UnreadableImage]) -> None:
    unreadable = [entry.message for entry in found if isinstance(entry, UnreadableImage)]
    if unreadable:
        more = f" (and {len(unreadable) - 1:,} more such files)" if len(unreadable) > 1 else ""
        raise DamagedError(unreadable[0] + more)


def _recipe(headers: dict[str, Header], options: Data) -> Recipe:
    all_gray = all(header.gray for header in headers.values())
    channels = 1 if options.color == "gray" or (options.color == "auto" and all_gray) else 3
    if (size := options.image_size) is not None:
        framing = CENTRE_SQUARE if options.resize is None else SHORTER_SIDE
        return recipe_for((channels, size, size), framing=framing, resize=options.resize, sixteen_bits=options.sixteen_bits)
    width, height = _common_size(headers)
    return recipe_for((channels, height, width), framing=WHOLE, sixteen_bits=options.sixteen_bits)


def _common_size(headers: dict[str, Header]) -> tuple[int, int]:
    first_of_size: dict[tuple[int, int], str] = {}
    for path, header in headers.items():
        first_of_size.setdefault((header.width, header.height), path)
    if len(first_of_size) > 1:
        one, other = [f"{printable(path)} is {w}x{h}" for (w, h), path in list(first_of_size.items())[:2]]
        raise UsageError(f"images must have one size, but {one} and {other}; set data.image_size to bring all to one")
    return next(iter(first_of_size))


def _conversions(headers: dict[str, Header], recipe: Recipe, root: Path) -> Iterator[str]:
    def note(what: str, concerns: Callable[[Header], bool]) -> Iterator[str]:
        return _note(what, (path for path, header in headers.items() if concerns(header)), root)

    to_gray = recipe.colour == "L"
    source, target = ("colour", "grayscale") if to_gray else ("grayscale", "colour")
    yield from note(f"in {source} converted to {target}", lambda header: header.gray != to_gray)
    for what in sorted({header.conversion for header in headers.values()} - {""}):
        yield from note(what, lambda header, what=what: header.conversion == what)  # type: ignore[misc]
    yield from note("turned upright as their EXIF orientation says", lambda header: header.turned)


def _left_out(others: tuple[str, ...], root: Path) -> Iterator[str]:
    if others:
        yield f"{len(others):,} other files or folders left out: {_some([_below(path, root) for path in others])}"


def _note(what: str, paths: Iterator[str], root: Path) -> Iterator[str]:
    names = [_below(path, root) for path in paths]
    if names:
        yield f"{len(names):,} {'image' if len(names) == 1 else 'images'} {what}: {_some(names)}"


def _below(path: str, root: Path) -> str:
    return printable(Path(path).relative_to(root).as_posix())


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(printable(name) for name in names[:_SHOWN]) + more
