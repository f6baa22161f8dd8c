"""Lets the tests of this folder import the tiny models in `onnx_files`, whichever way pytest imports test files."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
