"""The run's configuration: YAML in, typed and frozen values out. Needs no torch, so that a typing error costs no time.

`sections` says what a config may hold, `methods` the options of each training method, `loading` reads all of it.
"""

from pipeline.config.loading import dump_config, json_schema, load_config, parse_config, training_part
from pipeline.config.sections import Config

__all__ = ["Config", "dump_config", "json_schema", "load_config", "parse_config", "training_part"]
