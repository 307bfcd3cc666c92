"""torch.compile in the synthesis; here with a backend that traces, and compiles nothing."""

from __future__ import annotations

import functools
import gc
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import torch
from _helpers.calib_cases import CPU, PREPROCESSING, no_advance, synthesis
from _helpers.tiny_students import tiny_vit
from torch import nn

from mimiq_calib.conversion.convert import expose_attention
from mimiq_calib.synthesis.compilation import compiled_teacher, wants_compilation
from mimiq_calib.synthesis.sources import ShardRequest, make_shard
from mimiq_runtime.errors import InvalidInputError

if TYPE_CHECKING:
    from mimiq_calib.recipe import SynthesisSettings
    from mimiq_calib.synthesis.optimisation import SynthesisedBatch

CUDA = torch.device("cuda")
SOURCES = ["mimiq", "patch-similarity"]


def shard(
    model: nn.Module, settings: SynthesisSettings, *, seed: int = 0, device: torch.device = CPU
) -> SynthesisedBatch:
    return make_shard(
        model,
        settings,
        PREPROCESSING,
        ShardRequest(0, 2, torch.Generator().manual_seed(seed)),
        num_classes=10,
        device=device,
        advance=no_advance,
    )


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs as for a GPU, run by torch's own operators; a graph break is an error."""
    torch.compiler.reset()
    tracing = functools.partial(torch.compile, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", tracing)


@pytest.mark.parametrize(
    ("choice", "device", "expected"),
    [
        (None, CPU, False),
        (None, CUDA, True),
        (True, CPU, True),
        (False, CUDA, False),
    ],
)
def test_who_compiles(choice: bool | None, device: torch.device, expected: bool) -> None:
    assert wants_compilation(choice, device) is expected


# Dynamo looks at .grad of every tensor it meets; outside of tests it keeps quiet about it.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("source", SOURCES)
def test_one_graph_without_a_break_for_all_shards(source: str) -> None:
    model = expose_attention(tiny_vit())
    chosen = {"source": source, "iterations": 2, "num_images": 4, "batch_size": 2}
    plain, compiled = (synthesis(**chosen, compile=choice) for choice in (False, True))
    exact = shard(model, plain)
    traced = shard(model, compiled)
    for record, expected in zip(traced.metrics, exact.metrics, strict=True):
        # Fused and rewritten operators: the last digits of single precision.
        assert record == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert not any(module._forward_hooks for module in model.modules())
    with torch.compiler.set_stance("fail_on_recompile"):
        second = shard(model, compiled, seed=1)
    expected_second = shard(model, plain, seed=1)
    assert second.metrics[0] == pytest.approx(expected_second.metrics[0], rel=1e-3, abs=1e-4)
    assert second.labels.tolist() == expected_second.labels.tolist()


def broken_compile(_function: Any, **_options: Any) -> Any:
    def fail(*_arguments: Any) -> None:
        raise RuntimeError("no C++ compiler\nand much more")

    return fail


@pytest.mark.parametrize("source", SOURCES)
def test_a_failing_compilation_is_said_and_done_without(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = expose_attention(tiny_vit())
    exact = shard(model, synthesis(source=source, compile=False))
    monkeypatch.setattr(torch, "compile", broken_compile)
    monkeypatch.setattr(
        "mimiq_calib.synthesis.optimisation.wants_compilation", lambda _choice, _device: True
    )
    with pytest.warns(RuntimeWarning, match=r"torch.compile failed \(no C\+\+ compiler\): the"):
        batch = shard(model, synthesis(source=source, compile=None))
    assert torch.equal(batch.images, exact.images)
    assert batch.metrics == exact.metrics


def test_a_compilation_that_was_insisted_on_must_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", broken_compile)
    with pytest.raises(InvalidInputError, match=r"no C\+\+ compiler.*synthesis.compile is true"):
        shard(expose_attention(tiny_vit()), synthesis(compile=True))


@pytest.mark.usefixtures("traced")
def test_a_compiled_teacher_is_kept_as_long_as_the_teacher() -> None:
    model = expose_attention(tiny_vit())
    first = compiled_teacher(model, "logits")
    assert compiled_teacher(model, "logits") is first
    assert compiled_teacher(model, "head_outputs") is not first
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.gpu
@pytest.mark.parametrize("source", SOURCES)
def test_on_a_gpu_the_same_seed_gives_the_same_images(source: str) -> None:
    model = expose_attention(tiny_vit()).to(CUDA)
    settings = synthesis(source=source, iterations=20, precision="bf16", compile=True)
    first, again, other = (shard(model, settings, seed=s, device=CUDA) for s in (1, 1, 2))
    assert torch.equal(first.images, again.images)
    assert first.metrics == again.metrics
    assert not torch.equal(first.images, other.images)
    assert first.images.device.type == first.labels.device.type == "cpu"


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("source", SOURCES)
def test_on_a_gpu_step_0_is_that_of_a_processor(source: str, compiled: bool) -> None:
    model = expose_attention(tiny_vit())
    expected = shard(model, synthesis(source=source, compile=False))
    batch = shard(model.to(CUDA), synthesis(source=source, compile=compiled), device=CUDA)
    # Another order of sums in single precision; the entropy has similarities in widths of 0.01.
    assert batch.metrics[0] == pytest.approx(expected.metrics[0], rel=2e-3, abs=1e-4)
    assert batch.labels.tolist() == expected.labels.tolist()


@pytest.mark.gpu
def test_on_a_gpu_products_are_in_bfloat16_by_default() -> None:
    seen: set[torch.dtype] = set()
    model = expose_attention(tiny_vit()).to(CUDA)
    for block in model.blocks:
        block.attn.logits.register_forward_hook(
            lambda _module, _inputs, output: seen.add(output.dtype)
        )
    shard(model, synthesis(precision="auto", compile=False), device=CUDA)
    assert seen == {torch.bfloat16}
