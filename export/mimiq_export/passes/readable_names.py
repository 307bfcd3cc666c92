"""Names that say which module of the torch model a node comes from."""

from __future__ import annotations

import ast
from collections import defaultdict
from typing import TYPE_CHECKING

import onnx_ir as ir

from mimiq_export.fake_quantize import is_fake_quantize

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

__all__ = ["ReadableNamesPass"]

_SCOPES = "pkg.torch.onnx.name_scopes"


class ReadableNamesPass(ir.passes.InPlacePass):
    """Rename what torch's exporter numbered.

    1. A node is called ``<module>/<operator>``, such as ``blocks.0.attn.qkv/MatMul``; at the top
       of the model just ``<operator>``.
    2. A FakeQuantize node is called ``<quantizer>/FakeQuantize`` after its own attribute.
    3. A name that is taken gets ``_1``, ``_2`` and so on, in the order of the graph.
    4. Outputs are called ``<node>_output``; inputs and outputs of the graph keep their names.
    5. A constant that the exporter made up is called ``<node>_constant`` after its first user;
       parameters and buffers keep their names.

    Args:
        keep: Names of the model's parameters and buffers.
    """

    def __init__(self, keep: Collection[str] = ()) -> None:
        super().__init__()
        self._keep = keep

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rules; nothing but names changes."""
        unique = _unique_names(set(model.graph.initializers))
        for node in model.graph:
            node.name = unique(_node_name(node))
            for index, output in enumerate(node.outputs):
                if not output.is_graph_output():
                    output.name = unique(f"{node.name}_output{index or ''}")
        for initializer in list(model.graph.initializers.values()):
            if initializer.name not in self._keep:
                user = next(iter(initializer.consumers()), None)
                initializer.name = unique(f"{user.name if user else 'unused'}_constant")
        return ir.passes.PassResult(model, modified=True)


def _node_name(node: ir.Node) -> str:
    module = _quantizer(node) if is_fake_quantize(node) else _module(node)
    return f"{module}/{node.op_type}" if module else node.op_type


def _quantizer(node: ir.Node) -> str:
    return node.attributes["quantizer"].as_string()


def _module(node: ir.Node) -> str:
    """Dotted name of the innermost module; empty for the model itself and when unknown."""
    scopes: list[str] = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    # The last scope is the operation inside the module. Size computations carry torch's own mark.
    module = scopes[-2] if len(scopes) >= 2 else ""
    return "" if module.startswith("_empty") else module


def _unique_names(taken: set[str]) -> Callable[[str], str]:
    counts: dict[str, int] = defaultdict(int)

    def unique(name: str) -> str:
        candidate = name
        while candidate in taken:
            counts[name] += 1
            candidate = f"{name}_{counts[name]}"
        taken.add(candidate)
        return candidate

    return unique
