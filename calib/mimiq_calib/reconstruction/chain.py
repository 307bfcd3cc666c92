"""A transformer as a chain: what stands before the blocks, the blocks, and what stands behind.

What one block puts out is what the next one takes in. So the activations of all images can be
carried from block to block, and no block is computed twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from torch import Tensor, nn

from mimiq_calib.conversion.attention import ExposedAttention
from mimiq_runtime.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Chain", "Link"]

STEM, TAIL = "stem", "tail"


class Link(nn.Module):
    """One part of the chain: ``(batch, ...)`` in, ``(batch, ...)`` out.

    Args:
        name: Dotted name of the block; ``stem`` and ``tail`` for the ends.
        parts: The modules whose parameters belong to it.
    """

    def __init__(self, name: str, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.name = name
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the link."""
        y: Tensor = self.parts[0](x)
        return y


class _Stem(Link):
    """From the normalised images to what the first block takes in."""

    def __init__(self, model: nn.Module, first: nn.Module, parts: Sequence[nn.Module]) -> None:
        super().__init__(STEM, parts)
        # In tuples, so that they are no submodules: only the parts are the stem's own.
        self._model, self._first = (model,), (first,)

    def forward(self, x: Tensor) -> Tensor:
        handle = self._first[0].register_forward_pre_hook(_stop)
        try:
            self._model[0](x)
        except _BlocksReached as reached:
            return reached.tokens
        finally:
            handle.remove()
        raise UnsupportedModelError(type(self._model[0]).__name__, "its first block never ran")


class _Tail(Link):
    """From what the last block puts out to the logits, as timm's models have it."""

    def __init__(self, model: nn.Module, parts: Sequence[nn.Module]) -> None:
        super().__init__(TAIL, parts)
        self._model = (model,)

    def forward(self, x: Tensor) -> Tensor:
        model = self._model[0]
        y: Tensor = model.forward_head(model.norm(x))  # type: ignore[operator]
        return y


class Chain:
    """The links of a model, in the order of the computation.

    Args:
        model: A model with exposed attention, quantized or not.

    Attributes:
        links: Stem; one for each block, and for each module with parameters between two blocks;
            tail.

    Raises:
        UnsupportedModelError: It has no blocks with attention.
    """

    def __init__(self, model: nn.Module) -> None:
        pieces = list(_pieces(model))
        blocks = [index for index, (_, piece) in enumerate(pieces) if _holds_attention(piece)]
        if not blocks:
            raise UnsupportedModelError(
                type(model).__name__, "it has no blocks that could be reconstructed one by one"
            )
        first, last = blocks[0], blocks[-1]
        self.links: list[Link] = [
            _Stem(model, pieces[first][1], [piece for _, piece in pieces[:first]]),
            *(Link(name, [piece]) for name, piece in pieces[first : last + 1]),
            _Tail(model, [piece for _, piece in pieces[last + 1 :]]),
        ]

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of normalised images, link by link."""
        x = images
        for link in self.links:
            x = link(x)
        return x


class _BlocksReached(Exception):  # noqa: N818 - a way out, not an error
    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self.tokens = tokens


def _stop(_module: nn.Module, inputs: tuple[Tensor, ...]) -> NoReturn:
    raise _BlocksReached(inputs[0])


def _pieces(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The largest modules with parameters that are a block, or hold none."""
    for name, child in module.named_children():
        holds_blocks = any(_holds_attention(inner) for inner in child.modules())
        if holds_blocks and not _holds_attention(child):
            yield from _pieces(child, f"{prefix}{name}.")
        elif next(child.parameters(), None) is not None:
            yield f"{prefix}{name}", child


def _holds_attention(module: nn.Module) -> bool:
    return any(isinstance(child, ExposedAttention) for child in module.children())
