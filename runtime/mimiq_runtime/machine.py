"""What machine this is: every figure names the one that it was measured on."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["describe_machine", "library_versions", "usable_cores"]

_CPUINFO = Path("/proc/cpuinfo")
_BOARD = Path("/proc/device-tree/model")

# The CPU's instructions for products of 8-bit integers decide how fast an INT8 model can be.
_INT8_FLAGS = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")


def describe_machine() -> dict[str, str]:
    """Names of the hardware and the system.

    Returns:
        ``cpu``, ``architecture``, ``cores`` (those this process may use),
        ``int8_instructions`` (space-separated, or ``none known``), ``os``, ``python``; on a
        board that names itself also ``board``.
    """
    cpuinfo = _read_cpuinfo()
    flags = (cpuinfo.get("flags") or cpuinfo.get("Features") or "").split()
    machine = {
        "cpu": cpuinfo.get("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "cores": str(usable_cores()),
        "int8_instructions": " ".join(f for f in _INT8_FLAGS if f in flags) or "none known",
        "os": platform.platform(),
        "python": platform.python_version(),
    }
    board = _read(_BOARD).strip("\0\n ")
    return {**machine, "board": board} if board else machine


def usable_cores() -> int:
    """Number of logical cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of installed distributions, read without importing them.

    Args:
        names: Names as pip knows them, such as ``onnxruntime-gpu``.

    Returns:
        Version by name, in the order asked for; what is not installed is left out.
    """
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _read_cpuinfo() -> dict[str, str]:
    """Fields of the first core in /proc/cpuinfo; empty where there is none."""
    fields: dict[str, str] = {}
    for line in _read(_CPUINFO).splitlines():
        key, separator, value = line.partition(":")
        if separator:
            fields.setdefault(key.strip(), value.strip())
    return fields


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
