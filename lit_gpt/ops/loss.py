"""Cross-entropy of a linear head, without holding all the logits at once.

    loss = linear_cross_entropy(hidden_ND, weight_VD, targets_N, backend="chunked")

Backends: "plain" forms every logit; "chunked" walks over the tokens,
keeps the logits of one chunk, and computes the gradients in the same pass (the idea of
Liger Kernel's fused linear cross-entropy, arXiv:2410.10989).

Shapes: N tokens, D model width, V rows of the head (padded vocabulary).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_gpt.config.model import IGNORE
from lit_gpt.errors import UserError, did_you_mean
from lit_gpt.ops.backends import refuse_transforms
from lit_gpt.ops.dtypes import matmul_fp32, upcast

# Logits held at once: 2 GiB in fp32, 16,777 tokens of a vocabulary of 32,000. That is small beside a model's
# activations, and enough for its products to run at full speed.
CHUNK_LOGITS = 2**29
# The same where memory is to be saved: 0.5 GiB. With more chunks there are more passes over the gradient of the head.
FEW_LOGITS = 2**27
# On a CPU 32 MiB, the most that glibc's malloc gives again without asking the kernel for new pages (its
# DEFAULT_MMAP_THRESHOLD_MAX), which would cost as much as the passes over them.
CPU_LOGITS = 2**23

SMALL_CAP = 50.0  # logits of such a size can be summed as exponentials: exp(50) times any vocabulary is far below 1e38

PLAIN = "backend='plain' for the loss, GPT(config, loss_backend='plain') for a model"

ChunkLoss = Callable[..., tuple[Tensor, Tensor]]


def linear_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    *,
    vocab_size: int | None = None,
    label_smoothing: float = 0.0,
    backend: str = "chunked",
    chunk: int | None = None,
    cap: float = 0.0,
    inner: ChunkLoss | None = None,
    rounded: bool = False,
) -> Tensor:
    """Sum over the tokens with target != IGNORE of -log p(target); a scalar, at least fp32.

    vocab_size: rows of the head that are real entries; the rest never get probability.
    label_smoothing: eps of (1 - eps) * nll + eps * mean over the vocabulary of -log p.
    chunk: tokens per chunk, None for as many as CHUNK_LOGITS allows, or CPU_LOGITS on a CPU.
    cap: of the logits, see soft_cap.
    inner: replaces `eager_chunk_loss`, e.g. by torch.compile(chunk_loss).
    rounded: logits are rounded to the dtype of hidden_ND on their way to the softmax, where gradients are asked for and
    the loss is chunked: half of their bytes, for an error of up to 2^-9 of each logit in bf16.
    Raises UserError for an unknown backend.
    """
    vocab_size = weight_VD.shape[0] if vocab_size is None else vocab_size
    chunk = chunk or even_chunk(len(hidden_ND), weight_VD.shape[0], hidden_ND.device.type)
    if backend == "plain":
        return _plain(hidden_ND, weight_VD, targets_N, vocab_size, label_smoothing, cap)
    if backend != "chunked":
        names = ("chunked", "plain")
        raise UserError(f"Unknown loss {backend!r}.{did_you_mean(backend, names)} Use one of {', '.join(names)}.")
    if torch.is_grad_enabled() and (hidden_ND.requires_grad or weight_VD.requires_grad):
        refuse_transforms("Losses in chunks", hidden_ND, weight_VD, plain=PLAIN)
        arguments = (targets_N, vocab_size, label_smoothing, chunk, cap, inner or eager_chunk_loss, rounded)
        return _Chunked.apply(hidden_ND, weight_VD, *arguments)  # type: ignore[return-value]
    return _chunked_value(hidden_ND, weight_VD, targets_N, vocab_size, label_smoothing, chunk, cap)


def token_losses(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    *,
    vocab_size: int,
    chunk: int | None = None,
    cap: float = 0.0,
) -> Tensor:
    """-log p(target) of each token, 0 where it is IGNORE, (N,) in at least fp32. Without gradients, in chunks.

    vocab_size, chunk, cap: see linear_cross_entropy.
    """
    chunk = chunk or even_chunk(len(hidden_ND), weight_VD.shape[0], hidden_ND.device.type)
    return torch.cat(list(_chunks_of_losses(hidden_ND, weight_VD, targets_N, vocab_size, 0.0, chunk, cap)))


def even_chunk(tokens: int, rows: int, device: str = "cuda", few: bool = False) -> int:
    """Tokens per chunk, at most as many as the limit allows: equal chunks are one compiled shape.

    few: FEW_LOGITS is the limit, and not that of the device.
    """
    most = max((FEW_LOGITS if few else CPU_LOGITS if device == "cpu" else CHUNK_LOGITS) // rows, 1)
    return max(-(-tokens // max(-(-tokens // most), 1)), 1)


def soft_cap(logits: Tensor, cap: float) -> Tensor:
    """cap tanh(logits / cap), which stays between -cap and cap (Gemma 2, arXiv:2408.00118); 0 is no cap."""
    return logits if cap == 0 else cap * torch.tanh(logits / cap)


def _plain(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, vocab_size: int, smoothing: float, cap: float
) -> Tensor:
    logits_NV = soft_cap(upcast(F.linear(hidden_ND, weight_VD.to(hidden_ND.dtype)))[:, :vocab_size], cap)
    return F.cross_entropy(logits_NV, targets_N, reduction="sum", ignore_index=IGNORE, label_smoothing=smoothing)


def token_loss(logits_NV: Tensor, targets_N: Tensor, smoothing: float, cap: float) -> tuple[Tensor, Tensor]:
    """(loss of each token, zero where ignored; log-sum-exp of each token), both (N,). cap: that of the logits."""
    # -log p = log sum exp - logit. For large logits logsumexp takes the largest out of the sum, which costs a pass over
    # all of them; below a cap there is no need. IGNORE is no index, so 0 stands in for it.
    lse_N = logits_NV.exp().sum(-1).log() if 0 < cap <= SMALL_CAP else logits_NV.logsumexp(-1)
    picked_N = logits_NV.gather(-1, targets_N.clamp(min=0)[:, None])[:, 0]
    smooth_N = (1 - smoothing) * picked_N + smoothing * logits_NV.mean(-1) if smoothing else picked_N
    return torch.where(targets_N != IGNORE, lse_N - smooth_N, 0.0), lse_N


def chunk_loss(
    logits_NV: Tensor, targets_N: Tensor, vocab_size: int, smoothing: float, dtype: torch.dtype, cap: float
) -> tuple[Tensor, Tensor]:
    """(summed loss, its gradient with respect to the logits before the cap in `dtype`). Pure; made to be compiled.

    Few operations for each logit, of which a step of 131,072 tokens has four billion.
    """
    true_NV = upcast(logits_NV[:, :vocab_size])
    if 0 < cap <= SMALL_CAP:  # by tanh(x) = 2 sigmoid(2 x) - 1, since a GPU's tanh takes more instructions than its exp
        true_NV = 2 * cap * torch.sigmoid(true_NV * (2 / cap)) - cap
    else:  # the difference is rounded as the cap is, however small the logits are
        true_NV = soft_cap(true_NV, cap)
    loss_N, lse_N = token_loss(true_NV, targets_N, smoothing, cap)
    counts_N = targets_N != IGNORE
    columns_V = torch.arange(vocab_size, device=logits_NV.device)
    hit_NV = (columns_V == targets_N[:, None]).to(true_NV.dtype)
    # softmax minus the target, the derivative of the cross-entropy. Zeros where the target does not count: it is no
    # column then, and under an infinite sum no token is likely.
    grad_NV = (true_NV - torch.where(counts_N, lse_N, torch.inf)[:, None]).exp() - hit_NV
    if smoothing:
        grad_NV = grad_NV + smoothing * (hit_NV - counts_N[:, None].to(true_NV.dtype) / vocab_size)
    if cap:
        grad_NV = grad_NV * (1 - (true_NV / cap).square())  # the derivative of tanh
    # Columns of the padded vocabulary get no gradient.
    return loss_N.sum(), F.pad(grad_NV.to(dtype), (0, logits_NV.shape[1] - vocab_size))


def eager_chunk_loss(
    logits_NV: Tensor, targets_N: Tensor, vocab_size: int, smoothing: float, dtype: torch.dtype, cap: float
) -> tuple[Tensor, Tensor]:
    """The same by torch's own kernels, which make fewer passes than `chunk_loss` where nothing fuses its operations."""
    logits_NV = upcast(logits_NV).detach().requires_grad_()
    with torch.enable_grad():
        true_NV = soft_cap(logits_NV[:, :vocab_size], cap)
        loss = F.cross_entropy(true_NV, targets_N, reduction="sum", ignore_index=IGNORE, label_smoothing=smoothing)
    return loss.detach(), torch.autograd.grad(loss, logits_NV)[0].to(dtype)


def _chunked_value(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, vocab_size: int, smoothing: float, chunk: int, cap: float
) -> Tensor:
    """The loss alone, for evaluation: no gradient work."""
    chunks = _chunks_of_losses(hidden_ND, weight_VD, targets_N, vocab_size, smoothing, chunk, cap)
    return torch.stack([loss_N.sum() for loss_N in chunks]).sum()


def _chunks_of_losses(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, vocab_size: int, smoothing: float, chunk: int, cap: float
) -> Iterator[Tensor]:
    """The loss of each token, chunk by chunk."""
    weight_VD = weight_VD.to(hidden_ND.dtype)
    for h, t in zip(hidden_ND.split(chunk), targets_N.split(chunk)):
        yield token_loss(soft_cap(matmul_fp32(h, weight_VD.T)[:, :vocab_size], cap), t, smoothing, cap)[0]


class _Chunked(torch.autograd.Function):
    """Loss and both gradients in one pass; backward only multiplies by the upstream gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        vocab_size: int,
        smoothing: float,
        chunk: int,
        cap: float,
        inner: ChunkLoss,
        rounded: bool,
    ) -> Tensor:
        dtype = hidden_ND.dtype
        cast_VD = weight_VD.to(dtype)
        d_hidden_ND = torch.empty_like(hidden_ND)
        # Summed over chunks, so in fp32.
        d_weight_VD = torch.zeros_like(cast_VD, dtype=torch.promote_types(dtype, torch.float32))
        losses = []
        # Logits and their gradient exist for one chunk at a time; what stays is of the size of h and of the weight.
        for h, t, dh in zip(hidden_ND.split(chunk), targets_N.split(chunk), d_hidden_ND.split(chunk)):
            logits = h @ cast_VD.T if rounded else matmul_fp32(h, cast_VD.T)
            loss, d_logits = inner(logits, t, vocab_size, smoothing, dtype, cap)
            torch.mm(d_logits, cast_VD, out=dh)  # into its part of the whole gradient
            if dtype == d_weight_VD.dtype:
                d_weight_VD.addmm_(d_logits.T, h)  # no product of its own, which is as large as the head
            elif d_logits.is_cuda:  # the same in fp32, from torch 2.10 on (pytorch/pytorch#167931)
                torch.addmm(d_weight_VD, d_logits.T, h, out_dtype=d_weight_VD.dtype, out=d_weight_VD)
            else:
                d_weight_VD += matmul_fp32(d_logits.T, h)
            losses.append(loss)
            del logits, d_logits  # not beside those of the next chunk
        # The gradients are known already, for an upstream gradient of 1: the loss is a scalar, so backward scales them.
        ctx.save_for_backward(d_hidden_ND, d_weight_VD)
        ctx.weight_dtype = weight_VD.dtype
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (upstream,) = grads
        if torch.is_grad_enabled():  # create_graph: what is saved is constant, so a second derivative would lack a part
            raise UserError(f"Losses in chunks have no second derivatives. Take plain torch: {PLAIN}.")
        d_hidden_ND, d_weight_VD = ctx.saved_tensors
        d_hidden_ND = d_hidden_ND * upstream.to(d_hidden_ND.dtype)
        return d_hidden_ND, (d_weight_VD * upstream).to(ctx.weight_dtype), *[None] * 7
