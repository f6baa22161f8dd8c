"""Which batches need no evaluation in float64, because the errors that are known already bound theirs.

The training graph's error E is at least e, what was measured of it. A stage within (k - 1) e of the training graph is within (k - 1) e + E <= k E of
float64, whatever float64 is there; k E is its budget. For the root mean square, e is what the evaluated samples say of E.
"""

import numpy as np

from deploy.verify.budget import Errors, Measured, has_classes
from deploy.verify.compare import Array, Arrays, Magnitudes, is_comparable, is_float


def is_covered(training: Arrays, outputs: Arrays, known: Measured, factor: float) -> bool:
    """Whether a stage's outputs are so near to the training graph's that they cannot be outside its budget."""
    return outputs.keys() == training.keys() <= known.outputs.keys() and all(
        _is_near(training[name], outputs[name], known.outputs[name], factor) for name in outputs
    )


def _is_near(training: Array, values: Array, known: Errors, factor: float) -> bool:
    if values.dtype != training.dtype or values.shape != training.shape or not is_comparable(values.dtype):
        return False
    if not is_float(values.dtype):
        return np.array_equal(training, values)
    if not (np.isfinite(values).all() and np.isfinite(training).all()):  # what both overflow alike may be finite in float64
        return False
    apart = np.abs(values.astype(np.float64) - training.astype(np.float64))
    found = Magnitudes()
    found.add(apart)
    return found.max <= (factor - 1) * known.max and found.rms <= (factor - 1) * known.rms


def first_class_changes(a: Arrays, b: Arrays) -> bool:
    """Whether two stages disagree about the first class of some sample; only float64 says whether that is a tie."""
    shared = [(scores, b[name]) for name, scores in a.items() if name in b and has_classes(scores) and b[name].shape == scores.shape]
    return any(bool((one.argmax(axis=1) != other.argmax(axis=1)).any()) for one, other in shared)
