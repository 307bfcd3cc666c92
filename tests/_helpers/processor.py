"""What the processor can do, as far as tests depend on it."""

from __future__ import annotations

from pathlib import Path


def has_avx512() -> bool:
    """Whether ONNX Runtime takes its kernels for AVX-512 here."""
    cpu = Path("/proc/cpuinfo")
    return cpu.exists() and "avx512f" in cpu.read_text()
