"""What hardware there is: instructions for small numbers, memory, NVIDIA GPUs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from mimiq_runtime.schema import Schema

__all__ = ["Gpu", "cpu_instructions", "memory_gib", "nvidia_gpus", "read_cpu_instructions"]

_CPUINFO = Path("/proc/cpuinfo")

_INSTRUCTIONS = {
    "AVX2": ("avx2",),
    "AVX-512": ("avx512f",),
    "VNNI": ("avx512_vnni", "avx_vnni"),
    "AMX": ("amx_int8",),
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),
    "dotprod": ("asimddp",),
    "i8mm": ("i8mm",),
}
"""The kernel's flags for each group of instructions; one of them is enough."""

_X86 = ("AVX2", "AVX-512", "VNNI", "AMX", "bf16")
_ARM = ("dotprod", "i8mm", "bf16")

_QUERY = ("name", "driver_version", "memory.total", "compute_cap")


class Gpu(Schema):
    """An NVIDIA GPU as ``nvidia-smi`` names it.

    Attributes:
        name: Its name.
        driver: Version of the driver.
        memory: Its memory with its unit, such as ``8192 MiB``.
        compute_capability: Such as ``8.7``.
    """

    name: str
    driver: str
    memory: str
    compute_capability: str


def read_cpu_instructions() -> dict[str, bool] | None:
    """:func:`cpu_instructions` of this machine."""
    try:
        return cpu_instructions(_CPUINFO.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None


def cpu_instructions(cpuinfo: str) -> dict[str, bool] | None:
    """Which instructions a CPU has that decide the speed of low-precision arithmetic.

    Args:
        cpuinfo: Content of ``/proc/cpuinfo``.

    Returns:
        Presence by name, for x86 (AVX2, AVX-512, VNNI, AMX, bf16) or ARM (dotprod, i8mm, bf16);
        None where the kernel lists no flags.
    """
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            flags = set(value.split())
            names = _X86 if key.strip() == "flags" else _ARM
            return {name: not flags.isdisjoint(_INSTRUCTIONS[name]) for name in names}
    return None


def memory_gib() -> float | None:
    """Physical memory in GiB; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):
        return None


def nvidia_gpus() -> list[Gpu]:
    """The GPUs that ``nvidia-smi`` lists; none when it is missing, fails or takes over 10 s."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[field.strip() for field in line.split(",")] for line in result.stdout.splitlines()]
    return [
        Gpu(name=row[0], driver=row[1], memory=row[2], compute_capability=row[3])
        for row in rows
        if len(row) == len(_QUERY)
    ]
