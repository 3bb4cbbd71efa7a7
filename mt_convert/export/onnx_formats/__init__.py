"""ONNX in plain integers, in QONNX, and with quantize and dequantize nodes: written and run."""
