"""The JSON Schema of a config, with which editors complete and check.

Write its file with `python -m pipeline.config > configs/schema.json`.
"""

import json
from typing import Any

from pipeline.config.sections import Config


def json_schema() -> dict[str, Any]:
    """The schema that `configs/schema.json` holds."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}


def json_schema_text() -> str:
    """The schema as its file has it."""
    return json.dumps(json_schema(), indent=2) + "\n"
