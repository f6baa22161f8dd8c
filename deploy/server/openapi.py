"""The server's own OpenAPI document: its paths, bodies and answers, with the sizes of its model.

Takes a `ModelSpec`; gives a dictionary. Fuzzers and client generators read it at `/openapi.json`.
"""

from typing import Any

from deploy.server.protocol import BINARY_TYPE, HEADER_LENGTH, JSON_TYPE, ModelSpec

Json = dict[str, Any]
_REF = "#/components/schemas/"


def openapi(spec: ModelSpec, version: str) -> Json:
    """Return the document."""
    model = f"/v2/models/{spec.name}"
    paths: Json = {
        "/v2": {"get": _get("The server's name, version and extensions.", "ServerMetadata")},
        "/v2/health/live": {"get": _get("Whether the process can do its work.", "Health", 503)},
        "/v2/health/ready": {"get": _get("Whether it verified, and is not stopping.", "Health", 503)},
        "/v2/models/stats": {"get": _get("Counts and times.", "Statistics")},
        "/v2/repository/index": {"get": _get("The one model.", "Index"), "post": _get("The one model.", "Index", 413, 415)},
        "/openapi.json": {"get": _get("This document.", "Anything")},
    }
    for prefix in (model, f"{model}/versions/{spec.version}"):
        paths[prefix] = {"get": _get("What the model takes and gives.", "ModelMetadata")}
        paths[f"{prefix}/ready"] = {"get": _get("Whether the model is ready.", "Health", 503)}
        paths[f"{prefix}/config"] = {"get": _get("The model's configuration, as Triton's clients read it.", "Anything")}
        paths[f"{prefix}/stats"] = {"get": _get("Counts and times.", "Statistics")}
        paths[f"{prefix}/infer"] = {"post": _infer()}
    return {
        "openapi": "3.1.0",
        "info": {"title": f"samegraph serves {spec.name}", "version": version, "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}},
        "paths": paths,
        "components": {"schemas": _schemas(spec)},
    }


def _answer(schema: str) -> Json:
    return {"description": schema, "content": {JSON_TYPE: {"schema": {"$ref": f"{_REF}{schema}"}}}}


def _get(summary: str, schema: str, *errors: int) -> Json:
    return {"summary": summary, "responses": {"200": _answer(schema), **{str(error): _answer("Refusal") for error in (401, *errors)}}}


def _infer() -> Json:
    errors = (400, 401, 408, 413, 415, 500, 503, 504)
    binary: Json = {"schema": {"type": "string", "format": "binary"}}
    return {
        "summary": "Run the model on one or more images.",
        "parameters": [
            {
                "name": HEADER_LENGTH,
                "in": "header",
                "required": False,
                "schema": {"type": "integer", "minimum": 0},
                "description": "The bytes of the JSON part if binary data follow; 0 if the body is nothing but the input's values.",
            }
        ],
        "requestBody": {
            "required": True,
            "content": {JSON_TYPE: {"schema": {"$ref": f"{_REF}InferRequest"}}, BINARY_TYPE: binary},
        },
        "responses": {
            "200": {
                "description": "The outputs.",
                "headers": {"samegraph-bits": {"schema": {"type": "string"}, "description": "exact or float32, and whether that is not verified."}},
                "content": {JSON_TYPE: {"schema": {"$ref": f"{_REF}InferResponse"}}, BINARY_TYPE: binary},
            },
            **{str(error): _answer("Refusal") for error in errors},
        },
    }


def _object(required: tuple[str, ...] = (), **properties: Any) -> Json:
    return {"type": "object", "properties": properties, "required": list(required)}


def _schemas(spec: ModelSpec) -> Json:
    text, number = {"type": "string"}, {"type": "integer", "minimum": 0}
    tensor = _object(("name", "datatype", "shape"), name=text, datatype=text, shape={"type": "array", "items": {"type": "integer"}})
    first = {"type": "integer", "minimum": 1, "maximum": spec.max_rows}
    shape = {"type": "array", "prefixItems": [first, *({"const": size} for size in spec.input.sizes)]}
    length = 1 + len(spec.input.sizes)
    return {
        "Anything": {"type": "object"},
        "Refusal": _object(("error",), error=text),
        "Health": _object(live={"type": "boolean"}, ready={"type": "boolean"}, name=text, error=text),
        "ServerMetadata": _object(("name", "version", "extensions"), name=text, version=text, extensions={"type": "array", "items": text}),
        "ModelMetadata": _object(
            ("name", "versions", "platform", "inputs", "outputs"),
            name=text,
            versions={"type": "array", "items": text},
            platform=text,
            inputs={"type": "array", "items": tensor},
            outputs={"type": "array", "items": tensor},
        ),
        "Statistics": _object(("model_stats",), model_stats={"type": "array", "items": {"type": "object"}}),
        "Index": {"type": "array", "items": _object(("name", "version", "state", "reason"), name=text, version=text, state=text, reason=text)},
        "InferRequest": _object(
            ("inputs",),
            id={"type": "string", "maxLength": 1024, "pattern": "^[ -~]*$"},
            parameters=_object(timeout=number, binary_data_output={"type": "boolean"}),
            inputs={
                "type": "array",
                "minItems": 1,
                "maxItems": 1,
                "items": _object(
                    ("name", "datatype", "shape", "data"),
                    name={"const": spec.input.name},
                    datatype={"const": spec.input.datatype},
                    shape={**shape, "minItems": length, "maxItems": length},
                    data={"type": "array", "description": "The values, flat or nested as the shape says."},
                ),
            },
            outputs={
                "type": "array",
                "maxItems": 1,
                "items": _object(
                    ("name",), name={"const": spec.output.name}, parameters=_object(classification=number, binary_data={"type": "boolean"})
                ),
            },
        ),
        "InferResponse": _object(
            ("model_name", "model_version", "outputs"), id=text, model_name=text, model_version=text, outputs={"type": "array", "items": tensor}
        ),
    }
