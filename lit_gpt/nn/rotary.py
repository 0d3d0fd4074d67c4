"""Rotary position embedding (arXiv:2104.09864) and YaRN (arXiv:2309.00071).

Half-split layout: dimension j is paired with j + R/2, as in Llama's released code.
Tables are fp32 and computed from positions in every forward: nothing to store in a
checkpoint, nothing to rebuild after meta initialisation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lit_gpt.config.model import ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.ops.dtypes import upcast
from lit_gpt.ops.fused import fused

# Rotations over the original context at which YaRN stops interpolating (fast) and starts to
# interpolate fully (slow): beta and alpha of the paper, section 3.2, with its values for Llama.
FAST_ROTATIONS, SLOW_ROTATIONS = 32.0, 1.0


def rotary_dim(config: ModelConfig) -> int:
    """R: how many leading dimensions of a head rotate (even)."""
    return int(config.head_dim * config.rotary_fraction) // 2 * 2


def inverse_frequencies(
    config: ModelConfig, device: torch.device | None = None, base: float | None = None, yarn: bool = True
) -> Tensor:
    """Radians per token of each pair, (R/2,) fp32, with YaRN unless `yarn` is False. base: None is the model's.

    Raises UserError where YaRN's ramp does not fit between the first and the last pair.
    """
    dim, base = rotary_dim(config), config.rope_base if base is None else base
    pairs = torch.arange(dim // 2, dtype=torch.float32, device=device)
    frequencies = base ** (-2.0 * pairs / dim)  # theta of the paper, section 3.2.2
    if config.yarn_scale == 1 or not yarn:
        return frequencies
    low, high = _ramp_bounds(config, base)
    # 0 for fast pairs, which stay; 1 for slow ones, whose period is as long as the context and is stretched.
    ramp = ((pairs - low) / (high - low)).clamp(0, 1)
    return frequencies * (ramp / config.yarn_scale + 1 - ramp)


def _ramp_bounds(config: ModelConfig, base: float) -> tuple[float, float]:
    """Indices of the pairs that turn FAST_ROTATIONS and SLOW_ROTATIONS times in yarn_context, rounded outwards where
    the model has that.
    """
    half = rotary_dim(config) / 2
    low, high = (
        half * math.log(config.yarn_context / (rotations * 2 * math.pi)) / math.log(base)
        for rotations in (FAST_ROTATIONS, SLOW_ROTATIONS)
    )
    if not 0 < low < high < half - 1:
        raise UserError(
            f"YaRN does not fit: with yarn_context={config.yarn_context}, rope_base={base:g} and "
            f"{2 * half:g} rotary dimensions its ramp runs from pair {low:.2f} to {high:.2f}, but needs "
            f"0 < low < high < {half - 1:g}. Use a larger rope_base, or a yarn_context between "
            f"{FAST_ROTATIONS * 2 * math.pi:.0f} and {base ** (1 - 1 / half) * 2 * math.pi:.0f} tokens."
        )
    return (math.floor(low), math.ceil(high)) if config.yarn_truncate else (low, high)


def attention_factor(config: ModelConfig) -> float:
    """YaRN's temperature, 1/sqrt(t) = 0.1 ln(scale) + 1 (section 3.4); 1 when YaRN is off.

    It is applied to cos and sin, so that queries and keys both have it, their product has 1/t, and no kernel changes.
    """
    return 0.1 * math.log(config.yarn_scale) + 1


def tables(
    config: ModelConfig, positions: Tensor, base: float | None = None, yarn: bool = True
) -> tuple[Tensor, Tensor]:
    """cos and sin of every position and pair, fp32, (T, R/2) or (B, T, R/2) each as positions are (T,) or (B, T)."""
    # In fp32, whatever the model computes in: from position 2,048 on bf16 numbers are 16 and more apart, whole turns.
    angles = positions[..., None].float() * inverse_frequencies(config, positions.device, base, yarn)
    factor = attention_factor(config) if yarn else 1.0
    return angles.cos() * factor, angles.sin() * factor


@fused
def rotate(x_BTHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the leading 2R dimensions of each head by its position; the rest pass. cos, sin: from `tables`."""
    half = cos.shape[-1]
    cos_T1R, sin_T1R = cos[..., None, :], sin[..., None, :]
    x1, x2 = upcast(x_BTHD[..., :half]), upcast(x_BTHD[..., half : 2 * half])
    turned = (x1 * cos_T1R - x2 * sin_T1R, x2 * cos_T1R + x1 * sin_T1R)
    return torch.cat([t.to(x_BTHD.dtype) for t in turned] + [x_BTHD[..., 2 * half :]], dim=-1)


@fused
def rotate_halves(x_BTH2R: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotate` of heads that turn as a whole, given as their halves and returned as such, to the bit.

    One expression for both halves: short enough for torch's compiler to make its backward pass part of the kernel that
    reads what it gives. That of `rotate` is stored first, as it should be in front of QK-norm, which reads it twice.
    """
    sign_21 = torch.arange(-1, 2, 2, device=sin.device)[:, None]
    x = upcast(x_BTH2R)
    # The halves change places. torch's flip for a CPU goes number by number and takes four times as long as roll.
    other = x.roll(1, -2) if x.device.type == "cpu" else x.flip(-2)
    turned = x * cos[..., None, None, :] + other * (sin[..., None, None, :] * sign_21)
    return turned.to(x_BTH2R.dtype)
