"""What a tensor train starts from: its rank and its first cores, out of a layer's dense weights."""

from __future__ import annotations

import math
from enum import StrEnum

import torch
from torch import Tensor

_PLUS = ((0, 1, 2, 1, 1), (1, 1, 1, 0, 2))  # rows and columns: the vertical arm, then what is left
_WEAKEST = 0.1  # of the largest singular value: keeps the cores of HTT well conditioned


class Form(StrEnum):
    """How the cores follow one another: in a row, as a cross, as a cross in early steps only."""

    STT = "stt"
    PTT = "ptt"
    HTT = "htt"


def full_rank(weight: Tensor, form: Form) -> int:
    """The smallest rank at which the form holds all that it can hold of [O, I, 3, 3]."""
    o, i = weight.shape[:2]
    if form is Form.STT:
        return max(min(i, 9 * o), 3 * min(i, o), min(9 * i, o))
    return max(min(i, 5 * o), min(5 * i, o))


def layer_rank(weight: Tensor, form: Form) -> int:
    """The rank that "evbmf" stands for, of weights [O, I, 3, 3]."""
    rank = evb_rank(weight.flatten(1)) or evb_rank(weight.transpose(0, 1).flatten(1))
    return min(max(rank, 1), full_rank(weight, form))


def evb_rank(matrix: Tensor) -> int:
    """How many singular values of the matrix stand out of noise whose variance is not known.

    With γ_h the singular values, L ≤ M the sides, α = L/M, x_h = γ_h²/(Mσ²), a component is kept
    where x > x̄ = (1 + τ̄)(1 + α/τ̄), with τ̄ the zero of log(1 + τ) + α log(1 + τ/α) − τ: below,
    its free energy is least at 0. The variance is the least, over all σ², of::

        L log σ² + Σ_h x_h + Σ_(x_h > x̄) [log(1 + τ_h) + α log(1 + τ_h/α) − τ_h]
        τ = ½(x − (1 + α) + √((x − (1 + α))² − 4α))

    and lies between max(γ²_(m+1)/(M x̄), mean_(h > m) γ_h²/M), m = ⌈L/(1 + α)⌉ − 1, and
    Σ γ_h²/(LM). At most m components are kept.

    Shapes:
        [rows, columns], either way round.
    Source:
        the global solution of empirical variational Bayes matrix factorisation (Nakajima et al.,
        JMLR 14, 2013), with the threshold and the bounds in the closed form of JMLR 16, 2015.

    Example:
        >>> noise = torch.randn(40, 90, generator=torch.Generator().manual_seed(0))
        >>> evb_rank(noise), evb_rank(noise + 2)
        (0, 1)
    """
    squares = torch.linalg.svdvals(matrix.detach().double()).square()
    low, high = sorted(matrix.shape)
    if not squares.sum() > 0:
        return 0
    alpha = low / high
    tau = _least_singular_value(alpha)
    edge = (1 + tau) * (1 + alpha / tau)
    tail = squares[math.ceil(low / (1 + alpha)) - 1 :]
    most = squares.sum().item() / (low * high)
    least = max(tail[0].item() / (high * edge), tail.mean().item() / high)
    least = max(least, most * torch.finfo(squares.dtype).eps)  # without noise it would be 0
    for _ in range(3):  # the minimum need not be the only one: a grid, then finer ones around it
        noise = torch.logspace(math.log10(least), math.log10(most), 257).to(squares)
        x = squares / (high * noise[:, None])
        centre = x - (1 + alpha)
        taus = (centre + (centre.square() - 4 * alpha).clamp(min=0).sqrt()) / 2
        # x − τ as 1 + α + α/τ: for large x the difference would have no digits left
        kept = 1 + alpha + alpha / taus + taus.log1p() + alpha * (taus / alpha).log1p()
        energy = low * noise.log() + torch.where(x > edge, kept, x).sum(1)
        best = int(energy.argmin())
        least, most = noise[max(best - 1, 0)].item(), noise[min(best + 1, 256)].item()
    return int((squares > high * noise[best] * edge).sum())


def _least_singular_value(alpha: float) -> float:
    """τ̄, by halving: the function is above 0 at √α and below it at 3 for every α in (0, 1]."""
    low, high = math.sqrt(alpha), 3.0
    for _ in range(60):
        tau = (low + high) / 2
        above = math.log1p(tau) + alpha * math.log1p(tau / alpha) > tau
        low, high = (tau, high) if above else (low, tau)
    return low


def starting_cores(weight: Tensor, form: Form, rank: int) -> tuple[Tensor, ...]:
    """Weights of the four convolutions of a train that starts from [O, I, 3, 3]."""
    whole = weight.permute(1, 2, 3, 0)
    if form is Form.STT:
        g1, g2, g3, g4 = _tt_svd(whole, rank)
        arms = g2.permute(2, 0, 1)[..., None], g3.permute(2, 0, 1)[:, :, None]
    else:
        g1, taps, g4 = _tt_svd(whole[:, _PLUS[0], _PLUS[1]], rank)
        if form is Form.HTT:
            g1, taps, g4 = _through_the_centre(g1, taps, g4)
        taps = taps.permute(2, 0, 1) * taps.new_tensor([2, 1, 2, 2, 2])  # the arms are halved
        arms = taps[..., (0, 1, 2), None], taps[..., None, (3, 1, 4)]
    return g1[0].T[..., None, None], *arms, g4[..., 0].T[..., None, None]


def _tt_svd(tensor: Tensor, rank: int) -> list[Tensor]:
    """Cores [r, size, r] from left to right, their bonds cut, or widened, to the rank."""
    cores, rest = [], tensor[None]
    for size in tensor.shape[:-1]:
        left = len(rest)
        u, s, v = torch.linalg.svd(rest.reshape(left * size, -1), full_matrices=False)
        cores.append(u[:, :rank].reshape(left, size, -1))
        rest = s[:rank, None] * v[:rank]
    cores.append(rest[..., None])
    for k in range(len(cores) - 1):
        bond = cores[k].shape[2]
        wide = torch.arange(rank, device=tensor.device) % bond
        cores[k], cores[k + 1] = cores[k][:, :, wide], cores[k + 1][wide]
        # One side of what was added is 0, so nothing changes; were both, no gradient would pass.
        if k == len(cores) - 2:
            cores[k + 1][bond:] = 0
        else:
            cores[k][:, :, bond:] = 0
    return cores


def _through_the_centre(g1: Tensor, taps: Tensor, g4: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same train in the gauge in which g1·g4 is its centre tap, weak directions raised."""
    u, s, v = torch.linalg.svd(taps[:, 1])
    # Taps of a TT-SVD are orthonormal, so that 1e-3 is small whatever the weights' scale.
    root = s.clamp(min=max(_WEAKEST * s[0].item(), 1e-3)).sqrt()
    taps = torch.einsum("px,pas,ys->xay", u / root, taps, v / root[:, None])
    return g1 @ (u * root), taps, torch.einsum("ys,sox->yox", v * root[:, None], g4)
