"""How large a model is: its parameters by role, and FLOPs per token by two conventions."""

from __future__ import annotations

from collections import Counter
from math import isfinite
from typing import Any, cast

from lit_gpt.errors import UserError
from lit_gpt.model import GPT
from lit_gpt.nn.moe import MixtureOfExperts
from lit_gpt.roles import ROLES, roles_of


def flops_per_token(model: GPT, context_length: int) -> float:
    """Matmul FLOPs per token of forward and backward, recomputation left out.

    Backward does two products for each of forward's: one for the gradient of the input, one for that of the weight.
    Attention counts the keys that a query sees, averaged over a sequence of context_length, or over the longest
    document, of ModelConfig.doc_len tokens. Raises UserError for a mixer whose count is no number from 0 on.
    """
    context_length = min(context_length, model.config.doc_len or context_length)
    of_blocks = [cast(Any, model.blocks[i]).flops(context_length) for i in model.block_of]
    for spec, flops in zip(model.config.layers, of_blocks):
        if not isfinite(flops) or flops < 0:  # a plugin's mistake
            raise UserError(f"flops of the mixer {spec.mixer!r} gives {flops}; return the FLOPs of a token's forward.")
    forward = sum(of_blocks)
    forward += 0 if model.smear is None else model.smear.flops()
    return 3 * (forward + 2 * model.head_weight().numel())


def palm_flops_per_token(model: GPT, context_length: int) -> float:
    """The same by PaLM's convention (arXiv:2204.02311, appendix B): 6 N + 12 L H Q T.

    N are the active parameters without input and value tables (a tied one is the output projection too, and counts),
    L the layers with softmax attention of H heads of size Q, each as if a query saw all T tokens.
    """
    counts, config = param_counts(model), model.config
    n = (
        counts["active"]
        - counts["embedding"]
        - counts["value_table"]
        + (model.wte.weight.numel() if model.head is None else 0)
    )
    return 6.0 * n + 12.0 * len(model.attending) * config.n_head * config.head_dim * context_length


def param_counts(model: GPT) -> dict[str, int]:
    """Parameters by kind: total, active per token, non_embedding (no table and no head), each role.

    A tied table counts once, as embedding. Padded rows count. Of experts, those that a token uses are active.
    """
    roles = roles_of(model)
    per_role: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        per_role[roles[name]] += parameter.numel()
    total = sum(per_role.values())
    outside = total - sum(per_role[role] for role in ("embedding", "value_table", "head"))
    inactive = sum(m.inactive_parameters() for m in model.modules() if isinstance(m, MixtureOfExperts))
    counts = {"total": total, "active": total - inactive, "non_embedding": outside}
    return counts | {name: per_role[name] for name in ROLES}
