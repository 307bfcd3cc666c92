"""A bundle's plan in TensorRT, one picture at a time."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np

from mimiq_runtime.cuda_runtime import CudaRuntime
from mimiq_runtime.edge.library_errors import import_library, no_traceback
from mimiq_runtime.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from mimiq_runtime.edge.bundle import Bundle

__all__ = ["load_model"]


@contextlib.contextmanager
def load_model(bundle: Bundle) -> Iterator[Callable[[NDArray[Any]], NDArray[np.float32]]]:
    """Load the plan; see :func:`mimiq_runtime.edge.engine.load_model`."""
    trt = import_library("tensorrt")
    import_library("cuda.bindings.runtime")
    # First, as it says in a sentence that there is no driver; TensorRT does not.
    cuda = CudaRuntime()
    try:
        engine = _deserialize(trt, bundle)
        yield _bind(trt, cuda, engine, _context(engine, bundle))
    finally:
        # Every call has waited for its results: nothing uses the memory any more.
        cuda.close()


def _bind(
    trt: Any, cuda: CudaRuntime, engine: Any, context: Any
) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    """Give the input and the output memory for one picture."""
    stream = cuda.stream()
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    image = next(n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT)
    (logits,) = (name for name in names if name != image)
    if not context.set_input_shape(image, (1, *tuple(engine.get_tensor_shape(image))[1:])):
        raise EngineError(
            "TensorRT refused a batch of one picture: the plan was built for larger batches only; "
            "build it with --min-batch 1, and make the bundle again."
        )
    host, device = {}, {}
    for name in (image, logits):
        shape = (1, *tuple(engine.get_tensor_shape(name))[1:])
        host[name] = cuda.pinned_array(shape, trt.nptype(engine.get_tensor_dtype(name)))
        device[name] = cuda.device_memory(host[name].nbytes)
        context.set_tensor_address(name, device[name])

    def classify(images: NDArray[Any]) -> NDArray[np.float32]:
        np.copyto(host[image], images, casting="same_kind")
        cuda.copy_to_device(device[image], host[image], stream)
        if not context.execute_async_v3(int(stream)):
            raise EngineError("TensorRT failed to run the plan.")
        cuda.copy_to_host(host[logits], device[logits], stream)
        cuda.wait(stream)
        return host[logits].astype(np.float32)

    return classify


def _deserialize(trt: Any, bundle: Bundle) -> Any:
    with no_traceback(f"TensorRT {trt.__version__}", "open", bundle.model):
        runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    if bundle.version_compatible:
        # Such a plan holds code of its own, which TensorRT runs only when it is told so.
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(bundle.model.read_bytes())
    if engine is None:
        raise EngineError(
            f"TensorRT {trt.__version__} cannot load {bundle.model.name}: README.md names the "
            "version and the GPU that it was built for."
        )
    return engine


def _context(engine: Any, bundle: Bundle) -> Any:
    context = engine.create_execution_context()
    if context is None:
        raise EngineError(
            f"TensorRT could not make a context for {bundle.model.name}: the GPU's memory is not "
            "enough; free it, or build the plan with a smaller --max-batch."
        )
    return context
