"""Whether the optional libraries that are installed can really be imported.

In processes of their own: a library that crashes is a finding, and takes nothing down; and what
they load is not kept.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mimiq_runtime import import_probe
from mimiq_runtime.import_probe import CUDA_DRIVER, CUDA_PROVIDER
from mimiq_runtime.schema import Schema
from mimiq_runtime.strict_json import parse_json

__all__ = ["GROUPS", "LibraryProbe", "probe_libraries"]

GROUPS = (
    ("torch", "torchvision", "timm"),
    ("onnx", "onnx_ir", "onnxscript"),
    ("onnxruntime", CUDA_PROVIDER),
    ("openvino",),
    (CUDA_DRIVER, "cuda.bindings.runtime", "tensorrt", "polygraphy.backend.trt"),
    ("matplotlib", "jinja2", "sklearn"),
)
"""What is imported together, in one process, in this order."""

_SECONDS = 180


class LibraryProbe(Schema):
    """What came of one import.

    Attributes:
        name: Of the module, or one of :mod:`mimiq_runtime.import_probe`'s own names.
        installed: Whether it is there.
        error: Why it cannot be imported, or loaded; None where it can, or is not there.
        providers: Execution providers that are compiled in; of ``onnxruntime`` only.
        version: Newest CUDA that the driver supports, 1000 * major + 10 * minor; of the driver
            only.
        devices: Number of GPUs; of the driver only.
    """

    name: str
    installed: bool
    error: str | None
    providers: tuple[str, ...] = ()
    version: int | None = None
    devices: int | None = None


def probe_libraries(groups: tuple[tuple[str, ...], ...] = GROUPS) -> dict[str, LibraryProbe]:
    """Import libraries, each group in a process of its own, all at the same time.

    Takes as long as the slowest of them, a few seconds for torch, more where the
    machine is busy or its disk slow, and three minutes at most.

    Args:
        groups: Names, as :data:`GROUPS` has them. What comes behind a library that ends its
            process is imported in another one.

    Returns:
        What came of each, by name.
    """
    end = time.monotonic() + _SECONDS
    running = [(group, _start(group)) for group in groups]
    found: dict[str, LibraryProbe] = {}
    for group, process in running:
        answers = _answers(process, end)
        found.update({answer.name: answer for answer in answers})
        rest = group[len(answers) :]
        if rest:
            ended = _how_it_ended(process)
            found[rest[0]] = LibraryProbe(name=rest[0], installed=True, error=ended)
            if rest[1:] and time.monotonic() < end:
                found.update(probe_libraries((rest[1:],)))
    return found


def _start(names: tuple[str, ...]) -> subprocess.Popen[str]:
    # With -P nothing of the current folder takes the place of a library.
    return subprocess.Popen(
        [sys.executable, "-P", str(Path(import_probe.__file__)), *names],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def _answers(process: subprocess.Popen[str], end: float) -> list[LibraryProbe]:
    """The answers that came until the process ended, or was ended because it takes too long."""
    try:
        output, _ = process.communicate(timeout=max(end - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
    # Without its end, a line was cut off with the process.
    lines: list[Any] = [
        parse_json(line) for line in output.splitlines(keepends=True) if line.endswith("\n")
    ]
    return [LibraryProbe.model_validate(line) for line in lines]


def _how_it_ended(process: subprocess.Popen[str]) -> str:
    code = process.returncode
    if code == -signal.SIGKILL:
        return f"it took longer than {_SECONDS} s, or was killed"
    if code < 0:
        return f"it crashes with {signal.Signals(-code).name}"
    return f"it ends the process with exit code {code}"
