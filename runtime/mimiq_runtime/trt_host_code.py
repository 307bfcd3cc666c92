"""Whether TensorRT may run code for the CPU that a plan holds: the user says so, no file does.

A version-compatible plan brings the runtime that it was built with, and TensorRT loads it into the
process like a library. A run or a folder that was handed on can say anything of its plan, so the
word has to come from this machine.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mimiq_runtime.errors import EngineError

if TYPE_CHECKING:
    from pathlib import Path

    from mimiq_runtime.engine_record import EngineRecord

__all__ = ["ALLOW_HOST_CODE", "check_host_code"]

ALLOW_HOST_CODE = "MIMIQ_ALLOW_HOST_CODE"
"""Environment variable; 1 where plans may run code of their own."""


def check_host_code(plan: Path, record: EngineRecord | None) -> bool:
    """Whether a plan from the disk needs to run code of its own, and may.

    Args:
        plan: The file, for the message.
        record: Its record; a plan without one runs none.

    Raises:
        EngineError: It needs to, and nobody said that it may.
    """
    if record is None or not record.options.version_compatible:
        return False
    if os.environ.get(ALLOW_HOST_CODE) != "1":
        raise EngineError(
            f"{plan} was built with --version-compatible and holds code for the CPU, which "
            f"TensorRT would run; set {ALLOW_HOST_CODE}=1 if you trust where it comes from, or "
            "build it here without."
        )
    return True
