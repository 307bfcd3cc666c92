"""Speed and memory of the image synthesis: its loss, its step, and the whole of it.

    python benchmarks/synthesis.py [--device cuda] [--json FILE]

1. The head similarity of one layer of DeiT-S, forward and backward, against the published formula
   written out by broadcasting over heads x heads x queries x keys: time, peak memory, value.
2. What the loss adds to a forward and backward pass of the model.
3. Images x iterations a second of the whole synthesis.

Weights are random: time does not depend on them. Times of one comparison are taken in turn, and
their medians compared.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import platform
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimiq_calib.conversion.convert import expose_attention
from mimiq_calib.precision import autocast
from mimiq_calib.recipe import Precision, SynthesisSettings
from mimiq_calib.synthesis.head_similarity import head_similarity, inter_head_loss
from mimiq_calib.synthesis.mimiq import synthesise_batch
from mimiq_calib.synthesis.total_variation import total_variation
from mimiq_calib.taps import attention_taps
from mimiq_runtime.manifest import Preprocessing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

HEADS, TOKENS, PREFIX = 6, 197, 1
"""Of DeiT-S at 224 x 224."""

IMAGENET = Preprocessing(
    input_size=(3, 224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
MODELS = ("deit_tiny_patch16_224", "deit_small_patch16_224")


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    if arguments.peak_memory_of:
        print(_peak_memory(arguments.peak_memory_of, arguments.batch_size, device))
        return
    result: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": _machine(device),
        "threads": arguments.threads,
        "torch": torch.__version__,
        "batch_size": arguments.batch_size,
        "loss": compare_losses(arguments, device),
        "step": [
            share_of_step(name, precision, arguments, device)
            for name in MODELS
            for precision in (Precision.FP32, Precision.BF16)
        ],
        "synthesis": [throughput(MODELS[0], arguments, device)],
    }
    print(_table(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def broadcast_loss(logits: Tensor) -> Tensor:
    """The published loss with a tensor of heads x heads x queries x keys; MimiQ, section 2.2."""
    low, high = logits.amin(-1, keepdim=True), logits.amax(-1, keepdim=True)
    maps = ((logits - low) / (high - low + 1e-8)).transpose(1, 2)
    a, b = maps[:, :, :, None], maps[:, :, None, :]
    mean_a, mean_b = a.mean(-1), b.mean(-1)
    variance_a = a.square().mean(-1) - mean_a.square()
    variance_b = b.square().mean(-1) - mean_b.square()
    covariance = (a * b).mean(-1) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    similarity = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
        (mean_a.square() + mean_b.square() + c1) * (variance_a + variance_b + c2)
    )
    return (1 - similarity.square()).mean()


def project_loss(logits: Tensor) -> Tensor:
    return inter_head_loss(head_similarity(logits, prefix_tokens=PREFIX))


def sliced_broadcast_loss(logits: Tensor) -> Tensor:
    return broadcast_loss(logits[..., PREFIX:, PREFIX:])


LOSSES = {"project": project_loss, "broadcast": sliced_broadcast_loss}


def compare_losses(arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Time, peak memory and value of both implementations for one layer."""
    logits = _logits(arguments.batch_size, device)

    def run(loss: Callable[[Tensor], Tensor]) -> None:
        torch.autograd.backward(loss(logits))

    work = {name: functools.partial(run, loss) for name, loss in LOSSES.items()}
    seconds = _interleaved(work, arguments.repeats, device)
    values = {name: float(loss(logits.detach())) for name, loss in LOSSES.items()}
    memory = {name: _peak_memory_elsewhere(name, arguments) for name in LOSSES}
    return {
        "shape": list(logits.shape),
        "seconds": seconds,
        "time_ratio": seconds["broadcast"] / seconds["project"],
        "peak_mib": memory,
        "memory_ratio": memory["broadcast"] / memory["project"],
        "value_difference": abs(values["project"] - values["broadcast"]),
    }


def share_of_step(
    name: str, precision: Precision, arguments: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    """How much longer a forward and backward pass takes with the loss than without."""
    teacher = expose_attention(timm.create_model(name, pretrained=False)).to(device)
    images = torch.randn(arguments.batch_size, 3, 224, 224, device=device, requires_grad=True)
    labels = torch.zeros(arguments.batch_size, dtype=torch.int64, device=device)

    def step(heads: Callable[[list[Tensor]], Tensor] | None) -> None:
        images.grad = None
        with attention_taps(teacher, "logits") as taps, autocast(precision, device):
            class_logits = teacher(images)
            maps = list(taps)
        loss = F.cross_entropy(class_logits.float(), labels) + 2.5e-5 * total_variation(images)
        if heads is not None:
            loss = loss + heads(maps)
        torch.autograd.backward(loss)

    def all_layers(maps: list[Tensor]) -> Tensor:
        return torch.stack([project_loss(layer) for layer in maps]).mean()

    seconds = _interleaved(
        {"without": lambda: step(None), "with": lambda: step(all_layers)},
        arguments.repeats,
        device,
    )
    return {
        "model": name,
        "precision": str(precision),
        "seconds": seconds,
        "added": seconds["with"] / seconds["without"] - 1,
    }


def throughput(name: str, arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Images x iterations a second of MimiQ as a user has it, its compilation not counted."""
    teacher: nn.Module = expose_attention(timm.create_model(name, pretrained=False)).to(device)
    settings = SynthesisSettings(num_images=arguments.batch_size, iterations=arguments.iterations)

    def run(iterations: int) -> float:
        _synchronise(device)
        begun = time.perf_counter()
        synthesise_batch(
            teacher,
            settings.model_copy(update={"iterations": iterations}),
            IMAGENET,
            batch_size=arguments.batch_size,
            num_classes=1000,
            generator=torch.Generator().manual_seed(0),
            device=device,
            advance=lambda _steps, _note: None,
        )
        _synchronise(device)
        return time.perf_counter() - begun

    run(2)
    seconds = run(arguments.iterations)
    return {
        "model": name,
        "iterations": arguments.iterations,
        "image_iterations_per_second": arguments.batch_size * arguments.iterations / seconds,
    }


def _interleaved(
    work: Mapping[str, Callable[[], None]], repeats: int, device: torch.device
) -> dict[str, float]:
    """Median seconds of each, taken in turn after one run of each that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for repeat in range(repeats + 1):
        for name, run in work.items():
            _synchronise(device)
            begun = time.perf_counter()
            run()
            _synchronise(device)
            if repeat:
                seconds[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _peak_memory_elsewhere(loss: str, arguments: argparse.Namespace) -> float:
    """In a process of its own: the peak of a process never falls."""
    options = {
        "--peak-memory-of": loss,
        "--batch-size": arguments.batch_size,
        "--threads": arguments.threads,
        "--device": arguments.device,
    }
    command = [sys.executable, __file__, *(str(x) for pair in options.items() for x in pair)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def _peak_memory(loss: str, batch_size: int, device: torch.device) -> float:
    """MiB that a forward and backward pass takes beside the logits, their gradient included."""
    small = torch.randn(1, 2, 9, 9, device=device, requires_grad=True)
    torch.autograd.backward(LOSSES[loss](small))  # libraries and threads
    logits = _logits(batch_size, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        torch.autograd.backward(LOSSES[loss](logits))
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    # Linux forgets the peak of a process when asked to; importing had one of its own.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before_kib = _memory_kib("VmRSS")
    torch.autograd.backward(LOSSES[loss](logits))
    return (_memory_kib("VmHWM") - before_kib) / 1024


def _memory_kib(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}: the memory is measured on Linux only.")


def _logits(batch_size: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (batch_size, HEADS, TOKENS, TOKENS)
    return torch.randn(shape, generator=generator).to(device).requires_grad_()


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _table(result: dict[str, Any]) -> str:
    loss = result["loss"]
    times, peaks = ([loss[key][name] for name in LOSSES] for key in ("seconds", "peak_mib"))
    rows = [
        ("what", "project", "compared with", "ratio", "aim"),
        ("---", "---", "---", "---", "---"),
        (
            f"head similarity of one layer {tuple(loss['shape'])}, forward and backward",
            f"{times[0] * 1e3:.0f} ms",
            f"broadcast: {times[1] * 1e3:.0f} ms",
            f"{loss['time_ratio']:.1f}",
            "at least 3",
        ),
        (
            "its peak memory beside the logits",
            f"{peaks[0]:.0f} MiB",
            f"broadcast: {peaks[1]:.0f} MiB",
            f"{loss['memory_ratio']:.1f}",
            "at least 5",
        ),
        ("its value", "", "broadcast", f"differs by {loss['value_difference']:.1e}", "1e-5"),
    ]
    rows += [
        (
            f"forward and backward pass of {step['model']}, {step['precision']}",
            f"{step['seconds']['with']:.3f} s",
            f"without the loss: {step['seconds']['without']:.3f} s",
            f"{step['added']:+.0%}",
            "at most +20%",
        )
        for step in result["step"]
    ]
    rows += [
        (
            f"images x iterations a second, {row['model']}, {row['iterations']} iterations",
            f"{row['image_iterations_per_second']:.1f}",
            "",
            "",
            "22,000 on a data-centre GPU",
        )
        for row in result["synthesis"]
    ]
    head = (
        f"{result['date']}, {result['machine']}, {result['threads']} threads, torch "
        f"{result['torch']}, batch {result['batch_size']}\n\n"
    )
    return head + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cpu", help="torch's name of the device")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each")
    parser.add_argument("--iterations", type=int, default=3, help="of the whole synthesis")
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--peak-memory-of", choices=LOSSES, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
