"""Whether two trees of this repository make the same bundles, and where they differ.

    python -m benchmarks.house.same_bundles --before TREE --after TREE --out FILE.json
        [--cache FOLDER] [--work FOLDER] [--only CASE ...]

Covers every method on some network, and imports. Each bundle is made by the tree's own commands in
a process of its own. A bundle of the tree before comes from the cache if the same sources made it
from the same inputs on the same machine; a bundle of the tree after is always made again.

Files must be equal byte for byte, except for what the tables below name with a reason: times,
versions, and wording, of which only the figures must be equal. Differences in wording are printed.
Prints a table and writes FILE.json. Exits with 1 if anything differs, if a case could not be made,
or if nothing was compared.
"""

import argparse
import difflib
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
import torchvision
import yaml
from PIL import Image
from sklearn.datasets import load_digits

from benchmarks.environment import environment
from benchmarks.house.trees import Tree

TRAIN_EXPORT = "train-export"
IMPORT_OWN = "import-own"
IMPORT_TORCHVISION = "import-torchvision"
TRAIN_THEN_EXPORT = "train, export"

_MY_NET = ("--network", "my_net:build", "--weights", "inputs/my_net.safetensors", "--calibrate", "inputs/gray")
_SHUFFLENET = ("--network", "torchvision:shufflenet_v2_x0_5", "--weights", "inputs/shufflenet.safetensors", "--calibrate", "inputs/colour")
COMMANDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "quickstart": (("train-export", "TREE/configs/quickstart.yaml", "--out", "RUN"),),
    TRAIN_EXPORT: (("train-export", "CONFIG", "--out", "RUN"),),
    TRAIN_THEN_EXPORT: (("train", "CONFIG", "--out", "RUN"), ("export", "RUN")),
    IMPORT_OWN: (("export", *_MY_NET, "--finetune", "1", "--out", "RUN"),),
    IMPORT_TORCHVISION: (("export", *_SHUFFLENET, "--set", "data.image_size=32", "--out", "RUN"),),
}
"""The words after `pipeline`; TREE, CONFIG and RUN stand for paths."""

OTHER_COMMANDS: tuple[tuple[str, Callable[[Tree], bool], tuple[tuple[str, ...], ...]], ...] = ()
"""Commands of trees whose options differ: which of the commands above, whether a tree is such a
tree, and its words. None so far."""


@dataclass(frozen=True)
class Case:
    """A bundle to be made."""

    name: str
    command: str
    config: Mapping[str, Any] = field(default_factory=dict)
    """What the config says beyond `SHORT`, if the command takes one."""


def _case(method: str | Mapping[str, Any], network: str, command: str = TRAIN_EXPORT, /, **training: Any) -> Case:
    options = {"name": method} if isinstance(method, str) else dict(method)
    runtimes = {"runtimes": ["onnxruntime-cpu", "openvino-cpu"]} if options["name"] in ("czmi", "batchnorm") else {}
    config = {"method": options, "network": {"name": network}, "training": training, "verify": runtimes}
    return Case(f"{options['name']} {network}", command, config)


SHORT: dict[str, Any] = {
    "data": {"name": "digits", "batch_size": 64, "augment": {"crop_padding": 1}},
    "training": {"epochs": 2, "learning_rate": 0.05, "schedule": {"name": "constant"}},
    "exact": {"epochs": 1},
    "verify": {"samples": 64},
}
"""What the configs of all cases have in common."""

CASES = (
    Case("quickstart", "quickstart"),
    _case("czmi", "squeezenet", label_smoothing=0.1, nesterov=True, model_ema={"decay": 0.9}),
    _case("mimicnorm", "shufflenetv2_x0_5", freeze_statistics={"epochs": 1}, diagnosis="epoch"),
    _case("equinorm", "small", TRAIN_THEN_EXPORT, freeze_statistics={"epochs": 1}, schedule={"name": "cosine", "warmup_epochs": 1}),
    _case({"name": "skipinit", "dropout": 0.1}, "resnet20", clip={"name": "agc"}),
    _case("weightnorm", "wrn-10-1", clip={"name": "norm"}, accumulate=2),
    _case("scaledws", "wrn-10-1", schedule={"name": "one_cycle"}),
    _case("fixup", "resnet20", mixup={"alpha": 0.7}),
    _case("batchnorm", "mobilenetv2", diagnosis="epoch", mixup={"alpha": 0.7, "where": "hidden", "hidden_at": "units"}),
    _case("groupnorm", "small"),
    _case("nonorm", "resnet20", learning_rate=0.01),
    Case("import of my_net:build", IMPORT_OWN),
    Case("import of torchvision:shufflenet_v2_x0_5", IMPORT_TORCHVISION),
)
"""Each method once. The cases include every kind of block, each option of training that leaves
something in the bundle, and both ways to a bundle."""

Keys = tuple[str, ...]
"""The keys on the way to a value; "[]" stands for any index, "*" for any key."""

VARYING: Mapping[str, Mapping[Keys, str]] = {
    "verification.json": {
        ("environment", "python"): "a version",
        ("environment", "packages", "*"): "versions",
        ("environment", "system"): "the version of the operating system's kernel",
        ("stages", "*", "version"): "the version of what ran the stage",
    },
    "manifest.json": {
        ("versions", "*"): "versions",
        ("metrics", "seconds"): "a time",
        ("metrics", "images_per_second"): "a time",
        ("metrics", "peak_memory_bytes"): "what the process happened to hold, its libraries included",
        ("files", "verification.json", "size"): "it holds versions and wording",
        ("files", "report.html", "size"): "it holds versions and wording",
        ("files", "README.md", "size"): "it holds wording",
        ("files", "training/metrics.jsonl", "size"): "it holds times",
        ("files", "training/exact.metrics.jsonl", "size"): "it holds times",
    },
    "metrics.jsonl": {
        ("[]", "seconds"): "a time",
        ("[]", "images_per_second"): "a time",
        ("[]", "peak_memory_bytes"): "what the process happened to hold, its libraries included",
    },
}
"""Values that may differ, by the end of the file's name; they must exist in both trees."""

WORDING: Mapping[str, Mapping[Keys, str]] = {
    "verification.json": {
        ("links", "[]", "reason"): "a sentence",
        ("links", "[]", "place", "reason"): "a sentence",
        ("invariance", "[]", "reason"): "a sentence",
        ("invariance", "[]", "settings", "[]"): "what was varied, in words",
        ("samples", "how", "[]"): "how samples were made, in words",
        ("training_only", "[]", "what"): "what a part does, in words",
        ("not_foldable", "[]", "what"): "what a part does, in words",
    },
    "manifest.json": {("metrics", "exact", "not_run"): "why there is no exact form, in words"},
}
"""Text of which only the figures must be equal."""

PROSE = ("report.html", "README.md")
"""Text files for people: their figures must be equal, except for times."""

DOCUMENTED: Mapping[str, Mapping[Keys, str]] = {
    "verification.json": {
        ("training_only", "[]", "kind"): "CHANGELOG: everything that exists in training only has a kind",
        ("environment", "packages", "tensorrt-rtx"): "every package of the table of runtimes is listed with its version, TensorRT-RTX too",
    },
}
"""Values that only one tree may have, or that may differ, by the end of the file's name, with the
reason. If a value of the config is listed here, its size in manifest.json is a line of its own."""

TEXTS = (".json", ".jsonl", ".yaml", ".html", ".md")
BYTES = ("certificate.json",)
"""Text that must be equal byte for byte, like everything that is not text, and labels.txt."""

Status = Literal["equal", "equal but for what varies", "equal but for wording", "DIFFERS"]


@dataclass(frozen=True)
class Found:
    """The result of comparing a file."""

    bundle: str
    file: str
    status: Status
    left_out: tuple[str, ...] = ()
    """What differed and may differ."""
    wording: tuple[tuple[str, str, str], ...] = ()
    """The place, and the wording before and after."""
    differences: tuple[str, ...] = ()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--after", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="Where bundles of the tree before are kept.")
    parser.add_argument("--work", type=Path, help="Where bundles of the tree after are left.  [default: nowhere]")
    parser.add_argument("--only", action="append", choices=[case.name for case in CASES], help="Only this case. Repeatable.")
    options = parser.parse_args(arguments)
    before, after = Tree.at(options.before), Tree.at(options.after)
    cases = [case for case in CASES if not options.only or case.name in options.only]
    found: list[Found] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Workplace(Path(temporary))
        kept = (options.work or work.folder / "after").resolve()
        for case in cases:
            cached = None if options.cache is None else options.cache.resolve() / f"{slug(case.name)}-{work.key_of(before, case)}"
            pair = (work.bundle(before, case, cached, may_reuse=True), work.bundle(after, case, kept / slug(case.name), may_reuse=False))
            of_case = compared(case.name, *pair)
            print(f"{case.name}: {'the same' if same(of_case) else 'differs'}", flush=True)
            found += of_case
    print(table(found))
    print("\n".join(told(found)))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result(before, after, found), indent=2) + "\n", encoding="utf-8")
    if not same(found):
        print("NOT the same")
        return 1
    print(f"{len(found)} files of {len(cases)} bundles are the same")
    return 0


def same(found: Sequence[Found]) -> bool:
    """Return whether something was compared and nothing differs."""
    return bool(found) and all(each.status != "DIFFERS" for each in found)


class Workplace:
    """A folder with the inputs of all cases, from which the commands are called.

    So a bundle contains no path of this machine.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_inputs(folder / "inputs")
        shutil.copy(folder / "inputs" / "my_net.py", folder)  # found by name: this is the current folder of the commands
        for case in CASES:
            (folder / f"{slug(case.name)}.yaml").write_text(yaml.safe_dump(config_of(case)), encoding="utf-8")

    def key_of(self, tree: Tree, case: Case) -> str:
        """Return a hash of what a bundle depends on.

        That is the tree's sources, the case, the inputs, the machine and its packages.
        """
        inputs = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(self.folder.glob("inputs/**/*")) if path.is_file()]
        machine = {name: value for name, value in environment().items() if name not in ("date", "load")}
        made_by = json.dumps([tree.digest, config_of(case), commands_of(tree, case.command), inputs, machine], sort_keys=True)
        return hashlib.sha256(made_by.encode()).hexdigest()[:16]

    def bundle(self, tree: Tree, case: Case, target: Path | None, *, may_reuse: bool) -> Path:
        """Make a bundle, or find the one that was made before."""
        if may_reuse and target is not None and (target / "manifest.json").is_file():
            return target
        run = self.folder / "runs" / f"{slug(case.name)}-{len(list(self.folder.glob('runs/*')))}"
        for words in commands_of(tree, case.command):
            self._call(tree, case, run, words)
        if target is None:
            return run / "bundle"
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copytree(run / "bundle", beside)  # a bundle moves to its place in the cache only when it is complete
        beside.rename(target)
        shutil.rmtree(run)
        return target

    def _call(self, tree: Tree, case: Case, run: Path, words: Sequence[str]) -> None:
        filled = [
            word.replace("TREE", str(tree.root)).replace("CONFIG", f"{slug(case.name)}.yaml").replace("RUN", str(run.relative_to(self.folder)))
            for word in words
        ]
        done = tree.python("-m", "pipeline", *filled, cwd=self.folder)
        if done.returncode:
            raise SystemExit(f"{case.name}, {tree.root}: pipeline {' '.join(filled)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")


def commands_of(tree: Tree, command: str) -> tuple[tuple[str, ...], ...]:
    """Return the words of a command in this tree."""
    return next((words for name, is_such, words in OTHER_COMMANDS if name == command and is_such(tree)), COMMANDS[command])


def slug(name: str) -> str:
    """Return a name as the name of a file."""
    return re.sub(r"[^a-z0-9_-]+", "-", name)


def config_of(case: Case) -> dict[str, Any]:
    """Return the whole config of a case."""
    config = {section: dict(values) for section, values in SHORT.items()}
    for section, values in case.config.items():
        config[section] = {**config.get(section, {}), **values}
    return config


MY_NET = """\
from torch import nn


def build(num_classes, in_channels):
    return nn.Sequential(
        nn.Conv2d(in_channels, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, num_classes),
    )
"""
"""The network of the README."""


def write_inputs(folder: Path) -> None:
    """Write what is imported: images of digits, gray and in colour, and two networks.

    The norms of the networks have statistics of their own. The inputs do not depend on a tree.
    """
    folder.mkdir(parents=True)
    (folder / "my_net.py").write_text(MY_NET, encoding="utf-8")
    for name, mode, num_train, num_test in (("gray", "L", 40, 10), ("colour", "RGB", 12, 4)):
        _write_images(folder / name / "train", num_train, mode, first=0)
        _write_images(folder / name / "test", num_test, mode, first=100)
    namespace: dict[str, Any] = {}
    exec(MY_NET, namespace)  # not imported: it must not be on a path of this process
    torch.manual_seed(0)
    _write_weights(folder / "my_net.safetensors", namespace["build"](10, 1))
    _write_weights(folder / "shufflenet.safetensors", torchvision.models.shufflenet_v2_x0_5(num_classes=10))


def _write_images(folder: Path, number: int, mode: str, *, first: int) -> None:
    digits = load_digits()
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
        of_label = digits.images[digits.target == label][first : first + number]
        for index, values in enumerate(np.minimum(16 * of_label, 255).astype(np.uint8)):
            image = Image.fromarray(values)
            image = image if mode == "L" else image.resize((40, 36)).convert(mode)
            image.save(folder / str(label) / f"{index:03d}.png")


def _write_weights(path: Path, network: torch.nn.Module) -> None:
    for norm in (each for each in network.modules() if isinstance(each, torch.nn.BatchNorm2d)):
        for tensor, low, high in ((norm.running_mean, -0.3, 0.3), (norm.running_var, 0.3, 1.5), (norm.weight, 0.5, 1.5), (norm.bias, -0.2, 0.2)):
            assert tensor is not None
            torch.nn.init.uniform_(tensor, low, high)
    safetensors.torch.save_file(network.state_dict(), path)


def compared(name: str, before: Path, after: Path) -> list[Found]:
    """Compare every file of two bundles."""
    one, other = _files(before), _files(after)
    found = []
    for file in sorted(one.keys() | other.keys()):
        if file not in one or file not in other:
            found.append(Found(name, file, "DIFFERS", differences=(f"only {'before' if file in one else 'after'}",)))
        else:
            found.append(_compared_file(name, file, one, other))
    return found


def _files(bundle: Path) -> dict[str, bytes]:
    return {path.relative_to(bundle).as_posix(): path.read_bytes() for path in bundle.rglob("*") if path.is_file()}


def _compared_file(name: str, file: str, before: Mapping[str, bytes], after: Mapping[str, bytes]) -> Found:
    if before[file] == after[file]:
        return Found(name, file, "equal")
    if file.endswith(TEXTS) and _with_names(file, before) == _with_names(file, after):
        return Found(name, file, "equal but for what varies", left_out=("hashes of files that are compared by themselves",))
    if file in PROSE:
        return _compared_prose(name, file, _with_names(file, before), _with_names(file, after))
    if file.endswith(TEXTS) and file not in BYTES:
        return _compared_values(name, file, _values(file, before), _values(file, after))
    # A model names its config by a hash: if the configs differ as documented, that hash may differ.
    # Nothing else in it may.
    if file.endswith(".onnx") and DOCUMENTED and _without_config(before[file], before) == _without_config(after[file], after):
        return Found(name, file, "equal but for what varies", left_out=("the hash of training/config.yaml",))
    return Found(name, file, "DIFFERS", differences=(_first_byte(before[file], after[file]),))


def _without_config(content: bytes, files: Mapping[str, bytes]) -> bytes:
    return content.replace(_sha256(files["training/config.yaml"]).encode(), b"-" * 64)


def _first_byte(before: bytes, after: bytes) -> str:
    same = next((index for index, (one, other) in enumerate(zip(before, after, strict=False)) if one != other), min(len(before), len(after)))
    number = sum(one != other for one, other in zip(before, after, strict=False))
    return f"{number} bytes differ, first at {same}; {len(before)} bytes before, {len(after)} after"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _values(file: str, files: Mapping[str, bytes]) -> dict[Keys, object]:
    """Return a file's values by their paths."""
    text = _with_names(file, files)
    if file.endswith(".yaml"):
        content = yaml.safe_load(text)
    elif file.endswith(".jsonl"):
        content = [json.loads(line) for line in text.splitlines()]
    else:
        content = json.loads(text)
    return dict(_leaves(content))


def _with_names(file: str, files: Mapping[str, bytes]) -> str:
    """Return a file's text, with the names of the bundle's other files in place of their hashes.

    Each file is compared by itself.
    """
    text = files[file].decode()
    for name, content in files.items():
        text = text.replace(_sha256(content), f"sha256 of {name}") if name != file else text
    return text


def _leaves(value: object, path: Keys = ()) -> Iterator[tuple[Keys, object]]:
    """Yield every value with its path; of lists and objects only the empty ones."""
    items: Iterable[tuple[str, object]] = ()
    if isinstance(value, dict):
        items = [(str(key), each) for key, each in value.items()]
    elif isinstance(value, list):
        items = [(f"[{index}]", each) for index, each in enumerate(value)]
    if not items:
        yield path, value
    for key, each in items:
        yield from _leaves(each, (*path, key))


def _compared_values(name: str, file: str, before: Mapping[Keys, object], after: Mapping[Keys, object]) -> Found:
    left_out: list[str] = []
    wording: list[tuple[str, str, str]] = []
    differences: list[str] = []
    for path in dict.fromkeys([*before, *after]):
        spoken = ".".join(path).replace(".[", "[")
        if path not in before or path not in after:
            documented = _named(path, _of_file(DOCUMENTED, file))
            (left_out if documented else differences).append(f"{spoken}: only {'before' if path in before else 'after'}")
            continue
        one, other = before[path], after[path]
        if repr(one) == repr(other):  # so that 1, 1.0 and True are three values, and a float equals only itself
            continue
        if _named(path, _of_file(VARYING, file)) or _named(path, _of_file(DOCUMENTED, file)):
            left_out.append(spoken)
        elif _named(path, _of_file(WORDING, file)) and isinstance(one, str) and isinstance(other, str) and _figures(one) == _figures(other):
            wording.append((spoken, one, other))
        else:
            differences.append(f"{spoken}: {one!r} before, {other!r} after")
    if not differences and list(before) != list(after) and before.keys() == after.keys():
        differences.append("the order of the values")
    if not (left_out or wording or differences):
        differences.append("the way in which it is written, not what it says")
    status: Status = "DIFFERS" if differences else "equal but for wording" if wording else "equal but for what varies"
    return Found(name, file, status, tuple(left_out), tuple(wording), tuple(differences))


def _of_file(table: Mapping[str, Mapping[Keys, str]], file: str) -> Mapping[Keys, str]:
    return next((paths for end, paths in table.items() if file.endswith(end)), {})


def _named(path: Keys, patterns: Mapping[Keys, str]) -> bool:
    def fits(key: str, wanted: str) -> bool:
        return wanted in ("*", key) or (wanted == "[]" and key.startswith("["))

    return any(len(path) == len(pattern) and all(map(fits, path, pattern)) for pattern in patterns)


_FIGURE = re.compile(r"\b[0-9a-f]{64}\b|(?<![\w.])[+-]?\d[\d,]*(?:\.\d+)*(?:e[+-]?\d+)?")
"""A hash, a number or a version."""
_VARYING_FIGURE = re.compile(r"[\d.,]+(?= (?:h|min|s|images per second|MiB)\b)")
"""Figures in prose that vary: times, and the memory that the process held."""
_PACKAGES = re.compile(r"(?<=<dt>packages</dt><dd><dl>).*?(?=</dl>)")
"""The report's list of packages, which are versions: verification.json has them by name."""


def _figures(text: str) -> list[str]:
    """Return the numbers in a text, in order."""
    return _FIGURE.findall(text)


def _compared_prose(name: str, file: str, before: str, after: str) -> Found:
    before, after = (_PACKAGES.sub("*", text) for text in (before, after))
    one, other = (_figures(_VARYING_FIGURE.sub("", text)) for text in (before, after))
    wording = tuple((file, *pair) for pair in _worded_differently(_VARYING_FIGURE.sub("*", before), _VARYING_FIGURE.sub("*", after)))
    if one == other:
        return Found(name, file, "equal but for wording" if wording else "equal but for what varies", wording=wording)
    place = next((index for index, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), min(len(one), len(other)))
    figures = f"figures, first {' '.join(one[place : place + 3])} before, {' '.join(other[place : place + 3])} after"
    return Found(name, file, "DIFFERS", wording=wording, differences=(figures,))


def _worded_differently(before: str, after: str) -> list[tuple[str, str]]:
    """Return the pieces of text that differ; for a page with equal text, its tags."""
    for split in (lambda text: [each.strip() for each in re.split(r"<[^>]*>|\n", text) if each.strip()], str.splitlines):
        one, other = split(before), split(after)
        blocks = difflib.SequenceMatcher(a=one, b=other, autojunk=False).get_opcodes()
        if found := [("\n".join(one[a:b]), "\n".join(other[c:d])) for tag, a, b, c, d in blocks if tag != "equal"]:
            return found
    return []


def table(found: Sequence[Found]) -> str:
    """Return one line per file."""
    rows = ["| bundle | file | before and after |", "|---|---|---|"]
    return "\n".join([*rows, *(f"| {each.bundle} | {each.file} | {each.status} |" for each in found)])


def told(found: Iterable[Found]) -> Iterator[str]:
    """Yield every difference, and each difference in wording once."""
    for each in found:
        for line in each.differences:
            yield f"DIFFERS: {each.bundle}: {each.file}: {line}"
    for before, after in dict.fromkeys((before, after) for each in found for _, before, after in each.wording):
        yield f"worded differently:\n  before: {before}\n  after:  {after}"


def result(before: Tree, after: Tree, found: Sequence[Found]) -> dict[str, Any]:
    """Return what is written."""
    tables = {"varying": _spoken(VARYING), "wording": _spoken(WORDING), "documented": _spoken(DOCUMENTED)}
    files: dict[str, dict[str, Any]] = {}
    for each in found:
        told = {key: value for key, value in asdict(each).items() if key not in ("bundle", "file") and value}
        files.setdefault(each.bundle, {})[each.file] = {**told, "wording": sorted({place for place, _, _ in each.wording})} if each.wording else told
    sentences = dict.fromkeys((one, other) for each in found for _, one, other in each.wording)
    wording = [{"before": one, "after": other} for one, other in sentences]
    commits = {"before": before.commit, "after": after.commit}
    return {"environment": environment(), **commits, "same": same(found), "may_differ": tables, "bundles": files, "worded_differently": wording}


def _spoken(table: Mapping[str, Mapping[Keys, str]]) -> dict[str, dict[str, str]]:
    return {file: {".".join(path): why for path, why in paths.items()} for file, paths in table.items()}


if __name__ == "__main__":
    sys.exit(main())
