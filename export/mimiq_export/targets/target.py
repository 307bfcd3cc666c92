"""What a target is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mimiq_runtime.scope import Scope

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Target"]


@dataclass(frozen=True)
class Target:
    """A kind of engine, and how a captured graph is rewritten for it.

    Attributes:
        name: As the user writes it.
        opset: Version of the ONNX operators.
        passes: Applied from first to last.
        default_scope: Which products are quantized unless the user says so: the faster choice
            that keeps parity.
        half_baseline: Whether its engine is fast in half precision, so that the full-precision
            model is written in half precision, too, to be compared with.
    """

    name: str
    opset: int
    passes: tuple[ir.passes.PassBase, ...]
    default_scope: Scope = Scope.LINEAR
    half_baseline: bool = False
