"""Names in the checkpoints of original releases and of older programs, as timm has them today."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

__all__ = ["todays_names"]

_COMPUTED = (".attn_mask", ".relative_position_index")
_CLASSIFIER = {"head.weight": "head.fc.weight", "head.bias": "head.fc.bias"}
_FIRST_MERGING = "layers.0.downsample.reduction.weight"


def todays_names(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename what has another name today; no value is changed.

    1. What the model computes by itself goes: index and mask of Swin's windows, which older
       versions of timm and the original release store.
    2. DeiT-3's release has ``gamma_1`` for ``ls1.gamma``.
    3. Swin's release has patch merging at the end of a stage, timm at the start of the next one;
       and ``head`` for ``head.fc``.

    Args:
        model: The model that is to take the weights.
        weights: By name, as a checkpoint has them; a prefix of ``DataParallel`` is removed.

    Returns:
        By today's names. A name that no rule is for stays, and its misfit is reported where the
        weights are loaded.
    """
    expected = model.state_dict().keys()
    plain = {name.removeprefix("module."): value for name, value in weights.items()}
    merged_early = _FIRST_MERGING in plain and _FIRST_MERGING not in expected
    renamed = {}
    for name, value in plain.items():
        if name.endswith(_COMPUTED) and name not in expected:
            continue
        today = re.sub(r"\.gamma_([12])$", r".ls\1.gamma", name)
        if merged_early:
            today = re.sub(r"^layers\.(\d+)\.downsample", _next_stage, today)
        if today in _CLASSIFIER and today not in expected:
            today = _CLASSIFIER[today]
        renamed[today if today in expected else name] = value
    return renamed


def _next_stage(match: re.Match[str]) -> str:
    return f"layers.{int(match[1]) + 1}.downsample"
