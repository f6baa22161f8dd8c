"""What the forms of a trained graph give for stored samples: made for a bundle, and checked there.

Takes graphs and images, or an opened bundle and its forms.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from deploy.compare.bits import Array
from deploy.compare.budget import ROOM
from deploy.compare.validated import EXACT, FLOAT32, FLOAT64, SAMPLE, chosen_samples, images_of, validated_outputs
from deploy.runners.forms import Form
from deploy.runners.runner import Runner
from deploy.runners.runtimes import open_file
from export.bundle import EXACT_MODEL, OUTPUTS, Bundle
from export.errors import DamagedError

_BATCH = 64


def outputs_of(stored: Array, folded: Form, exact: Form | None) -> Mapping[str, Array]:
    """Return the tensors of the file: of the folded graph, in float64, and on the grid."""
    chosen = chosen_samples(len(stored))
    images, reference = images_of(stored, chosen), folded.float64()
    assert reference is not None
    forms = {FLOAT32: folded, FLOAT64: reference, **({} if exact is None else {EXACT: exact})}
    return {SAMPLE: chosen, **{name: _run(form.open(), images) for name, form in forms.items()}}


def _run(runner: Runner, images: Array) -> Array:
    (given,), (result,) = runner.inputs, runner.outputs
    with runner:
        return np.concatenate([runner.run({given.name: images[start : start + _BATCH]})[result.name] for start in range(0, len(images), _BATCH)])


def require_its_own_outputs(bundle: Bundle, model: Path, exact_model: Path | None, reference: Form) -> None:
    """Require that the stored outputs are those of the bundle's own files.

    On the grid, to the bit. The float64 outputs may differ by what float64 rounds. The stored
    float32 outputs set a budget, so their error must be of the size that a runtime has here.
    """
    stored = validated_outputs(bundle)
    if (exact_model is None) != (stored.exact is None):
        raise _damaged(bundle, "it has outputs of an exact form that the bundle lacks, or lacks those that it needs")
    if exact_model is not None and (found := stored.difference("exact", _run(open_file("onnxruntime-cpu", exact_model), stored.images))):
        raise _damaged(bundle, f"{EXACT_MODEL} gives other outputs: {found}")
    float64 = _run(reference.open(), stored.images)
    apart = float(np.abs(float64 - stored.float64).max())
    allowed = stored.budgets("float64").outputs[stored.output]
    if allowed is None or not apart <= allowed.max:
        raise _damaged(bundle, f"the float64 outputs are {apart:.3g} from those of the stored weights, expected at most {allowed}")
    here = float(np.abs(_run(open_file("onnxruntime-cpu", model), stored.images) - float64).max())
    told = float(np.abs(stored.float32 - float64).max())
    # Two errors of one kind, as in the budget: neither may be more than ROOM times the other.
    if told > ROOM * max(here, float(np.spacing(np.float32(np.abs(float64).max())))):
        raise _damaged(bundle, f"the float32 outputs are {told:.3g} from float64, those of the model only {here:.3g}")


def _damaged(bundle: Bundle, what: str) -> DamagedError:
    return DamagedError(f"{bundle.folder / OUTPUTS}: {what}; export the bundle again")
