"""Opens a form of a model from its file, inside the host process. The one place where foreign files are parsed.

Takes openings; returns runners, and what a file contains.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx

from deploy.runners.base import Point, Runner
from deploy.runners.onnx_file import checked_bytes, points_of, shapes_of
from deploy.runners.onnx_file import cut_at as onnx_up_to
from deploy.runners.table import RunOptions, open_file
from deploy.runners.tensorrt import EngineFile, open_engine, specs_of
from deploy.sandbox.forms import RECORD, Kind, Opening
from export.errors import DamagedError
from export.tensorrt.record import parsed_record, require_the_engine_of

_FLOATS = {
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.DOUBLE: "float64",
}


def open_form(opening: Opening) -> Runner:
    """Open a file as it was asked for."""
    match opening.kind:
        case "onnx":
            return _open_onnx(opening)
        case "pt2":
            return _open_program(opening)
        case "engine":
            return open_engine(_engine(Path(opening.path)))


def contents_of(kind: Kind, path: Path) -> dict[str, object]:
    """Inputs, outputs, float types and inner tensors of a file."""
    points: Sequence[Point]
    if kind == "onnx":
        model = _valid(path)
        ends, floats, points = shapes_of(model), _float_types(model), points_of(model)
    elif kind == "engine":
        record = _engine(path).record
        require_the_engine_of(record, path.read_bytes(), str(path))
        ends, floats, points = specs_of(record), [], ()
    else:
        from deploy.runners.pt2 import load_program

        program = load_program(path)
        ends, floats, points = (program.inputs, program.outputs), sorted(program.dtypes & set(_FLOATS.values())), program.points
    inputs, outputs = ([[spec.name, spec.dtype, list(spec.shape)] for spec in specs] for specs in ends)
    return {"inputs": inputs, "outputs": outputs, "floats": floats, "points": [_point(point) for point in points]}


def _valid(path: Path) -> onnx.ModelProto:
    model = onnx.load_model_from_string(checked_bytes(path))
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise DamagedError(f"{path} is no valid ONNX model: {' '.join(str(error).split())[:200]}; export it again") from error
    names = [value.name for value in model.graph.output]
    if twice := [name for name in names if names.count(name) > 1]:
        raise DamagedError(f"{path} has two outputs named {twice[0]!r}; export it again")
    return model


def _open_onnx(opening: Opening) -> Runner:
    path = Path(opening.path)
    options = RunOptions(optimisation=opening.optimisation, threads=opening.threads)
    if opening.until is None and not opening.float64:
        return open_file(opening.runtime, path, options)
    model = onnx.load_model_from_string(checked_bytes(path))
    if opening.until is not None:
        model = onnx_up_to(model, opening.until)
    if opening.float64:
        from deploy.runners.onnx_float64 import OnnxFloat64Runner

        return OnnxFloat64Runner(model)
    with tempfile.NamedTemporaryFile(suffix=".onnx", dir=".") as prefix:
        Path(prefix.name).write_bytes(model.SerializeToString())
        return open_file(opening.runtime, Path(prefix.name), options)


def _engine(path: Path) -> EngineFile:
    beside = path.with_suffix(RECORD)
    return EngineFile(str(path), path.read_bytes(), parsed_record(beside.read_bytes(), str(beside)))


def _open_program(opening: Opening) -> Runner:
    from deploy.runners.pt2 import cut_at, in_float64, load_program
    from deploy.runners.torch import TorchRunner

    program = load_program(Path(opening.path))
    if opening.until is not None:
        program = cut_at(program, opening.until)
    if opening.float64:
        program = in_float64(program)
    return TorchRunner(
        program.module,
        program.inputs,
        program.outputs,
        name="torch.export program",
        precision="float64" if opening.float64 else "float32",
        threads=opening.threads,
        channels_last=opening.channels_last,
    )


def _float_types(model: onnx.ModelProto) -> list[str]:
    """Of everything that the file says the type of: weights, constants, casts, inputs and outputs."""
    inferred = onnx.shape_inference.infer_shapes(model)
    kinds = {value.type.tensor_type.elem_type for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)}
    kinds.update(tensor.data_type for tensor in model.graph.initializer)
    return sorted(_FLOATS[kind] for kind in kinds if kind in _FLOATS)


def _point(point: Point) -> dict[str, Any]:
    return asdict(point)
