"""The command line, in which the second process fails: ``failing_process.py HOW ARGUMENTS...``.

``refuses``: an error on purpose in its second shard. ``dies``: it is killed in the second epoch.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from mimiq_calib.distillation import distill as distilling
from mimiq_calib.synthesis import sources
from mimiq_deploy.cli import main
from mimiq_runtime.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator

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


if __name__ == "__main__":
    how = sys.argv.pop(1)
    if os.environ["RANK"] == "1":
        {"refuses": refuse_the_second_shard, "dies": die_in_the_second_epoch}[how]()
    main()
