"""The command line, in which the second process fails: ``failing_process.py HOW ARGUMENTS...``.

``refuses``: an error on purpose in its second shard. ``dies``: it is killed in the second epoch.
``cramped``: a block trains one view at a time, and more are too many for its memory.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import torch

from mimiq_calib.distillation import distill as distilling
from mimiq_calib.reconstruction.chain import Link
from mimiq_calib.synthesis import sources
from mimiq_deploy.cli import main
from mimiq_runtime.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

REASON = "planted in the second process"


def refuse_the_second_shard() -> None:
    made = 0
    original = sources.make_shard

    def make_shard(*arguments: Any, **others: Any) -> Any:
        nonlocal made
        made += 1
        if made == 2:
            raise InvalidInputError(REASON)
        return original(*arguments, **others)

    sources.make_shard = make_shard


def die_in_the_second_epoch() -> None:
    original = distilling._EpochImages.of_epoch

    def of_epoch(self: Any, epoch: int) -> Iterator[Any]:
        if epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, epoch)

    distilling._EpochImages.of_epoch = of_epoch  # type: ignore[method-assign]


def cramp_the_blocks() -> None:
    original, lacked = Link.forward, list[int]()

    def forward(self: Link, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and len(x) > 1:
            lacked.append(len(x))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, x)

    Link.forward = forward  # type: ignore[method-assign]
    # Else the job would prove nothing.
    atexit.register(lambda: None if lacked else os._exit(1))


FAILURES = {
    "refuses": refuse_the_second_shard,
    "dies": die_in_the_second_epoch,
    "cramped": cramp_the_blocks,
}

if __name__ == "__main__":
    how = sys.argv.pop(1)
    if os.environ["RANK"] == "1":
        FAILURES[how]()
    main()
