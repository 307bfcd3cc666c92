"""Graph passes: one idea a file, each an ``onnx_ir.passes.PassBase``."""
