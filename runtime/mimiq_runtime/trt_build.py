"""Building a TensorRT engine from an ONNX file, through Polygraphy; and what it runs in INT8.

The network is strongly typed: types are those of the file, and TensorRT may choose no other. This
is the only mode of TensorRT 11, and what a Q/DQ graph means; so no precision flag is ever passed.
"""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mimiq_runtime.classifier_checks import check_onnx_file, first_line
from mimiq_runtime.engine_record import BuildOptions, HardwareCompatibility, ShapeProfile
from mimiq_runtime.errors import (
    EngineError,
    InvalidInputError,
    MissingDependencyError,
    OnnxModelError,
)
from mimiq_runtime.named_steps import unseen
from mimiq_runtime.precision_report import PrecisionReport, prove_precision
from mimiq_runtime.trt_inspector import parse_engine_information
from mimiq_runtime.trt_library import import_tensorrt
from mimiq_runtime.trt_network import list_products

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = [
    "STEPS",
    "BuiltEngine",
    "build_engine",
    "check_options",
    "deserialize",
    "import_polygraphy",
    "refit_plan",
]

STEPS = ("parse", "choose kernels", "prove precision")
"""What :func:`build_engine` tells that it begins; the second takes nearly all the time."""

_MIB = 2**20
_LAST_LEVEL = 5


@dataclass(frozen=True)
class BuiltEngine:
    """An engine in memory, before it is written.

    Attributes:
        plan: The serialized engine.
        profile: The shapes that it takes.
        precision: What it computes in which precision.
        seconds: Wall-clock time of the build.
    """

    plan: bytes
    profile: ShapeProfile
    precision: PrecisionReport
    seconds: float


def check_options(options: BuildOptions) -> None:
    """Raise :class:`InvalidInputError` for options that no engine can have."""
    faults = []
    if not 1 <= options.min_batch <= options.opt_batch <= options.max_batch:
        faults.append(
            "batch sizes must be 1 <= min <= opt <= max, got "
            f"{options.min_batch}, {options.opt_batch} and {options.max_batch}"
        )
    if options.workspace_mib is not None and options.workspace_mib < 1:
        faults.append(f"the workspace must be at least 1 MiB, got {options.workspace_mib}")
    level = options.optimization_level
    if level is not None and not 0 <= level <= _LAST_LEVEL:
        faults.append(f"the optimization level must be 0 to {_LAST_LEVEL}, got {level}")
    if faults:
        raise InvalidInputError(f"The engine cannot be built so: {'; '.join(faults)}.")


def build_engine(
    onnx: Path,
    options: BuildOptions,
    *,
    timing_cache: Path,
    begin: Callable[[str], None] = unseen,
) -> BuiltEngine:
    """Build an engine for the GPU of this machine.

    Args:
        onnx: An image classifier with one input (N, C, H, W), N free or fixed.
        options: How to build it.
        timing_cache: Measurements of kernels from earlier builds; read where it is there, and
            extended by this build.
        begin: Called with the name of each step when it begins.

    Returns:
        The engine, and what it computes in INT8.

    Raises:
        InvalidInputError: The options contradict each other or the model.
        MissingDependencyError: TensorRT or Polygraphy is not installed.
        OnnxModelError: The file is missing, TensorRT cannot parse it, or it is no classifier.
        EngineError: TensorRT is of an unknown version, or cannot build the engine.
    """
    check_options(options)
    check_onnx_file(onnx)
    trt, backend = import_tensorrt(), import_polygraphy()
    begun = time.monotonic()
    begin(STEPS[0])
    with _polygraphy(f"TensorRT cannot parse {onnx}", OnnxModelError):
        network = backend.NetworkFromOnnxPath(str(onnx), strongly_typed=True)()
    profile = _profile(onnx, network[1], options)
    products = list_products(trt, network[1])
    timing_cache.parent.mkdir(parents=True, exist_ok=True)
    begin(STEPS[1])
    with _polygraphy(f"TensorRT cannot build an engine from {onnx}", EngineError):
        config = backend.PostprocessConfig(
            backend.CreateConfig(**_config_arguments(trt, backend, options, profile, timing_cache)),
            lambda _builder, _network, made: _let_the_same_weights_back(trt, options, made),
        )
        plan = bytes(
            backend.EngineBytesFromNetwork(network, config, save_timing_cache=str(timing_cache))()
        )
    seconds = time.monotonic() - begun
    begin(STEPS[2])
    # What was built a moment ago may run its code: it is TensorRT's own.
    engine = deserialize(trt, plan, host_code=options.version_compatible)
    return BuiltEngine(
        plan=plan,
        profile=profile,
        precision=prove_precision(products, parse_engine_information(_inspect(trt, engine))),
        seconds=seconds,
    )


def refit_plan(plan: bytes, onnx: Path, *, host_code: bool) -> bytes:
    """Put the weights of an ONNX file into an engine that was built without them, or refittable.

    Args:
        plan: The serialized engine.
        onnx: The file that it was built from, or one of the same graph with other weights.
        host_code: As for :func:`deserialize`.

    Returns:
        The engine with the weights.

    Raises:
        MissingDependencyError: TensorRT is not installed.
        OnnxModelError: The file is missing, or its graph is not the engine's.
        EngineError: The engine cannot be loaded, or is not refittable.
    """
    check_onnx_file(onnx)
    trt = import_tensorrt()
    engine = deserialize(trt, plan, host_code=host_code)
    if not engine.refittable:
        raise EngineError(
            "The engine is not refittable, or TensorRT 10 made it so when it was refitted before; "
            "build it with --refittable or --strip-weights."
        )
    logger = _logger(trt)
    refitter = trt.Refitter(engine, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(str(onnx)):
        reasons = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise OnnxModelError(
            f"The weights of {onnx} do not fit the engine: {'; '.join(reasons) or 'no reason'}; "
            "build the engine from this file again."
        )
    missing = refitter.get_missing_weights()
    if missing or not refitter.refit_cuda_engine():
        raise EngineError(
            f"TensorRT could not refit the engine, {len(missing)} weights are missing; build it "
            "again without --strip-weights."
        )
    config = engine.create_serialization_config()
    # A refitted engine is still written without its weights unless this is said.
    config.clear_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)
    stay_refittable = trt.SerializationFlag.__members__.get("INCLUDE_REFIT")
    # Earlier versions write an engine that cannot be refitted a second time.
    if stay_refittable is not None:
        config.set_flag(stay_refittable)
    return bytes(engine.serialize_with_config(config))


def deserialize(trt: Any, plan: bytes, *, host_code: bool) -> Any:
    """Load a plan.

    Args:
        trt: The module ``tensorrt``.
        plan: The serialized engine.
        host_code: Whether code for the CPU that it holds may run, as that of a version-compatible
            plan has to; see :mod:`mimiq_runtime.trt_host_code`.

    Raises:
        EngineError: It was built by another version or for another GPU, or is damaged.
    """
    runtime = trt.Runtime(_logger(trt))
    if host_code:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(
            f"TensorRT {trt.__version__} cannot load the engine: it was built by another version "
            "or for another GPU, or is damaged; build it here with mimiq-deploy build."
        )
    return engine


def import_polygraphy() -> Any:
    """Polygraphy's TensorRT backend; raises :class:`MissingDependencyError` without it."""
    try:
        from polygraphy.backend import trt as backend
    except ModuleNotFoundError as error:
        raise MissingDependencyError("polygraphy", "trt") from error
    return backend


def _config_arguments(
    trt: Any, backend: Any, options: BuildOptions, profile: ShapeProfile, timing_cache: Path
) -> dict[str, Any]:
    """Arguments of Polygraphy's ``CreateConfig``; what is not asked for is not mentioned."""
    arguments: dict[str, Any] = {
        "profiles": [
            backend.Profile().add(profile.input, min=profile.min, opt=profile.opt, max=profile.max)
        ],
        # Without it the inspector knows the names of layers and nothing else.
        "profiling_verbosity": trt.ProfilingVerbosity.DETAILED,
        "tf32": options.tf32,
        "refittable": options.refittable,
        "strip_plan": options.strip_weights,
        "version_compatible": options.version_compatible,
    }
    if timing_cache.is_file():
        arguments["load_timing_cache"] = str(timing_cache)
    if options.workspace_mib is not None:
        pool = trt.MemoryPoolType.WORKSPACE
        arguments["memory_pool_limits"] = {pool: options.workspace_mib * _MIB}
    if options.optimization_level is not None:
        arguments["builder_optimization_level"] = options.optimization_level
    if options.hardware_compatibility is not HardwareCompatibility.NONE:
        arguments["hardware_compatibility_level"] = _compatibility(trt, options)
    return arguments


def _let_the_same_weights_back(trt: Any, options: BuildOptions, config: Any) -> None:
    """Make a stripped engine take its own weights again, where it need not take any others.

    For others the engine gives up what it knows of the weights, and speed with it; and TensorRT
    11.3 is known to drop biases then. Polygraphy has no argument for this.
    """
    if options.strip_weights and not options.refittable:
        config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)


def _compatibility(trt: Any, options: BuildOptions) -> Any:
    name = options.hardware_compatibility.name
    levels = trt.HardwareCompatibilityLevel.__members__
    if name not in levels:
        raise EngineError(
            f"TensorRT {trt.__version__} has no hardware compatibility "
            f"{options.hardware_compatibility}; choose another one, or update TensorRT."
        )
    return levels[name]


def _profile(onnx: Path, network: Any, options: BuildOptions) -> ShapeProfile:
    """The shapes of the only input, with the batch sizes that were asked for."""
    if network.num_inputs != 1 or network.num_outputs != 1:
        raise OnnxModelError(
            f"Expected one input and one output, got {network.num_inputs} and "
            f"{network.num_outputs} in {onnx}; export an image classifier."
        )
    tensor = network.get_input(0)
    batch, *rest = tuple(tensor.shape)
    if len(rest) != 3 or min(rest) < 1:
        raise OnnxModelError(
            f"Expected an input (N, C, H, W) whose C, H and W are fixed, got {tensor.name} of "
            f"shape {(batch, *rest)} in {onnx}; export an image classifier."
        )
    if batch > 0:
        return ShapeProfile(
            input=tensor.name, min=(batch, *rest), opt=(batch, *rest), max=(batch, *rest)
        )
    return ShapeProfile(
        input=tensor.name,
        min=(options.min_batch, *rest),
        opt=(options.opt_batch, *rest),
        max=(options.max_batch, *rest),
    )


def _inspect(trt: Any, engine: Any) -> str:
    inspector = engine.create_engine_inspector()
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _logger(trt: Any) -> Any:
    # TensorRT's own lines say why an engine cannot be loaded, where its functions give None.
    return trt.Logger(trt.Logger.ERROR)


@contextlib.contextmanager
def _polygraphy(what: str, kind: type[EngineError | OnnxModelError]) -> Iterator[None]:
    """Let Polygraphy work: only its errors are printed, and its exception becomes one of ours."""
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER

    # It prints on standard output, which belongs to the command's own result.
    with G_LOGGER.verbosity(G_LOGGER.ERROR), contextlib.redirect_stdout(sys.stderr):
        try:
            yield
        except PolygraphyException as error:
            raise kind(
                f"{what}: {first_line(error)}; the lines above name the nodes and the reasons."
            ) from error
