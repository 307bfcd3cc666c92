"""Accuracy and parity of a model on labelled photographs, which nothing saw before validation.

    python benchmarks/accuracy_on_photos.py CHECKPOINT PHOTOS OUTPUT [--bits w8a8 w4a8 w4a4]
                                          [--yardstick 32] [--recipe quick] [--set KEY=VALUE]
                                          [--model deit_tiny_patch16_224] [--device cpu]

CHECKPOINT: safetensors of a timm model of ImageNet-1k. PHOTOS: a folder with labels.csv or one
folder a class. OUTPUT: where the runs are left; finished ones are kept. For each bit width a run
is calibrated, exported for ONNX Runtime and validated there; the images are made once, for the
first. With --yardstick the same recipe is also calibrated on so many of the photographs instead
of synthetic images: what real data would have been worth. Prints a Markdown table. "Estimated" is
what calibrate says without data (docs/estimate.md), to be held against "share kept".
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from mimiq_deploy.calibration import CalibrationRequest, calibrate
from mimiq_deploy.exporting import export_run
from mimiq_deploy.recipe_loading import load_recipe
from mimiq_deploy.validation import GateLimits, validate_run
from mimiq_runtime.dataset import open_labelled_images
from mimiq_runtime.estimate import read_estimate
from mimiq_runtime.run_directory import RunDirectory

CLASSES = 1000
ENGINE = "ort-cpu"
HEAD = (
    "| images | bits | FP32 % | quantized torch % | ONNX Runtime % | points lost | share kept % "
    "| estimated % | agreement % | SQNR dB | made in s |"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--bits", nargs="+", default=["w8a8", "w4a8", "w4a4"])
    parser.add_argument("--yardstick", type=int, metavar="N", help="also calibrate on N photos")
    parser.add_argument("--recipe", default="quick")
    parser.add_argument("--set", dest="choices", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    print(HEAD)
    print("|" + "---|" * HEAD.count(" | ") + "---|")
    settings = {"mimiq": list[str]()}
    if chosen.yardstick:
        folder = pick(chosen.photos, chosen.yardstick, chosen.output / "real-images")
        settings[f"{chosen.yardstick} photographs"] = [
            "synthesis.source=folder",
            f"synthesis.folder={folder}",
            f"synthesis.num_images={chosen.yardstick}",
            f"observation.num_images={chosen.yardstick}",
            "synthesis.held_out=0",
        ]
    for images, choices in settings.items():
        first = None
        for bits in chosen.bits:
            request = CalibrationRequest(
                model=chosen.model,
                recipe=load_recipe(chosen.recipe, bits=bits, settings=[*chosen.choices, *choices]),
                checkpoint=chosen.checkpoint,
                num_classes=CLASSES,
                device=chosen.device,
            )
            output = chosen.output / f"{images.replace(' ', '-')}-{bits}"
            run = calibrate(request, output, resume=True, images_from=first)
            first = first or run
            print(row(images, bits, run, chosen.photos), flush=True)


def pick(photos: Path, count: int, folder: Path) -> Path:
    """A folder with so many of the photographs, evenly chosen, without their labels."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = open_labelled_images(photos, num_classes=CLASSES).paths
    for index in range(count):
        path = paths[index * len(paths) // count]
        shutil.copyfile(path, folder / f"{index:03d}{path.suffix}")
    return folder.resolve()


def row(images: str, bits: str, run: RunDirectory, photos: Path) -> str:
    export_run(run, ENGINE)
    written = RunDirectory.open(run.root)
    report = validate_run(written, [ENGINE], pictures=photos, limits=GateLimits())
    engine = report.engines[ENGINE]
    assert engine.accuracy is not None
    exact = report.references["full-precision"].top1
    parity = engine.parity["fake-quantized"]
    stages = run.manifest.stages
    seconds = sum(stage.seconds or 0.0 for name, stage in stages.items() if "/" not in name)
    sqnr = "identical" if parity.sqnr_db is None else f"{parity.sqnr_db:.1f}"
    figures = (
        exact,
        report.references["fake-quantized, floating-point products"].top1,
        engine.accuracy.top1,
        exact - engine.accuracy.top1,
        engine.accuracy.top1 / exact,
    )
    cost = read_estimate(run)
    estimated = "-" if cost is None else f"{100 * cost.accuracy_kept:.1f}"
    cells = [images, bits.upper(), *(f"{100 * figure:.1f}" for figure in figures), estimated]
    return (
        "| " + " | ".join([*cells, f"{100 * parity.agreement:.1f}", sqnr, f"{seconds:.0f}"]) + " |"
    )


if __name__ == "__main__":
    main()
