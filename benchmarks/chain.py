"""The whole chain on one device, figure by figure.

Training graph, evaluation graph and folded graph must have equal bits, and ONNX Runtime must stay
in its budget.

    python -m benchmarks.chain [--device cpu|cuda]

Networks with new and with trained weights go through real bundles. Writes
results/chain_<device>.json. On a GPU this proves that the links hold with PyTorch on CUDA, with
TF32 off.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.environment import write_result
from deploy.report.verification import Verification
from deploy.verify.request import BundleRequest
from deploy.verify.verdict import LinkVerdict
from export.bundle import open_bundle, write_manifest
from export.preprocess import recipe_for
from pipeline.bundle.make import TrainedRun, test_set, write_bundle_files
from pipeline.bundle.verify_bundle import verify_bundle
from pipeline.config import Config, parse_config
from pipeline.data import Split
from pipeline.data.images import MemoryImages
from pipeline.exact_training import NoExactForm
from pipeline.methods import RewrittenGraph
from pipeline.training import device_by_name
from pipeline.training.step import TrainingStep, seed_step
from pipeline.training_graph import ImageFacts, training_graph

NUM_CLASSES, NUM_IMAGES, NUM_STEPS, BATCH = 10, 256, 20, 64
CASES = [
    ("resnet20", "czmig", 32),
    ("resnet110", "czmig", 32),
    ("torchvision:resnet18", "czmig", 64),
    ("resnet20", "batchnorm", 32),
    ("resnet110", "batchnorm", 32),
    ("torchvision:resnet18", "batchnorm", 64),
    ("resnet20", "nonorm", 32),
]


class Quiet:
    """A console that shows nothing."""

    def say(self, text: str) -> None:
        return

    def progress(self, title: str, total: int) -> "Quiet":
        return self

    def advance(self, steps: int = 1) -> None:
        return

    def line(self, text: str) -> None:
        return

    def __enter__(self) -> "Quiet":
        return self

    def __exit__(self, *error: object) -> None:
        return


def random_split(size: int, device: torch.device) -> Split:
    """Return images and labels that are noise: the chain is about arithmetic, not about
    accuracy."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (NUM_IMAGES, 3, size, size), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, NUM_CLASSES, (NUM_IMAGES,), generator=generator)
    return Split(MemoryImages(images.to(device)), labels.to(device), device)


def train_a_little(network: RewrittenGraph, config: Config, split: Split, device: torch.device) -> None:
    """Run real training steps, so that weights, scales and statistics differ from the initial
    ones."""
    step = TrainingStep(network, config.training, device, autocast=None)
    step.set_learning_rate(config.training.learning_rate)
    network.graph.train()
    for number in range(NUM_STEPS):
        images, labels = list(split.batches(BATCH))[number % (NUM_IMAGES // BATCH)]
        seed_step(config.training.seed, number)
        step.backward(images, labels)
        step.update()
    network.graph.eval()


def verified(network_name: str, method: str, size: int, device: torch.device, *, train: bool) -> Verification:
    """Take one network through training, fold, export and the chain."""
    config = parse_config(f"{{network: {{name: '{network_name}'}}, method: {{name: {method}}}, training: {{learning_rate: 0.01}}}}")
    network = training_graph(config, ImageFacts((3, size, size), NUM_CLASSES, (128.0,) * 3, (64.0,) * 3))
    network.graph.to(device)
    split = random_split(size, device)
    if train:
        train_a_little(network, config, split, device)
    trained = TrainedRun(
        config=config,
        graph=network.graph,
        classes=tuple(map(str, range(NUM_CLASSES))),
        image_shape=(3, size, size),
        test=split,
        metrics={},
        metrics_lines=b"",
        device=str(device),
        precision="float32",
        exact=NoExactForm("not wanted"),
        recipe=recipe_for((3, size, size)),
    )
    with tempfile.TemporaryDirectory() as folder:
        write_bundle_files(Path(folder), trained)
        write_manifest(Path(folder), trained.facts)
        return verify_bundle(open_bundle(Path(folder)), test_set(trained), BundleRequest(folder=Path(folder)), Quiet())


def link_row(link: LinkVerdict, errors: dict[str, float]) -> dict[str, object]:
    """Return what the result file keeps of a link."""
    return {
        "link": f"{link.from_} -> {link.to}",
        "device": link.device,
        "required": link.required,
        "observed": link.observed,
        "status": link.status,
        "max_ulp": link.max_ulp,
        "max_abs": link.max_abs,
        "error_max": errors[link.to],
        "budget_max": link.budget.max if link.budget else None,
        "top1_changes": link.top1_changes,
        "ties": link.ties,
        "samples": link.samples,
    }


def rows(device: torch.device) -> Iterator[dict[str, object]]:
    for network, method, size in CASES:
        for train in (False, True):
            found = verified(network, method, size, device, train=train)
            errors = {each.stage: each.max for each in found.verdict.errors}
            links = [link_row(link, errors) for link in found.verdict.links if link.to in errors and link.status != "not run"]
            name = f"{network}, {method}, {'after ' + str(NUM_STEPS) + ' steps' if train else 'initial weights'}"
            print(name, "PASS" if found.passed else f"FAIL: {found.failure}")
            for link in links:
                print(f"    {link['link']}: {link['observed']}, max ulp {link['max_ulp']}, error {link['error_max']:.3g} of {link['budget_max']}")
            yield {"case": name, "image_size": size, "passed": found.passed, "links": links}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    device = device_by_name(parser.parse_args().device)
    print(write_result(f"chain_{device.type}", {"images": NUM_IMAGES, "cases": list(rows(device))}))


if __name__ == "__main__":
    main()
