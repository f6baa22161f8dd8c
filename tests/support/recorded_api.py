"""Writes recorded_api.json: the classes that this project uses in the full TensorRT's bindings.

They are NVIDIA's published Python bindings:

    pip download --no-deps tensorrt-cu13-bindings==11.4.0.106
    unzip tensorrt_cu13_bindings-*.whl -d bindings
    python recorded_api.py bindings > recorded_api.json

It needs only the bindings, and Linux with a C compiler. Empty libraries replace those that the
bindings are linked to. So the module can be imported and inspected, but not called.
"""

import enum
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_FUNCTIONS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
CLASSES = (
    *("Builder", "BuilderFlag", "EngineInspector", "HardwareCompatibilityLevel", "IBuilderConfig", "ICudaEngine", "IExecutionContext"),
    *("ExecutionContextAllocationStrategy", "IRuntimeConfig"),
    *("IHostMemory", "ILogger", "INetworkDefinition", "IOptimizationProfile", "IProgressMonitor", "ITensor", "ITimingCache"),
    *("LayerInformationFormat", "MemoryPoolType", "OnnxParser", "ParserError", "ProfilingVerbosity", "Runtime", "TacticSource", "TensorIOMode"),
)
_LIBRARIES = ("libnvinfer.so.11", "libnvonnxparser.so.11", "libnvinfer_plugin.so.11")
_MODULE = re.compile(r"\btensorrt(_rtx)?_bindings\.tensorrt(_rtx)?\.")


def stand_in_libraries(folder: Path) -> None:
    """Libraries with the right names that do nothing."""
    source = folder / "empty.c"
    for library in _LIBRARIES:
        functions = _FUNCTIONS if library == _LIBRARIES[0] else ()
        source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in functions) or "int nothing;\n")
        command = ["cc", "-shared", "-fPIC", "-o", str(folder / library), str(source), f"-Wl,-soname,{library}"]
        subprocess.run(command, check=True)


def described(module: Any) -> dict[str, object]:
    """The classes with their public members, and the signatures of those that document any."""
    classes = {name: signatures(getattr(module, name)) for name in CLASSES}
    return {"version": module.__version__, "functions": [name for name in ("nptype",) if callable(getattr(module, name))], "classes": classes}


def signatures(cls: type) -> dict[str, list[str]]:
    """A class's public members with their documented signatures, without the module's name."""
    return {name: _signatures(cls, name) for name in sorted(dir(cls)) if not name.startswith("_")}


def _signatures(cls: type, name: str) -> list[str]:
    member = getattr(cls, name)
    if isinstance(member, enum.Enum) or not callable(member):
        return []
    lines = [_MODULE.sub("", line).strip() for line in (member.__doc__ or "").splitlines() if f"{name}(self" in line]
    return sorted(re.sub(r"^\d+\. ", "", line) for line in lines)


def main(bindings: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        if "LD_LIBRARY_PATH" not in os.environ:
            stand_in_libraries(Path(folder))
            environment = {**os.environ, "LD_LIBRARY_PATH": folder}
            subprocess.run([sys.executable, __file__, bindings], env=environment, check=True)
            return
    sys.path.insert(0, bindings)
    import tensorrt_bindings

    json.dump(described(tensorrt_bindings), sys.stdout, indent=1, sort_keys=True)
    print()


if __name__ == "__main__":
    main(sys.argv[1])
