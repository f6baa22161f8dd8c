"""A pytest fixture that asserts that two forms of a model are the same function.

Takes what `pipeline verify --reference A --candidate B` takes, and PyTorch programs and modules.
Imports nothing heavy until it is used.
"""

import inspect
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pytest
from numpy.typing import NDArray

from export.errors import SamegraphError, UsageError

if TYPE_CHECKING:
    import torch

    from deploy.verify.request import PairRequest
    from deploy.verify.verdict import Verdict

Form: TypeAlias = "str | Path | torch.nn.Module | torch.export.ExportedProgram"
Samples: TypeAlias = "str | Path | int | Mapping[str, NDArray[Any] | torch.Tensor]"


class SameFunction:
    """The object that the fixture gives to a test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._num_files = 0

    def assert_same_function(
        self,
        a: Form,
        b: Form,
        samples: Samples,
        *,
        max_ulp: int | None = None,
        atol: float | None = None,
        rtol: float | None = None,
        bitwise: bool = False,
        names: Mapping[str, str] | None = None,
        sizes: Mapping[str, int] | None = None,
        batched: bool = True,
    ) -> "Verdict":
        """Fail the test unless `b` is the same function as `a`. `names` maps a's names to b's.

        Without a bound, the budget is derived from a's error against its float64 evaluation. A
        module is compared in evaluation mode.
        """
        from deploy.compare.tolerance import Tolerance
        from deploy.verify.request import PairRequest

        def request() -> PairRequest:
            stated = any(each is not None for each in (max_ulp, atol, rtol))
            return PairRequest(
                reference=self._file(a, samples),
                candidate=self._file(b, samples),
                samples=self._samples(samples),
                names=names or {},
                tolerance=Tolerance(max_ulp=max_ulp, atol=atol, rtol=rtol) if stated else None,
                bitwise=bitwise,
                sizes=sizes or {},
                batched=batched,
            )

        verdict = _verdict_on(request)
        if not verdict.passed:
            pytest.fail("\n".join(_explained(verdict)), pytrace=False)
        return verdict

    def _samples(self, samples: Samples) -> str:
        if isinstance(samples, str | Path | int):
            return str(samples)
        from safetensors.torch import save_file  # it supports bfloat16, which NumPy's files do not

        path = self._new(".safetensors")
        save_file({name: tensor.contiguous().clone() for name, tensor in _tensors(samples).items()}, path)
        return str(path)

    def _file(self, form: Form, samples: Samples) -> Path:
        """The path itself, or a new file with the program or module."""
        if isinstance(form, str | Path):
            return Path(form)
        import torch

        path = self._new(".pt2")
        program = form if isinstance(form, torch.export.ExportedProgram) else _exported(form, samples)
        torch.export.save(program, path)
        return path

    def _new(self, suffix: str) -> Path:
        self._num_files += 1
        return self._folder / f"{self._num_files}{suffix}"


@pytest.fixture
def samegraph_verify(tmp_path_factory: pytest.TempPathFactory) -> SameFunction:
    """Assertions that two forms of a model are the same function."""
    return SameFunction(tmp_path_factory.mktemp("samegraph"))


def _verdict_on(request: "Callable[[], PairRequest]") -> "Verdict":
    """The verdict. An error that a user can fix is one line, as on the command line."""
    from deploy.verify.pair import verify_pair

    try:
        with _without_traces():
            return verify_pair(request())
    except SamegraphError as error:
        message = str(error)
    pytest.fail(message, pytrace=False)


@contextmanager
def _without_traces() -> Iterator[None]:
    """Keep what torch.export notes for its own developers out of the log that pytest shows."""
    logger = logging.getLogger("torch.__trace")

    def drop(record: logging.LogRecord) -> bool:
        return False

    logger.addFilter(drop)  # torch itself sets `propagate` again
    try:
        yield
    finally:
        logger.removeFilter(drop)


def _tensors(samples: Samples) -> "dict[str, torch.Tensor]":
    import torch

    if not isinstance(samples, Mapping):
        raise UsageError(f"samples are a {type(samples).__name__}; give arrays by the names of the inputs, as in {{'x': array}}, a file, or a number")
    tensors = {name: rows if isinstance(rows, torch.Tensor) else torch.from_numpy(np.array(rows, order="C")) for name, rows in samples.items()}
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}


def _exported(module: "torch.nn.Module", samples: Samples) -> "torch.export.ExportedProgram":
    """A module in evaluation mode as a program with a free batch. The module stays as it is.

    Its inputs are the samples, by name.
    """
    import torch

    if isinstance(samples, str | Path | int):
        raise UsageError("a module needs samples as arrays by the names of its inputs; give those, or pass a torch.export program")
    example = {name: rows[:2] for name, rows in _tensors(samples).items()}
    _refuse_other_names(module, example)
    training = {each: each.training for each in module.modules()}
    try:
        return torch.export.export(module.eval(), (), example, dynamic_shapes={name: {0: torch.export.Dim.AUTO} for name in example})
    finally:
        for part, was in training.items():
            part.training = was


def _refuse_other_names(module: "torch.nn.Module", example: Collection[str]) -> None:
    try:
        inspect.signature(module.forward).bind(**dict.fromkeys(example))
    except TypeError as error:
        takes = [*inspect.signature(module.forward).parameters]
        raise UsageError(f"{type(module).__name__} takes {takes}, the samples are {[*example]}; name them as its forward does") from error


def _explained(verdict: "Verdict") -> Iterator[str]:
    from deploy.verify.verdict import reason_with_place

    yield f"not the same function, on {verdict.samples.count:,} samples ({'; '.join(verdict.samples.how)}):"
    for each in verdict.links:
        yield f"  {each.from_} -> {each.to}: {each.status}{': ' if each.reason else ''}{reason_with_place(each)}"
    for check in verdict.invariance:
        if check.status == "failed":
            yield f"  {check.check} of {check.stage}: {check.reason}"
    for name, digest in verdict.files.items():
        yield f"  {name}: sha256 {digest}"
