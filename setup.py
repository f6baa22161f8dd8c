"""Packaging that pyproject.toml cannot express: where configs/ is installed.

It is at the top of the repository and is installed inside the package that reads it.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["pipeline*", "export*", "deploy*"]), "pipeline.configs"],
    package_dir={"pipeline.configs": "configs"},
)
