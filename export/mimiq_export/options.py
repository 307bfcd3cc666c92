"""What a user may add to any export, apart from the target: each choice is one more pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mimiq_runtime.errors import InvalidInputError

if TYPE_CHECKING:
    import onnx_ir as ir

    from mimiq_runtime.manifest import Preprocessing

__all__ = ["PLAIN", "ExportOptions"]

_NOT_PACKED = {
    "fp16": "it has no codes to pack",
    "fp32": "it has no codes to pack",
    "ort-cuda": "nothing is computed in integers there",
    "trt": "TensorRT has INT4 weights only beside activations in floating point",
}
_NOT_FROM_PIXELS = {
    "trt": "TensorRT takes uint8 only to cast it at once, and was not seen to run such a graph",
}


@dataclass(frozen=True)
class ExportOptions:
    """Choices that leave the meaning of a model as it is.

    Attributes:
        packed_int4: Store the codes of weights of at most 4 bits as ONNX INT4, two in a byte.
        with_preprocessing: Take uint8 pixels (batch, height, width, channels) and normalise them
            inside the graph.
    """

    packed_int4: bool = False
    with_preprocessing: bool = False

    def check(self, target: str) -> None:
        """Refuse what a target cannot have, before any work.

        Raises:
            InvalidInputError: An option does not go with the target.
        """
        if self.packed_int4 and target in _NOT_PACKED:
            raise InvalidInputError(
                f"Packed INT4 weights do not go with the target {target}, because "
                f"{_NOT_PACKED[target]}; export it without --packed-int4, or for ort-cpu or "
                "openvino."
            )
        if self.with_preprocessing and target in _NOT_FROM_PIXELS:
            raise InvalidInputError(
                f"Preprocessing inside does not go with the target {target}, because "
                f"{_NOT_FROM_PIXELS[target]}; export it without --with-preprocessing."
            )

    def passes(self, preprocessing: Preprocessing) -> tuple[ir.passes.PassBase, ...]:
        """The passes of these choices, to be applied after those of the target."""
        from mimiq_export.passes.normalise_pixels import NormalisePixelsPass
        from mimiq_export.passes.pack_int4_weights import PackInt4WeightsPass

        chosen: list[ir.passes.PassBase] = []
        if self.with_preprocessing:
            chosen.append(NormalisePixelsPass(preprocessing))
        if self.packed_int4:
            chosen.append(PackInt4WeightsPass())
        return tuple(chosen)


PLAIN = ExportOptions()
"""int8 codes and a normalised input."""
