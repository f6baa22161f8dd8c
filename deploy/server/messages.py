"""The messages of the protocol over gRPC, made from a table instead of generated code.

They live in a descriptor pool of their own: client libraries register messages of the same names,
and a process may hold both.
"""

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE, SERVICE = "inference", "GRPCInferenceService"
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "bool": _Field.TYPE_BOOL,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "uint32": _Field.TYPE_UINT32,
    "uint64": _Field.TYPE_UINT64,
    "float": _Field.TYPE_FLOAT,
    "double": _Field.TYPE_DOUBLE,
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
}
_NAMED = "name=1 string, version=2 string"
_TENSOR = "name=1 string, datatype=2 string, shape=3 *int64"
_WHOLE_TENSOR = f"{_TENSOR}, parameters=4 {{InferParameter}}, contents=5 InferTensorContents"
MESSAGES: Mapping[str, str] = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "live=1 bool",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "ready=1 bool",
    "ModelReadyRequest": _NAMED,
    "ModelReadyResponse": "ready=1 bool",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": f"{_NAMED}, extensions=3 *string",
    "ModelMetadataRequest": _NAMED,
    "ModelMetadataResponse.TensorMetadata": _TENSOR,
    "ModelMetadataResponse": "name=1 string, versions=2 *string, platform=3 string, inputs=4 *ModelMetadataResponse.TensorMetadata, "
    "outputs=5 *ModelMetadataResponse.TensorMetadata",
    "InferParameter": "bool_param=1 ?bool, int64_param=2 ?int64, string_param=3 ?string, double_param=4 ?double, uint64_param=5 ?uint64",
    "InferTensorContents": "bool_contents=1 *bool, int_contents=2 *int32, int64_contents=3 *int64, uint_contents=4 *uint32, "
    "uint64_contents=5 *uint64, fp32_contents=6 *float, fp64_contents=7 *double, bytes_contents=8 *bytes",
    "ModelInferRequest.InferInputTensor": _WHOLE_TENSOR,
    "ModelInferRequest.InferRequestedOutputTensor": "name=1 string, parameters=2 {InferParameter}",
    "ModelInferRequest": "model_name=1 string, model_version=2 string, id=3 string, parameters=4 {InferParameter}, "
    "inputs=5 *ModelInferRequest.InferInputTensor, outputs=6 *ModelInferRequest.InferRequestedOutputTensor, raw_input_contents=7 *bytes",
    "ModelInferResponse.InferOutputTensor": _WHOLE_TENSOR,
    "ModelInferResponse": "model_name=1 string, model_version=2 string, id=3 string, parameters=4 {InferParameter}, "
    "outputs=5 *ModelInferResponse.InferOutputTensor, raw_output_contents=6 *bytes",
    "ModelStreamInferResponse": "error_message=1 string, infer_response=2 ModelInferResponse",
    "ModelInput": "name=1 string, data_type=2 int32, format=3 int32, dims=4 *int64",
    "ModelOutput": "name=1 string, data_type=2 int32, dims=3 *int64, label_filename=4 string",
    "ModelDynamicBatching": "max_queue_delay_microseconds=2 uint64",
    "ModelConfig": "name=1 string, platform=2 string, backend=17 string, max_batch_size=4 int32, input=5 *ModelInput, output=6 *ModelOutput, "
    "dynamic_batching=11 ModelDynamicBatching",
    "ModelConfigRequest": _NAMED,
    "ModelConfigResponse": "config=1 ModelConfig",
    "StatisticDuration": "count=1 uint64, ns=2 uint64",
    "InferStatistics": ", ".join(
        f"{name}={number} StatisticDuration"
        for number, name in enumerate(("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss"), 1)
    ),
    "InferBatchStatistics": "batch_size=1 uint64, compute_input=2 StatisticDuration, compute_infer=3 StatisticDuration, "
    "compute_output=4 StatisticDuration",
    "ModelStatistics": f"{_NAMED}, last_inference=3 uint64, inference_count=4 uint64, execution_count=5 uint64, "
    "inference_stats=6 InferStatistics, batch_stats=7 *InferBatchStatistics",
    "ModelStatisticsRequest": _NAMED,
    "ModelStatisticsResponse": "model_stats=1 *ModelStatistics",
    "RepositoryIndexRequest": "repository_name=1 string, ready=2 bool",
    "RepositoryIndexResponse.ModelIndex": f"{_NAMED}, state=3 string, reason=4 string",
    "RepositoryIndexResponse": "models=1 *RepositoryIndexResponse.ModelIndex",
}
"""Each message and its fields, as `name=number type`. `*` repeats, `?` is one of several, braces
are a map from texts. Those of Triton's extensions have only the fields that are used."""
METHODS: Mapping[str, tuple[str, str]] = {
    **{name: (f"{name}Request", f"{name}Response") for name in ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata")},
    **{name: (f"{name}Request", f"{name}Response") for name in ("ModelInfer", "ModelConfig", "ModelStatistics", "RepositoryIndex")},
}
"""The calls with one request and one answer. `ModelStreamInfer` is the other one."""
DATA_TYPES = {
    name: number
    for number, name in enumerate(
        ("INVALID", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "STRING", "BF16")
    )
}
FORMATS = {"FORMAT_NONE": 0, "FORMAT_NHWC": 1, "FORMAT_NCHW": 2}


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="samegraph/inference.proto", package=PACKAGE, syntax="proto3")
    made: dict[str, descriptor_pb2.DescriptorProto] = {}
    for name in sorted(MESSAGES, key=lambda each: each.count(".")):
        outer, _, inner = name.rpartition(".")
        made[name] = made[outer].nested_type.add(name=inner) if outer else file.message_type.add(name=name)
    for name, fields in MESSAGES.items():
        for text in filter(None, fields.split(", ")):
            _add_field(made[name], name, text)
    return file


def _add_field(message: descriptor_pb2.DescriptorProto, name: str, text: str) -> None:
    place, _, kind = text.partition(" ")
    field_name, _, number = place.partition("=")
    field = message.field.add(name=field_name, number=int(number), label=_Field.LABEL_OPTIONAL)
    if kind.startswith("{"):
        entry = message.nested_type.add(name="".join(part.capitalize() for part in field_name.split("_")) + "Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, label=_Field.LABEL_OPTIONAL, type=_Field.TYPE_STRING)
        entry.field.add(name="value", number=2, label=_Field.LABEL_OPTIONAL, type=_Field.TYPE_MESSAGE, type_name=f".{PACKAGE}.{kind[1:-1]}")
        field.label, field.type, field.type_name = _Field.LABEL_REPEATED, _Field.TYPE_MESSAGE, f".{PACKAGE}.{name}.{entry.name}"
        return
    if kind.startswith("*"):
        field.label = _Field.LABEL_REPEATED
    if kind.startswith("?"):
        if not message.oneof_decl:
            message.oneof_decl.add(name="parameter_choice")
        field.oneof_index = 0
    plain = kind.lstrip("*?")
    if plain in _SCALARS:
        field.type = _SCALARS[plain]
    else:
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{PACKAGE}.{plain}"


def _classes() -> dict[str, Any]:
    pool = descriptor_pool.DescriptorPool()
    pool.Add(_file())
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in MESSAGES}


CLASSES = _classes()
"""The classes of the messages, by name."""
