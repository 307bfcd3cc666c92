"""The processes that work on one run together, as torchrun starts them.

The first process alone writes the run directory; all see the same file system. Nothing is sent
between them but tensors and bytes, on the CPU through gloo and on GPUs through NCCL.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from mimiq_runtime.errors import InvalidInputError, LostProcessError, MimiqDeployError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch.distributed.distributed_c10d import Store

__all__ = ["Processes", "join_processes"]

TIMEOUT = datetime.timedelta(hours=1)
"""How long one may wait for another that lives and does not answer; a dead one is noticed at once.

As long as the slowest shard may take longer than the quickest.
"""

LAST_WORDS = "mimiq_deploy/last_words/"
LONGEST_MESSAGE = 1000


class Processes:
    """This process among those that work on one run; alone, without any argument.

    Args:
        rank: Its number, from 0.
        count: How many there are.
        store: Where a process leaves its last words; None when there is one process.

    Attributes:
        rank: Its number, from 0.
        count: How many there are.
        first: Whether this is the one that writes and speaks.
    """

    def __init__(self, rank: int = 0, count: int = 1, store: Store | None = None) -> None:
        self.rank = rank
        self.count = count
        self.first = rank == 0
        self._store = store

    def wait(self) -> None:
        """Go on when every process has come here; raises as :meth:`sum_` does."""
        self.sum_([torch.zeros(1)])

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, the same to the bit on each.

        Args:
            tensors: Of one type and on one device; the same shapes in every process.

        Raises:
            LostProcessError: Another process has ended.
        """
        if self.count == 1:
            return
        # One message for all: hundreds of small ones would cost more than the sums.
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
        with self._company():
            dist.all_reduce(flat)
        pieces = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, piece in zip(tensors, pieces, strict=True):
            tensor.copy_(piece.view_as(tensor))

    def gather(self, data: bytes) -> list[bytes]:
        """What each process gave, in the order of the ranks, at the first; nothing elsewhere.

        Raises:
            LostProcessError: Another process has ended.
        """
        if self.count == 1:
            return [data]
        sizes = torch.zeros(self.count, dtype=torch.int64)
        sizes[self.rank] = len(data)
        self.sum_([sizes])
        # All pieces of one length, as a gather asks for.
        padded = torch.zeros(max(1, int(sizes.max())), dtype=torch.uint8)
        if data:
            padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        pieces = [torch.empty_like(padded) for _ in sizes] if self.first else None
        with self._company():
            dist.gather(padded, pieces)
        return [
            piece[:size].numpy().tobytes()
            for piece, size in zip(pieces or [], sizes.tolist(), strict=self.first)
        ]

    def leave(self, error: MimiqDeployError) -> None:
        """Leave word of why this process ends, for the first one to tell."""
        if self._store is not None and not self.first:
            with contextlib.suppress(RuntimeError):  # the store's own process may be gone
                self._store.set(f"{LAST_WORDS}{self.rank}", str(error)[:LONGEST_MESSAGE])

    @contextlib.contextmanager
    def _company(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise LostProcessError(self._last_words() or _first_line(error)) from error

    def _last_words(self) -> str:
        """What others left before they ended; empty for one that was killed."""
        if self._store is None:
            return ""
        words = []
        for rank in range(self.count):
            key = f"{LAST_WORDS}{rank}"
            with contextlib.suppress(RuntimeError):
                if self._store.check([key]):
                    words.append(f"process {rank}: {self._store.get(key).decode()}")
        return " ".join(words)


@contextlib.contextmanager
def join_processes(device: str) -> Iterator[tuple[Processes, torch.device]]:
    """Join the processes that torchrun started, until the block ends.

    Without torchrun, or with one process, nothing is joined.

    Args:
        device: torch's name of the device. With several processes ``cuda`` means the GPU whose
            number is that of the process on its machine.

    Yields:
        The processes, and the device of this one.

    Raises:
        InvalidInputError: The device cannot be used.
        LostProcessError: The processes do not find one another.
    """
    count = int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1
    if count == 1:
        yield Processes(), _usable_device(device)
        return
    # Before anybody waits: a device that is not there is most often not there for all.
    own_device = _own_device(device, int(os.environ["LOCAL_RANK"]))
    try:
        store, rank, count = next(rendezvous("env://", timeout=TIMEOUT))
        # Bytes and bookkeeping travel through gloo on GPUs too.
        backend = "gloo" if own_device.type == "cpu" else "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=TIMEOUT)
    except (RuntimeError, ValueError, KeyError) as error:
        raise LostProcessError(_first_line(error)) from error
    processes = Processes(rank, count, store)
    try:
        yield processes, own_device
    except LostProcessError:
        raise
    except MimiqDeployError as error:
        processes.leave(error)
        raise
    finally:
        dist.destroy_process_group()


def _own_device(name: str, local_rank: int) -> torch.device:
    if name == "cpu":
        return _usable_device(name)
    if name != "cuda":
        raise InvalidInputError(
            f"With several processes the device is cpu or cuda, each process taking the GPU of its "
            f"own number; got {name!r}."
        )
    device = _usable_device(f"cuda:{local_rank}")
    torch.cuda.set_device(device)
    return device


def _usable_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        # Some kinds of device hold no values, such as meta.
        torch.ones(1, device=device).item()
    # torch raises different errors for unknown names, missing drivers and missing devices.
    except (RuntimeError, AssertionError, ValueError) as error:
        raise InvalidInputError(
            f"The device {name[:80]!r} cannot be used ({_first_line(error):.200}); cpu always can."
        ) from error
    return device


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
