"""The published OpenAPI document is complete, and says what the server does: schemathesis asks."""

import json
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance
from server_process import ServerProcess
from stub_model import SPEC

from deploy.server.application import _MODEL_ROUTES, _SERVER_ROUTES
from deploy.server.openapi import openapi

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


def test_every_route_is_in_the_document() -> None:
    paths = openapi(SPEC, "0")["paths"]
    own = {f"/{'/'.join(parts)}" for parts, kind in _SERVER_ROUTES.items() if kind != "metrics" and parts[-1]}
    of_model = {"/".join((prefix, *rest)) for prefix in ("/v2/models/stub", "/v2/models/stub/versions/1") for rest in _MODEL_ROUTES}
    assert paths.keys() == own | of_model


def test_every_schema_is_used() -> None:
    document = openapi(SPEC, "0")
    used = {text.rpartition("/")[2] for text in json.dumps(document["paths"]).split('"') if text.startswith("#/components/schemas/")}
    assert used == document["components"]["schemas"].keys()


@pytest.mark.filterwarnings("ignore")  # of schemathesis and what it brings
def test_what_is_drawn_from_the_document_gets_an_answer_of_the_document(server: ServerProcess) -> None:
    """Requests that fit the document, and requests that do not."""
    schema = schemathesis.openapi.from_dict(server.get("/openapi.json"))
    schema.config.update(base_url=server.url)
    statuses: dict[int, int] = {}

    def ask_all(operation: Any, mode: Any) -> None:
        @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            answer = case.call_and_validate(checks=CHECKS)
            statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1

        ask()

    operations: Any = schema.get_all_operations()
    for result in operations:
        operation = result.ok()
        ask_all(operation, schemathesis.GenerationMode.POSITIVE)
        if operation.path.endswith("infer"):
            ask_all(operation, schemathesis.GenerationMode.NEGATIVE)
    assert statuses[200] >= 10
    assert statuses[400] >= 10
    assert server.process.poll() is None
