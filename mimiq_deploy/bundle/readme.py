"""``README.md`` of a bundle: for the person on the device, who has never seen this program."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mimiq_runtime.input_form import InputForm

if TYPE_CHECKING:
    from mimiq_deploy.bundle.manifest import BuiltFor, BundleManifest

__all__ = ["readme"]

_PAGE = """\
# {model}, {bits}, for {engine}

- model: `{model}`, {classes} classes, {bits}; file `{file}`, engine `{engine}`
- input: {input}
- output: `logits`, float32 `(batch, {classes})`; their softmax are the probabilities
- labels: {labels}

## Install

Python {python}, and what `requirements.txt` lists:

```
python3 -m venv venv
venv/bin/pip install -r requirements.txt
```
{drivers}
## Use

```
venv/bin/python run.py PICTURE...         # the five most probable classes of each
venv/bin/python run.py --json PICTURE...
venv/bin/python run.py --verify           # only checks the files
```

Each start compares every file with the SHA-256 in `manifest.json`, and refuses to run when one is
missing or changed. Exit code 0: done; 2: an error, said in one sentence.

## In a program of your own

`run.py` is short and shows all steps. A picture becomes the model's input like this; the numbers
are in `manifest.json` under `preprocessing`, the code is `mimiq_runtime/preprocessing.py`:

1. Read it upright, as 8-bit {mode}.
2. Resize it ({interpolation}): {height} x {width} pixels are {crop} of {sides}. Crop them from the
   centre.
3. {last_step}

Made by {made_by} from the run {run}.
"""

_DRIVERS = {
    "ort-cuda": (
        "NVIDIA's driver, CUDA and cuDNN; `pip install 'onnxruntime-gpu[cuda,cudnn]'` brings the "
        "last two."
    ),
    "ort-trt": (
        "NVIDIA's driver, and CUDA and cuDNN as `onnxruntime-gpu` asks for. The engine is built at "
        "the first picture, which takes minutes, and is kept in `~/.cache/mimiq-deploy`."
    ),
    "trt": "NVIDIA's driver.",
}

_OTHER_GPUS = {
    "none": "It runs on this model of GPU only.",
    "ampere-plus": "It also runs on other GPUs of Ampere and later.",
    "same-compute-capability": "It also runs on GPUs of the same compute capability.",
}


def readme(manifest: BundleManifest) -> str:
    """The page, in Markdown."""
    given = manifest.preprocessing
    channels, height, width = given.input_size
    return _PAGE.format(
        model=manifest.model,
        bits=manifest.bits,
        engine=manifest.engine,
        classes=manifest.num_classes,
        file=manifest.model_file,
        input=_describe_input(manifest),
        labels=f"`{manifest.labels}`, one class a line"
        if manifest.labels
        else "not known; the answers are class indices",
        python=manifest.python,
        drivers=_drivers(manifest.engine, manifest.built_for),
        mode="grayscale" if channels == 1 else "RGB",
        interpolation=given.interpolation,
        height=height,
        width=width,
        crop=f"{given.crop_pct:g}",
        sides="each side" if given.crop_mode == "squash" else "its shorter side",
        last_step=_last_step(manifest),
        made_by=manifest.made_by,
        run=manifest.run[:16],
    )


def _describe_input(manifest: BundleManifest) -> str:
    channels, height, width = manifest.preprocessing.input_size
    if manifest.takes is InputForm.PIXELS:
        return f"`pixels`, uint8 `(batch, {height}, {width}, {channels})`; the model normalises"
    return f"`images`, float32 `(batch, {channels}, {height}, {width})`, normalised"


def _drivers(engine: str, built_for: BuiltFor | None) -> str:
    sentences = []
    if engine in _DRIVERS:
        sentences.append(f"It also needs {_DRIVERS[engine]}")
    if built_for is not None:
        sentences.append(
            f"The plan was built with TensorRT {built_for.tensorrt} on {built_for.gpu} (compute "
            f"capability {built_for.compute_capability}). "
            f"{_OTHER_GPUS[built_for.hardware_compatibility]}"
        )
    return "".join(f"\n{sentence}\n" for sentence in sentences)


def _last_step(manifest: BundleManifest) -> str:
    if manifest.takes is InputForm.PIXELS:
        return "Give the pixels as they are, channels last."
    given = manifest.preprocessing
    mean, std = (", ".join(f"{value:g}" for value in row) for row in (given.mean, given.std))
    return f"`(pixel / 255 - mean) / std` with mean {mean} and std {std}; channels first."
