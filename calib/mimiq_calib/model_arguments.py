"""Which arguments a model's constructor may be given: those that say what the model is.

They come from the command line, from a hub's configuration and from the ``run.json`` of others,
and timm takes much else by the same way: files to read, downloads, devices, another kind of model.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer

from mimiq_runtime.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["check_arguments"]

LARGEST_ARGUMENT, MOST_BLOCKS = 65_536, 1_024
"""Of the numbers that a model's constructor is given; each block takes time and memory."""

_PLACEMENT = frozenset({"self", "device", "dtype"})


def check_arguments(name: str, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that are not of the architecture, or larger than any model's.

    Args:
        name: The model's, for the message.
        arguments: What timm would be given.

    Raises:
        InvalidInputError: One of them is of no constructor of a model that can be converted, says
            where the model is placed, or is too large a number.
    """
    known = _of_the_architecture()
    for key, value in arguments.items():
        if key not in known:
            raise InvalidInputError(
                f"timm cannot create {name} with the argument {key[:80]!r}: expected one that says "
                "what a vision transformer is, such as img_size or depth; leave it out."
            )
        counts = value if isinstance(value, list | tuple) else [value]
        limit = MOST_BLOCKS if "depth" in key else LARGEST_ARGUMENT
        if any(isinstance(count, int | float) and not abs(count) <= limit for count in counts):
            raise InvalidInputError(
                f"The model's argument {key} may be at most {limit}, got {_shown(value)}; lower it."
            )


@functools.cache
def _of_the_architecture() -> frozenset[str]:
    constructors = (VisionTransformer.__init__, SwinTransformer.__init__)
    names = {name for each in constructors for name in inspect.signature(each).parameters}
    return frozenset(names - _PLACEMENT)


def _shown(value: Any) -> str:
    try:
        return f"{value!r:.80}"
    except ValueError:  # Python writes no number of more than 4300 digits
        return "a number of thousands of digits"
