"""From a checkpoint to a checked 4-bit ONNX model: ``python main.py OUTPUT``."""

from __future__ import annotations

import json
import sys
from importlib.resources import as_file, files
from pathlib import Path

from mimiq_deploy.calibration import CalibrationRequest, calibrate
from mimiq_deploy.demo.digits import load_digits_split, write_image_folder
from mimiq_deploy.exporting import export_run
from mimiq_deploy.recipe_loading import load_recipe
from mimiq_deploy.validation import GateLimits, validate_run

ENGINE = "ort-cpu"

SMALL = (
    "synthesis.num_images=16",
    "synthesis.batch_size=16",
    "synthesis.iterations=20",
    "distillation.epochs=4",
)
"""Settings for a quick look; leave them out for a result."""


def main(output: Path) -> int:
    """Calibrate, export and validate the built-in model of handwritten digits.

    Args:
        output: Folder to make.

    Returns:
        The exit code: 1 when a gate failed.
    """
    built_in = files("mimiq_deploy.demo")
    description = json.loads((built_in / "digits_vit.json").read_text(encoding="utf-8"))
    with as_file(built_in / "digits_vit.safetensors") as weights:
        request = CalibrationRequest(
            model=description["model"],
            recipe=load_recipe("demo", bits="w4a4", settings=SMALL),
            checkpoint=weights,
            model_arguments=description["model_args"],
            preprocessing=description["preprocessing"],
            labels=description["labels"],
        )
        run = calibrate(request, output / "run")

    weights_of = {row.name: row for row in run.quantization_table().tensors}
    row = weights_of["blocks.0.mlp.fc1.weight_quantizer"]
    print(f"{row.name}: codes {row.qmin}..{row.qmax}, one scale a slice of axis {row.axis}")

    record = export_run(run, ENGINE)
    print(f"{len(record.quantized)} quantizers exported, {record.onnx.bytes / 1e6:.2f} MB")

    digits = load_digits_split()
    write_image_folder(digits.test_images[:100], digits.test_labels[:100], output / "pictures")
    report = validate_run(
        run, [ENGINE], pictures=output / "pictures", limits=GateLimits(min_agreement=0.9)
    )
    engine = report.engines[ENGINE]
    print(f"agreement with the torch model: {engine.parity['fake-quantized'].agreement:.2f}")
    if engine.accuracy is not None:
        print(f"top-1 on held-out digits: {engine.accuracy.top1:.2f}")
    return 0 if report.passed else 1


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: main.py OUTPUT (a folder to make)")
    sys.exit(main(Path(sys.argv[1])))
