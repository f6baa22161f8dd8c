"""Opens a form of a model from its file, inside the host process.

This is the only place where foreign files are parsed. Takes openings; returns runners, and the
contents of a file.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx

from deploy.runners.forms import Form, OnnxForm, engine_form
from deploy.runners.onnx_file import checked_bytes, points_of, shapes_of
from deploy.runners.runner import Point, Runner
from deploy.runners.runtimes import require_torch
from deploy.runners.tensorrt import EngineFile, specs_of
from deploy.sandbox.file_kinds import RECORD, Kind, Opening
from export.errors import DamagedError, UsageError
from export.tensorrt.record import parsed_record, require_the_engine_of

_FLOATS = {
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.DOUBLE: "float64",
}


def open_form(opening: Opening) -> Runner:
    """Open a file as requested."""
    form = _form_of(opening)
    wide = form.float64() if opening.float64 else form
    if wide is None:
        raise UsageError(f"{opening.path} has no evaluation in float64")
    return wide.open() if opening.until is None else wide.until(opening.until, {})


def _form_of(opening: Opening) -> Form:
    path = Path(opening.path)
    match opening.kind:
        case "onnx":
            return OnnxForm(runtime=opening.runtime, options=opening.options, path=path)
        case "pt2":
            require_torch(f"{path}, a torch.export program,")
            from deploy.runners.pt2 import ProgramForm, load_program

            return ProgramForm(program=load_program(path), options=opening.options)
        case "engine":
            return engine_form(_engine(path))


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
        require_torch(f"{path}, a torch.export program,")
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
        raise DamagedError(f"{path} is not a valid ONNX model: {' '.join(str(error).split())[:200]}; export it again") from error
    names = [value.name for value in model.graph.output]
    if twice := [name for name in names if names.count(name) > 1]:
        raise DamagedError(f"{path} has two outputs named {twice[0]!r}; export it again")
    return model


def _engine(path: Path) -> EngineFile:
    record = path.with_suffix(RECORD)
    return EngineFile(str(path), path.read_bytes(), parsed_record(record.read_bytes(), str(record)))


def _float_types(model: onnx.ModelProto) -> list[str]:
    """The float types that the file states: of weights, constants, casts, inputs and outputs."""
    inferred = onnx.shape_inference.infer_shapes(model)
    kinds = {value.type.tensor_type.elem_type for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)}
    kinds.update(tensor.data_type for tensor in model.graph.initializer)
    return sorted(_FLOATS[kind] for kind in kinds if kind in _FLOATS)


def _point(point: Point) -> dict[str, Any]:
    return asdict(point)
