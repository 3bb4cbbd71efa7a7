"""Everything in this folder, by one command on a machine that does nothing else:

    python eval/training_speed/regenerate.py --threads 1

Steps of float, quantized and spiking training, eager and compiled, in float32 and bfloat16, as
`mt-convert bench --training` times them. --pages writes the page from results.json.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from mt_convert.experiments.bench.network import open_network
from mt_convert.experiments.bench.training import (
    markdown,
    time_training,
    training_speed_from_json,
)
from mt_convert.system.storage import atomic, read_json, write_json

HERE = Path(__file__).parent
NETWORK, BATCH, STEPS = "resnet20_cifar", 128, (2,)


def main() -> None:
    """Time everything, then write results and page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--pages", action="store_true", help="write the page from what is there")
    arguments = parser.parse_args()
    if not arguments.pages:
        torch.set_num_threads(arguments.threads)
        with tempfile.TemporaryDirectory() as folder:
            network = open_network(NETWORK, Path(folder)).on(torch.device("cpu"))
            speed = time_training(network, STEPS, BATCH, arguments.rounds)
        write_json(HERE / "results.json", speed.to_json())
    with atomic(HERE / "README.md") as temporary:
        temporary.write_text(page())


def page() -> str:
    """The page of the stored rows."""
    head, stored = (HERE / "head.md").read_text(), HERE / "results.json"
    if not stored.is_file():
        return f"{head}\nNo rows are stored yet.\n"
    return markdown(read_json(stored, training_speed_from_json), head)


if __name__ == "__main__":
    main()
