"""Several processes of one command speak with one voice: that of the first.

torchrun starts the same command line several times. All parse it, all may find the same mistake,
and every table and message would be printed as often as there are processes.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["one_voice", "several_processes"]

GRACE_SECONDS = 10.0
"""How long a process that failed waits for the first one to say why; torchrun ends it sooner."""


def several_processes() -> bool:
    """Whether torchrun started this program more than once."""
    return "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
    """Until the block ends, let nothing be heard but from the first process.

    Where a process other than the first fails and nobody ends it, it says why after all: the
    mistake is its own.
    """
    if not several_processes() or os.environ.get("RANK") == "0":
        yield
        return
    errors = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
            yield
    except SystemExit as end:
        if end.code:
            time.sleep(GRACE_SECONDS)
            sys.stderr.write(errors.getvalue())
        raise
