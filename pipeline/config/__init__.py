"""The run's configuration: YAML in, typed and frozen values out. Needs no torch, so that a typing error costs no time.

`sections` holds what a config may say, `methods` the options of each training method, `loading` reads files and `--set`.
"""

from pipeline.config.loading import dump_config, json_schema, load_config, parse_config
from pipeline.config.sections import Config

__all__ = ["Config", "dump_config", "json_schema", "load_config", "parse_config"]
