"""The few calls of the CUDA runtime that a native TensorRT session needs, with errors raised.

cuda-python returns a status beside every result; here a status that is not success becomes an
:class:`EngineError` with the name of the call.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np

from mimiq_runtime.classifier_checks import first_line
from mimiq_runtime.errors import EngineError, MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import DTypeLike, NDArray

    from mimiq_runtime.cuda_device import CudaDevice

__all__ = ["CudaGraph", "CudaRuntime", "cuda_version_name"]


class CudaGraph:
    """A captured sequence of kernels; see :meth:`CudaRuntime.capture`."""

    def __init__(self, runtime: CudaRuntime, executable: Any) -> None:
        self._runtime = runtime
        self._executable = executable

    def launch(self, stream: Any) -> None:
        """Enqueue all of its kernels at once."""
        self._runtime.call("cudaGraphLaunch", self._executable, stream)

    def close(self) -> None:
        """Free it; nothing may be running."""
        if self._executable is not None:
            self._runtime.call("cudaGraphExecDestroy", self._executable)
            self._executable = None


class CudaRuntime:
    """CUDA on the first GPU. What it hands out is freed by :meth:`close`.

    Raises:
        MissingDependencyError: cuda-python is not installed.
        EngineError: There is no NVIDIA GPU, or its driver is missing or too old.
    """

    def __init__(self) -> None:
        self._api = _import_runtime()
        try:
            status, count = self._api.cudaGetDeviceCount()
        # How cuda-python 12 says that there is no driver.
        except RuntimeError as error:
            raise EngineError(_no_gpu(first_line(error))) from error
        if status != self._api.cudaError_t.cudaSuccess or not count:
            raise EngineError(_no_device(self._api, status))
        # What was taken, and the call that gives it back; freed in the opposite order.
        self._taken: list[tuple[str, Any]] = []

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the runtime.

        Args:
            name: Its name, such as ``cudaMalloc``.
            arguments: Its arguments.

        Returns:
            What it gives beside the status: nothing, one value, or a tuple.

        Raises:
            EngineError: It failed.
        """
        status, *values = getattr(self._api, name)(*arguments)
        if status != self._api.cudaError_t.cudaSuccess:
            raise EngineError(f"CUDA failed in {name}: {_status_text(self._api, status)}.")
        if not values:
            return None
        return values[0] if len(values) == 1 else tuple(values)

    def device(self) -> CudaDevice:
        """What this GPU is."""
        # Here, so that a bundle's runner needs no pydantic.
        from mimiq_runtime.cuda_device import CudaDevice

        properties = self.call("cudaGetDeviceProperties", 0)
        name = properties.name
        return CudaDevice(
            name=(name.decode() if isinstance(name, bytes) else str(name)).strip("\0 "),
            compute_capability=f"{properties.major}.{properties.minor}",
            cuda_driver=cuda_version_name(self.call("cudaDriverGetVersion")),
            cuda_runtime=cuda_version_name(self.call("cudaRuntimeGetVersion")),
        )

    def stream(self) -> Any:
        """A stream that does not wait for CUDA's default one."""
        flags = self._api.cudaStreamNonBlocking
        return self._take("cudaStreamDestroy", self.call("cudaStreamCreateWithFlags", flags))

    def event(self) -> Any:
        """An event that can be timed."""
        return self._take("cudaEventDestroy", self.call("cudaEventCreate"))

    def device_memory(self, size: int) -> int:
        """Address of ``size`` bytes on the GPU."""
        return int(self._take("cudaFree", self.call("cudaMalloc", size)))

    def pinned_array(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An array on the host that the GPU can copy from and to without a detour."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        address = self._take("cudaFreeHost", self.call("cudaMallocHost", size))
        memory = (ctypes.c_byte * size).from_address(int(address))
        return np.ndarray(shape, dtype=dtype, buffer=memoryview(memory))

    def copy_to_device(self, address: int, array: NDArray[Any], stream: Any) -> None:
        """Enqueue the copy of a contiguous pinned array to the GPU."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call("cudaMemcpyAsync", address, int(array.ctypes.data), array.nbytes, kind, stream)

    def copy_to_host(self, array: NDArray[Any], address: int, stream: Any) -> None:
        """Enqueue the copy from the GPU into a contiguous pinned array."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call("cudaMemcpyAsync", int(array.ctypes.data), address, array.nbytes, kind, stream)

    def record(self, event: Any, stream: Any) -> None:
        """Enqueue an event."""
        self.call("cudaEventRecord", event, stream)

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Milliseconds between two events that have come to pass; resolved to about 0.5 us."""
        return float(self.call("cudaEventElapsedTime", start, end))

    def wait(self, stream: Any) -> None:
        """Block until all that was enqueued is done."""
        self.call("cudaStreamSynchronize", stream)

    def capture(self, stream: Any, enqueue: Callable[[], None]) -> CudaGraph:
        """Make a graph of what a function enqueues on a stream; nothing of it runs now.

        Launching a graph costs one call where its kernels would cost one each, which is most of
        the time of a small network at batch 1.
        """
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call("cudaStreamBeginCapture", stream, mode)
        try:
            enqueue()
        finally:
            # Left in capture, the stream would refuse everything that comes later.
            graph = self.call("cudaStreamEndCapture", stream)
        executable = self.call("cudaGraphInstantiate", graph, 0)
        self.call("cudaGraphDestroy", graph)
        return CudaGraph(self, executable)

    def close(self) -> None:
        """Give back all memory, streams and events."""
        while self._taken:
            release, handle = self._taken.pop()
            self.call(release, handle)

    def _take(self, release: str, handle: Any) -> Any:
        self._taken.append((release, handle))
        return handle


def cuda_version_name(number: int) -> str:
    """CUDA's version number in its usual form.

    >>> cuda_version_name(12080)
    '12.8'
    """
    return f"{number // 1000}.{number % 1000 // 10}"


def _import_runtime() -> Any:
    try:
        from cuda.bindings import runtime
    except ModuleNotFoundError as error:
        raise MissingDependencyError("cuda-python", "trt") from error
    except (ImportError, OSError) as error:
        raise EngineError(
            f"cuda-python is installed and cannot be loaded ({first_line(error)}); "
            "pip install --force-reinstall 'mimiq-deploy[trt]'."
        ) from error
    return runtime


def _no_device(api: Any, status: Any) -> str:
    """Why CUDA has no GPU here, with the remedy."""
    _, driver = api.cudaDriverGetVersion()
    _, own = api.cudaRuntimeGetVersion()
    if driver and own and driver // 1000 < own // 1000:
        return (
            f"NVIDIA's driver here supports CUDA {cuda_version_name(driver)}, and cuda-python is "
            f"made for {cuda_version_name(own)}; update the driver, or "
            f"pip install 'cuda-python<{driver // 1000 + 1}'."
        )
    return _no_gpu(_status_text(api, status))


def _no_gpu(reason: str) -> str:
    return (
        f"No NVIDIA GPU can be used here ({reason}); install NVIDIA's driver, so that nvidia-smi "
        "lists one."
    )


def _status_text(api: Any, status: Any) -> str:
    _, text = api.cudaGetErrorString(status)
    words = text.decode() if isinstance(text, bytes) else str(text)
    return f"{getattr(status, 'name', status)}: {words}"
