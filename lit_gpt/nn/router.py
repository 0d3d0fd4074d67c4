"""Which experts a token uses, and with which weights.

Everything is in at least fp32. Equal scores go to the expert with the lower index, on every device.

Shapes: T tokens of a micro-batch, E routed experts, K of them per token, C tokens per expert.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lit_gpt.config.model import Experts
from lit_gpt.ops.experts import Routes, sort_pairs


class Choice(NamedTuple):
    """Each token's experts.

    gates_TK: how much each counts in the token's sum, in at least fp32. experts_TK: which they are.
    """

    gates_TK: Tensor
    experts_TK: Tensor


def probabilities(logits_TE: Tensor, experts: Experts) -> Tensor:
    """What the balance losses call the probability of an expert: softmax, or sigmoids divided by their sum."""
    if experts.gate != "sigmoid":
        return logits_TE.softmax(-1)
    scores_TE = logits_TE.sigmoid()
    return scores_TE / scores_TE.sum(-1, keepdim=True)


def choose_experts(logits_TE: Tensor, experts: Experts, bias_E: Tensor | None = None) -> Choice:
    """Token choice: the K best experts of each token.

    bias_E: added to the scores (softmax or sigmoid) that experts are selected by, not to the gates.
    """
    # A choice has no gradient; that of the router comes through the gates.
    scores_TE = logits_TE.detach()
    if bias_E is not None:
        scores_TE = (scores_TE.sigmoid() if experts.gate == "sigmoid" else scores_TE.softmax(-1)) + bias_E
    # A stable sort and not topk, which breaks ties differently on each device: resume and tests compare routes.
    order_TE = scores_TE.sort(dim=-1, descending=True, stable=True).indices
    experts_TK = order_TE[:, : experts.active].contiguous()
    if experts.gate == "selected":
        logs_TK = logits_TE.gather(-1, experts_TK).log_softmax(-1)
    elif experts.gate == "all":
        logs_TK = logits_TE.log_softmax(-1).gather(-1, experts_TK)
    else:  # log of s_i / sum s, without underflow
        logs_TK = torch.nn.functional.logsigmoid(logits_TE.gather(-1, experts_TK)).log_softmax(-1)
    # Gates are made as logarithms: the square root is then a half, whose gradient is finite where a gate is near 0.
    return Choice((0.5 * logs_TK if experts.sqrt_gate else logs_TK).exp(), experts_TK)


def capacity_of(tokens: int, experts: Experts) -> int:
    """Tokens that an expert serves at most, or under expert choice exactly."""
    mean = tokens * experts.active / experts.routed
    # To the nearest whole number, which is not Python's round: that takes 2.5 to 2.
    return min(tokens, max(int(mean * (experts.capacity or 1.0) + 0.5), 1))


def limit(choice: Choice, routes: Routes, capacity: int) -> Choice:
    """The gates of pairs beyond an expert's capacity set to 0; its earlier tokens come first."""
    experts_P = choice.experts_TK.flatten()
    lengths_E = torch.diff(routes.ends_E, prepend=routes.ends_E.new_zeros(1))
    rank_P = routes.place_P - (routes.ends_E - lengths_E)[experts_P]
    return choice._replace(gates_TK=torch.where((rank_P < capacity).view_as(choice.gates_TK), choice.gates_TK, 0.0))


def choose_tokens(logits_TE: Tensor, experts: Experts) -> tuple[Tensor, Tensor]:
    """Expert choice (arXiv:2202.09368): the tokens of every expert, (E, C), and their gates.

    The gate is the token's softmax over experts, under sqrt_gate its square root.
    """
    capacity = capacity_of(logits_TE.shape[0], experts)
    logs_TE = logits_TE.log_softmax(-1)
    tokens_EC = logs_TE.detach().T.sort(dim=-1, descending=True, stable=True).indices[:, :capacity]
    logs_EC = logs_TE.T.gather(-1, tokens_EC)
    return (0.5 * logs_EC if experts.sqrt_gate else logs_EC).exp(), tokens_EC


def route(choice: Choice, experts: Experts) -> tuple[Choice, Routes]:
    """The pairs sorted by expert; the choice with its gates limited where there is a capacity."""
    routes = sort_pairs(choice.experts_TK, experts.routed)
    if experts.capacity is None:
        return choice, routes
    capacity = capacity_of(len(choice.gates_TK), experts)
    return limit(choice, routes, capacity), routes._replace(largest=capacity)
