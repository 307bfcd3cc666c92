"""The gradients of one batch, put together from parts of it and from the processes that share it.

Every process makes the step that one process alone would make, with all images at a time
(docs/decisions/0021-gradients-are-summed.md, docs/decisions/0037-fewer-images-at-a-time.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mimiq_calib.processes import Processes

    Losses = Callable[..., tuple[Tensor, Tensor]]

__all__ = ["accumulate_gradients", "own_share", "sum_over_processes"]


def own_share(processes: Processes, count: int) -> tuple[slice, float]:
    """Which images of a batch are this process's, and their share of it.

    Args:
        processes: Those that share the batch.
        count: Images in the batch, at least one.

    Returns:
        Their places in the batch, and how much they count. Where there are fewer images than
        processes, one without any takes part in the sums with an image that counts nothing.
    """
    own = slice(processes.rank, None, processes.count)
    share = len(range(count)[own]) / count
    return (own, share) if share else (slice(0, 1), 0.0)


def accumulate_gradients(
    optimizer: torch.optim.Optimizer,
    losses: Losses,
    batch: Sequence[Tensor],
    share: float,
    size: int,
) -> Tensor:
    """Leave the gradients of a batch in the parameters, from so many images at a time.

    An attempt before, whatever became of it, leaves no trace.

    Args:
        optimizer: Of the parameters.
        losses: Takes a part of each tensor of the batch. Gives the loss, and a tensor of what is
            to be known. Both are means over the images, so that the parts add up to the whole.
        batch: Tensors whose first dimension are the images.
        share: How much the batch counts.
        size: Images at a time.

    Returns:
        What is to be known of the batch, times its share.
    """
    optimizer.zero_grad()
    count = len(batch[0])
    sums = []
    for part in zip(*(torch.split(tensor, size) for tensor in batch), strict=True):
        loss, found = losses(*part)
        weight = share * (len(part[0]) / count)
        torch.autograd.backward(loss * weight)
        sums.append(found.detach() * weight)
    return torch.stack(sums).sum(dim=0)


def sum_over_processes(
    processes: Processes, optimizer: torch.optim.Optimizer, found: Tensor
) -> None:
    """Add up what :func:`accumulate_gradients` left and returned, in place.

    No process may come here from within an attempt: others would wait for one that begins anew.

    Raises:
        LostProcessError: Another process has ended.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    processes.sum_([*(p.grad for p in parameters if p.grad is not None), found])
