"""Which arithmetic the forward and backward passes use."""

from __future__ import annotations

import torch

from mimiq_calib.recipe import Precision

__all__ = ["autocast", "resolve_precision"]


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """Turn ``auto`` into bfloat16 where the device computes it natively, else single precision.

    Args:
        precision: What the recipe asks for.
        device: Where the model runs.
    """
    if precision is not Precision.AUTO:
        return precision
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        # Emulated bfloat16 is slower than single precision, so the instructions themselves count.
        native = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return Precision.BF16 if native else Precision.FP32


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """A context in which matrix products use the given precision (resolved, not ``auto``)."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision is Precision.BF16)
