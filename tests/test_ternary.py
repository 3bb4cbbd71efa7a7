"""Ternary inner products by counting bits, against whole-number arithmetic."""

from __future__ import annotations

import pytest
import torch

from mt_convert.errors import SpecError
from mt_convert.ternary import BitPlanes, pack, popcount, sign_plane_dot, ternary_dot


def test_popcount_counts_set_bits_also_behind_the_sign() -> None:
    words = torch.randint(-(2**63), 2**63 - 1, (500,), generator=torch.Generator().manual_seed(0))
    edges = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63), 2**62, -2])
    words = torch.cat([words, edges])
    expected = [(word % 2**64).bit_count() for word in words.tolist()]
    assert popcount(words).tolist() == expected


def test_both_forms_equal_the_integer_dot_of_1000_random_vectors() -> None:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 400, (1000,), generator=generator).tolist()
    lengths[:5] = [1, 63, 64, 65, 128]
    seen = set()
    for length in lengths:
        a, w = torch.randint(-1, 2, (2, length), generator=generator)
        expected = int((a * w).sum())
        assert ternary_dot(pack(a), pack(w)).item() == expected
        assert sign_plane_dot(pack(a), pack(w)).item() == expected
        seen.add(expected)
    assert min(seen) < -10
    assert max(seen) > 10


@pytest.mark.parametrize("dot", [ternary_dot, sign_plane_dot])
def test_all_nine_products_hold_alone(dot: type) -> None:
    for a in (-1, 0, 1):
        for w in (-1, 0, 1):
            assert dot(pack(torch.tensor([a])), pack(torch.tensor([w]))).item() == a * w


@pytest.mark.parametrize("dot", [ternary_dot, sign_plane_dot])
def test_both_mixed_codes_are_zero(dot: type) -> None:
    values = torch.randint(-1, 2, (200,), generator=torch.Generator().manual_seed(2))
    other = torch.randint(-1, 2, (200,), generator=torch.Generator().manual_seed(3))
    planes = pack(values)
    mixed = planes.high ^ planes.low
    assert bool(mixed.any())
    swapped = BitPlanes(planes.high ^ mixed, planes.low ^ mixed)  # 01 becomes 10
    assert not torch.equal(swapped.high, planes.high)
    assert dot(swapped, pack(other)).item() == int((values * other).sum())
    assert dot(pack(other), swapped).item() == int((values * other).sum())


def test_rows_broadcast_like_a_matrix_product() -> None:
    generator = torch.Generator().manual_seed(4)
    a = torch.randint(-1, 2, (5, 70), generator=generator)
    w = torch.randint(-1, 2, (3, 70), generator=generator)
    planes_a, planes_w = pack(a.float()), pack(w)
    rows = BitPlanes(planes_a.high[:, None], planes_a.low[:, None])
    assert torch.equal(ternary_dot(rows, planes_w), a @ w.T)


@pytest.mark.parametrize("value", [2.0, 0.5, float("nan")])
def test_what_is_not_ternary_is_refused(value: float) -> None:
    with pytest.raises(SpecError, match="-1, 0 and 1"):
        pack(torch.tensor([1.0, value]))
