"""What the metrics of a run say of frozen statistics, for its verdict. They must tell one story with the config, or nothing is believed."""

from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from deploy.verify.verdict import FrozenStatistics
from export.errors import DamagedError
from pipeline.config.sections import Training
from pipeline.training.freezing import first_frozen_epoch

Record = Mapping[str, JsonValue]


def frozen_statistics(records: Sequence[Record], options: Training, source: str) -> FrozenStatistics | None:
    """None where the run never came to freezing them."""
    first = first_frozen_epoch(options)
    before = len(records) if first is None else min(first, len(records))
    frozen = records[before:]
    step = records[before - 1].get("step") if frozen and before else None
    if [record.get("frozen_at_step") for record in records] != [None] * before + [step] * len(frozen):
        raise DamagedError(f"{source}: frozen_at_step is not what training.freeze_statistics of the config makes it; export the bundle again")
    if not frozen:
        return None
    return FrozenStatistics(
        since_step=int(_number(records[before - 1], "step", source)),
        last_step=int(_number(frozen[-1], "step", source)),
        accuracy_before=_number(records[before - 1], "test_accuracy", source),
        accuracy_recomputed=_number(frozen[0], "test_accuracy_at_freezing", source),
        accuracy_at_end=_number(frozen[-1], "test_accuracy", source),
    )


def _number(record: Record, key: str, source: str) -> float:
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DamagedError(f"{source}: {key} of epoch {record.get('epoch')} is {value!r}, expected a number; export the bundle again")
    return value
