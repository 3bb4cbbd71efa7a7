"""Seeds as pure functions of what they are for, and borrowing the global generators."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(*parts: int | str) -> int:
    """A 63-bit seed that depends on nothing but ``parts``.

    Example:
        >>> derive(0, 1, "order") == derive(0, 1, "order"), derive(0, 1) == derive(1, 0)
        (True, False)
    """
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by `derive`."""
    return torch.Generator().manual_seed(derive(*parts))


def seed_all(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch; only inside `borrow_random`."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def borrow_random(seed: int) -> Iterator[None]:
    """Seed the global generators inside the block and give them back as they were.

    Dropout and timm's transforms draw from them and take no generator of their own.

    Example:
        >>> with borrow_random(3):
        ...     first = torch.rand(1)
        >>> with borrow_random(3):
        ...     torch.equal(first, torch.rand(1))
        True
    """
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        seed_all(seed)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
