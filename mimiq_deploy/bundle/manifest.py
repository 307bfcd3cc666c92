"""``manifest.json``: what a bundle holds, what it needs, and where it came from."""

from __future__ import annotations

from mimiq_runtime.edge.bundle import SCHEMA_VERSION
from mimiq_runtime.input_form import InputForm
from mimiq_runtime.manifest import FileRecord, Preprocessing
from mimiq_runtime.schema import Schema
from mimiq_runtime.scope import Scope

__all__ = ["BuiltFor", "BundleManifest"]


class BuiltFor(Schema):
    """What a TensorRT plan is bound to.

    Attributes:
        gpu: The GPU that it was built on, as CUDA names it.
        compute_capability: Such as ``8.7``.
        hardware_compatibility: On which other GPUs it may run: ``none``, ``ampere-plus`` or
            ``same-compute-capability``.
        tensorrt: Version that built it.
    """

    gpu: str
    compute_capability: str
    hardware_compatibility: str
    tensorrt: str


class BundleManifest(Schema):
    """The content of ``manifest.json``.

    There is no time in it: the same run gives the same bytes.

    Attributes:
        schema_version: See :data:`mimiq_runtime.edge.bundle.SCHEMA_VERSION`.
        made_by: Name and version of the program.
        engine: Name of the engine that the bundle was made for.
        target: The export that it holds.
        scope: Which products are quantized; None where the export does not say.
        bits: Bit widths in the field's notation, such as ``w4a4``.
        model: timm's name of the architecture.
        weights: Where the full-precision weights came from.
        run: SHA-256 of the run's ``quantized.safetensors``.
        num_classes: Length of the logits.
        model_file: The file that the engine opens.
        takes: The form of the images that the model takes.
        preprocessing: How a picture becomes the model's input.
        labels: File with the name of each class, one a line; None when nobody knows them.
        python: Versions of Python that run the runner.
        requires: What pip must install, as in ``requirements.txt``.
        built_for: What a TensorRT plan is bound to; None for an ONNX file.
        version_compatible: Whether the plan was built for later versions of TensorRT, too.
        files: Digest and size of every other file, by its path.
    """

    schema_version: int = SCHEMA_VERSION
    made_by: str
    engine: str
    target: str
    scope: Scope | None
    bits: str
    model: str
    weights: str
    run: str
    num_classes: int
    model_file: str
    takes: InputForm
    preprocessing: Preprocessing
    labels: str | None
    python: str
    requires: list[str]
    built_for: BuiltFor | None
    version_compatible: bool
    files: dict[str, FileRecord]
