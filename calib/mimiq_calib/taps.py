"""Reading the tensors inside the attention of a model while it runs."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any, Literal

from mimiq_calib.conversion.attention import ExposedAttention

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

__all__ = ["Place", "attention_taps"]

Place = Literal["logits", "head_outputs"]
"""Which tensor of an attention is read; see :func:`attention_taps`."""


@contextlib.contextmanager
def attention_taps(model: nn.Module, place: Place) -> Iterator[list[Tensor]]:
    """Record one tensor of every attention module in each forward pass.

    Args:
        model: A model with exposed attention.
        place: ``logits``, raw products of queries and keys ``(batch, heads, queries, keys)``; or
            ``head_outputs``, the weighted values ``(batch, heads, tokens, head_dim)``, in the units
            of the original model: equalisation may have divided their channels.

    Yields:
        A list that holds, after a forward pass, one tensor a layer in the order of the layers;
        it is emptied when the next forward pass starts. Gradients flow through them.
    """
    recorded: list[Tensor] = []
    handles = [model.register_forward_pre_hook(lambda *_: recorded.clear())]
    for module in model.modules():
        if isinstance(module, ExposedAttention):
            unit = module.head_unit if place == "head_outputs" else None
            tap: nn.Module = getattr(module, place)
            handles.append(tap.register_forward_hook(functools.partial(_record, recorded, unit)))
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()
        recorded.clear()


def _record(
    recorded: list[Tensor], unit: Tensor | None, _module: nn.Module, _inputs: Any, output: Tensor
) -> None:
    recorded.append(output if unit is None else output * unit)
