"""How much memory this process has taken at most, resident and on a GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

__all__ = ["describe_peak", "forget_cuda_peak", "peak_cuda_mib", "peak_rss_mib"]

_STATUS = Path("/proc/self/status")


def peak_rss_mib() -> float:
    """Largest resident memory of this process so far, in MiB."""
    try:
        lines = _STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return _peak_by_getrusage()
    # Not getrusage: on Linux that figure outlives exec, so a child of a large process starts large.
    kib = next(line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(kib) / 1024


def peak_cuda_mib() -> float | None:
    """Most memory that torch's tensors have taken on one GPU, in MiB.

    Returns:
        Since :func:`forget_cuda_peak`, on the GPU where it was most; None where torch uses none.
    """
    torch = _torch_with_cuda()
    if torch is None:
        return None
    devices = range(torch.cuda.device_count())
    return float(max(torch.cuda.max_memory_allocated(device) for device in devices) / 2**20)


def forget_cuda_peak() -> None:
    """Let :func:`peak_cuda_mib` begin anew. The resident peak stays: it is the system's figure."""
    torch = _torch_with_cuda()
    if torch is not None:
        for device in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(device)


def describe_peak(rss_mib: float, cuda_mib: float | None) -> str:
    """For people.

    >>> describe_peak(512.3, None), describe_peak(512.3, 2048.0)
    ('512 MiB', '512 MiB, 2048 MiB of the GPU')
    """
    text = f"{rss_mib:.0f} MiB"
    return text if cuda_mib is None else f"{text}, {cuda_mib:.0f} MiB of the GPU"


def _torch_with_cuda() -> Any:
    # Not imported here: where nobody else has, no GPU is in use through it.
    torch: Any = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    return torch if cuda is not None and cuda.is_initialized() else None


def _peak_by_getrusage() -> float:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
