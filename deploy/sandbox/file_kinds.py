"""The kinds of model file that a host process can open, and how to open them.

Plain data for the owner's side. Importing this imports no runtime.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from deploy.runners.runtimes import AS_IT_IS, RunOptions
from export.errors import DamagedError, NotHereError, UsageError

Kind = Literal["onnx", "pt2", "engine"]
SUFFIXES: dict[str, Kind] = {".onnx": "onnx", ".pt2": "pt2", ".plan": "engine", ".engine": "engine"}
RECORD = ".json"
"""The suffix of an engine's record, which is next to the engine."""
OUT_OF_MEMORY = 77
"""The exit code of a host process that has no memory even for a request."""
OF_OURS = {error.__name__: error for error in (DamagedError, NotHereError, UsageError)}
"""The errors that keep their meaning, and so their exit code, when they leave a host process."""


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How to open a file. This is what is sent to the host process."""

    kind: Kind
    path: str
    runtime: str
    """From the table of runtimes for ONNX, "torch" for a program, an engine's own for an engine."""
    float64: bool = False
    """Whether to open the evaluation in float64, in which no runtime takes part."""
    until: str | None = None
    """The inner tensor that becomes the only output."""
    options: RunOptions = AS_IT_IS

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Opening":
        """Build an opening from what `to_json` returned."""
        return cls(**{**content, "options": RunOptions(**content.get("options", {}))})
