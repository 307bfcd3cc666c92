"""Head similarity of every layer of a model, over what is a place in the image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mimiq_calib.conversion.attention import ExposedAttention
from mimiq_calib.conversion.window_attention import ExposedWindowAttention
from mimiq_calib.synthesis.head_similarity import head_similarity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

__all__ = ["layer_similarities"]


def layer_similarities(model: nn.Module, logits: Sequence[Tensor]) -> list[Tensor]:
    """SSIM of every pair of heads, layer by layer.

    Tokens that are no places in the image count neither as queries nor as keys: the prefix
    (class, distillation and register tokens), and what pads the windows of a Swin. In a shifted
    window a query's map are the keys that its mask lets it see; the authors' code takes all of
    them (docs/method.md, section 7).

    Args:
        model: The model with exposed attention that gave the logits.
        logits: What :func:`mimiq_calib.taps.attention_taps` recorded in one forward pass.

    Returns:
        For each layer ``(..., heads, heads)``, as :func:`head_similarity` gives them; the leading
        axes run over the images' queries.
    """
    layers = [module for module in model.modules() if isinstance(module, ExposedAttention)]
    prefix = int(getattr(model, "num_prefix_tokens", 0))
    return [
        _of_windows(layer, tap)
        if isinstance(layer, ExposedWindowAttention)
        else head_similarity(tap, prefix_tokens=prefix)
        for layer, tap in zip(layers, logits, strict=True)
    ]


def _of_windows(layer: ExposedWindowAttention, logits: Tensor) -> Tensor:
    if layer.visible is None:
        return head_similarity(logits)
    by_image = logits.view(-1, len(layer.visible), *logits.shape[1:])
    similarity = head_similarity(by_image, layer.visible)
    return similarity if layer.places is None else similarity[:, layer.places]
