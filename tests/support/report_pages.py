"""Examples of verification.json, and the page made from them, read back."""

import re
from html.parser import HTMLParser
from typing import Any

import numpy as np

from deploy.report.filters import filter_figures

BUDGET = {"max": 8.0e-6, "rms": 1.0e-6}


VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """The elements of a page, its text, and whether every element is closed where it should be."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def link(start: str, end: str, **changes: Any) -> dict[str, Any]:
    outputs = [{"name": "logits", "dtype": "float32"}]
    found = {
        "from": start,
        "to": end,
        "runtime": "torch",
        "device": "cpu",
        "required": "bitwise",
        "observed": "bitwise",
        "status": "passed",
        "reason": "",
        "samples": 365,
        "outputs": outputs,
        "max_ulp": 0,
        "max_abs": 0.0,
        "budget": None,
        "top1_changes": 0,
        "ties": 0,
        "changes": [],
        "first_difference": None,
    }
    return {**found, **changes}


def in_budget(start: str, end: str, **changes: Any) -> dict[str, Any]:
    found = {"required": "budget", "observed": "budget", "budget": BUDGET, "max_ulp": 37, "max_abs": 4.5e-6}
    return link(start, end, **{**found, **changes})


def within_a_tolerance(start: str, end: str, **changes: Any) -> dict[str, Any]:
    chosen = {"max_ulp": 4, "atol": None, "rtol": None, "chosen_by": "a human"}
    found = {"required": "tolerance", "observed": "tolerance", "tolerance": chosen, "max_ulp": 3, "max_abs": 4.5e-6}
    return link(start, end, **{**found, **changes})


def verification(*links: dict[str, Any], verdict: str = "pass", **more: Any) -> dict[str, Any]:
    return {"verdict": verdict, "links": list(links), **more}


def whole() -> dict[str, Any]:
    """Everything that a passing run can say."""
    tie = {"margin": 3.25e-7, "sample": 204, "output": "logits", "classes": [0, 1]}
    first = {"output": "logits", "index": [17, 1], "sample": 17, "values": [1.5, 1.25], "bits": ["0x3fc0", "0x3fa0"]}
    checks = {"required": "budget", "status": "passed", "reason": "", "samples": 8}
    return verification(
        link("training graph", "folded graph"),
        in_budget("folded graph", "ONNX file", first_difference=first),
        in_budget("ONNX file", "onnxruntime-cpu", top1_changes=1, ties=1, changes=[tie]),
        link("ONNX file", "tensorrt", status="not run", observed=None, samples=0, outputs=[], reason="no GPU is here"),
        errors=[
            {"stage": "training graph", "max": 2.0e-6, "rms": 2.5e-7, "budget": None},
            {"stage": "ONNX file", "max": 1.0e-6, "rms": 2.5e-7, "budget": BUDGET},
            {"stage": "onnxruntime-cpu", "max": 4.0e-6, "rms": 2.5e-7, "budget": BUDGET},
        ],
        invariance=[
            {"stage": "ONNX file", "check": "rerun", "observed": "bitwise", "max_ulp": 0, "max_abs": 0.0, **checks},
            {"stage": "ONNX file", "check": "alone", "observed": "budget", "max_ulp": 21, "max_abs": 2e-6, **checks},
        ],
        environment={"python": "3.11.2", "packages": {"torch": "2.14.1"}},
        stages={"ONNX file": {"runtime": "onnxruntime", "flags": {"level": "ORT_DISABLE_ALL"}}},
        files={"model.onnx": "9f" * 32},
        samples={"sha256": "ab" * 32, "count": 365, "how": ["the test set", "hostile images"]},
        training_only=[{"name": "noise_1", "what": "multiplies by a uniform factor"}],
    )


def epoch(number: int, **changes: Any) -> dict[str, Any]:
    figures = {"train_loss": 1 / number, "train_accuracy": 0.5, "test_loss": 0.75, "test_accuracy": 0.9 + number / 100}
    costs = {"seconds": 2.0, "images_per_second": 700.0, "peak_memory_bytes": 2**28}
    return {"epoch": number, "step": number * 10, "lr": 0.4, **figures, **costs, **changes}


def layer(name: str = "conv", kind: str = "spatial") -> dict[str, Any]:
    weight = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    return filter_figures(name, kind, weight, np.full(4, 0.75, np.float32))


def row(html: str, name: str) -> str:
    """The text of the part of a table that begins with this name. A dash becomes a hyphen."""
    bodies = re.findall(r'<tbody role="rowgroup">.*?</tbody>', html, re.DOTALL)
    texts = [Page(body).text.replace("\N{EN DASH}", "-") for body in bodies]
    return next(text for text in texts if text.startswith(name))


def certificate(**changes: object) -> dict[str, object]:
    row = {
        "name": "conv1",
        "input_low": 0,
        "input_high": 127,
        "input_step": 0.25,
        "weight_step_min": 2**-9,
        "weight_step_max": 2**-7,
        "largest_weight": 126,
        "largest_sum": 65535,
        "bits": 16,
        "headroom_bits": 8.0,
        "plain_headroom_bits": 7.25,
        "int16_pairs_safe": True,
        "tf32_safe": False,
        "ties": "impossible",
    }
    whole = {"verdict": "holds", "exact_below": 2**24, "tf32_safe": False, "without_branch_quantisers": True, "layers": [row], "joins": [{"bits": 9}]}
    return {**whole, "refusals": [], **changes}


def diagnosed(number: int, **changes: Any) -> dict[str, Any]:
    """The figures of two layers after an epoch."""
    more = {"deflated": 0.25, "variance": None, "gradient_norm": 0.1 * number, **changes}
    return {"epoch": number, "layers": [{**layer("one"), **more}, {**layer("two"), **more, "variance": [1.0, 2.0, 3.0, 4.0, 5.0]}]}
