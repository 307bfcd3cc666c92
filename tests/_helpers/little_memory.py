"""A model that runs out of memory where a GPU would: in a forward pass of too many images."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn


@contextlib.contextmanager
def room_for(
    model: nn.Module, most: int, *, before: str = "norm", gradients: bool | None = None
) -> Iterator[list[int]]:
    """Let a model run out of memory for more than so many images.

    Args:
        model: Any model.
        most: Images that fit.
        before: Module at whose start the error comes. Behind the last block hooks have collected a
            lot.
        gradients: In passes with gradients alone, or without them; None in both.

    Yields:
        How many images each of these passes has tried.
    """
    seen: list[int] = []

    def check(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if gradients is not None and torch.is_grad_enabled() is not gradients:
            return
        seen.append(len(inputs[0]))
        if len(inputs[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = model.get_submodule(before).register_forward_pre_hook(check)
    try:
        yield seen
    finally:
        handle.remove()
