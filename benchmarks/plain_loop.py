"""What compare.py measures ours against: a training loop by hand, as short as a good one can be.

The model is a Llama in the shapes of a ModelConfig, compiled as a whole. Weights, gradients and AdamW's state are fp32;
autocast multiplies in bf16, and the residual stream is fp32 as autocast leaves it, or bf16. Attention is torch's, by
cuDNN where it can; the loss is Liger Kernel's where it is installed and one by hand otherwise, and neither holds all
logits. One fused AdamW step and clipping after each micro-batch. The loop trains other models too: see `Peer`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from train_step import StepTimer

from lit_gpt.config.model import ModelConfig

KERNELS = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
CHUNK_LOGITS = 2**29  # 2 GiB of them in fp32
RATE, WARMUP_STEPS, CLIP, LOG_EVERY = 3e-4, 100, 1.0, 10
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # mean cross-entropy of hidden (N, n), head (V, n), targets (N,)


class Peer(NamedTuple):
    """A model of any library. trunk: tokens (B, T) -> what the head reads (B, T, n). head_VD: the head's weight."""

    trunk: nn.Module
    head_VD: Tensor


class Norm(nn.RMSNorm):
    """In fp32, as autocast has it, for a stream in bf16 too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


class Block(nn.Module):
    """Pre-norm attention and SwiGLU."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        n, self.heads, self.size = c.n_embd, (c.n_head, c.n_kv_head, c.n_kv_head), c.head_dim
        self.norm1, self.norm2 = (Norm(n, eps=c.norm_eps) for _ in range(2))
        self.qkv = nn.Linear(n, sum(self.heads) * self.size, bias=False)
        self.out = nn.Linear(c.n_head * self.size, n, bias=False)
        self.gate, self.up = (nn.Linear(n, c.intermediate_size, bias=False) for _ in range(2))
        self.down = nn.Linear(c.intermediate_size, n, bias=False)

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x_BTD)).unflatten(-1, (-1, self.size)).split(self.heads, dim=2)
        q, k, v = (y.transpose(1, 2) for y in (rotated(q, cos, sin), rotated(k, cos, sin), v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        x_BTD = x_BTD + self.out(y.transpose(1, 2).flatten(2)).to(x_BTD.dtype)
        h = self.norm2(x_BTD)
        return x_BTD + self.down(F.silu(self.gate(h)) * self.up(h)).to(x_BTD.dtype)


def rotated(x_BTHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys at their positions, in Llama's half-split layout."""
    x1, x2 = x_BTHD.float().chunk(2, dim=-1)
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1).to(x_BTHD.dtype)


class Llama(nn.Module):
    """Embedding, blocks, norm. stream: dtype of the residual stream."""

    cos: Tensor
    sin: Tensor

    def __init__(self, c: ModelConfig, stream: torch.dtype = torch.float32):
        super().__init__()
        self.stream, half = stream, c.head_dim // 2
        self.wte = nn.Embedding(c.padded_vocab_size, c.n_embd)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.depth))
        self.norm = Norm(c.n_embd, eps=c.norm_eps)
        angles = torch.outer(torch.arange(c.block_size), c.rope_base ** (-torch.arange(half) / half))[:, None]
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        x_BTD, length = self.wte(tokens_BT).to(self.stream), tokens_BT.shape[1]
        for block in self.blocks:
            x_BTD = block(x_BTD, self.cos[:length], self.sin[:length])
        return self.norm(x_BTD)


def plain(c: ModelConfig, stream: torch.dtype = torch.float32) -> Peer:
    """The Llama and its head, on torch's default device; every matrix N(0, 0.02)."""
    model, head = Llama(c, stream), nn.Linear(c.n_embd, c.padded_vocab_size, bias=False)
    for p in (*model.parameters(), head.weight):
        if p.ndim == 2:
            nn.init.normal_(p, std=0.02)
    return Peer(model, head.weight)


class ChunkedLoss(torch.autograd.Function):
    """The mean cross-entropy of a head. Both gradients are computed with it, so that a chunk's logits can go."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, of_chunk: Any) -> Tensor:
        chunks = math.ceil(targets_N.numel() * len(head_VD) / CHUNK_LOGITS)
        cast_VD, d_hidden_ND, d_head_VD = head_VD.to(hidden_ND.dtype), torch.empty_like(hidden_ND), 0.0
        total = torch.zeros((), device=hidden_ND.device)
        for h, t, dh in zip(*(x.chunk(chunks) for x in (hidden_ND, targets_N, d_hidden_ND))):
            loss, d_logits = of_chunk(h @ cast_VD.T, t)
            total += loss
            torch.mm(d_logits, cast_VD, out=dh)
            d_head_VD = d_head_VD + (d_logits.T @ h).to(head_VD.dtype)
        ctx.save_for_backward(d_hidden_ND, d_head_VD)
        return total / len(targets_N)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *(g * (grads[0] / len(ctx.saved_tensors[0])).to(g.dtype) for g in ctx.saved_tensors), None, None


def of_chunk(logits_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """(the summed cross-entropy, its gradient in the dtype of the logits); to be compiled."""
    z_NV = logits_NV.float()
    lse_N1 = z_NV.logsumexp(-1, keepdim=True)
    hit_NV = torch.arange(z_NV.shape[1], device=z_NV.device) == targets_N[:, None]
    return (lse_N1 - z_NV.gather(-1, targets_N[:, None])).sum(), ((z_NV - lse_N1).exp() - hit_NV.float()).to(logits_NV)


def loss_function(kind: str | None, on_gpu: bool) -> tuple[str, Loss]:
    """(its name, the function). kind: "liger" or "chunked"; None is Liger's where it is installed, on a GPU."""
    if kind == "liger" or (kind is None and on_gpu and importlib.util.find_spec("liger_kernel")):
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss(accum_dtype=torch.float32)
        # Cast once: under autocast it would be cast for each of some 16 chunks, twice.
        return "liger", lambda hidden_ND, head_VD, targets_N: liger(head_VD.to(hidden_ND.dtype), hidden_ND, targets_N)
    inner = torch.compile(of_chunk) if on_gpu else of_chunk
    return "chunked", lambda *arguments: ChunkedLoss.apply(*arguments, inner)  # type: ignore[return-value]


def to_fp8(trunk: nn.Module, recipe: str, on_gpu: bool) -> None:
    """Have torchao multiply all linear maps of the blocks in 8 bits; it emulates that without a GPU."""
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    config = Float8LinearConfig.from_recipe_name(recipe)
    convert_to_float8_training(trunk, config=config if on_gpu else replace(config, emulate=True))


def batches(vocabulary: int, rows: int, length: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets of random packed tokens, from pinned memory."""
    size = rows * length
    packed = np.random.default_rng(0).integers(0, vocabulary, 16 * size + 1).astype(np.uint16)
    pin = device.type == "cuda"
    while True:
        for start in range(0, 16 * size, size):
            window = torch.from_numpy(packed[start : start + size + 1].astype(np.int64))
            on_device = (window.pin_memory() if pin else window).to(device, non_blocking=True)
            yield on_device[:-1].view(rows, length), on_device[1:].view(rows, length)


def stepper(peer: Peer, loss_of: Loss, recipe: str | None, on_gpu: bool) -> Callable[[int, Tensor, Tensor], Tensor]:
    """One step of training: its number, tokens and targets (B, T) -> the mean loss, which is not waited for."""
    trunk, head_VD = peer
    if recipe:
        to_fp8(trunk, recipe, on_gpu)
    parameters, dtype = [*trunk.parameters(), head_VD], torch.bfloat16 if on_gpu else torch.float32
    matrices, vectors = ([p for p in parameters if (p.ndim > 1) == many] for many in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), fused=True)
    autocast = partial(torch.autocast, "cuda", dtype) if on_gpu else contextlib.nullcontext

    def forward(tokens_BT: Tensor) -> Tensor:
        return trunk(tokens_BT).flatten(0, 1).to(dtype)

    hidden = torch.compile(forward, dynamic=False) if on_gpu else forward

    def step(number: int, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (number + 1) / WARMUP_STEPS)
        with autocast(), sdpa_kernel(KERNELS, set_priority=True):
            loss = loss_of(hidden(tokens_BT), head_VD, targets_BT.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def train(
    build: Callable[[], Peer],
    vocabulary: int,
    rows: int,
    length: int,
    steps: int,
    recipe: str | None = None,
    loss: str | None = None,
) -> dict[str, Any]:
    """Train for so many steps on micro-batches of so many rows. recipe: torchao's, of 8 bits. loss: see loss_function.

    Returns parameters, the lengths of all steps, that of the first with compilation, the last loss and the name of its
    function, and the peak of memory in GiB. Raises ArithmeticError for a loss that is not finite.
    """
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    with device:
        peer = build()
    name, loss_of = loss_function(loss, on_gpu)
    step, feed = stepper(peer, loss_of, recipe, on_gpu), batches(vocabulary, rows, length, device)
    timer, begin, first, shown = StepTimer(), time.perf_counter(), 0.0, 0.0
    for number in range(steps):
        latest = step(number, *next(feed))
        timer.mark()
        if number % LOG_EVERY == 0 or number == steps - 1:  # a log, which waits for the device
            shown = latest.item()
            first = first or time.perf_counter() - begin
    if not math.isfinite(shown):
        raise ArithmeticError(f"the loss is {shown} after {steps} steps")
    return {
        "parameters": peer.head_VD.numel() + sum(p.numel() for p in peer.trunk.parameters()),
        "times": timer.seconds(),
        "first_step_seconds": round(first, 1),
        "loss": round(shown, 4),
        "loss_function": name,
        "peak_memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if on_gpu else None,
    }
