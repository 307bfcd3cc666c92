"""NVIDIA's real bindings, Polygraphy and cuda-python against every name that our code uses.

No TensorRT runs here. The bindings are imported over stub libraries that are compiled now; objects
made of their signatures stand for the engine (``_helpers/checked_tensorrt.py``), and refuse every
attribute, argument and enumeration that the real class does not have. Over them runs our whole
code: a build through Polygraphy, the precision report, a refit, and a session on a stand-in of
CUDA whose results are compared with numpy.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from _helpers.native_wheels import stub_libraries, unpacked_wheel

ROOT = Path(__file__).parents[2]

# The oldest that is supported, the last of 10, and the newest.
VERSIONS = {
    "10.3": ("tensorrt-cu12-bindings==10.3.0", "polygraphy==0.49.20"),
    "10.16": ("tensorrt-cu12-bindings==10.16.1.11", "polygraphy==0.50.3"),
    "11.4": ("tensorrt-cu13-bindings==11.4.0.106", "polygraphy==0.53.6"),
}

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux"),
    pytest.mark.skipif(
        importlib.util.find_spec("cuda") is None
        or importlib.util.find_spec("cuda.bindings") is None,
        reason="needs cuda-python, which torch brings where it can use a GPU",
    ),
]


@pytest.fixture(scope="module", params=VERSIONS, ids=VERSIONS)
def report(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the program reports over one version of NVIDIA's packages."""
    cache = request.config.cache.mkdir("nvidia-wheels")
    wheels = [unpacked_wheel(requirement, cache) for requirement in VERSIONS[request.param]]
    major = request.param.partition(".")[0]
    folder = tmp_path_factory.mktemp(f"trt{major}")
    libraries = stub_libraries(int(major), folder / "lib")
    paths = [*wheels, ROOT / "tests", *(ROOT / name for name in ("runtime", "calib", "export", ""))]
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "_helpers" / "trt_program.py"), str(folder), major],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(path) for path in paths),
            "LD_LIBRARY_PATH": str(libraries),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *noise, last = done.stdout.splitlines()
    result: dict[str, Any] = json.loads(last)
    return {**result, "major": int(major), "noise": "\n".join(noise)}


def test_the_build_uses_names_that_exist(report: dict[str, Any]) -> None:
    """Polygraphy's classes ran for real; what they did to the builder is what was asked for."""
    assert {
        "IBuilderConfig.set_flag",
        "IBuilderConfig.set_memory_pool_limit",
        "IBuilderConfig.builder_optimization_level=",
        "IBuilderConfig.hardware_compatibility_level=",
        "IBuilderConfig.profiling_verbosity=",
        "IBuilderConfig.add_optimization_profile",
        "IBuilderConfig.set_timing_cache",
    } <= set(report["config"])
    assert {"Builder.create_network", "OnnxParser.parse_from_file"} <= set(report["used"])


def test_the_proof_follows_the_inspector(report: dict[str, Any]) -> None:
    """The sample of version 11 has its head in half precision, that of version 10 has not."""
    verdicts = report["proofs"]
    assert report["floating_point"] == ["patch_embed/Conv"]
    assert set(verdicts) == {
        "blocks.0/attn/qkv/MatMul",
        "blocks.0/attn/scores/MatMul",
        "blocks.0/attn/values/MatMul",
        "head/MatMul",
    }
    head = verdicts.pop("head/MatMul")
    assert set(verdicts.values()) == {"int8"}
    if report["major"] == 11:
        assert (head, report["first"]) == ("not int8", "rejected.json")
    else:
        assert (head, report["first"]) == ("int8", "engine.plan")


def test_an_attention_of_tensorrt_is_a_product(report: dict[str, Any]) -> None:
    """Version 10.3 has none; later ones mark its beginning and its end by layers of their own."""
    expected = {"quantized/Attention": True, "half/Attention": False}
    assert report["attentions"] == ({} if report["tensorrt"] == "10.3.0" else expected)


def test_a_stripped_engine_runs_after_a_refit_only(report: dict[str, Any]) -> None:
    assert "was built without its weights" in report["stripped"]
    assert "--refit" in report["stripped"]
    weights, plan = report["refitted"]
    assert weights.startswith("refitted from ")
    assert plan == "a plan with weights"
    assert "ISerializationConfig.clear_flag" in report["used"]


def test_a_stripped_engine_takes_its_own_weights_only(report: dict[str, Any]) -> None:
    """So it keeps its speed; REFIT, for weights that change, gives some of it up."""
    # TensorRT 10 has an older name for the same flag.
    flags = {
        flag.replace("WEIGHTLESS", "STRIP_PLAN") for flag in report["flags of a stripped engine"]
    }
    assert flags == {"REFIT_IDENTICAL", "STRIP_PLAN", "TF32", "VERSION_COMPATIBLE"}
    assert "takes the weights that it was built from only" in report["other weights"]
    assert report["flags of a refittable engine"] == ["REFIT"]


def test_a_refitted_engine_stays_refittable_where_tensorrt_can(report: dict[str, Any]) -> None:
    expected = [] if report["tensorrt"] == "10.3.0" else ["INCLUDE_REFIT"]
    assert report["flags of a refit"] == expected


def test_a_plan_runs_code_of_its_own_only_where_the_user_says_so(report: dict[str, Any]) -> None:
    """Its record says that it needs to; TensorRT is not told until the user says that it may."""
    for refused in ("foreign code", "refit of foreign code"):
        assert "set MIMIQ_ALLOW_HOST_CODE=1 if you trust" in report[refused]
    assert report["foreign code was allowed"] is False
    assert "Runtime.engine_host_code_allowed=" in report["used"]


@pytest.mark.parametrize(("kind", "tolerance"), [("float", 1e-6), ("half", 2e-3)])
def test_the_session_gives_what_numpy_gives(
    report: dict[str, Any], kind: str, tolerance: float
) -> None:
    """Half precision has 11 bits: logits of about 1 are right to 1 part in 2000."""
    ran = report[kind]
    assert max(ran["errors"]) < tolerance
    # Five batches, each one launch of a graph; the sizes changed three times, and once at first.
    assert ran["launches"] == 5
    assert "takes batches of 1 to 4 images, got 5" in ran["too_many"]
    assert ran["info"]["device"] == "Checked GPU"
    assert ran["info"]["libraries"]["tensorrt"] == report["tensorrt"]
    assert ran["info"]["products"]["floating point by design"] == 1
    # The clock of the stand-in goes on by 1.5 with every event.
    assert ran["times"] == [1.5, 4.5]


def test_the_runner_of_a_bundle_gives_what_numpy_gives(report: dict[str, Any]) -> None:
    """In half precision, as above."""
    assert len(report["runner"]["errors"]) == 3
    assert max(report["runner"]["errors"]) < 2e-3


def test_the_runner_of_a_bundle_says_what_is_wrong(report: dict[str, Any]) -> None:
    """TensorRT gives None or False, and says the reason in its log at most."""
    said = report["runner"]["refused"]
    assert "cannot load engine.plan" in said["Runtime.deserialize_cuda_engine"]
    assert "memory is not enough" in said["ICudaEngine.create_execution_context"]
    assert "refused a batch of one picture" in said["IExecutionContext.set_input_shape"]
    assert said["driver"].startswith("No NVIDIA GPU can be used here")


def test_everything_is_given_back(report: dict[str, Any]) -> None:
    assert report["left"] == [0]


def test_the_record_says_how_it_was_built(report: dict[str, Any]) -> None:
    record = report["record"]
    assert record["libraries"]["tensorrt"] == report["tensorrt"]
    assert record["device"]["name"] == "Checked GPU"
    assert record["profile"] == {
        "input": "images",
        "min": [1, 3, 8, 8],
        "opt": [8, 3, 8, 8],
        "max": [32, 3, 8, 8],
    }
    assert len(record["onnx_sha256"]) == len(record["timing_cache_sha256"]) == 64
    kernels = [layer["kernel"] for layer in record["precision"]["layers"]]
    assert any(kernel.startswith("sm80_xmma_gemm_i8i8") for kernel in kernels)


def test_every_name_that_is_written_down_exists(report: dict[str, Any]) -> None:
    """Names such as ``trt.DataType.HALF``, also those on paths that did not run."""
    assert report["missing"] == []
    assert {
        "trt.DataType.HALF",
        "backend.CreateConfig",
        "trt.SerializationFlag.EXCLUDE_WEIGHTS",
    } <= (set(report["written"]))


def test_the_stand_ins_refuse_what_the_real_library_refuses(report: dict[str, Any]) -> None:
    """So that the tests above can fail; and the reason for passing no precision flag."""
    expected = {
        "unknown attribute": "AttributeError",
        "number for an enumeration": "TypeError",
        "missing argument": "TypeError",
        "unknown keyword": "TypeError",
        "read-only property": "AttributeError",
    }
    if report["major"] == 11:
        expected["precision flag"] = "PolygraphyException"
    assert report["refused"] == expected


def test_the_result_is_all_that_is_printed(report: dict[str, Any]) -> None:
    """Polygraphy logs to standard output; a command's JSON must stay JSON."""
    assert report["noise"] == ""
