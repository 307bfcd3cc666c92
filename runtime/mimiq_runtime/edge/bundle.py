"""A bundle on the device: opened only when every file is the one that was packed."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from mimiq_runtime.bounded_file import read_text
from mimiq_runtime.edge.engine import LOADERS
from mimiq_runtime.errors import BundleError
from mimiq_runtime.input_form import InputForm
from mimiq_runtime.input_limits import FARTHEST_MEAN, LARGEST_INPUT, LARGEST_STD, SMALLEST_STD
from mimiq_runtime.preprocessing import CROP_MODES, FILTERS
from mimiq_runtime.strict_json import read_json

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["MANIFEST", "SCHEMA_VERSION", "Bundle", "open_bundle"]

MANIFEST = "manifest.json"

SCHEMA_VERSION = 1
"""Raised whenever an older runner could misread a newer bundle."""


@dataclass(frozen=True)
class Bundle:
    """What the runner needs to know of a bundle.

    Attributes:
        engine: Name of the engine.
        model: The file that the engine opens.
        takes: The form of the images that the model takes.
        preprocessing: The fields of :class:`mimiq_runtime.manifest.Preprocessing`.
        labels: Name of each class, or None.
        version_compatible: Whether a TensorRT plan was built for later versions, too.
    """

    engine: str
    model: Path
    takes: InputForm
    preprocessing: Any
    labels: tuple[str, ...] | None
    version_compatible: bool


def open_bundle(folder: Path) -> Bundle:
    """Check the SHA-256 of every file that the manifest lists, then describe the bundle.

    This finds what was lost or changed on the way. It is no protection against somebody who
    changes the manifest, too: for that, compare the manifest's own digest with the one that
    ``mimiq-deploy bundle`` printed.

    Raises:
        BundleError: The manifest is missing, damaged or of a newer version, or a file is missing
            or has another content.
    """
    manifest = _read_manifest(folder)
    try:
        faults = [
            f"{name} {fault}"
            for name, record in manifest["files"].items()
            if (fault := _fault(folder, name, record["sha256"]))
        ]
        if faults:
            raise BundleError(f"This bundle is not complete: {', '.join(faults)}; copy it again.")
        return _describe(folder, manifest)
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise _damaged(folder / MANIFEST) from error


def _describe(folder: Path, manifest: dict[str, Any]) -> Bundle:
    labels, engine = manifest["labels"], manifest["engine"]
    if engine not in LOADERS or not isinstance(manifest["version_compatible"], bool):
        raise ValueError("the engine is not known")
    if not {manifest["model_file"], labels or manifest["model_file"]} <= set(manifest["files"]):
        raise ValueError("the model or the labels have no digest")
    return Bundle(
        engine=engine,
        model=folder / manifest["model_file"],
        takes=InputForm(manifest["takes"]),
        preprocessing=_preprocessing(**manifest["preprocessing"]),
        labels=None if labels is None else tuple(read_text(folder / labels).splitlines()),
        version_compatible=manifest["version_compatible"],
    )


def _preprocessing(
    input_size: Any, mean: Any, std: Any, interpolation: Any, crop_pct: Any, crop_mode: Any
) -> SimpleNamespace:
    """The fields, of the types and within the limits of the class that is not on the device."""
    fits = (
        [type(size) for size in input_size] == [int] * 3
        and min(input_size) > 0
        and math.prod(input_size) <= LARGEST_INPUT
        and len(mean) == len(std) == input_size[0]
        and {type(value) for value in (*mean, *std, crop_pct)} <= {int, float}
        and all(abs(value) <= FARTHEST_MEAN for value in mean)
        and all(SMALLEST_STD <= value <= LARGEST_STD for value in std)
        and 0 < crop_pct <= 1
        and interpolation in FILTERS
        and crop_mode in CROP_MODES
    )
    if not fits:
        raise ValueError("pictures cannot be prepared so")
    return SimpleNamespace(
        input_size=input_size,
        mean=mean,
        std=std,
        interpolation=interpolation,
        crop_pct=crop_pct,
        crop_mode=crop_mode,
    )


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = read_json(path)
        version = manifest["schema_version"]
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}; copy it again.") from error
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path) from error
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"Expected a bundle of schema version {SCHEMA_VERSION}, got {version}; use the run.py "
            "that came with it."
        )
    return dict(manifest)


def _damaged(path: Path) -> BundleError:
    return BundleError(f"{path} is damaged; copy the bundle again.")


def _fault(folder: Path, name: str, sha256: str) -> str | None:
    path = folder / name
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        return "lies outside of the bundle"
    if not path.is_file():
        return "is missing"
    try:
        with path.open("rb") as file:
            same = hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if same else "was changed"
