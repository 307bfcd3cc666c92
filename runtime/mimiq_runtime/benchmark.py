"""Latency and throughput of sessions, measured side by side.

A machine's speed wanders: clocks, heat, neighbours. So the sessions take turns, call by call, and
none always goes first; they are compared by the ratios of calls that stand side by side, and the
ratios carry a confidence interval.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from mimiq_runtime.errors import InvalidInputError
from mimiq_runtime.gpu_monitor import GpuLoad, GpuMonitor
from mimiq_runtime.machine import describe_machine
from mimiq_runtime.memory_probe import PeakMemory
from mimiq_runtime.schema import Schema
from mimiq_runtime.session import DeviceTimes, Session, SessionInfo, TimedOnDevice

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

__all__ = [
    "BenchmarkChange",
    "BenchmarkComparison",
    "BenchmarkReport",
    "BenchmarkRow",
    "DeviceLatency",
    "Speedup",
    "benchmark_sessions",
]

# Fewer rounds than these say nothing, whatever the time limit.
_MIN_ROUNDS = 3
_RESAMPLES = 1000


class Speedup(Schema):
    """How many times as fast as the baseline: above 1 is faster.

    Attributes:
        median: Median over the rounds of ``baseline's latency / own latency``.
        low: Lower end of the 95 % confidence interval (bootstrap over the rounds).
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
    """One session at one batch size.

    Attributes:
        session: Name of the session.
        batch_size: Images in one call.
        rounds: Calls that were timed.
        mean_ms: Mean latency of a call in milliseconds.
        p50_ms: Median latency in milliseconds.
        p90_ms: 90th percentile, interpolated linearly.
        p99_ms: 99th percentile; from less than a hundred rounds it is close to the slowest call.
        images_per_second: ``batch_size / mean latency``.
        speedup: Against the first session in the same rounds.
        device: By events of the device, for sessions that have them.
    """

    session: str
    batch_size: int
    rounds: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    images_per_second: float
    speedup: Speedup
    device: DeviceLatency | None = None


class BenchmarkChange(Schema):
    """One session at one batch size, then and now.

    Attributes:
        session: Name of the session.
        batch_size: Images in one call.
        old_speedup: Median speedup over the baseline in the older benchmark.
        new_speedup: The same now.
        change: ``new / old - 1``; below 0 is slower.
        regressed: Whether it is slower by more than the tolerance.
    """

    session: str
    batch_size: int
    old_speedup: float
    new_speedup: float
    change: float
    regressed: bool


class BenchmarkComparison(Schema):
    """A benchmark against an older one.

    Attributes:
        against: Where the older one came from.
        tolerance: Share of the old speedup that may be lost.
        same_machine: Whether CPU, cores and INT8 instructions are the same.
        changes: The rows that both have.
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
        machine: See :func:`~mimiq_runtime.machine.describe_machine`.
        sessions: What ran under each name.
        baseline: Name of the session that the speedups refer to.
        input_shape: Channels, height and width of the images.
        warmup: Calls of each session before the clock was started, for each batch size.
        seed: Seed of the images and of the bootstrap.
        rows: By batch size, then by session, both in the order given.
        memory: Peak memory of each session and batch size, each in a process of its own; empty
            when it was not measured.
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


def benchmark_sessions(
    sessions: Mapping[str, Session],
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

    Args:
        sessions: Open sessions by name; the first one is the baseline.
        batch_sizes: Images in one call; each size is measured on its own.
        input_shape: Channels, height and width of the images.
        rounds: Timed calls of each session and batch size.
        warmup: Calls of each session before them.
        seconds: End the rounds of a batch size after this time, but not before the third round.
        seed: Seed of the standard normal images and of the bootstrap.
        watch_gpu: Whether to ask ``nvidia-smi`` for power and clocks during the rounds.
        advance: Told ``(rounds, note)`` as rounds are done, ``rounds * len(batch_sizes)`` in all.
        clock: Gives the time in seconds.

    Returns:
        One row for each session and batch size.

    Raises:
        InvalidInputError: Nothing to measure, or a number is out of range.
        EngineError: A session failed.
    """
    _check(sessions, batch_sizes, rounds=rounds, warmup=warmup, seconds=seconds)
    rows: list[BenchmarkRow] = []
    loads: list[GpuLoad | None] = []
    for batch_size in batch_sizes:
        # Never zeros: some engines take short cuts through them, and no photograph is black.
        images = np.random.default_rng(seed).standard_normal(
            (batch_size, *input_shape), dtype=np.float32
        )
        for session in sessions.values():
            for _ in range(warmup):
                session.run(images)
        with GpuMonitor() if watch_gpu else contextlib.nullcontext() as monitor:
            latencies, device_times = _time_rounds(
                list(sessions.values()),
                images,
                rounds=rounds,
                seconds=seconds,
                clock=clock,
                advance=advance,
            )
        loads.append(monitor.load(batch_size) if monitor is not None else None)
        rows += [
            _row(name, batch_size, own, latencies[0], times, seed=seed)
            for name, own, times in zip(sessions, latencies, device_times, strict=True)
        ]
    return BenchmarkReport(
        machine=describe_machine(),
        sessions={name: session.info for name, session in sessions.items()},
        baseline=next(iter(sessions)),
        input_shape=input_shape,
        warmup=warmup,
        seed=seed,
        rows=rows,
        gpu=[load for load in loads if load is not None],
    )


def _check(
    sessions: Mapping[str, Session],
    batch_sizes: Sequence[int],
    *,
    rounds: int,
    warmup: int,
    seconds: float | None,
) -> None:
    if not sessions or not batch_sizes:
        raise InvalidInputError(
            f"Expected at least one session and one batch size; got {len(sessions)} and "
            f"{len(batch_sizes)}."
        )
    if min(batch_sizes) < 1 or rounds < 1 or warmup < 0:
        raise InvalidInputError(
            "Expected batch sizes and rounds of at least 1, and a warm-up of at least 0; "
            f"got {list(batch_sizes)}, {rounds} and {warmup}."
        )
    if seconds is not None and not seconds > 0:
        raise InvalidInputError(f"Expected more than 0 seconds; got {seconds}.")


def _time_rounds(
    sessions: Sequence[Session],
    images: NDArray[np.float32],
    *,
    rounds: int,
    seconds: float | None,
    advance: Callable[[int, str], None] | None,
    clock: Callable[[], float],
) -> tuple[NDArray[np.float64], list[list[DeviceTimes]]]:
    """Latencies in seconds (sessions, rounds), and the device's own times of those that tell."""
    latencies: list[list[float]] = []
    device_times: list[list[DeviceTimes]] = [[] for _ in sessions]
    end = float("inf") if seconds is None else clock() + seconds
    while len(latencies) < rounds and (len(latencies) < _MIN_ROUNDS or clock() < end):
        row = [0.0] * len(sessions)
        for index in _order(len(latencies), len(sessions)):
            start = clock()
            sessions[index].run(images)
            # A clock may stand still over a very short call.
            row[index] = max(clock() - start, 1e-9)
            session = sessions[index]
            if isinstance(session, TimedOnDevice):
                device_times[index].append(session.device_times())
        latencies.append(row)
        if advance is not None:
            advance(1, f"batch {len(images)}")
    if advance is not None and len(latencies) < rounds:
        advance(rounds - len(latencies), f"batch {len(images)}")
    return np.asarray(latencies, dtype=np.float64).T, device_times


def _order(round_index: int, count: int) -> list[int]:
    """Who goes when: rotated by one each round, and turned round after each full turn.

    So every session stands equally often at every place, and before and after the others.
    """
    shift = round_index % count
    order = [*range(shift, count), *range(shift)]
    return order[::-1] if round_index // count % 2 else order


def _row(
    name: str,
    batch_size: int,
    latencies: NDArray[np.float64],
    baseline: NDArray[np.float64],
    device_times: Sequence[DeviceTimes],
    *,
    seed: int,
) -> BenchmarkRow:
    p50, p90, p99 = np.percentile(latencies, [50, 90, 99]) * 1e3
    return BenchmarkRow(
        session=name,
        batch_size=batch_size,
        rounds=len(latencies),
        mean_ms=float(latencies.mean() * 1e3),
        p50_ms=float(p50),
        p90_ms=float(p90),
        p99_ms=float(p99),
        images_per_second=float(batch_size / latencies.mean()),
        speedup=_speedup(baseline / latencies, seed=seed),
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


def _speedup(ratios: NDArray[np.float64], *, seed: int) -> Speedup:
    """Median of paired ratios (rounds,), with the percentile bootstrap's 95 % interval."""
    rng = np.random.default_rng(seed)
    # One resample at a time: all at once would be a gigabyte for a hundred thousand rounds.
    medians = [np.median(rng.choice(ratios, size=len(ratios))) for _ in range(_RESAMPLES)]
    low, high = np.percentile(medians, [2.5, 97.5])
    return Speedup(median=float(np.median(ratios)), low=float(low), high=float(high))
