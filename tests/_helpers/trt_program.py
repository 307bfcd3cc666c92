"""Runs in a process of its own: the project's TensorRT code over NVIDIA's real Python packages.

``python trt_program.py FOLDER`` with the bindings, Polygraphy and stub libraries on the paths.
Prints one JSON object of what happened. See ``tests/runtime/test_trt_conformance.py``.
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from _helpers.checked_cuda import CheckedCuda
from _helpers.checked_tensorrt import Checked, HostMemory, World

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "tests" / "runtime" / "inspector"
CLASSES, SHAPE, MOST = 3, (3, 8, 8), 4


class Graph:
    """A network as TensorRT's parser makes it: layers that are joined by named tensors."""

    def __init__(self, world: World) -> None:
        self.world, self.layers = world, []
        self.tensors: dict[str, Checked] = {}

    def tensor(self, name: str) -> Checked:
        shape = self.world.bindings.Dims((-1, *SHAPE))
        made = Checked(self.world, "ITensor", name=name, shape=shape, is_shape_tensor=False)
        return self.tensors.setdefault(name, made)

    def add(self, kind: str, output: str, *inputs: str, node: str = "") -> str:
        sources = [self.tensor(name) for name in inputs]
        target = self.tensor(output)
        self.layers.append(
            Checked(
                self.world,
                "ILayer",
                name=node or output,
                metadata=f"[ONNX Layer: {node or output}]",
                type=getattr(self.world.bindings.LayerType, kind),
                num_inputs=len(sources),
                num_outputs=1,
                get_input=lambda this, index: sources[index],
                get_output=lambda this, index: target,
            )
        )
        return output

    def attend(self, output: str, *inputs: str, node: str) -> str:
        """TensorRT's own attention: the layers around it are not named after the ONNX node."""
        sources = [self.tensor(name) for name in inputs]
        made = Checked(
            self.world,
            "IAttention",
            name="attention",
            metadata=f"[ONNX Layer: {node}]",
            num_inputs=len(sources),
            get_input=lambda this, index: sources[index],
        )
        for kind, here, there in (
            ("Input", inputs, f"{output}/inside"),
            ("Output", (f"{output}/inside",), output),
        ):
            self.add(f"ATTENTION_{kind.upper()}", there, *here)
            vars(self.layers[-1]).update(_interface=f"IAttention{kind}Layer")
            self.layers[-1]._facts.update(attention=made, metadata="", name=kind)
        return output

    def quantized(self, source: str) -> str:
        codes = self.add("QUANTIZE", f"{source}/codes", source, f"{source}/scale")
        return self.add("DEQUANTIZE", f"{source}/dequantized", codes, f"{source}/scale")

    def weight(self, name: str) -> str:
        codes = self.add("CONSTANT", f"{name}/codes")
        return self.add("DEQUANTIZE", f"{name}/dequantized", codes, f"{name}/scale")


def vision_transformer(world: World) -> Graph:
    """One block, with the node names of the inspector's samples."""
    graph = Graph(world)
    weight = graph.weight("patch")
    tokens = graph.add("CONVOLUTION", "tokens", "images", weight, node="patch_embed/Conv")
    qkv = graph.add(
        "MATRIX_MULTIPLY",
        "qkv",
        graph.quantized(tokens),
        graph.add("SHUFFLE", "qkv/turned", graph.weight("qkv/weight")),
        node="blocks.0/attn/qkv/MatMul",
    )
    parts = [graph.add("SLICE", name, qkv) for name in ("q", "k", "v")]
    query, key, value = (graph.quantized(part) for part in parts)
    turned = graph.add("SHUFFLE", "key/turned", key)
    scores = graph.add(
        "MATRIX_MULTIPLY", "scores", query, turned, node="blocks.0/attn/scores/MatMul"
    )
    weights = graph.quantized(graph.add("SOFTMAX", "probabilities", scores))
    values = graph.add(
        "MATRIX_MULTIPLY", "values", weights, value, node="blocks.0/attn/values/MatMul"
    )
    pooled = graph.quantized(graph.add("REDUCE", "pooled", values))
    graph.add("MATRIX_MULTIPLY", "logits", pooled, graph.weight("head"), node="head/MatMul")
    return graph


def attentions(world: World) -> dict[str, bool]:
    """Attentions as one layer of TensorRT, and whether they count as quantized."""
    from mimiq_runtime.trt_network import list_products

    if not hasattr(world.bindings, "IAttention"):
        return {}
    graph = Graph(world)
    heads = [graph.quantized(name) for name in ("query", "key", "value")]
    graph.attend("first", *heads, node="quantized/Attention")
    graph.attend("second", heads[0], "half/key", "half/value", node="half/Attention")
    network = Checked(
        world,
        "INetworkDefinition",
        num_layers=len(graph.layers),
        get_layer=lambda this, index: graph.layers[index],
    )
    return {
        product.name: product.quantized
        for product in list_products(sys.modules["tensorrt"], network)
        if product.kind == "attention"
    }


def classify(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What the stand-in of an engine computes."""
    return np.stack([images[:, channel].mean((1, 2)) for channel in range(CLASSES)], axis=1)


def answers(cuda: CheckedCuda, *, half: bool) -> dict[str, Any]:
    """What TensorRT gives, as far as the code under test depends on it."""
    kind = np.float16 if half else np.float32

    def enqueue(context: Checked, stream_handle: int) -> bool:
        batch, addresses = context._facts["batch"], context._facts["addresses"]

        def work() -> None:
            size = batch * int(np.prod(SHAPE)) * np.dtype(kind).itemsize
            raw = ctypes.string_at(addresses["images"], size)
            images = np.frombuffer(raw, dtype=kind).reshape(batch, *SHAPE)
            logits = classify(images.astype(np.float32)).astype(kind).tobytes()
            ctypes.memmove(addresses["logits"], logits, len(logits))

        cuda.enqueue(work)
        return True

    def set_shape(context: Checked, name: str, shape: Any) -> bool:
        context._facts["batch"] = shape[0]
        return True

    def set_address(context: Checked, name: str, memory: int) -> bool:
        context._facts.setdefault("addresses", {})[name] = memory
        return True

    def shape_of(engine: Checked, name: str) -> Any:
        rest = SHAPE if name == "images" else (CLASSES,)
        return engine._world.bindings.Dims((-1, *rest))

    def profile_of(engine: Checked, name: str, profile_index: int) -> list[Any]:
        return [engine._world.bindings.Dims((batch, *SHAPE)) for batch in (1, 2, MOST)]

    def dtype_of(engine: Checked, name: str) -> Any:
        types = engine._world.bindings.DataType
        return types.HALF if half else types.FLOAT

    def mode_of(engine: Checked, name: str) -> Any:
        modes = engine._world.bindings.TensorIOMode
        return modes.INPUT if name == "images" else modes.OUTPUT

    sample = (SAMPLES / f"trt{sys.argv[2]}.json").read_text()
    return {
        "Builder.build_serialized_network": HostMemory(b"a plan"),
        "ITimingCache.serialize": HostMemory(b"timings"),
        "ICudaEngine.num_io_tensors": 2,
        "ICudaEngine.refittable": True,
        "ICudaEngine.get_tensor_name": lambda engine, index: ("images", "logits")[index],
        "ICudaEngine.get_tensor_mode": mode_of,
        "ICudaEngine.get_tensor_dtype": dtype_of,
        "ICudaEngine.get_tensor_shape": shape_of,
        "ICudaEngine.get_tensor_profile_shape": profile_of,
        "ICudaEngine.serialize_with_config": HostMemory(b"a plan with weights"),
        "EngineInspector.get_engine_information": lambda inspector, format: sample,
        "IExecutionContext.execute_async_v3": enqueue,
        "IExecutionContext.set_input_shape": set_shape,
        "IExecutionContext.set_tensor_address": set_address,
        "IBuilderConfig.set_flag": lambda config, flag: config._world.flags.append(flag.name),
        "ISerializationConfig.set_flag": lambda config, flag: config._world.flags.append(flag.name),
        "OnnxParser.num_errors": 0,
        "INetworkDefinition.num_inputs": 1,
        "INetworkDefinition.num_outputs": 1,
    }


def main() -> None:
    folder = Path(sys.argv[1])
    bindings = importlib.import_module("tensorrt_bindings")
    real_cuda = importlib.import_module("cuda.bindings.runtime")
    cuda = CheckedCuda(real_cuda)
    world = World(bindings, answers(cuda, half=False))
    graph = vision_transformer(world)
    world.answers.update(
        {
            "INetworkDefinition.num_layers": len(graph.layers),
            "INetworkDefinition.get_layer": lambda network, index: graph.layers[index],
            "ILayer.precision_is_set": False,
            "IBuilderConfig.DLA_core": -1,
            "INetworkDefinition.get_input": lambda network, index: graph.tensors["images"],
        }
    )
    sys.modules["tensorrt"] = world.module()
    vars(importlib.import_module("cuda.bindings"))["runtime"] = cuda
    report = {
        **written_names(bindings),
        "refused": refused_by(world),
        "attentions": attentions(world),
    }
    print(json.dumps({**report, **scenarios(folder, world, cuda)}))


def written_names(bindings: Any) -> dict[str, Any]:
    """All ``trt.A.B`` and ``backend.A`` in our modules, also on paths that do not run here."""
    backend = importlib.import_module("polygraphy.backend.trt")
    found, missing = set(), set()
    for path in (ROOT / "runtime" / "mimiq_runtime").rglob("trt_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            module, _, rest = name.partition(".")
            if module not in ("trt", "backend") or not rest.replace(".", "").isidentifier():
                continue
            found.add(name)
            thing: Any = {"trt": bindings, "backend": backend}[module]
            for part in rest.split("."):
                thing = getattr(thing, part, None)
            if thing is None:
                missing.add(name)
    return {"written": sorted(found), "missing": sorted(missing)}


def refused_by(world: World) -> dict[str, str]:
    """That the stand-ins refuse what the real library would refuse."""
    from polygraphy.backend.trt import CreateConfig

    trt = sys.modules["tensorrt"]
    config = Checked(world, "IBuilderConfig")
    attempts = {
        "unknown attribute": lambda: config.set_flags,
        "number for an enumeration": lambda: config.set_flag(3),
        "missing argument": lambda: config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE),
        "unknown keyword": lambda: config.set_flag(flags=trt.BuilderFlag.REFIT),
        "read-only property": lambda: setattr(config, "num_optimization_profiles", 2),
    }
    if not hasattr(trt.BuilderFlag, "FP16"):  # gone since version 11
        attempts["precision flag"] = lambda: CreateConfig(fp16=True)(
            trt.Builder(trt.Logger()), None
        )
    outcome = {}
    for name, attempt in attempts.items():
        try:
            with contextlib.redirect_stdout(sys.stderr):
                attempt()
        except Exception as error:
            outcome[name] = type(error).__name__
        else:
            outcome[name] = "taken"
    return outcome


def scenarios(folder: Path, world: World, cuda: CheckedCuda) -> dict[str, Any]:
    from mimiq_deploy.building import build_model
    from mimiq_runtime.engine_record import BuildOptions, HardwareCompatibility

    onnx = folder / "model.onnx"
    onnx.write_bytes(b"\x08\x08")  # the version of its format, and nothing else
    everything = BuildOptions(
        min_batch=1,
        opt_batch=2,
        max_batch=MOST,
        workspace_mib=64,
        optimization_level=5,
        version_compatible=True,
        hardware_compatibility=HardwareCompatibility.AMPERE_PLUS,
        strip_weights=True,
        tf32=True,
    )
    world.flags.clear()
    record, rejected = build_model(onnx, everything)
    report: dict[str, Any] = {
        "flags of a stripped engine": sorted(world.flags),
        "tensorrt": world.bindings.__version__,
        "first": rejected.name,
        "proofs": {proof.product: proof.verdict for proof in record.precision.products},
        "floating_point": record.precision.floating_point,
        "config": sorted(name for name in world.used if name.startswith("IBuilderConfig.")),
    }
    build_model(onnx, everything, allow_floating_point=True)
    plan = rejected.with_name("engine.plan")
    report["stripped"] = refused(plan)
    report["refit of foreign code"] = refused_refit(onnx, plan)
    world.flags.clear()
    os.environ["MIMIQ_ALLOW_HOST_CODE"] = "1"
    record, plan = build_model(onnx, everything, refit=True, allow_floating_point=True)
    world.used.discard("Runtime.engine_host_code_allowed=")
    del os.environ["MIMIQ_ALLOW_HOST_CODE"]
    report["foreign code"] = refused(plan)
    report["foreign code was allowed"] = "Runtime.engine_host_code_allowed=" in world.used
    os.environ["MIMIQ_ALLOW_HOST_CODE"] = "1"
    report["flags of a refit"] = sorted(world.flags)
    other = folder / "other.onnx"
    other.write_bytes(onnx.read_bytes() * 2)
    report["other weights"] = refused_refit(other, plan)
    report["refitted"] = [record.weights, plan.read_bytes().decode()]
    report["float"] = run(plan, world, cuda)
    world.answers.update(answers(cuda, half=True))
    world.flags.clear()
    record, plan = build_model(onnx, BuildOptions(refittable=True), allow_floating_point=True)
    report["flags of a refittable engine"] = sorted(world.flags)
    report["half"] = run(plan, world, cuda)
    report["runner"] = {**run_bundle(plan), "refused": refused_bundles(plan, world, cuda)}
    report["record"] = json.loads(plan.with_name("engine.json").read_text())
    report["used"] = sorted(world.used)
    report["cuda"] = sorted(cuda.used)
    report["left"] = [len(cuda.memory), *cuda.alive]
    return report


def bundle_of(plan: Path) -> Any:
    from mimiq_runtime.edge.bundle import Bundle
    from mimiq_runtime.input_form import InputForm

    return Bundle(
        engine="trt",
        model=plan,
        takes=InputForm.NORMALISED,
        preprocessing=None,
        labels=None,
        version_compatible=True,
    )


def run_bundle(plan: Path) -> dict[str, Any]:
    """The plan in the runner of a bundle, one picture after the other."""
    from mimiq_runtime.edge.engine import load_model

    errors = []
    with load_model(bundle_of(plan)) as loaded:
        for seed in range(3):
            images = np.random.default_rng(seed).normal(size=(1, *SHAPE)).astype(np.float32)
            logits = loaded(images)
            assert logits.dtype == np.float32, logits.dtype
            errors.append(float(np.abs(logits - classify(images)).max()))
    return {"errors": errors}


def refused_bundles(plan: Path, world: World, cuda: CheckedCuda) -> dict[str, str]:
    """What the runner of a bundle says where TensorRT only gives None, or False."""
    from mimiq_runtime.edge.engine import load_model
    from mimiq_runtime.errors import EngineError

    def attempt() -> str:
        try:
            with load_model(bundle_of(plan)):
                return "not refused"
        except EngineError as error:
            return str(error)

    said = {}
    for member, answer in (
        ("Runtime.deserialize_cuda_engine", None),
        ("ICudaEngine.create_execution_context", None),
        ("IExecutionContext.set_input_shape", False),
    ):
        kept = dict(world.answers)
        world.answers[member] = answer
        said[member] = attempt()
        world.answers.clear()
        world.answers.update(kept)
    cuda.devices = 0
    used = set(world.used)
    world.used.clear()
    said["driver"] = attempt()
    assert not world.used, "TensorRT was used without a driver"
    world.used |= used
    cuda.devices = 1
    return said


def refused_refit(onnx: Path, plan: Path) -> str:
    """An engine with the weights of a file."""
    from mimiq_deploy.building import build_model
    from mimiq_runtime.engine_record import BuildOptions
    from mimiq_runtime.errors import EngineError, InvalidInputError

    try:
        build_model(onnx, BuildOptions(), refit=True, output=plan.parent)
    except (EngineError, InvalidInputError) as error:
        return str(error)
    return "not refused"


def refused(plan: Path) -> str:
    from mimiq_runtime.errors import EngineError
    from mimiq_runtime.session import open_session

    try:
        open_session("trt", plan)
    except EngineError as error:
        return str(error)
    return "not refused"


def run(plan: Path, world: World, cuda: CheckedCuda) -> dict[str, Any]:
    """Batches of several sizes, compared with numpy."""
    from mimiq_runtime.errors import InvalidInputError
    from mimiq_runtime.session import open_session

    errors, launched = [], cuda.launches
    with open_session("trt", plan) as session:
        for batch in (1, 3, 3, MOST, 1):
            images = np.random.default_rng(batch).normal(size=(batch, *SHAPE)).astype(np.float32)
            # Neither contiguous nor in order: it must not matter.
            images = images[..., ::-1]
            logits = session.run(images)
            assert logits.dtype == np.float32, logits.dtype
            errors.append(float(np.abs(logits - classify(images)).max()))
        times = session.device_times()
        try:
            session.run(np.zeros((MOST + 1, *SHAPE), dtype=np.float32))
        except InvalidInputError as error:
            too_many = str(error)
        info = session.info.model_dump(mode="json")
    return {
        "errors": errors,
        "times": list(times),
        "too_many": too_many,
        "info": info,
        "launches": cuda.launches - launched,
    }


if __name__ == "__main__":
    main()
