"""Similarity of heads, or of patches, in every layer of a model, over places in the image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mimiq_calib.conversion.attention import ExposedAttention
from mimiq_calib.conversion.window_attention import ExposedWindowAttention
from mimiq_calib.synthesis.head_similarity import head_similarity
from mimiq_calib.synthesis.patch_entropy import patch_similarities

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

__all__ = ["layer_patch_similarities", "layer_similarities"]


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
    prefix = int(getattr(model, "num_prefix_tokens", 0))
    return [
        _of_windows(layer, tap)
        if isinstance(layer, ExposedWindowAttention)
        else head_similarity(tap, prefix_tokens=prefix)
        for layer, tap in zip(_attentions(model), logits, strict=True)
    ]


def layer_patch_similarities(
    model: nn.Module, head_outputs: Sequence[Tensor], batch_size: int
) -> list[Tensor]:
    """Cosine similarity of every pair of patches, layer by layer.

    What is no place in the image does not count. In a Swin, the patches of one window are
    compared, as in the authors' code; also those that a shifted window's mask keeps apart.

    Args:
        model: The model with exposed attention that gave the outputs.
        head_outputs: What :func:`mimiq_calib.taps.attention_taps` recorded in one forward pass.
        batch_size: Number of images.

    Returns:
        For each layer ``(batch, pairs)``, as :func:`patch_similarities` gives them.
    """
    prefix = int(getattr(model, "num_prefix_tokens", 0))
    return [
        patch_similarities(
            tap, batch_size, prefix_tokens=prefix, places=getattr(layer, "places", None)
        )
        for layer, tap in zip(_attentions(model), head_outputs, strict=True)
    ]


def _attentions(model: nn.Module) -> list[ExposedAttention]:
    return [module for module in model.modules() if isinstance(module, ExposedAttention)]


def _of_windows(layer: ExposedWindowAttention, logits: Tensor) -> Tensor:
    if layer.visible is None:
        return head_similarity(logits)
    by_image = logits.view(-1, len(layer.visible), *logits.shape[1:])
    similarity = head_similarity(by_image, layer.visible)
    return similarity if layer.places is None else similarity[:, layer.places]
