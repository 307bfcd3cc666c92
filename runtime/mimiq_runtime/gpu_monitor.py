"""Power, clocks and memory of an NVIDIA GPU while something runs, as ``nvidia-smi`` tells them."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
from typing import TYPE_CHECKING, Self

from mimiq_runtime.schema import Schema

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["GpuLoad", "GpuMonitor", "watched_gpu"]

_FIELDS = ("power.draw", "clocks.sm", "clocks.mem", "temperature.gpu", "memory.used")
_EVERY_MS = 100


class GpuLoad(Schema):
    """What the GPU that computes did while the sessions of one batch size took turns.

    A figure is None where the GPU does not tell it.

    Attributes:
        batch_size: Images in one call.
        samples: How often the GPU was asked, ten times a second.
        power_w: Mean power in watts.
        sm_clock_mhz: Median clock of the multiprocessors in MHz.
        sm_clock_min_mhz: Their lowest clock: far below the median, the GPU was throttled.
        memory_clock_mhz: Median clock of the memory in MHz.
        temperature_c: Highest temperature in degrees Celsius.
        memory_used_mib: Most memory in use, by all processes, in MiB.
    """

    batch_size: int
    samples: int
    power_w: float | None
    sm_clock_mhz: float | None
    sm_clock_min_mhz: float | None
    memory_clock_mhz: float | None
    temperature_c: float | None
    memory_used_mib: float | None


class GpuMonitor:
    """Asks ``nvidia-smi`` as long as a ``with`` block lasts; several blocks add up.

    Where there is no ``nvidia-smi``, or no GPU may be used, the block runs all the same and there
    is no load.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._output = ""

    def __enter__(self) -> Self:
        gpu = watched_gpu(os.environ.get("CUDA_VISIBLE_DEVICES"))
        if gpu is None:
            return self
        command = ["nvidia-smi", f"--id={gpu}", f"--query-gpu={','.join(_FIELDS)}"]
        command += ["--format=csv,noheader,nounits", f"--loop-ms={_EVERY_MS}"]
        try:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        except OSError:
            self._process = None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process is None:
            return
        self._process.terminate()
        seen, _ = self._process.communicate()
        self._output += seen
        self._process = None

    def load(self, batch_size: int) -> GpuLoad | None:
        """What was seen during the block; None when nothing was."""
        rows = [line.split(",") for line in self._output.splitlines()]
        # The last line may have been cut off.
        rows = [row for row in rows if len(row) == len(_FIELDS)]
        if not rows:
            return None
        power, sm_clock, memory_clock, temperature, memory = (
            [value for row in rows if (value := _number(row[column])) is not None]
            for column in range(len(_FIELDS))
        )
        return GpuLoad(
            batch_size=batch_size,
            samples=len(rows),
            power_w=round(statistics.fmean(power), 1) if power else None,
            sm_clock_mhz=statistics.median(sm_clock) if sm_clock else None,
            sm_clock_min_mhz=min(sm_clock, default=None),
            memory_clock_mhz=statistics.median(memory_clock) if memory_clock else None,
            temperature_c=max(temperature, default=None),
            memory_used_mib=max(memory, default=None),
        )


def watched_gpu(visible: str | None) -> str | None:
    """Which GPU of ``nvidia-smi`` is the first one of CUDA.

    Args:
        visible: ``CUDA_VISIBLE_DEVICES``: indices or UUIDs; None where it is not set. CUDA counts
            as ``nvidia-smi`` does where all GPUs are alike, or where ``CUDA_DEVICE_ORDER`` is
            ``PCI_BUS_ID``.

    Returns:
        Its index or its UUID; of a part of a GPU (MIG) the GPU's, where the name tells. None where
        CUDA may use no GPU.

    >>> watched_gpu(None), watched_gpu("2,0"), watched_gpu("")
    ('0', '2', None)
    """
    if visible is None:
        return "0"
    first = visible.partition(",")[0].strip()
    part = re.fullmatch(r"MIG-(GPU-[^/]+)/\d+/\d+", first)
    if part is not None:
        return part[1]
    return first if re.fullmatch(r"\d+|(?:GPU|MIG)-[\w-]+", first) else None


def _number(field: str) -> float | None:
    """A field's value; None for ``[N/A]`` and the like."""
    try:
        return float(field)
    except ValueError:
        return None
