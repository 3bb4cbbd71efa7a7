"""Batch norm folded before quantization-aware training, or kept through it.

    python eval/batch_norm/regenerate.py --data FOLDER --weights FILE

FOLDER holds train.tar and test.tar of JPEG CIFAR-10, FILE the fp32 ResNet-20. For W4A4 and
W2A2 both ways start from the same weights and see the same 30 batches; accuracies are on 1,000
images split off the training images, never on test images. About five minutes on one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from mt_convert.data import DataSpec, Splits, batches, images, open_data
from mt_convert.experiments.models.build import ModelSpec, build
from mt_convert.quantization.quantize import QuantizedModel, quantize
from mt_convert.quantization.spec import BatchNorm, QuantSpec
from mt_convert.system.storage import atomic, write_json
from mt_convert.training.accuracy import accuracy

HERE = Path(__file__).parent
STEPS = 30
SCHEMA = "mt_convert.batch_norm/1"
HEAD = """# Batch norm: folded or kept

ResNet-20 from the same fp32 weights on JPEG CIFAR-10 (not CIFAR-10 as published). Accuracies in
percent on 1,000 images split off the training images; the fp32 network, which was trained on
them, reaches {ann:.1f}. First column: calibrated on 512 images, no training. Then {steps} steps
of training (batches of 128, no augmentation, Adam, learning rate 0.001, seed 0): the loss over
the last ten, and the accuracy after them. Kept is the default of `QuantSpec`.

| bits | batch norm | calibrated | loss | after {steps} steps |
| --- | --- | --- | --- | --- |
"""
TAIL = """
Regenerate with

    python eval/batch_norm/regenerate.py --data FOLDER --weights FILE
"""


def main() -> None:
    """Measure and write results.json and README.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    spec = DataSpec(
        dataset="",
        root=arguments.data,
        test_split="test",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        limit=1000 + STEPS * 128,
        validation_share=1000 / (1000 + STEPS * 128),
    )
    splits = open_data(spec)
    ann = build(ModelSpec("resnet20_cifar", classes=10, checkpoint=arguments.weights)).eval()
    ann_accuracy = accuracy(ann, splits.validation, 250)
    rows = []
    for bits in (4, 2):
        for way in BatchNorm:
            calibration = images(splits.calibration, spec.calibration_images)
            qann = quantize(ann, QuantSpec(bits, bits, batch_norm=way), calibration=calibration)
            before = accuracy(qann, splits.validation, 250)
            loss = train(qann, splits)
            after = accuracy(qann, splits.validation, 250)
            row = {
                "bits": bits,
                "batch_norm": str(way),
                "calibrated": before,
                "loss": loss,
                "trained": after,
            }
            rows.append(row)
            print(row, flush=True)
    content = {"schema": SCHEMA, "ann": ann_accuracy, "steps": STEPS, "rows": rows}
    write_json(HERE / "results.json", content)
    with atomic(HERE / "README.md") as temporary:
        temporary.write_text(page(content))


def page(content: dict[str, Any]) -> str:
    """The page, from the stored numbers alone."""
    lines = [
        f"| W{row['bits']}A{row['bits']} | {row['batch_norm']} | {row['calibrated']:.1f} | "
        f"{row['loss']:.2f} | {row['trained']:.1f} |\n"
        for row in content["rows"]
    ]
    head = HEAD.format(ann=content["ann"], steps=content["steps"])
    return head + "".join(lines) + TAIL


def train(qann: QuantizedModel, splits: Splits) -> float:
    """A few steps; the mean loss of the last ten."""
    qann.train()
    optimizer = torch.optim.Adam(qann.parameters(), 1e-3)
    losses = []
    for _, (pictures, labels) in zip(range(STEPS), batches(splits.train, 128), strict=False):
        optimizer.zero_grad()
        loss = F.cross_entropy(qann(pictures), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    qann.eval()
    return sum(losses[-10:]) / 10


if __name__ == "__main__":
    main()
