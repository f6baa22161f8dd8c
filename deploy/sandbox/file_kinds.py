"""The forms of a model that a host process can open, by the kind of their file, and in what way.

Plain data for the owner's side. Importing this imports no runtime.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from deploy.runners.runtimes import AS_IT_IS, RunOptions
from export.errors import DamagedError, NotHereError, UsageError

Kind = Literal["onnx", "pt2", "engine"]
SUFFIXES: dict[str, Kind] = {".onnx": "onnx", ".pt2": "pt2", ".plan": "engine", ".engine": "engine"}
RECORD = ".json"
"""What the record of an engine ends in, which lies beside it."""
OUT_OF_MEMORY = 77
"""How a host process ends that could not even take in what it was sent."""
OF_OURS = {error.__name__: error for error in (DamagedError, NotHereError, UsageError)}
"""The errors that keep their meaning, and so their exit code, on the way out of a host process."""


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How to open a file; this is what crosses to the host process."""

    kind: Kind
    path: str
    runtime: str
    """One of the table of runtimes for an ONNX file, "torch" for a program, the engine's own for an engine."""
    float64: bool = False
    """The evaluation in float64, which no runtime takes part in."""
    until: str | None = None
    """The inner tensor that becomes the only output."""
    options: RunOptions = AS_IT_IS

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Opening":
        """What `to_json` gave."""
        return cls(**{**content, "options": RunOptions(**content.get("options", {}))})
