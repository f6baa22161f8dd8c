"""The published schema of verification.json matches the types, and every file we write fits it."""

import json
from pathlib import Path

import jsonschema
import pytest
from verdicts import Alter, not_a_number, off_by_one, verdict_of

from deploy.verify.schema import verification_schema

PUBLISHED = Path(__file__).parents[3] / "docs" / "verification.schema.json"
SCHEMA = verification_schema()


def test_the_published_schema_is_that_of_the_code() -> None:
    assert json.loads(PUBLISHED.read_text()) == SCHEMA, "write it again with make schema"
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("alter", [lambda outputs: outputs, off_by_one, not_a_number])
def test_what_is_written_fits(alter: Alter) -> None:
    content = json.loads(json.dumps(verdict_of(alter).to_json(), allow_nan=False))
    jsonschema.validate(content, SCHEMA)


def test_a_bundles_verification_fits(finished_run: Path) -> None:
    jsonschema.validate(json.loads((finished_run / "bundle" / "verification.json").read_text()), SCHEMA)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("verdict",), "passed"),
        (("format_version",), 2),
        (("links", 0, "status"), "ok"),
        (("links", 0, "max_abs"), "nan"),
        (("links", 0, "outputs", 0, "num_values"), "5"),
        (("files",), {"model.onnx": "abc"}),
        (("more",), 1),
    ],
)
def test_what_is_not_written_does_not_fit(path: tuple[object, ...], value: object) -> None:
    content = json.loads(json.dumps(verdict_of().to_json()))
    inner = content
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, SCHEMA)
