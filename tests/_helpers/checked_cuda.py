"""CUDA without a GPU: the runtime of cuda-python with its real names and signatures.

Device memory is memory of the host, copies are copied at once, and a captured graph is a list of
functions that is run when it is launched. Calls are checked against cuda-python's docstrings:
number of arguments, enumerations, number of results.
"""

# The names are those of CUDA.
# ruff: noqa: N802, N815

from __future__ import annotations

import ctypes
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_RESULTS = re.compile(r"Returns\n-+\n(.*?)\n\n", re.DOTALL)


class CheckedCuda:
    """Stands for the module ``cuda.bindings.runtime``.

    Attributes:
        used: Names of the functions that were called.
        memory: What is allocated now, by address.
        launches: How many graphs were launched.
    """

    def __init__(self, real: Any) -> None:
        self.real = real
        self.used: set[str] = set()
        self.memory: dict[int, Any] = {}
        self.times: dict[int, float] = {}
        self.alive: set[str] = set()
        self.capturing: list[Callable[[], None]] | None = None
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.launches = 0
        self.clock = 0.0
        self.count = 0
        self.devices = 1

    def __getattr__(self, name: str) -> Any:
        thing = getattr(self.real, name)
        if not name.startswith("cuda") or isinstance(thing, (type, int)):
            return thing

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.used.add(name)
            check_arguments(self.real, thing, arguments)
            values = getattr(self, f"_{name}")(*arguments)
            result = () if values is None else (values,)
            if len(result) + 1 != result_count(thing):
                raise TypeError(f"the stand-in of {name} gives {len(result) + 1} results")
            return (self.real.cudaError_t.cudaSuccess, *result)

        return call

    def enqueue(self, work: Callable[[], None]) -> None:
        """Run work now, or write it down while a stream captures."""
        if self.capturing is None:
            work()
        else:
            self.capturing.append(work)

    def _handle(self) -> int:
        self.count += 1
        return self.count

    def _cudaGetDeviceCount(self) -> int:
        return self.devices

    def _cudaGetErrorString(self, error: Any) -> bytes:
        return b"in the words of CUDA"

    def _cudaGetDeviceProperties(self, device: int) -> Any:
        properties = self.real.cudaDeviceProp()
        properties.name = b"Checked GPU".ljust(256, b"\0")
        properties.major, properties.minor = 8, 7
        return properties

    def _cudaDriverGetVersion(self) -> int:
        return 13000

    def _cudaRuntimeGetVersion(self) -> int:
        return 13000

    def _cudaMalloc(self, size: int) -> int:
        block = ctypes.create_string_buffer(size)
        address = ctypes.addressof(block)
        self.memory[address] = block
        return address

    _cudaMallocHost = _cudaMalloc

    def _cudaFree(self, address: int) -> None:
        del self.memory[int(address)]

    _cudaFreeHost = _cudaFree

    def _cudaStreamCreateWithFlags(self, flags: int) -> Any:
        return self._keep("stream", self.real.cudaStream_t(self._handle()))

    def _cudaStreamDestroy(self, stream: Any) -> None:
        self.alive.remove(f"stream {int(stream)}")

    def _cudaEventCreate(self) -> Any:
        return self._keep("event", self.real.cudaEvent_t(self._handle()))

    def _cudaEventDestroy(self, event: Any) -> None:
        self.alive.remove(f"event {int(event)}")

    def _cudaEventRecord(self, event: Any, stream: Any) -> None:
        self.clock += 1.5
        self.times[int(event)] = self.clock

    def _cudaEventElapsedTime(self, start: Any, end: Any) -> float:
        times = [self.times[int(event)] for event in (start, end)]
        return times[1] - times[0]

    def _cudaMemcpyAsync(self, dst: int, src: int, size: int, kind: Any, stream: Any) -> None:
        if self.capturing is not None:
            raise RuntimeError("a copy was captured")
        ctypes.memmove(dst, src, size)

    def _cudaStreamSynchronize(self, stream: Any) -> None: ...

    def _cudaStreamBeginCapture(self, stream: Any, mode: Any) -> None:
        self.capturing = []

    def _cudaStreamEndCapture(self, stream: Any) -> Any:
        graph = self.real.cudaGraph_t(self._handle())
        self.graphs[int(graph)] = self.capturing or []
        self.capturing = None
        return graph

    def _cudaGraphInstantiate(self, graph: Any, flags: int) -> Any:
        executable = self._keep("graph", self.real.cudaGraphExec_t(self._handle()))
        self.graphs[int(executable)] = self.graphs[int(graph)]
        return executable

    def _cudaGraphDestroy(self, graph: Any) -> None:
        del self.graphs[int(graph)]

    def _cudaGraphLaunch(self, executable: Any, stream: Any) -> None:
        self.launches += 1
        for work in self.graphs[int(executable)]:
            work()

    def _cudaGraphExecDestroy(self, executable: Any) -> None:
        self.alive.remove(f"graph {int(executable)}")

    def _keep(self, kind: str, handle: Any) -> Any:
        self.alive.add(f"{kind} {int(handle)}")
        return handle


def check_arguments(real: Any, function: Any, arguments: tuple[Any, ...]) -> None:
    """Compare with the first line of the docstring, such as ``cudaFree(devPtr)``."""
    line = function.__doc__.splitlines()[0]
    inside = line[line.index("(") + 1 : line.rindex(")")]
    parameters = [part.strip() for part in inside.split(",")] if inside else []
    if len(parameters) != len(arguments):
        raise TypeError(f"{line} was called with {len(arguments)} arguments")
    for parameter, value in zip(parameters, arguments, strict=True):
        kind = getattr(real, parameter.partition(": ")[2], None)
        if kind is not None and not isinstance(value, kind):
            raise TypeError(f"{line} was called with {value!r} for {parameter}")
        if parameter.startswith(("size_t ", "int ", "unsigned ")) and not isinstance(value, int):
            raise TypeError(f"{line} was called with {value!r} for {parameter}")


def result_count(function: Any) -> int:
    """Number of results that the docstring lists, the status among them."""
    match = _RESULTS.search(function.__doc__ + "\n\n")
    assert match is not None, function.__doc__
    return len([line for line in match[1].splitlines() if line and not line.startswith(" ")])
