"""Latency and throughput of sessions, measured side by side.

A machine's speed wanders: clocks, heat, neighbours. So the sessions take turns, call by call, and
none always goes first; they are compared by the ratios of calls that stand side by side, and the
ratios carry a confidence interval. Where a session lies in memory matters, too; so they are opened
several times (docs/decisions/0035-benchmarks-open-models-anew.md). A number of threads belongs to a
session, so each number has openings of its own, which take turns as well.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from pydantic import Field

from mimiq_runtime.errors import InvalidInputError
from mimiq_runtime.gpu_monitor import GpuLoad, GpuMonitor
from mimiq_runtime.hardware import nvidia_gpus
from mimiq_runtime.input_form import random_images
from mimiq_runtime.machine import describe_machine
from mimiq_runtime.memory_probe import PeakMemory
from mimiq_runtime.schema import Schema
from mimiq_runtime.session import DeviceTimes, Session, SessionInfo, TimedOnDevice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

__all__ = [
    "BenchmarkChange",
    "BenchmarkComparison",
    "BenchmarkReport",
    "BenchmarkRow",
    "DeviceLatency",
    "Speedup",
    "benchmark_sessions",
    "mirrored_openings",
]

# Fewer rounds than these say nothing, whatever the time limit.
_MIN_ROUNDS = 3
_RESAMPLES = 1000


class Speedup(Schema):
    """How many times as fast as the baseline: above 1 is faster.

    Attributes:
        median: Median over the rounds of ``baseline's latency / own latency``.
        low: Lower end of the 95 % confidence interval (bootstrap over openings and rounds).
        high: Upper end of it.
    """

    median: float
    low: float
    high: float


class DeviceLatency(Schema):
    """Latency by events of the device, in milliseconds: percentiles over the rounds.

    Attributes:
        compute_p50_ms: Median of the network alone, its input on the device.
        compute_p90_ms: 90th percentile of it.
        compute_p99_ms: 99th percentile of it.
        total_p50_ms: Median with the copies to the device and back.
        total_p90_ms: 90th percentile of it.
        total_p99_ms: 99th percentile of it.
    """

    compute_p50_ms: float
    compute_p90_ms: float
    compute_p99_ms: float
    total_p50_ms: float
    total_p90_ms: float
    total_p99_ms: float


class BenchmarkRow(Schema):
    """One session at one batch size and number of threads.

    Attributes:
        session: Name of the session.
        batch_size: Images in one call.
        threads: CPU threads that the session was given; None in reports of earlier versions,
            whose only number is in ``sessions``.
        rounds: Calls that were timed.
        mean_ms: Mean latency of a call in milliseconds.
        p50_ms: Median latency in milliseconds.
        p90_ms: 90th percentile, interpolated linearly.
        p99_ms: 99th percentile; from less than a hundred rounds it is close to the slowest call.
        images_per_second: ``batch_size / mean latency``.
        speedup: Against the first session in the same rounds, with the same threads.
        device: By events of the device, for sessions that have them.
    """

    session: str
    batch_size: int
    threads: int | None = None
    rounds: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    images_per_second: float
    speedup: Speedup
    device: DeviceLatency | None = None


class BenchmarkChange(Schema):
    """One session at one batch size and number of threads, then and now.

    Attributes:
        session: Name of the session.
        batch_size: Images in one call.
        threads: CPU threads of the session; None in reports of earlier versions.
        old_speedup: Median speedup over the baseline in the older benchmark.
        new_speedup: The same now.
        change: ``new / old - 1``; below 0 is slower.
        regressed: Whether it is slower by more than the tolerance.
    """

    session: str
    batch_size: int
    threads: int | None = None
    old_speedup: float
    new_speedup: float
    change: float
    regressed: bool


class BenchmarkComparison(Schema):
    """A benchmark against an older one.

    Attributes:
        against: Where the older one came from.
        tolerance: Share of the old speedup that may be lost.
        same_machine: Whether CPU, cores, INT8 instructions, GPU and driver are the same.
        changes: The rows of the older one.
        passed: Whether none has regressed.
    """

    against: str
    tolerance: float
    same_machine: bool
    changes: list[BenchmarkChange]
    passed: bool


class BenchmarkReport(Schema):
    """Everything that was measured, and on what.

    Attributes:
        machine: See :func:`~mimiq_runtime.machine.describe_machine`; with ``gpu``, names and
            drivers, where a GPU ran.
        sessions: What ran under each name, with the first number of threads.
        baseline: Name of the session that the speedups refer to.
        input_shape: Channels, height and width of the images.
        warmup: Calls of each session before the clock was started, for each batch size.
        seed: Seed of the images and of the bootstrap.
        rows: By batch size, then by threads, then by session, all in the order given.
        memory: Peak memory of each session, batch size and number of threads, each in a process of
            its own; empty when it was not measured.
        gpu: What the GPU did at each batch size; empty without one.
        comparison: Against an older benchmark, when one was given.
    """

    machine: dict[str, str]
    sessions: dict[str, SessionInfo]
    baseline: str
    input_shape: tuple[int, int, int]
    warmup: int
    seed: int
    rows: list[BenchmarkRow]
    memory: list[PeakMemory] = Field(default_factory=list)
    gpu: list[GpuLoad] = Field(default_factory=list)
    comparison: BenchmarkComparison | None = None


def mirrored_openings(
    openers: Mapping[str, Callable[[], Session]], count: int
) -> list[contextlib.AbstractContextManager[dict[str, Session]]]:
    """Ways to open the same sessions, one after the other, in turn forwards and backwards.

    Where its weights come to lie in memory makes a session faster or slower by a percent, for as
    long as it is open, and the one that is opened first is at a disadvantage.

    Args:
        openers: Opens each session, by its name.
        count: How many; an even number treats all sessions alike.
    """
    names = list(openers)
    return [_opened(openers, names[::-1] if index % 2 else names) for index in range(count)]


@contextlib.contextmanager
def _opened(
    openers: Mapping[str, Callable[[], Session]], order: Sequence[str]
) -> Iterator[dict[str, Session]]:
    with contextlib.ExitStack() as stack:
        opened = {name: stack.enter_context(openers[name]()) for name in order}
        yield {name: opened[name] for name in openers}


def benchmark_sessions(
    openings: Mapping[int, Sequence[contextlib.AbstractContextManager[Mapping[str, Session]]]],
    *,
    batch_sizes: Sequence[int],
    input_shape: tuple[int, int, int],
    rounds: int = 100,
    warmup: int = 10,
    seconds: float | None = None,
    seed: int = 0,
    watch_gpu: bool = False,
    advance: Callable[[int, str], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> BenchmarkReport:
    """Time sessions on the same random images, taking turns.

    Each session gets them in the form that it takes; making that form is not timed. Each opening
    has its share of the rounds, and the intervals cover what differs between openings, too.

    Args:
        openings: By the number of CPU threads. Each gives the same open sessions by name, the first
            one being the baseline; see :func:`mirrored_openings`. More openings than rounds are
            left out.
        batch_sizes: Images in one call; each size is measured on its own.
        input_shape: Channels, height and width of the images.
        rounds: Timed calls of each session, batch size and number of threads.
        warmup: Calls of each session before them, in each opening.
        seconds: End the rounds of a batch size and a number of threads after this time, but not
            before the third round of an opening.
        seed: Seed of the standard normal images and of the bootstrap.
        watch_gpu: Whether to ask ``nvidia-smi`` for power and clocks during the rounds.
        advance: Told ``(rounds, note)`` as rounds are done,
            ``rounds * len(batch_sizes) * len(openings)`` in all.
        clock: Gives the time in seconds.

    Returns:
        One row for each session, batch size and number of threads.

    Raises:
        InvalidInputError: Nothing to measure, or a number is out of range.
        EngineError: A session failed.
    """
    _check(openings, batch_sizes, rounds=rounds, warmup=warmup, seconds=seconds)
    monitors = {size: GpuMonitor() for size in batch_sizes} if watch_gpu else {}
    cells = list(itertools.product(batch_sizes, openings))
    timed: dict[tuple[int, int], list[_Timed]] = {cell: [] for cell in cells}
    infos: dict[str, SessionInfo] = {}
    for threads, opening, share in _turns(openings, rounds):
        with opening as sessions:
            if not sessions:
                raise InvalidInputError("Expected at least one session to measure; got none.")
            infos = infos or {name: session.info for name, session in sessions.items()}
            for size in batch_sizes:
                calls = _calls(list(sessions.values()), size, input_shape, seed)
                for session, images in calls:
                    for _ in range(warmup):
                        session.run(images)
                with monitors.get(size, contextlib.nullcontext()):
                    timed[size, threads].append(
                        _time_rounds(
                            calls,
                            rounds=share,
                            seconds=None if seconds is None else seconds * share / rounds,
                            clock=clock,
                            advance=advance,
                        )
                    )
    return BenchmarkReport(
        machine={**describe_machine(), **(_gpu() if watch_gpu else {})},
        sessions=infos,
        baseline=next(iter(infos)),
        input_shape=input_shape,
        warmup=warmup,
        seed=seed,
        rows=[
            _row(name, cell, index, timed[cell], seed=seed)
            for cell in cells
            for index, name in enumerate(infos)
        ],
        gpu=[load for size, monitor in monitors.items() if (load := monitor.load(size))],
    )


def _gpu() -> dict[str, str]:
    names = [f"{gpu.name}, driver {gpu.driver}" for gpu in nvidia_gpus()]
    return {"gpu": "; ".join(names)} if names else {}


def _turns(
    openings: Mapping[int, Sequence[contextlib.AbstractContextManager[Mapping[str, Session]]]],
    rounds: int,
) -> Iterator[tuple[int, contextlib.AbstractContextManager[Mapping[str, Session]], int]]:
    """Threads, opening and its share of the rounds; the numbers of threads in turn, and back."""
    count = min(rounds, *(len(ways) for ways in openings.values()))
    shares = [len(part) for part in np.array_split(np.arange(rounds), count)]
    numbers = list(openings)
    for index, share in enumerate(shares):
        for threads in numbers[::-1] if index % 2 else numbers:
            yield threads, openings[threads][index], share


class _Timed(NamedTuple):
    """One opening at one batch size.

    Attributes:
        latencies: In seconds, array (sessions, rounds).
        device: The device's own times of each session that tells them.
    """

    latencies: NDArray[np.float64]
    device: list[list[DeviceTimes]]


def _check(
    openings: Mapping[int, Sequence[object]],
    batch_sizes: Sequence[int],
    *,
    rounds: int,
    warmup: int,
    seconds: float | None,
) -> None:
    counts = [len(ways) for ways in openings.values()]
    if not counts or not min(counts) or not batch_sizes:
        raise InvalidInputError(
            f"Expected at least one opening and one batch size; got {min(counts, default=0)} and "
            f"{len(batch_sizes)}."
        )
    if min(batch_sizes) < 1 or rounds < 1 or warmup < 0:
        raise InvalidInputError(
            "Expected batch sizes and rounds of at least 1, and a warm-up of at least 0; "
            f"got {list(batch_sizes)}, {rounds} and {warmup}."
        )
    if seconds is not None and not seconds > 0:
        raise InvalidInputError(f"Expected more than 0 seconds; got {seconds}.")


def _calls(
    sessions: Sequence[Session], batch_size: int, input_shape: tuple[int, int, int], seed: int
) -> list[tuple[Session, NDArray[Any]]]:
    """Each session with the images in the form that it takes."""
    images = {
        form: random_images(form, batch_size, input_shape, seed=seed)
        for form in {session.info.takes for session in sessions}
    }
    return [(session, images[session.info.takes]) for session in sessions]


def _time_rounds(
    calls: Sequence[tuple[Session, NDArray[Any]]],
    *,
    rounds: int,
    seconds: float | None,
    advance: Callable[[int, str], None] | None,
    clock: Callable[[], float],
) -> _Timed:
    note = f"batch {len(calls[0][1])}"
    latencies: list[list[float]] = []
    device_times: list[list[DeviceTimes]] = [[] for _ in calls]
    end = float("inf") if seconds is None else clock() + seconds
    while len(latencies) < rounds and (len(latencies) < _MIN_ROUNDS or clock() < end):
        row = [0.0] * len(calls)
        for index in _order(len(latencies), len(calls)):
            session, images = calls[index]
            start = clock()
            session.run(images)
            # A clock may stand still over a very short call.
            row[index] = max(clock() - start, 1e-9)
            if isinstance(session, TimedOnDevice):
                device_times[index].append(session.device_times())
        latencies.append(row)
        if advance is not None:
            advance(1, note)
    if advance is not None and len(latencies) < rounds:
        advance(rounds - len(latencies), note)
    return _Timed(np.asarray(latencies, dtype=np.float64).T, device_times)


def _order(round_index: int, count: int) -> list[int]:
    """Who goes when: rotated by one each round, and turned round after each full turn.

    So every session stands equally often at every place, and before and after the others.
    """
    shift = round_index % count
    order = [*range(shift, count), *range(shift)]
    return order[::-1] if round_index // count % 2 else order


def _row(
    name: str, cell: tuple[int, int], index: int, openings: Sequence[_Timed], *, seed: int
) -> BenchmarkRow:
    batch_size, threads = cell
    latencies = np.concatenate([opening.latencies[index] for opening in openings])
    device_times = [times for opening in openings for times in opening.device[index]]
    ratios = [opening.latencies[0] / opening.latencies[index] for opening in openings]
    p50, p90, p99 = np.percentile(latencies, [50, 90, 99]) * 1e3
    return BenchmarkRow(
        session=name,
        batch_size=batch_size,
        threads=threads,
        rounds=len(latencies),
        mean_ms=float(latencies.mean() * 1e3),
        p50_ms=float(p50),
        p90_ms=float(p90),
        p99_ms=float(p99),
        images_per_second=float(batch_size / latencies.mean()),
        speedup=_speedup(ratios, seed=seed),
        device=_device_latency(device_times) if device_times else None,
    )


def _device_latency(times: Sequence[DeviceTimes]) -> DeviceLatency:
    compute, total = np.percentile(np.asarray(times), [50, 90, 99], axis=0).T
    return DeviceLatency(
        compute_p50_ms=float(compute[0]),
        compute_p90_ms=float(compute[1]),
        compute_p99_ms=float(compute[2]),
        total_p50_ms=float(total[0]),
        total_p90_ms=float(total[1]),
        total_p99_ms=float(total[2]),
    )


def _speedup(openings: Sequence[NDArray[np.float64]], *, seed: int) -> Speedup:
    """Median of paired ratios, with the percentile bootstrap's 95 % interval.

    Resampled are the openings, and the rounds (rounds,) of each that was drawn: two rounds of one
    opening have more in common than two of different ones.
    """
    rng = np.random.default_rng(seed)
    # One resample at a time: all at once would be a gigabyte for a hundred thousand rounds.
    medians = []
    for _ in range(_RESAMPLES):
        drawn = [openings[index] for index in rng.integers(len(openings), size=len(openings))]
        medians.append(
            np.median(np.concatenate([rng.choice(part, size=len(part)) for part in drawn]))
        )
    low, high = np.percentile(medians, [2.5, 97.5])
    return Speedup(
        median=float(np.median(np.concatenate(openings))), low=float(low), high=float(high)
    )
