"""The gated delta rule by the Triton kernels of kernels/delta_rule.py, as torch operations.

Before both passes all chunks at once: the inverse of each one's triangular system, and the weights of its readers.
Forward, a program then goes through the chunks of one head of a row with some columns of the state in registers, which
no other column needs, and writes only the output. Backward, two passes like it write the states before all chunks and
their gradients after them, of one layer at a time; from these all chunks follow at once. No two programs write the same
number, so bits repeat. A row is not cut into segments as that of ssd_triton.py, since its states are not a number times
earlier ones, but a matrix: few long rows leave a GPU partly idle.

Shapes: as in delta_rule.py; M chunks of L tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_gpt.ops.backends import Memory, refuse_transforms
from lit_gpt.ops.triton_calls import HEADS, Launch, gpu_refuses, launch, readable, strides

# By name, since they import Triton.
FORWARD, BACKWARD = "lit_gpt.ops.kernels.delta_rule", "lit_gpt.ops.kernels.delta_rule_backward"
IN_FORWARD = ("sums", "prepare", "forward")  # the others are in BACKWARD
TYPES = (torch.bfloat16, torch.float32)  # fp16 cannot hold what is divided by two norms near the epsilon
KEYS, VALUES = (32, 64, 128, 256), 32  # key dimensions, powers of two; value dimensions are a multiple of VALUES
FP32_KEYS = 64  # at most, in fp32: with more registers do not suffice
ROWS = 16  # tokens of a program for the gradients of norms


class Sizes(NamedTuple):
    """How one shape is cut: tokens of a chunk, values of a program along a row, values at once and channels of one of a
    chunk; and for each kernel how it is launched.
    """

    chunk: int
    width: int
    wide: int
    part: int
    prepare: Launch
    forward: Launch
    backward: Launch
    pairs: Launch
    gradients: Launch


def sizes(dtype: torch.dtype, keys: int, values: int) -> Sizes:
    """Chosen by what ptxas says (Triton 3.6, sm_90) for keys of 256 and values of 512 in bf16, as `gdny` has them, and
    not yet by the time on a GPU.

    No kernel has too few registers, but for numbers that are the same in each turn of a loop and read again there: 15
    to 28 in `forward` with an output, up to 5 in `backward`. By registers and shared memory (185 KB where q is read
    beside k in turns, 101 KB in `forward` for states alone) one program of these fits on a processor at once, and two
    of the others. Along a row a program has 32 values and four warps: with 64 values the state alone takes half of all
    registers, and of more warps half would repeat the products with 64 rows, by the layout of products in a chain.
    Fewer than 64 keys are no rows for wgmma, so that states are operands of two kinds of products in `gradients`, which
    Triton must not pipeline (kernels/delta_rule_backward.py says why).

    With one stage ptxas 12.8 makes a `forward` of keys of 256 that reads outside its memory: it takes R1, the stack
    pointer, for a zero in the descriptor of a matrix. nvdisasm shows R1 there only as an address, elsewhere.
    """
    wide = 64 if values % 64 == 0 else 32
    if dtype == torch.float32:  # no tensor cores, and tiles of twice the bytes
        return Sizes(32, 32, 32, 32, *(Launch(8, 1) for _ in range(5)))
    gradients = Launch(4, 2 if keys >= 64 else 1)
    return Sizes(64, 32, wide, min(keys, 64), Launch(4, 1), Launch(4, 2), Launch(4, 2), Launch(4, 2), gradients)


def gated_delta_rule(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    beta_BTH: Tensor,
    log_decay_BTH: Tensor | None,
    starts_BT: Tensor | None,
    state_BHKV: Tensor | None,
    scale: float,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    """See delta_rule.delta_rule. starts: see triton_calls.first_tokens; None without documents."""
    state = None if state_BHKV is None else state_BHKV.float()
    inputs = q_BTHK.to(v_BTHV.dtype), k_BTHK.to(v_BTHV.dtype), v_BTHV, beta_BTH, log_decay_BTH
    refuse_transforms("The Triton kernels of the delta rule", *inputs, state)
    return rule_forward(*inputs, starts_BT, state, scale, normalize)


def memory(q_BTHK: Tensor, values: int) -> Memory:
    """Nothing is kept. Made: two states for each chunk and head, what tokens write and its gradient, four products of
    a chunk's tokens, all in q's dtype; in fp32 what keys and queries get, and numbers of each head.
    """
    heads, keys = q_BTHK.shape[2:]
    cut = sizes(q_BTHK.dtype, keys, values)
    of_dtype = 2 * keys * values / cut.chunk + 2 * values + 4 * cut.chunk
    numbers = 2 * keys + 4 + 2 * (1 + keys // cut.part)
    return Memory(0, heads * (q_BTHK.element_size() * of_dtype + 4 * numbers))


class Rule:
    """One call: how it is cut, and what does not depend on its states."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        beta: Tensor,
        g: Tensor | None,
        starts: Tensor | None,
        scale: float,
        normalize: bool,
    ) -> None:
        self.q, self.k, self.v, self.scale, self.normalize = readable(q), readable(k), readable(v), scale, normalize
        if strides(self.q) != strides(self.k):
            self.q, self.k = q.contiguous(), k.contiguous()
        (self.batch, self.tokens, self.heads, self.keys), self.values = q.shape, v.shape[3]
        self.cut = sizes(q.dtype, self.keys, self.values)
        self.chunks = -(-self.tokens // self.cut.chunk)
        self.starts = None if starts is None else starts.contiguous()
        self.a, self.b, self.q_norm, self.k_norm = (self.of_tokens() for _ in range(4))
        self.solution, self.reads = (self.of_pairs() for _ in range(2))
        self._prepare(beta, g)

    @property
    def lengths(self) -> tuple[float, int, int, int]:
        return self.scale, self.tokens, self.heads, self.chunks

    @property
    def steps(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
        return self.a, self.b, self.starts, self.q_norm, self.k_norm

    def of_tokens(self, *parts: int) -> Tensor:
        """Room for a number for each head and token of whole chunks, in fp32."""
        padded = self.chunks * self.cut.chunk
        return torch.empty(*parts, self.batch, self.heads, padded, device=self.q.device)

    def of_channels(self, channels: int, dtype: torch.dtype) -> Tensor:
        """Room for numbers of each head and token of whole chunks."""
        return self.q.new_empty(self.batch, self.heads, self.chunks * self.cut.chunk, channels, dtype=dtype)

    def of_pairs(self) -> Tensor:
        """Room for a number of any two tokens of each chunk."""
        return self.q.new_empty(self.batch, self.heads, self.chunks, self.cut.chunk, self.cut.chunk)

    def of_chunks(self) -> Tensor:
        """Room for a state of each chunk."""
        return self.q.new_empty(self.batch, self.heads, self.chunks, self.keys, self.values)

    def of_rows(self) -> Tensor:
        """Room for a state of each row, in fp32."""
        return self.a.new_empty(self.batch, self.heads, self.keys, self.values)

    def run(self, kernel: str, grid: tuple[int, ...], *arguments: Any, **constants: int) -> None:
        how: Launch = getattr(self.cut, kernel)
        constants |= {"L": self.cut.chunk, "K": self.keys}
        launch(_module(kernel), kernel, grid, *arguments, *self.lengths, **constants, **how._asdict())

    def run_along(self, kernel: str, *arguments: Any) -> None:
        """A kernel that goes along the rows."""
        grid = self.heads, self.batch, self.values // self.cut.width
        self.run(kernel, grid, *arguments, V=self.values, WIDTH=self.cut.width)

    def run_chunks(self, kernel: str, *arguments: Any, parts: int = 1, **constants: int) -> None:
        """A kernel with programs for each chunk and head."""
        self.run(kernel, (self.batch * self.chunks * self.heads * parts,), *arguments, **constants)

    def run_sums(self, kernel: str, *arguments: Any, **constants: int) -> None:
        """A kernel on the numbers of tokens, which has a program for each chunk and HEADS heads."""
        grid = self.batch * self.chunks, -(-self.heads // HEADS)
        constants |= {"L": self.cut.chunk, "HEADS": HEADS}
        launch(_module(kernel), kernel, grid, *arguments, *self.lengths[1:], **constants, num_warps=4)

    def norms_backward(self, x: Tensor, norm: Tensor, d: Tensor, dx: Tensor) -> None:
        """dx is written, from what x with its norms gets."""
        grid = (self.batch * self.chunks * self.heads * (self.cut.chunk // ROWS),)
        constants = {"NORMALIZE": self.normalize, "ROWS": ROWS, "L": self.cut.chunk, "K": self.keys}
        given = x, norm, d, dx, *strides(x), *self.lengths[1:]
        launch(BACKWARD, "norms_backward", grid, *given, **constants, num_warps=4)

    def _prepare(self, beta: Tensor, g: Tensor | None) -> None:
        beta = beta if beta.stride(2) == 1 else beta.contiguous()
        g = g if g is None or g.stride(2) == 1 else g.contiguous()
        self.run_sums("sums", beta, g, self.a, self.b, *beta.stride()[:2], *(beta if g is None else g).stride()[:2])
        made = self.q_norm, self.k_norm, self.solution, self.reads
        given = self.q, self.k, self.a, self.b, self.starts, *made, *strides(self.k)
        levels = self.cut.chunk.bit_length() - 1
        self.run_chunks("prepare", *given, NORMALIZE=self.normalize, LEVELS=levels)

    def along(self, state: Tensor | None, *written: Tensor | None) -> None:
        """The pass from a first state; written: o, the last state, what tokens write, states before the chunks."""
        given = self.q, self.k, self.v, *self.steps, self.solution, self.reads, state, *written
        self.run_along("forward", *given, *strides(self.k), *strides(self.v))


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor | None,
    starts: Tensor | None,
    state: Tensor | None,
    scale: float,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    """o (B, T, H, V) and the last state (B, H, K, V)."""
    rule = Rule(q, k, v, beta, g, starts, scale, normalize)
    o, last = v.new_empty(v.shape), rule.of_rows()
    rule.along(None if state is None else state.contiguous(), o, last, None, None)
    return o, last


def backward(
    do: Tensor,
    dlast: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor | None,
    starts: Tensor | None,
    state: Tensor | None,
    scale: float,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of q, k, v, beta, g and the first state, of those of o and the last state."""
    rule, do = Rule(q, k, v, beta, g, starts, scale, normalize), readable(do)
    x, dr = (rule.of_channels(rule.values, q.dtype) for _ in range(2))
    before, after = rule.of_chunks(), rule.of_chunks()
    rule.along(None if state is None else state.contiguous(), None, None, x, before)
    dv, dstart = v.new_empty(v.shape), rule.of_rows()
    of_k, of_do = strides(rule.k), strides(do)
    first = None if dlast is None else dlast.contiguous()
    given = rule.q, rule.k, do, *rule.steps, rule.solution, rule.reads, first, dv, dr, after, dstart
    rule.run_along("backward", *given, *of_k, *of_do)
    dA, dP = rule.of_pairs(), rule.of_pairs()
    parts = rule.keys // rule.cut.part
    da, db = rule.of_tokens(1 + parts), rule.of_tokens(1 + parts)
    widths = {"V": rule.values, "WIDTH": rule.cut.wide}
    given = rule.q, rule.k, rule.v, do, *rule.steps, x, dr, dA, dP, da[0], db[0]
    rule.run_chunks("pairs", *given, *of_k, *strides(rule.v), *of_do, **widths)
    dq_normed, dk_normed = (rule.of_channels(rule.keys, torch.float32) for _ in range(2))
    given = rule.q, rule.k, do, *rule.steps, x, dr, before, after, dA, dP, dq_normed, dk_normed, da[1:], db[1:]
    rule.run_chunks("gradients", *given, *of_k, *of_do, parts=parts, PART=rule.cut.part, **widths)
    dq, dk, dbeta = (t.new_empty(t.shape) for t in (q, k, beta))
    dg = None if g is None else g.new_empty(g.shape)
    rule.norms_backward(rule.q, rule.q_norm, dq_normed, dq)
    rule.norms_backward(rule.k, rule.k_norm, dk_normed, dk)
    rule.run_sums("sums_backward", da, db, dbeta, dg, COUNT=1 + parts)
    return dq, dk, dv, dbeta, beta.new_empty(0) if dg is None else dg, dstart


def _module(kernel: str) -> str:
    return FORWARD if kernel in IN_FORWARD else BACKWARD


rule_forward = torch.library.custom_op("lit_gpt::gated_delta_rule", forward, mutates_args=())
rule_backward = torch.library.custom_op("lit_gpt::gated_delta_rule_backward", backward, mutates_args=())


def _state_like(q: Tensor, v: Tensor) -> Tensor:
    return q.new_empty(q.shape[0], *q.shape[2:], v.shape[3], dtype=torch.float32)


@rule_forward.register_fake
def _(q, k, v, beta, g, starts, state, scale, normalize):
    return v.new_empty(v.shape), _state_like(q, v)


@rule_backward.register_fake
def _(do, dlast, q, k, v, beta, g, starts, state, scale, normalize):
    dg = beta.new_empty(0) if g is None else g.new_empty(g.shape)
    return *(t.new_empty(t.shape) for t in (q, k, v, beta)), dg, _state_like(q, v)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.scale, ctx.normalize = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, do: Tensor | None, dlast: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, g, starts, state = ctx.saved_tensors
    do = torch.zeros_like(tensors[2]) if do is None else do
    *found, dg, dstate = rule_backward(do, dlast, *tensors, g, starts, state, ctx.scale, ctx.normalize)
    return (*found, None if g is None else dg, None, None if state is None else dstate, None, None)


rule_forward.register_autograd(_autograd, setup_context=_setup)


def refuses(dtype: torch.dtype, keys: int, values: int) -> str:
    """Why a GPU cannot run it, or ""."""
    name = str(dtype).removeprefix("torch.")
    if dtype not in TYPES:
        return f"it has no {name}"
    allowed = [n for n in KEYS if dtype != torch.float32 or n <= FP32_KEYS]
    if keys not in allowed:
        return f"its key dimension is one of {', '.join(map(str, allowed))} in {name}, not {keys}"
    if values % VALUES:
        return f"its value dimension is a multiple of {VALUES}, not {values}"
    return gpu_refuses(BACKWARD)
