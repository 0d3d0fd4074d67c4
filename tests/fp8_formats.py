"""The formats of 8 bits by their definitions, in numpy and float64."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lit_gpt.ops.fp8 import E4M3, E5M2


def positive_numbers(exponent_bits: int, mantissa_bits: int, largest: float) -> np.ndarray:
    """All of a format, ascending (OCP 8-bit Floating Point Specification 1.0, table 1): m 2^(1 - bias - mantissa_bits)
    for the exponent 0, else with one more bit before the mantissa.
    """
    bias, steps = 2 ** (exponent_bits - 1) - 1, 2**mantissa_bits
    found = [
        (m + steps * (e > 0)) * 2.0 ** (max(e, 1) - bias - mantissa_bits)
        for e in range(2**exponent_bits)
        for m in range(steps)
    ]
    return np.array([x for x in found if x <= largest])


# The exponent of all ones is an infinity or NaN in e5m2, and in e4m3 NaN with all ones in the mantissa, too.
FORMATS = {E4M3: positive_numbers(4, 3, 448.0), E5M2: positive_numbers(5, 2, 57344.0)}


def nearest(x: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """The nearest numbers of a format, of two as near the one with an even mantissa; in float64."""
    values, size = FORMATS[dtype], np.abs(x)
    above = np.clip(np.searchsorted(values, size), 1, len(values) - 1)
    low, high = values[above - 1], values[above]
    up = (size - low > high - size) | ((size - low == high - size) & (above % 2 == 0))
    return np.copysign(np.where(up, high, low), x)


def mx_by_definition(x: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """arXiv:2506.08027, algorithm 1."""
    blocks, scales = x.reshape(-1, 32), 2.0 ** np.arange(-127.0, 128)
    enough = scales * FORMATS[dtype][-1] >= np.abs(blocks).max(1, keepdims=True)
    scale = scales[enough.argmax(1)][:, None]  # the least that is
    return (nearest(blocks / scale, dtype) * scale).reshape(x.shape)


def by_definition(x: Tensor, dtype: torch.dtype, shares: str) -> Tensor:
    """What the numbers of x (M, N) stand for once they are in 8 bits, for sums over N; float64."""
    numbers = x.double().numpy()
    if shares == "block":
        return torch.from_numpy(mx_by_definition(numbers, dtype))
    largest = np.abs(numbers).max(axis=None if shares == "tensor" else 1, keepdims=True)
    scale = FORMATS[dtype][-1] / largest
    return torch.from_numpy(nearest(numbers * scale, dtype) / scale)


def near(got: Tensor, wanted: Tensor) -> bool:
    """Equal but for rare numbers that a rounding in fp32 puts on the other side of a tie; 8 bits alone cost 3e-2."""
    return bool((got.detach().double().view_as(wanted) - wanted).norm() < 1e-3 * wanted.norm())
