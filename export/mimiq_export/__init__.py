"""The quantized torch model -> ONNX: capture, graph passes, targets.

``capture`` turns a torch model into an onnx-ir graph with one ``mimiq_deploy::FakeQuantize`` node
a quantizer, ``passes`` rewrite that graph one idea at a time, ``targets`` list the passes of each
kind of engine, and ``export_run`` joins them and writes the file.
"""
