"""Maximal update parameterization (arXiv 2203.03466): transfer over width.

With r = base width / width:

| item | rule |
|---|---|
| matrix, expert, router learning rate | r; 1 for Muon and its relatives |
| every other learning rate | 1 |
| weight decay | 1 for every role, vectors included; r for matrices under Muon and its relatives |
| logits | r, on the hidden state before the head |
| router logits | r; 1 for Muon and its relatives |
| attention | sqrt(base head dim) / head dim, equal to 1/sqrt(head dim) at the base |
| matrix init | U(-1/sqrt(fan_in), 1/sqrt(fan_in)) |
| head init | N(0, head_init_std), or zeros |
| router init | N(0, 0.02); that of matrices for Muon and its relatives |

Muon's steps have the spectral norm that muP asks for at any width (arXiv:2310.17813), so they need no
factor; its decay follows r as in the reference (its section 3.6).

The reference writes r as d0/d because its width is proportional to depth; with an aspect
ratio override that stops being the width ratio, so here r is computed from the widths.
Tying the embeddings changes no factor (the reference shrinks projections then, item 4).
"""

from __future__ import annotations

from math import sqrt

from lit_gpt.scaling.base import LEARNED_ROLES, Init, Multipliers, Situation, Transfer
from lit_gpt.scaling.methods import HIDDEN, ORTHOGONAL
from lit_gpt.scaling.sp import embedding_init


def transfer(s: Situation) -> Transfer:
    """Factors of muP; see the table above."""
    r = s.base_width / s.width
    orthogonal = s.optimizer in ORTHOGONAL
    hidden = Init("fan_in_uniform")
    head = Init("zeros") if s.head_init_std is None else Init("normal", s.head_init_std)
    ones: dict[str, float] = dict.fromkeys(LEARNED_ROLES, 1.0)
    scaled = ones | dict.fromkeys(HIDDEN, r)
    return Transfer(
        lr=ones if orthogonal else scaled,
        weight_decay=scaled if orthogonal else ones,
        init={
            "embedding": embedding_init(s),
            "head": head,
            "matrix": hidden,
            "expert": hidden,
            "conv": hidden,
            "router": hidden if orthogonal else Init("normal", 0.02),
        },
        multipliers=Multipliers(logit=r, attention=sqrt(s.base_head_dim) / s.head_dim, router=1.0 if orthogonal else r),
    )
