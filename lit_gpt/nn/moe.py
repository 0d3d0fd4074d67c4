"""Mixture of experts: a router, experts of one shape, perhaps some that every token uses.

    y = sum_j g_j E_j(x) [+ shared(x)],  E(x) = down act(up x)

The router computes in fp32 (Switch Transformer, arXiv:2101.03961, section 2.4): a choice between two nearly equal
scores flips with their last bits. Its weights are fp32 under FSDP2 too (see parallel.parallelize). The weights of all
experts are two tensors, up (E, H, n) and down (E, n, I): what a dense network has, with the expert in front, so that
every backend of the grouped products reads the same checkpoint.

Shapes: B batch, T tokens, D = n model width, E routed experts, K of them per token, I hidden width,
N = B T tokens of the micro-batch.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lit_gpt.config.model import Experts, ModelConfig
from lit_gpt.nn import mlp
from lit_gpt.nn.linear import Linear
from lit_gpt.nn.router import choose_experts, choose_tokens, probabilities, route
from lit_gpt.ops.dtypes import upcast
from lit_gpt.ops.expert_activation import MAPS
from lit_gpt.ops.expert_parallel import parallel_expert_ffn
from lit_gpt.ops.experts import Routes, expert_ffn
from lit_gpt.ops.experts_fp8 import ScaledExperts, scaled_expert_ffn
from lit_gpt.ops.parts import linear_fp32
from lit_gpt.roles import role


class Routed(NamedTuple):
    """What a router did with the tokens of one micro-batch. Each field is a sum over these tokens, in at least fp32.

    Sums can be added over micro-batches and ranks, and a balance loss is a function of the sums; see nn.balance.
    A pair is a token with one of the experts that it was sent to.

    counts_E: how many pairs each expert has.
    probs_E: the probability that the router gave each expert. It has a gradient where a balance loss is used.
    z: the squared log-sum-exp of the router's logits, for the z-loss (arXiv:2202.08906, equation 5), which keeps
        logits small. It has a gradient where that loss is used.
    sequences: the balance loss of each sequence by itself, at weight 1; 0 unless aux_style is switch_seq.
    square: the mean square of what the routed experts gave, for the log. It has no gradient.
    """

    counts_E: Tensor
    probs_E: Tensor
    z: Tensor
    sequences: Tensor
    square: Tensor


def stack(routed: list[Routed]) -> Routed:
    """The records of several layers as one, with the layers along a new first dimension: counts_E is (L, E)."""
    return Routed(*(torch.stack(values) for values in zip(*routed)))


def hidden_width(config: ModelConfig, kind: str) -> int:
    """Rows of one expert's down projection: I / k, so that k experts together are as wide as a dense network.

    In relu2's case 1.5 times that, as in a dense network: it has two matrices and not three.
    """
    assert config.experts is not None
    width = config.intermediate_size // config.experts.top_k
    return width if MAPS[kind] == 2 else 3 * width // 2


class MixtureOfExperts(nn.Module):
    """The feed-forward network of a layer with experts; the module's docstring has the formula.

    router_multiplier: the Plan's constant on the router's logits.
    """

    def __init__(self, config: ModelConfig, layer_index: int, router_multiplier: float):
        super().__init__()
        assert config.experts is not None and config.layers[layer_index].ffn is not None
        self.experts: Experts = config.experts
        self.kind, self.multiplier = str(config.layers[layer_index].ffn), router_multiplier
        n, count, maps = config.n_embd, self.experts.routed, MAPS[self.kind]
        hidden = hidden_width(config, self.kind)
        self.router = Linear(n, count, weight_role="router")
        self.up = role(nn.Parameter(torch.empty(count, maps * hidden, n)), "expert", maps=maps)
        self.down = role(nn.Parameter(torch.empty(count, n, hidden)), "expert")
        # What the trainer gives them, both in the compute dtype: where gradients go (parallel/expert_gradients.py), and
        # with these, casts that are kept between steps (parallel/kept_casts.py).
        self.sinks: tuple[Tensor, ...] = ()
        self.kept: tuple[Tensor, ...] = ()
        width = config.intermediate_size // self.experts.top_k
        shared = int(self.experts.shared)  # experts that are added are one network of their widths together
        self.shared = mlp.of_width(self.kind, config, shared * width) if shared else None
        self.scaled: ScaledExperts | None = None  # with --fp8: the weights of the experts in 8 bits
        # Loss-free balancing: a buffer, since the trainer moves it by the loads and no gradient does; see nn.balance.
        if self.experts.bias_rate:
            self.register_buffer("balance", torch.zeros(count, dtype=torch.float32))

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy, also by pickle: without what the trainer gave it, which would serve the weights of this one."""
        return {**vars(self), "sinks": (), "kept": ()}

    def forward(self, x_BTD: Tensor, backend: str = "auto") -> tuple[Tensor, Routed]:
        """(the output, (B, T, n) in x's dtype; what the router did). backend: a row of ops.grouped_gemm."""
        # Routing looks at single tokens, so rows and positions are one dimension.
        x_ND = x_BTD.flatten(0, 1)
        logits_NE = linear_fp32(x_ND, self.router.weight) * self.multiplier
        if self.experts.routing == "expert_choice":
            y_ND, ends_E = self._by_expert(x_ND, logits_NE, backend)
            sequences = logits_NE.new_zeros(())
        else:
            choice, routes = route(choose_experts(logits_NE, self.experts, self._bias()), self.experts)
            y_ND, ends_E = self._ffn(x_ND, choice.gates_TK, routes, backend), routes.ends_E
            sequences = self._sequences(logits_NE, choice.experts_TK, len(x_BTD))
        return self._with_shared(y_ND.view_as(x_BTD), x_BTD), self._statistics(logits_NE, ends_E, sequences, y_ND)

    def _ffn(self, x_ND: Tensor, gates_NK: Tensor, routes: Routes, backend: str) -> Tensor:
        """The sum of each token's experts, weighted by its gates.

        Under expert parallelism, and only there, forward sees the weights as DTensors: FSDP2 gathers all others.
        """
        options: dict[str, Any] = {"kind": self.kind, "backend": backend}
        scaled = self.scaled if self.training else None
        ffn = expert_ffn if scaled is None else partial(scaled_expert_ffn, scaled=scaled)
        if isinstance(self.up, DTensor) and isinstance(self.down, DTensor):
            options["compiled"] = torch.compiler.is_compiling()  # which it cannot see from within
            return parallel_expert_ffn(x_ND, gates_NK, self.up, self.down, routes, ffn=ffn, **options)  # type: ignore
        if self.sinks and self.training:
            up, down = self.kept or (self.up.detach(), self.down.detach())
            return expert_ffn(x_ND, gates_NK, up, down, routes, sinks=self.sinks, **options)
        return ffn(x_ND, gates_NK, self.up, self.down, routes, **options)

    def _bias(self) -> Tensor | None:
        return self.balance if self.experts.bias_rate else None  # type: ignore[return-value]

    def _by_expert(self, x_ND: Tensor, logits_NE: Tensor, backend: str) -> tuple[Tensor, Tensor]:
        """Expert choice (arXiv:2202.09368): (the output, (N, D); where each expert's pairs end, (E,)).

        Every expert has C tokens, so its pairs lie in order already, each as a row with one gate.
        """
        gates_EC, tokens_EC = choose_tokens(logits_NE, self.experts)
        count, capacity = tokens_EC.shape
        tokens_P, index_P = tokens_EC.flatten(), torch.arange(count * capacity, device=x_ND.device)
        ends_E = torch.arange(1, count + 1, device=x_ND.device, dtype=torch.int32) * capacity
        # Pair p is its own place and its own token: what is handed on is gathered by hand.
        routes = Routes(index_P, index_P, ends_E, capacity)
        out_PD = self._ffn(x_ND[tokens_P], gates_EC.view(-1, 1), routes, backend)
        sums_ND = torch.zeros_like(x_ND, dtype=upcast(out_PD[:0]).dtype).index_add(0, tokens_P, upcast(out_PD))
        return sums_ND.to(x_ND.dtype), ends_E

    def _with_shared(self, y_BTD: Tensor, x_BTD: Tensor) -> Tensor:
        if self.shared is None:
            return y_BTD
        y_BTD = y_BTD + self.shared(x_BTD)
        # Under sqrt_gate the squares of the gates sum to 1, so routed experts have the variance of one; so has each
        # shared one. The sum of 1 + s over its root has it again.
        return y_BTD * (1 + self.experts.shared) ** -0.5 if self.experts.sqrt_gate else y_BTD

    def _sequences(self, logits_NE: Tensor, experts_NK: Tensor, rows: int) -> Tensor:
        """The switch loss (see nn.balance) of each sequence by itself, summed over the batch's sequences."""
        e = self.experts
        if e.aux_style != "switch_seq" or not e.aux_gamma:
            return logits_NE.new_zeros(())
        chosen_BX = experts_NK.view(rows, -1)
        counts_BE = chosen_BX.new_zeros(rows, e.routed).scatter_add_(1, chosen_BX, torch.ones_like(chosen_BX))
        mean_BE = probabilities(logits_NE, e).view(rows, -1, e.routed).mean(1)
        return e.routed * (mean_BE * counts_BE).sum() / chosen_BX.shape[1]

    def _statistics(self, logits_NE: Tensor, ends_E: Tensor, sequences: Tensor, y_ND: Tensor) -> Routed:
        e = self.experts
        # Without a loss on them the statistics are for the log only: detached, they keep no activations.
        counts_E = torch.diff(ends_E, prepend=ends_E.new_zeros(1)).to(logits_NE.dtype)
        probs_NE = probabilities(logits_NE if e.aux_gamma else logits_NE.detach(), e)
        z = (logits_NE if e.router_z_loss else logits_NE.detach()).logsumexp(-1).square().sum()
        return Routed(counts_E, probs_NE.sum(0), z, sequences, upcast(y_ND.detach()).square().mean(-1).sum())

    def inactive_parameters(self) -> int:
        """Parameters of the experts that a token does not use."""
        e = self.experts
        return int((self.up.numel() + self.down.numel()) // e.routed * (e.routed - e.mean_active))

    def flops(self) -> float:
        """Forward matmul FLOPs per token: those of the router and of the experts that it uses."""
        per_expert = 2.0 * (self.up.numel() + self.down.numel()) / self.experts.routed
        shared = 0.0 if self.shared is None else self.shared.flops()
        return self.router.flops() + self.experts.mean_active * per_expert + shared
