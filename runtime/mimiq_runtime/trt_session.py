"""A session of TensorRT itself: a plan on the GPU, launched as one CUDA graph."""

from __future__ import annotations

import hashlib
import shlex
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from mimiq_runtime.classifier_checks import check_images, check_logits
from mimiq_runtime.cuda_runtime import CudaGraph, CudaRuntime
from mimiq_runtime.engine_record import (
    EngineRecord,
    read_engine_record,
    read_plan,
    run_of_plan,
)
from mimiq_runtime.errors import EngineError, InvalidInputError
from mimiq_runtime.session import DeviceTimes, SessionInfo
from mimiq_runtime.trt_build import deserialize
from mimiq_runtime.trt_host_code import check_host_code
from mimiq_runtime.trt_library import import_tensorrt

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray

__all__ = ["TrtSession"]


class TrtSession:
    """An image classifier in TensorRT.

    The kernels of a batch size are captured into a CUDA graph when that size first comes, and
    again whenever the size changes. Images and logits pass through pinned memory.

    Args:
        plan: The engine as ``mimiq-deploy build`` wrote it; with ``engine.json`` beside it, if it
            was built here. In a run, both are compared with ``run.json``.

    Raises:
        MissingDependencyError: TensorRT or cuda-python is not installed.
        EngineError: There is no GPU, TensorRT cannot load the plan, the plan has no weights, it
            holds code that nobody allowed, or it is no image classifier.
        RunDirectoryError: It is not what its run recorded.
    """

    def __init__(self, plan: Path) -> None:
        if not plan.is_file():
            raise EngineError(
                f"Expected a TensorRT engine, and {plan} is not one; mimiq-deploy build makes it."
            )
        trt = import_tensorrt()
        record = read_engine_record(plan)
        content = read_plan(plan, record)
        _check_weights(plan, record)
        with_code = check_host_code(plan, record)
        self._cuda = CudaRuntime()
        self._engine: Any = deserialize(trt, content, host_code=with_code)
        self._context: Any = self._engine.create_execution_context()
        if self._context is None:
            raise EngineError(
                f"TensorRT could not make a context for {plan}: the GPU's memory is not enough; "
                "free it, or build the engine with a smaller --max-batch."
            )
        self._graph: CudaGraph | None = None
        self._batch = 0
        try:
            self._bind(trt, plan)
        except BaseException:
            self._cuda.close()
            raise
        device = self._cuda.device()
        self.info = SessionInfo(
            engine="trt",
            device=device.name,
            provider=f"TensorRT, sm_{device.compute_capability.replace('.', '')}, CUDA graph",
            libraries={
                "tensorrt": trt.__version__,
                "cuda runtime": device.cuda_runtime,
                "cuda driver": device.cuda_driver,
            },
            threads=1,
            model=str(plan),
            model_sha256=hashlib.sha256(content).hexdigest(),
            input_shape=self._shape,
            products=None if record is None else _count_products(record),
        )

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (N, classes) of normalised images (N, C, H, W); see :class:`Session`."""
        if self._context is None:
            raise EngineError("This session is closed; open another one.")
        count = len(images)
        check_images(images, self._shape)
        if not self._least <= count <= self._most:
            raise InvalidInputError(
                f"{self.info.model} takes batches of {self._least} to {self._most} images, got "
                f"{count}; build it with another --min-batch or --max-batch."
            )
        if count != self._batch:
            self._capture(count)
        cuda, stream = self._cuda, self._stream
        before, copied_in, computed, after = self._events
        np.copyto(self._images[:count], images, casting="same_kind")
        cuda.record(before, stream)
        cuda.copy_to_device(self._images_address, self._images[:count], stream)
        cuda.record(copied_in, stream)
        self._captured().launch(stream)
        cuda.record(computed, stream)
        cuda.copy_to_host(self._logits[:count], self._logits_address, stream)
        cuda.record(after, stream)
        cuda.wait(stream)
        self._timed = True
        return check_logits(self._logits[:count].astype(np.float32), count, self.info.model)

    def device_times(self) -> DeviceTimes:
        """Durations of the last call by CUDA events; see :class:`TimedOnDevice`."""
        if not self._timed or self._context is None:
            raise EngineError("There are no times before the first call or after the last one.")
        before, copied_in, computed, after = self._events
        return DeviceTimes(
            compute_ms=self._cuda.elapsed_ms(copied_in, computed),
            total_ms=self._cuda.elapsed_ms(before, after),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._context is None:
            return
        if self._graph is not None:
            self._graph.close()
        # The context before its engine, and both before the memory that they use.
        self._context = None
        self._engine = None
        self._cuda.close()

    def _bind(self, trt: Any, plan: Path) -> None:
        """Find the input and the output, and give each memory for the largest batch."""
        image, logits = _tensors(trt, self._engine, plan)
        self._input_name = image
        declared = tuple(self._engine.get_tensor_shape(image))
        self._shape = tuple(size if size >= 0 else None for size in declared)
        smallest, _, largest = (
            tuple(shape) for shape in self._engine.get_tensor_profile_shape(image, 0)
        )
        self._least, self._most = smallest[0], largest[0]
        classes = tuple(self._engine.get_tensor_shape(logits))[-1]
        cuda = self._cuda
        self._images = cuda.pinned_array(largest, _numpy_type(trt, self._engine, image, plan))
        self._logits = cuda.pinned_array(
            (self._most, classes), _numpy_type(trt, self._engine, logits, plan)
        )
        self._images_address = cuda.device_memory(self._images.nbytes)
        self._logits_address = cuda.device_memory(self._logits.nbytes)
        self._context.set_tensor_address(image, self._images_address)
        self._context.set_tensor_address(logits, self._logits_address)
        self._stream = cuda.stream()
        self._events = tuple(cuda.event() for _ in range(4))
        self._timed = False

    def _capture(self, count: int) -> None:
        """Set the batch size and capture its kernels."""
        if self._graph is not None:
            self._graph.close()
            self._graph = None
        self._batch = 0
        if not self._context.set_input_shape(self._input_name, (count, *self._images.shape[1:])):
            raise EngineError(f"TensorRT refused a batch of {count} for {self.info.model}.")
        # Once outside of the capture: TensorRT may allocate then, which a capture forbids.
        self._enqueue()
        self._cuda.wait(self._stream)
        self._graph = self._cuda.capture(self._stream, self._enqueue)
        self._batch = count

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(int(self._stream)):
            raise EngineError(f"TensorRT failed to run {self.info.model}.")

    def _captured(self) -> CudaGraph:
        if self._graph is None:
            raise EngineError(f"There is no CUDA graph of {self.info.model}; open it again.")
        return self._graph


def _check_weights(plan: Path, record: EngineRecord | None) -> None:
    if record is not None and record.weights == "stripped":
        raise EngineError(
            f"{plan} was built without its weights; put them in with {_refit_command(plan, record)}"
        )


def _refit_command(plan: Path, record: EngineRecord) -> str:
    """The command line that puts the weights in, for a plan of a run or of an ONNX file."""
    words = ["mimiq-deploy", "build"]
    place = run_of_plan(plan)
    if place is not None:
        # Through the run, so that it is recorded there.
        words += [str(place[0].root), "--engine", "trt", "--refit"]
        words += [] if plan.parent.name == "trt" else ["--target", plan.parent.name]
    else:
        words += [record.onnx, "--engine", "trt", "--refit", "--output", str(plan.parent)]
    return shlex.join(words)


def _tensors(trt: Any, engine: Any, plan: Path) -> tuple[str, str]:
    """Names of the only input and the only output."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    outputs = [name for name in names if name not in inputs]
    if len(inputs) != 1 or len(outputs) != 1 or len(engine.get_tensor_shape(inputs[0])) != 4:
        raise EngineError(
            f"Expected one input (N, C, H, W) and one output, got {', '.join(names)} in {plan}; "
            "build an engine from an image classifier."
        )
    return inputs[0], outputs[0]


def _numpy_type(trt: Any, engine: Any, name: str, plan: Path) -> type[np.floating[Any]]:
    kind = engine.get_tensor_dtype(name)
    if kind == trt.DataType.FLOAT:
        return np.float32
    if kind == trt.DataType.HALF:
        return np.float16
    raise EngineError(
        f"Expected the tensor {name} of {plan} in single or half precision, got {kind}; export "
        "the model again, without --with-preprocessing."
    )


def _count_products(record: EngineRecord) -> dict[str, int]:
    counts: dict[str, int] = {}
    for proof in record.precision.products:
        counts[proof.verdict.value] = counts.get(proof.verdict.value, 0) + 1
    if record.precision.floating_point:
        counts["floating point by design"] = len(record.precision.floating_point)
    return counts
