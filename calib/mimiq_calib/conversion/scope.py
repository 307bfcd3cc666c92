"""A student that quantizes fewer products than it was trained with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mimiq_calib.conversion.convert import quantizers_of
from mimiq_runtime.scope import ATTENTION_QUANTIZERS, Scope

if TYPE_CHECKING:
    from torch import nn

__all__ = ["limit_scope"]


def limit_scope(student: nn.Module, scope: Scope) -> None:
    """Let the operands of the attention's own products pass, or quantize them again.

    Args:
        student: Changed in place: quantizers are switched, none is taken away.
        scope: ``linear`` switches those in :data:`~mimiq_runtime.scope.ATTENTION_QUANTIZERS` off,
            ``full`` on.
    """
    for quantizer in quantizers_of(student):
        if quantizer.name.rpartition(".")[2] in ATTENTION_QUANTIZERS:
            quantizer.enabled = scope is Scope.FULL
