"""Making a bundle of a run for one engine, or a model of a Triton repository; without torch."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from mimiq_deploy.bundle.device_files import RUNNER, device_files
from mimiq_deploy.bundle.manifest import BuiltFor, BundleManifest
from mimiq_deploy.bundle.packed_model import find_model
from mimiq_deploy.bundle.packing import archive_stem, check_form, pack
from mimiq_deploy.bundle.readme import readme
from mimiq_deploy.bundle.requirements import PYTHON, requirements_of
from mimiq_deploy.bundle.triton import LABELS, check_name, is_model_folder, triton_files
from mimiq_runtime.atomic import sha256_of
from mimiq_runtime.edge.bundle import MANIFEST
from mimiq_runtime.errors import InvalidInputError
from mimiq_runtime.manifest import FileRecord
from mimiq_runtime.schema import Schema

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mimiq_deploy.bundle.packed_model import PackedModel
    from mimiq_deploy.bundle.packing import Content
    from mimiq_runtime.run_directory import RunDirectory

__all__ = ["BundleSummary", "bundle_run", "triton_model"]


class BundleSummary(Schema):
    """What was written.

    Attributes:
        path: The folder or the archive.
        engine: Name of the engine.
        files: Digest and size of each file, by its path inside.
        manifest_sha256: Digest of the bundle's manifest, which holds all others; None for Triton.
        archive_sha256: Digest of the archive; None for a folder.
        labels: Whether the classes have names.
        requires: What pip must install on the device; empty for Triton.
    """

    path: str
    engine: str
    files: dict[str, FileRecord]
    manifest_sha256: str | None
    archive_sha256: str | None
    labels: bool
    requires: list[str]


def bundle_run(
    run: RunDirectory,
    engine: str,
    output: Path,
    *,
    labels: Sequence[str] | None = None,
    device: str | None = None,
    force: bool = False,
) -> BundleSummary:
    """Pack what a device needs to classify pictures with an engine, and nothing of this program.

    Args:
        run: A run that was exported (and for ``trt`` built) for the engine.
        engine: One of :func:`mimiq_runtime.session.known_engines`.
        output: A folder, or a file that ends in ``.tar.gz``, ``.tgz`` or ``.tar``.
        labels: Name of each class; those of the run if None.
        device: Whose plan, for ``trt``; see :func:`~.packed_model.find_model`.
        force: Replace a bundle that is there.

    Raises:
        InvalidInputError: The run has no such model, the labels do not fit, or there is something
            at ``output`` already, or it ends like an archive of another kind.
    """
    check_form(output)
    model = find_model(run, engine, device=device)
    names = _labels_text(run, labels)
    requires = requirements_of(model)
    files: dict[str, Content] = {
        **device_files(engine),
        model.path.name: model.path,
        **{path.name: path for path in model.beside},
        "requirements.txt": "".join(f"{line}\n" for line in requires).encode(),
    }
    if names is not None:
        files[LABELS] = names.encode()
    manifest = _describe(run, model, files, labels=names is not None, requires=requires)
    # The page is one of the files whose digests the manifest holds.
    files["README.md"] = readme(manifest).encode()
    manifest = manifest.model_copy(update={"files": _records(files)})
    described = manifest.model_dump(mode="json")
    files[MANIFEST] = (json.dumps(described, indent=2, ensure_ascii=False) + "\n").encode()
    pack(files, output, force=force, replaceable=_is_bundle)
    records = _records(files)
    return BundleSummary(
        path=str(output),
        engine=engine,
        files=records,
        manifest_sha256=records[MANIFEST].sha256,
        archive_sha256=_archive_digest(output),
        labels=names is not None,
        requires=requires,
    )


def triton_model(
    run: RunDirectory,
    engine: str,
    output: Path,
    *,
    name: str | None = None,
    max_batch: int = 32,
    labels: Sequence[str] | None = None,
    device: str | None = None,
    force: bool = False,
) -> BundleSummary:
    """Write a model into a model repository of NVIDIA's Triton Inference Server.

    Args:
        run: As for :func:`bundle_run`.
        engine: As for :func:`bundle_run`; it decides on the backend.
        output: The repository, in which other models may lie, or an archive of a new one.
        name: The model's name in Triton; that of timm and the bit widths if None.
        max_batch: Largest batch of an ONNX file.
        labels: As for :func:`bundle_run`.
        device: As for :func:`bundle_run`.
        force: Replace a model of this name.

    Raises:
        InvalidInputError: As for :func:`bundle_run`, or the name is no name.
    """
    check_form(output)
    name = check_name(name or f"{run.manifest.model.name.replace('/', '_')}-{run.manifest.bits}")
    if max_batch < 1:
        raise InvalidInputError(f"The largest batch must be at least 1, got {max_batch}.")
    model = find_model(run, engine, device=device)
    names = _labels_text(run, labels)
    inside = triton_files(model, run.manifest, name=name, labels=names, max_batch=max_batch)
    files = {f"{name}/{path}": content for path, content in inside.items()}
    if archive_stem(output) is None:
        pack(inside, output / name, force=force, replaceable=is_model_folder)
    else:
        pack(files, output, force=force, replaceable=is_model_folder)
    return BundleSummary(
        path=str(output),
        engine=engine,
        files=_records(files),
        manifest_sha256=None,
        archive_sha256=_archive_digest(output),
        labels=names is not None,
        requires=[],
    )


def _labels_text(run: RunDirectory, labels: Sequence[str] | None) -> str | None:
    """One name a line."""
    names = labels if labels is not None else run.manifest.model.labels
    if names is None:
        return None
    classes = run.manifest.model.num_classes
    if len(names) != classes:
        raise InvalidInputError(
            f"The model has {classes} classes, and {len(names)} labels were given."
        )
    return "".join(f"{' '.join(name.split())}\n" for name in names)


def _describe(
    run: RunDirectory,
    model: PackedModel,
    files: dict[str, Content],
    *,
    labels: bool,
    requires: list[str],
) -> BundleManifest:
    manifest = run.manifest
    plan = model.plan
    return BundleManifest(
        made_by=f"mimiq-deploy {version('mimiq-deploy')}",
        engine=model.engine,
        target=model.target,
        scope=model.scope,
        bits=manifest.bits,
        model=manifest.model.name,
        weights=manifest.model.weights,
        run=manifest.files[run.QUANTIZED].sha256,
        num_classes=manifest.model.num_classes,
        model_file=model.path.name,
        takes=model.takes,
        preprocessing=manifest.preprocessing,
        labels=LABELS if labels else None,
        python=PYTHON,
        requires=requires,
        built_for=None
        if plan is None
        else BuiltFor(
            gpu=plan.device.name,
            compute_capability=plan.device.compute_capability,
            hardware_compatibility=plan.options.hardware_compatibility.value,
            tensorrt=plan.libraries["tensorrt"],
        ),
        version_compatible=plan is not None and plan.options.version_compatible,
        files=_records(files),
    )


def _records(files: dict[str, Content]) -> dict[str, FileRecord]:
    return {name: _record(files[name]) for name in sorted(files)}


def _record(content: Content) -> FileRecord:
    if isinstance(content, Path):
        return FileRecord(sha256=sha256_of(content), bytes=content.stat().st_size)
    return FileRecord(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))


def _is_bundle(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() and (folder / RUNNER).is_file()


def _archive_digest(output: Path) -> str | None:
    return None if archive_stem(output) is None else sha256_of(output)
