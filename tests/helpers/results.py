"""A row of results as several test files use it."""

from __future__ import annotations

from mt_convert.report.rows import Row

ROW = Row(
    model="resnet20_cifar",
    dataset="cifar10_jpeg",
    images=10_000,
    presentation="once",
    mode="parallel",
    signed=True,
    n=15,
    T=1,
    ann_accuracy=91.23,
    qann_accuracy=90.87,
    snn_accuracy=90.87,
    agreement=1.0,
    exact_share=1.0,
    spikes_per_neuron=0.123456789,
    ladder="uniform",
    levels=15,
    weight_bits=4,
    whole_window=False,
    settling_T=1,
    seed=0,
)
