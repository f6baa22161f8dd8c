"""Print the published JSON Schema: `python -m pipeline.config > configs/schema.json`."""

from pipeline.config.loading import json_schema_text

if __name__ == "__main__":
    print(json_schema_text(), end="")
