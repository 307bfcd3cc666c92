"""``validate --per-layer``: the first tensor where an engine and its reference part."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mimiq_deploy.engine_models import engine_model
from mimiq_deploy.implementations import (
    Reference,
    has_torch,
    is_engine,
    quantized_model,
    scope_of,
    title_of,
)
from mimiq_deploy.layer_tensors import TappedModel, write_tapped
from mimiq_runtime.errors import InvalidInputError, MissingDependencyError
from mimiq_runtime.layer_parity import (
    IMAGES,
    LOGITS,
    PREPROCESSING,
    LayerReport,
    LayerRow,
    LayerSums,
    QuantizedValues,
    align_layout,
    find_first_fault,
)
from mimiq_runtime.preprocessing import model_input, normalise
from mimiq_runtime.reference import read_reference
from mimiq_runtime.session import (
    ReadsTensors,
    check_tensors_can_be_read,
    open_reading_session,
    target_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from mimiq_deploy.comparison_data import ComparisonData
    from mimiq_runtime.manifest import Preprocessing
    from mimiq_runtime.run_directory import RunDirectory
    from mimiq_runtime.session import Session

__all__ = ["LAYER_THRESHOLD_DB", "check_layers_can_be_compared", "compare_layers"]

LAYER_THRESHOLD_DB = 50.0
"""Two sides part below this SQNR, unless the user says otherwise (docs/parity.md)."""

LAYER_IMAGES = 32
"""Layers are compared on at most so many images: a fault shows in the first ones."""

# ONNX Runtime fuses behind a quantizer, OpenVINO before it: read elsewhere, both would compute
# the rest of the model in another way (docs/decisions/0030-layers-one-step-at-a-time.md).
_READS_CODES = {"openvino": True, "ort-cpu": False, "ort-cuda": False}


@dataclass(frozen=True, eq=False)
class _Traced:
    """What one side made of a batch.

    Attributes:
        images: The model's normalised input (n, C, H, W).
        codes: By quantizer.
        logits: Array (n, classes).
    """

    images: NDArray[np.float32]
    codes: Mapping[str, QuantizedValues]
    logits: NDArray[np.float32]


class _Side(Protocol):
    """A reference that can tell its codes, given those of the engine."""

    stepwise: bool

    def trace(self, pixels: NDArray[np.uint8], engine: _Traced) -> _Traced: ...


def check_layers_can_be_compared(engine: str, against: str | None) -> None:
    """Refuse what has no quantized tensors to read, before any work.

    Raises:
        EngineError: No tensor inside an engine can be read.
        InvalidInputError: One of both is full precision, or what is examined is no engine.
        MissingDependencyError: The reference needs torch.
    """
    reference = against or Reference.FAKE_QUANTIZED
    if not is_engine(engine):
        raise InvalidInputError(
            f"--per-layer reads the tensors of an engine, and {engine} is none; give an --engine."
        )
    check_tensors_can_be_read(engine)
    if is_engine(reference):
        check_tensors_can_be_read(reference)
        return
    if not Reference(reference).is_quantized:
        raise InvalidInputError(
            f"--per-layer compares quantized tensors, and {reference} has none; compare with "
            f"{Reference.FAKE_QUANTIZED} or with another engine."
        )
    if not has_torch():
        raise MissingDependencyError("torch with timm", "calib")


def compare_layers(
    run: RunDirectory,
    engine: str,
    session: Session,
    *,
    against: str | None = None,
    data: ComparisonData | None = None,
    threshold_db: float = LAYER_THRESHOLD_DB,
    batch_size: int = 16,
    threads: int | None = None,
) -> LayerReport:
    """Compare the codes of each quantizer, in the order of the network.

    A quantized torch model as the reference gets the engine's codes at each quantizer instead of
    its own, so that a row shows what one step does and no flip of a code spreads. Another engine
    cannot be given codes: there differences add up.

    Args:
        run: An exported run.
        engine: What is examined.
        session: The engine as it is used, to see whether reading tensors changes its answers.
        against: The reference; the quantized torch model if None.
        data: The images, of which the first :data:`LAYER_IMAGES` are used; those that were
            recorded at export if None.
        threshold_db: Two sides part below this SQNR.
        batch_size: Images run at once.
        threads: CPU threads of an engine.

    Raises:
        InvalidInputError: There is nothing to compare.
        MissingDependencyError: The library onnx, or what the reference needs, is not installed.
        EngineError: No tensor inside the engine can be read.
    """
    check_layers_can_be_compared(engine, against)
    scope = scope_of(run, engine)
    reference = against or Reference.FAKE_QUANTIZED
    with contextlib.ExitStack() as stack:
        examined = stack.enter_context(_engine_side(run, engine, threads))
        other: _Side
        if is_engine(reference):
            other = stack.enter_context(_engine_side(run, reference, threads))
        else:
            student = quantized_model(run, Reference(reference), scope)
            other = _TorchSide(student, run.manifest.preprocessing)
        comparison = _Comparison(examined.model)
        for pixels in _batches(run, engine, data, batch_size):
            found = examined.trace(pixels)
            form = model_input(pixels, run.manifest.preprocessing, session.info.takes)
            comparison.add(other.trace(pixels, found), found, session.run(form))
    return comparison.report(title_of(reference, scope), other.stepwise, threshold_db)


class _EngineSide:
    """An engine with a copy of its model that gives the tensors at the quantizers."""

    stepwise = False

    def __init__(
        self, model: TappedModel, session: ReadsTensors, preprocessing: Preprocessing
    ) -> None:
        self.model = model
        self._session = session
        self._preprocessing = preprocessing

    def trace(self, pixels: NDArray[np.uint8], engine: _Traced | None = None) -> _Traced:
        """What the engine makes of a batch; its codes cannot be replaced.

        The images are those that the file was exported for: what its graph makes of pixels, or
        what its metadata says.
        """
        given = model_input(pixels, self._preprocessing, self._session.info.takes)
        logits, tensors = self._session.run_and_read(given)
        # Where the graph does not make the images of pixels, it is given them.
        values: dict[str, NDArray[Any]] = {IMAGES: given, **tensors}
        codes = {found.quantizer: found.read(values) for found in self.model.quantizers}
        images = tensors.get(IMAGES)
        if images is None:
            images = normalise(pixels, self.model.preprocessing or self._preprocessing)
        return _Traced(images, codes, logits)


class _TorchSide:
    """The quantized torch model, going on from the engine's codes at each quantizer."""

    stepwise = True

    def __init__(self, student: nn.Module, preprocessing: Preprocessing) -> None:
        from mimiq_calib.layer_tracing import LayerTracer

        self._tracer = LayerTracer(student)
        self._preprocessing = preprocessing

    def trace(self, pixels: NDArray[np.uint8], engine: _Traced) -> _Traced:
        images = normalise(pixels, self._preprocessing)
        logits, codes = self._tracer.run(images, engine.codes)
        return _Traced(images, codes, logits)


@contextlib.contextmanager
def _engine_side(run: RunDirectory, engine: str, threads: int | None) -> Iterator[_EngineSide]:
    source = engine_model(run, engine)
    with tempfile.TemporaryDirectory(prefix="mimiq-deploy-") as folder:
        model = write_tapped(source, Path(folder), codes=_READS_CODES[engine])
        with open_reading_session(engine, model.path, model.outputs, threads=threads) as session:
            yield _EngineSide(model, session, run.manifest.preprocessing)


class _Comparison:
    """Rows that fill up, batch by batch."""

    def __init__(self, model: TappedModel) -> None:
        self._model = model
        self._images = LayerSums(IMAGES, PREPROCESSING)
        self._logits = LayerSums(LOGITS, model.logits_made_by)
        self._codes: dict[str, LayerSums] = {}
        self._left_out: set[str] = set()
        self._count = self._undisturbed = 0

    def add(
        self,
        reference: _Traced,
        engine: _Traced,
        undisturbed: NDArray[np.float32],
    ) -> None:
        """Count a batch; ``undisturbed`` are the engine's logits when no tensor is read."""
        self._images.add_numbers(reference.images, engine.images)
        for found in self._model.quantizers:
            self._add_codes(found.quantizer, found.made_by, reference, engine)
        self._left_out |= set(reference.codes) - set(self._codes)
        self._logits.add_numbers(reference.logits, engine.logits)
        self._count += len(undisturbed)
        self._undisturbed += int((engine.logits == undisturbed).all(axis=1).sum())

    def _add_codes(self, name: str, made_by: str, reference: _Traced, engine: _Traced) -> None:
        mine, theirs = reference.codes.get(name), engine.codes[name]
        aligned = None if mine is None else align_layout(theirs.codes, mine.codes)
        if mine is None or aligned is None:
            self._left_out.add(name)
            return
        sums = self._codes.setdefault(name, LayerSums(name, made_by))
        sums.add_codes(mine, QuantizedValues(aligned, theirs.scale))

    def report(self, against: str, stepwise: bool, threshold_db: float) -> LayerReport:
        """All rows, and the first where both sides part."""
        sums = (self._images, *self._codes.values(), self._logits)
        rows: list[LayerRow] = [each.row() for each in sums]
        return LayerReport(
            against=against,
            images=self._count,
            stepwise=stepwise,
            undisturbed=self._undisturbed / self._count,
            threshold_db=threshold_db,
            rows=rows,
            not_compared=sorted(self._left_out),
            first=find_first_fault(rows, threshold_db),
        )


def _batches(
    run: RunDirectory, engine: str, data: ComparisonData | None, size: int
) -> Iterator[NDArray[np.uint8]]:
    if data is None:
        recorded = read_reference(run, target_of(engine)).images
        for start in range(0, len(recorded), size):
            yield recorded[start : start + size]
        return
    left = LAYER_IMAGES
    for pixels in data.batches(min(size, LAYER_IMAGES)):
        yield pixels[:left]
        left -= len(pixels)
        if left <= 0:
            return
