"""Maximal update parameterization for AdamW (arXiv 2203.03466): transfer over width.

With r = base width / width:

| item | rule |
|---|---|
| matrix, expert, router learning rate | r |
| every other learning rate | 1 |
| weight decay | 1 for every role, vectors included |
| logits | r, on the hidden state before the head |
| attention | sqrt(base head dim) / head dim, equal to 1/sqrt(head dim) at the base |
| matrix init | U(-1/sqrt(fan_in), 1/sqrt(fan_in)) |
| head init | N(0, head_init_std), or zeros |

The reference writes r as d0/d because its width is proportional to depth; with an aspect
ratio override that stops being the width ratio, so here r is computed from the widths.
Tying the embeddings changes no factor (the reference shrinks projections then, item 4).
"""

from __future__ import annotations

from math import sqrt

from lit_gpt.scaling.base import LEARNED_ROLES, Init, Multipliers, Situation, Transfer
from lit_gpt.scaling.sp import embedding_init

HIDDEN = ("matrix", "expert", "router")  # both dimensions grow with width


def transfer(s: Situation) -> Transfer:
    """Factors of muP; see the table above."""
    r = s.base_width / s.width
    hidden = Init("fan_in_uniform")
    head = Init("zeros") if s.head_init_std is None else Init("normal", s.head_init_std)
    return Transfer(
        lr={role: r if role in HIDDEN else 1.0 for role in LEARNED_ROLES},
        weight_decay=dict.fromkeys(LEARNED_ROLES, 1.0),
        init={
            "embedding": embedding_init(s),
            "head": head,
            "matrix": hidden,
            "expert": hidden,
            "conv": hidden,
            "router": Init("normal", 0.02),
        },
        multipliers=Multipliers(logit=r, attention=sqrt(s.base_head_dim) / s.head_dim, router=r),
    )
