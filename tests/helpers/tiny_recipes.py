"""The smallest recipes that run: a few made-up images, one epoch."""

COMMON = """
name: tiny
model: {architecture: digits_cnn, classes: 4, channels: 1}
data:
  {dataset: synthetic, image_size: 8, channels: 1, classes: 4, limit: 16, validation_share: 0.5,
  calibration_images: 8, test_images: 8}
train: {epochs: 1, batch_size: 8}
"""
SPIKING = "spiking: {neuron: lif, decay_input: false, time_steps: 2}\nevaluate: {batch_size: 8}"
