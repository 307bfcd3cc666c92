"""Runs of models with random weights, for what depends on shapes alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["make_random_run"]


def make_random_run(model: str, bits: str, folder: Path) -> int:
    """Calibrate timm's ``model`` with weights from a fixed seed on two noise images.

    Args:
        model: timm's name.
        bits: Such as ``w4a8``.
        folder: Gets ``weights.safetensors`` and the run, ``run``.

    Returns:
        The number of weights.

    Raises:
        UnsupportedModelError: mimiq-deploy does not convert this model.
    """
    import timm
    import torch
    from safetensors.torch import save_file

    from mimiq_deploy.calibration import CalibrationRequest, calibrate
    from mimiq_deploy.recipe_loading import load_recipe

    torch.manual_seed(0)
    weights = timm.create_model(model, pretrained=False).state_dict()
    checkpoint = folder / "weights.safetensors"
    save_file(weights, checkpoint)
    recipe = load_recipe(
        "quick",
        bits=bits,
        settings=(
            "synthesis.source=noise",
            "synthesis.num_images=2",
            "quantization.weight_range=minmax",
            "quantization.activation_range=minmax",
            "synthesis.dead_leaves=0",
            "synthesis.held_out=0",
            "fine_tuning=none",
        ),
    )
    calibrate(CalibrationRequest(model=model, recipe=recipe, checkpoint=checkpoint), folder / "run")
    return sum(tensor.numel() for tensor in weights.values())
