"""Images in fixed splits: folders, tar files, torchvision, Hugging Face, digits, synthetic; events.

`open_data` reads a `DataSpec` into `Splits`, `open_events` an `EventSpec`; `batches` and `images`
read a split without augmentation. What augmentation does to a sample depends only on (seed, epoch,
sample), never on workers, processes or where a run was resumed.
"""

from __future__ import annotations

from .events.frames import open_events
from .events.spec import EventSpec
from .image_set import Draw, ImageSet, tensor_set
from .image_spec import DataSpec
from .loading import batches, images, loader
from .own_sets import own_splits
from .randomness import borrow_random, derive
from .splits import Splits, open_data

__all__ = [
    "DataSpec",
    "Draw",
    "EventSpec",
    "ImageSet",
    "Splits",
    "batches",
    "borrow_random",
    "derive",
    "images",
    "loader",
    "open_data",
    "open_events",
    "own_splits",
    "tensor_set",
]
