"""What this machine can run.

Every probe runs in a child process with a time limit, and its own output is hidden.
"""

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import click

from deploy.runners.probe import LOOKS, Findings
from deploy.runners.runner import Finding

_ONNXRUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-rocm")
_REASONS = (re.compile(r"with error: (.+)"), re.compile(r"cudaError \d+: ([^)]+)"))


def survey() -> Findings:
    """Return everything that `doctor` shows, in its order."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        runtimes = list(pool.map(run_probe, LOOKS))
    found = {name: finding for findings in runtimes for name, finding in findings.items()}
    return {"python": _python(), "cpu": _cpu(), "memory": _memory(), "disk": _disk(), **found}


def run_probe(name: str, script: Path | None = None, seconds: float = 180) -> Findings:
    """Run one probe; a crash, a hang and an invalid answer are findings too."""
    command = [sys.executable, *(["-m", "deploy.runners.probe"] if script is None else ["-P", str(script)]), name]
    root = str(Path(__file__).parents[3])  # so that the child imports this project, not modules of the folder it starts in
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])), "PYTHONSAFEPATH": "1"}
    try:
        done = subprocess.run(command, capture_output=True, timeout=seconds, check=False, stdin=subprocess.DEVNULL, env=environment)
    except subprocess.TimeoutExpired:
        return _not_here(name, f"gave no answer in {seconds:g} s")
    noise = click.unstyle(done.stderr.decode(errors="replace"))
    if done.returncode != 0:
        return _not_here(name, _with_reason(_ended(done.returncode), noise))
    try:
        answers = _answers(done.stdout, noise)
        return {**_not_here(name, answers[name].detail), **answers}
    except (ValueError, TypeError, AttributeError, KeyError):
        return _not_here(name, _with_reason("gave an answer that cannot be read", noise))


def installed_onnxruntimes() -> list[str]:
    """Return the installed distributions that provide a package named onnxruntime."""
    names = {str(found.metadata["Name"]).lower().replace("_", "-") for found in metadata.distributions()}
    return sorted(name for name in names if name in _ONNXRUNTIMES)


def problems(onnxruntimes: Sequence[str]) -> list[str]:
    """Return what is wrong with the installation, each with its remedy."""
    if len(onnxruntimes) < 2:
        return []
    return [
        f"{' and '.join(onnxruntimes)} are installed together and share a folder, so one hides the other; "
        f"fix it with: pip uninstall --yes {' '.join(onnxruntimes)} && pip install onnxruntime-gpu"
    ]


def _answers(output: bytes, noise: str) -> Findings:
    findings = {name: Finding(**fields) for name, fields in json.loads(output).items()}
    return {name: found if found.here else _explained(found, noise) for name, found in findings.items()}


def _explained(found: Finding, noise: str) -> Finding:
    return Finding(found.here, _with_reason(found.detail, noise), found.facts)


def _with_reason(detail: str, noise: str) -> str:
    """Return the detail, and what the runtime itself printed about it.

    That is a known phrase, or else its last line.
    """
    known = [match[1] for pattern in _REASONS if (match := pattern.search(noise))]
    lines = [line.strip() for line in noise.splitlines() if line.strip()]
    reason = (known or lines[-1:] or [""])[0]
    return f"{_short(detail)} ({_short(reason)})" if reason else _short(detail)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 160 else line[:157] + "..."


def _ended(code: int) -> str:
    return f"crashed ({signal.Signals(-code).name})" if code < 0 else f"its probe ended with {code}"


def _not_here(probe: str, detail: str) -> Findings:
    return {name: Finding(False, detail) for name in LOOKS[probe]}


def _python() -> Finding:
    version, system = platform.python_version(), f"{platform.system()} {platform.machine()}"
    return Finding(True, f"{version} on {system}", {"version": version, "system": system})


def _cpu() -> Finding:
    described = _cpuinfo()
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    vnni = sorted({"avx512_vnni", "avx_vnni"} & set(described.get("flags", "").split()))
    model = described.get("model name", platform.processor() or platform.machine())
    facts = {"model": model, "cores": cores, "avx512_vnni": "avx512_vnni" in vnni, "avx_vnni": "avx_vnni" in vnni}
    return Finding(True, f"{model}, {cores} cores, {', '.join(vnni) or 'no VNNI'}", facts)


def _cpuinfo() -> dict[str, str]:
    """Return the facts of the first processor of Linux's list; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _memory() -> Finding:
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Finding(True, f"{size / 2**30:.1f} GiB", {"bytes": size})


def _disk() -> Finding:
    folder = Path.cwd()
    free = shutil.disk_usage(folder).free
    return Finding(True, f"{free / 2**30:.1f} GiB free in {folder}", {"free_bytes": free, "folder": str(folder)})
