"""A pytest fixture that asserts that two forms of a model are the same function.

Takes what `pipeline verify --reference A --candidate B` takes, PyTorch programs and modules besides. Imports nothing heavy until it is used.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pytest
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

    from deploy.verify.verdict import Verdict

Form: TypeAlias = "str | Path | torch.nn.Module | torch.export.ExportedProgram"
Samples: TypeAlias = "str | Path | int | Mapping[str, NDArray[Any]]"


class SameFunction:
    """What the fixture gives to a test."""

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
        """Fail the test unless `b` is the function that `a` is; `names` maps a's names to b's.

        Without a bound the budget is derived from a's error against its evaluation in float64.
        """
        from deploy.verify.pair import Pair, verify_pair
        from deploy.verify.tolerance import Tolerance

        stated = any(each is not None for each in (max_ulp, atol, rtol))
        verdict = verify_pair(
            Pair(
                reference=self._file(a, samples),
                candidate=self._file(b, samples),
                samples=self._samples(samples),
                names=names or {},
                tolerance=Tolerance(max_ulp=max_ulp, atol=atol, rtol=rtol) if stated else None,
                bitwise=bitwise,
                sizes=sizes or {},
                batched=batched,
            )
        )
        if not verdict.passed:
            pytest.fail("\n".join(_explained(verdict)), pytrace=False)
        return verdict

    def _samples(self, samples: Samples) -> str:
        if not isinstance(samples, Mapping):
            return str(samples)
        path = self._new(".npz")
        arrays: Any = {name: np.ascontiguousarray(rows) for name, rows in samples.items()}
        np.savez(path, **arrays)
        return str(path)

    def _file(self, form: Form, samples: Samples) -> Path:
        """A path as it is; a program or module as a file of its own."""
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


def _exported(module: "torch.nn.Module", samples: Samples) -> "torch.export.ExportedProgram":
    """A module in evaluation mode, its inputs being the samples by name, with a free batch."""
    import torch

    if not isinstance(samples, Mapping):
        raise pytest.UsageError("a module needs samples as a mapping of arrays by the names of its inputs; pass a torch.export program otherwise")
    example = {name: torch.from_numpy(np.array(rows[: min(2, len(rows))])) for name, rows in samples.items()}
    free = {name: {0: torch.export.Dim.AUTO} for name in example}
    return torch.export.export(module.eval(), (), example, dynamic_shapes=free)


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
