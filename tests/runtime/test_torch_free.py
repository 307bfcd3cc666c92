"""An edge device has none of the heavy libraries: everything here imports without them."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = [
    *("torch", "torchvision", "timm"),
    *("onnx", "onnx_ir", "onnxscript", "onnxruntime", "openvino", "tensorrt", "polygraphy"),
    *("sklearn", "matplotlib", "jinja2", "scipy", "skimage"),
    *("mimiq_calib", "mimiq_export", "mimiq_deploy"),
]

SCRIPT = """
import importlib, json, pkgutil, sys

heavy = set(json.loads(sys.argv[1]))

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in heavy:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
try:
    import torch
except ImportError:
    pass
else:
    sys.exit("the blocker does not block")

import mimiq_runtime

names = [m.name for m in pkgutil.walk_packages(mimiq_runtime.__path__, "mimiq_runtime.")]
for name in names:
    importlib.import_module(name)
found = sorted(heavy & {name.partition(".")[0] for name in sys.modules})
print(json.dumps({"names": names, "found": found}))
"""


def test_every_module_imports_without_the_heavy_libraries() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, json.dumps(HEAVY)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["found"] == []
    assert {"mimiq_runtime.ort_session", "mimiq_runtime.benchmark"} <= set(report["names"])
