"""How well the estimate without data predicts the truth: the demo's model at several bit widths.

    python benchmarks/estimate_digits.py OUTPUT

Makes a run for each width and each fine-tuning in OUTPUT (what is there already is kept), measures
it on the demo's held-out digits in torch, and prints a Markdown table. The settings of the
reconstruction are those that the figures in docs/estimate.md were made with.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import torch

from mimiq_calib.pixels import PixelScale
from mimiq_calib.recipe import FineTuning
from mimiq_calib.run_models import load_student, load_teacher
from mimiq_deploy.calibration import CalibrationRequest, calibrate
from mimiq_deploy.demo.digits import load_digits_split
from mimiq_deploy.demo.story import demo_model
from mimiq_deploy.recipe_loading import load_recipe
from mimiq_runtime.estimate import read_estimate

WIDTHS = ("w4a4", "w3a3", "w2a2")
SETTINGS = (
    "synthesis.held_out=64",
    "reconstruction.iterations=200",
    "reconstruction.learning_rate=1e-4",
    "reconstruction.scale_learning_rate=1e-3",
)


def main(output: Path) -> None:
    description, weights = demo_model()
    digits = load_digits_split()
    print("| bits | fine-tuning | estimated share kept | real share kept | top-1 |")
    print("|---|---|---|---|---|")
    for bits, fine_tuning in itertools.product(WIDTHS, FineTuning):
        settings = [*SETTINGS, f"fine_tuning={fine_tuning}"]
        request = CalibrationRequest(
            model=description["model"],
            recipe=load_recipe("demo", bits=bits, settings=settings),
            checkpoint=weights,
            num_classes=description["num_classes"],
            model_arguments=description["model_args"],
            preprocessing=description["preprocessing"],
        )
        run = calibrate(request, output / f"{bits}-{fine_tuning}", resume=True)
        scale = PixelScale(run.manifest.preprocessing, torch.device("cpu"))
        images = scale.normalise(scale.to_unit(torch.from_numpy(digits.test_images)[:, None]))
        labels = torch.from_numpy(digits.test_labels)
        with torch.inference_mode():
            exact, quantized = (
                float((model(images).argmax(-1) == labels).float().mean())
                for model in (load_teacher(run), load_student(run))
            )
        cost = read_estimate(run)
        assert cost is not None  # the settings ask for it
        interval = f"{cost.accuracy_kept_low:.1%} to {cost.accuracy_kept_high:.1%}"
        print(
            f"| {bits} | {fine_tuning} | {cost.accuracy_kept:.1%} ({interval}) "
            f"| {quantized / exact:.1%} | {quantized:.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
