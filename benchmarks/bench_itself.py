"""How often a benchmark of a model against itself gives an interval that contains 1.

    python benchmarks/bench_itself.py MODEL.onnx [--engine ort-cpu] [--times 20] [--rounds 100]

Opens the same file twice in one engine and benchmarks the two sessions against each other, as
`mimiq-deploy bench RUN --baseline ort-cpu` does. A 95 % interval misses 1 in one of 20 benchmarks;
far more than that mean that the turns do not cancel what the machine does. Exit code 1 when so
many missed it that chance explains less than one case in a thousand.
"""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path

import scipy.stats

from mimiq_deploy.benchmarking import OPENINGS
from mimiq_runtime.benchmark import BenchmarkReport, benchmark_sessions, mirrored_openings
from mimiq_runtime.session import open_session

MISSES = 0.05
"""Share of 95 % intervals that do not contain the truth."""
DOUBT = 0.001


def main() -> int:
    arguments = _arguments()
    reports = [_benchmark(arguments, seed) for seed in range(arguments.times)]
    machine = reports[0].machine
    print(
        f"{machine['cpu']}, {arguments.threads} threads, {arguments.rounds} rounds and "
        f"{arguments.openings} openings each"
    )
    print("| times as fast | 95 % interval | contains 1 |\n|---|---|---|")
    speedups = [report.rows[1].speedup for report in reports]
    contained = [speedup.low <= 1 <= speedup.high for speedup in speedups]
    for speedup, inside in zip(speedups, contained, strict=True):
        interval = f"{speedup.low:.4f} to {speedup.high:.4f}"
        print(f"| {speedup.median:.4f} | {interval} | {'yes' if inside else 'no'} |")
    missed = contained.count(False)
    # Probability of as many misses or more, if the intervals are what they claim.
    chance = float(scipy.stats.binom.sf(missed - 1, len(contained), MISSES))
    print(f"{missed} of {len(contained)} miss 1; by chance with probability {chance:.2g}")
    return int(chance < DOUBT)


def _benchmark(arguments: argparse.Namespace, seed: int) -> BenchmarkReport:
    opener = functools.partial(
        open_session, arguments.engine, arguments.model, threads=arguments.threads
    )
    with opener() as session:
        _, *size = session.info.input_shape
    return benchmark_sessions(
        {
            arguments.threads: mirrored_openings(
                {"first": opener, "second": opener}, arguments.openings
            )
        },
        batch_sizes=[arguments.batch_size],
        input_shape=(int(size[0] or 3), int(size[1] or 224), int(size[2] or 224)),
        rounds=arguments.rounds,
        seed=seed,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--engine", default="ort-cpu")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--openings", type=int, default=OPENINGS)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
