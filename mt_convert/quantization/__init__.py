"""Networks quantized with Brevitas: what to quantize, and the quantized network."""
