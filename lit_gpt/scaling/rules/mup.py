"""Maximal update parameterization (arXiv:2203.03466): transfer over width.

With r = base width / width:

| item | rule |
|---|---|
| matrix, output, expert, router learning rate | r^p; p = 1 for Adam and its relatives, 0 for Muon, see GROWTH |
| every other learning rate | 1; of tables also r^p |
| rate times weight decay | r for matrices, outputs, experts and routers, else 1, vectors included |
| decay of gates and scalars | 0 |
| independent weight decay | 1 with Adam and its relatives, else as rate times decay |
| logits | r, on the hidden state before the head |
| router logits | r; 1 where steps are not as Adam's |
| attention | sqrt(base head dim) / head dim, equal to 1/sqrt(head dim) at the base |
| matrix init | U(-1/sqrt(fan_in), 1/sqrt(fan_in)) |
| head init | N(0, g head_init_std), or zeros |
| tied table init | N(0, 0.02 g), or the std that was given |
| router init | N(0, 0.02); that of matrices where steps are not as Adam's |
| value table init | N(0, 0.04) |
| output init | zeros |

A row of a table is one input of size 1 and not a sum over the width, so rate and start of a value table, which adds to
values of size 1, are those of the base at any width. Gates read a fixed number of channels and scalars are one number
each, so their rates do not follow the width either.

p is the power of the width with which a step's effect would grow (s.steps.growth): Muon's steps have the
spectral norm that muP asks for at any width (arXiv:2310.17813), so p is 0. Rate times decay follows r
whatever p is, as in ArchScale for AdamW and Muon and in the table of arXiv:2603.28743; so the factor on the decay that
an optimizer multiplies by its rate is r^(1 - p) for matrices, r^-p for tables. Independent decay is ArchScale's: the
same at any width with AdamW, times r with Muon, and with its relatives, whose steps are Muon's but for the factor.

A normalised hidden vector has length sqrt(n), so logits start at std r sqrt(n), which grows as 1 / sqrt(n) towards
narrow models: one of an eighth of the base width would start 1.6 nats above a uniform guess. So below the base width n0
g = min(1, sqrt(max(n0, 1024) n) / n0) keeps them at most as large as those of the base model, or of ArchScale's base
width 1024 where that is larger; from n0 on g is 1 (departure D91).

ArchScale writes r as d0/d because its width is proportional to depth; with --base_hps.ar0 that is not the width
ratio, so here r is computed from the widths (departure D28). Tying the embeddings changes no factor, while ArchScale
shrinks projections then (departure D33).
"""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

from lit_gpt.errors import UserError
from lit_gpt.scaling.base import HIDDEN, LEARNED_ROLES, UNDECAYED, Init, Multipliers, Situation, Transfer
from lit_gpt.scaling.rules.sp import COMMON, embedding_init

ARCHSCALE_WIDTH = 1024  # depth 8 at aspect ratio 128, where the sizes of its start were chosen


def transfer(s: Situation) -> Transfer:
    """Factors of muP; see the table above. Raises UserError for a head start that cannot act."""
    if s.head_start == "flat":
        raise UserError(
            "Under muP and the rules made from it logits are multiplied by base width / width, so they start smaller "
            "the wider a model is, and --head_start flat has nothing to undo. Drop it; it is for rules that do not "
            "multiply logits, such as sp and hyperp."
        )
    r = s.base_width / s.width
    adam = s.steps.like_adam
    lr = {role: r ** s.steps.growth[role] for role in LEARNED_ROLES}
    kept = dict.fromkeys(UNDECAYED, 0.0)
    product = {role: r if role in HIDDEN else 1.0 for role in LEARNED_ROLES} | kept
    hidden = Init("fan_in_uniform")
    narrow = min(1.0, sqrt(max(s.base_width, ARCHSCALE_WIDTH) * s.width) / s.base_width)
    head = Init("zeros") if s.head_init_std is None else Init("normal", s.head_init_std * narrow)
    table, given = embedding_init(s), s.embedding_init_std is not None
    return Transfer(
        lr=lr,
        weight_decay={role: product[role] / lr[role] for role in LEARNED_ROLES},
        independent_decay=dict.fromkeys(LEARNED_ROLES, 1.0) | kept if adam else product,
        init={
            **COMMON,
            "embedding": replace(table, std=table.std * narrow) if s.tied and not given else table,
            "head": head,
            "matrix": hidden,
            "expert": hidden,
            "conv": hidden,
            "router": Init("normal", 0.02) if adam else hidden,
        },
        multipliers=Multipliers(logit=r, attention=sqrt(s.base_head_dim) / s.head_dim, router=r if adam else 1.0),
    )
