"""The configuration of a run: takes YAML and returns typed, frozen values.

`sections` defines what a config may hold, `methods` the options of each training method, and
`loading` reads a config. Needs no torch, so a typing error is reported at once.
"""

from pipeline.config.loading import dump_config, json_schema, load_config, parse_config, training_part
from pipeline.config.sections import Config

__all__ = ["Config", "dump_config", "json_schema", "load_config", "parse_config", "training_part"]
