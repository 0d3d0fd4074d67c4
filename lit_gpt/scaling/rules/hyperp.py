"""HyperP (arXiv:2603.28743), for MuonH: transfer over width, depth, tokens and mixtures of experts.

With L = depth, T = tokens and L0, T0 those of the base:

| item | rule |
|---|---|
| learning rate | sqrt(L0 / L) (T / T0)^-0.32 |
| weight decay | 0 |
| every branch | times 1 / sqrt(2 L) before it is added |
| logits, router logits | 1 |
| attention | sqrt(base head dim) / head dim |
| router init | that of matrices |

There is no width factor on rates: on a sphere a rate is relative to the weights, and steps whose spectral norm is the
same at any width need none either. Optimizers whose steps are of another kind are refused.

That is right for matrices and not for the head. It starts at N(0, std) at every width and keeps that norm on its
sphere, so logits and their steps grow with the width: measured over widths 64 to 512, logits as n^0.50 at the start
and their change as n^0.52 to n^0.55 in the first 16 steps, while the rest of the model is flat (docs/optimizers.md).
`--head_start flat` starts the head at std sqrt(base n / n) instead, see sp.head_init.

There is no factor for sparsity and granularity either: the best rate was found not to move between 2 and 64 active
experts, with square-root gates, nor between 1 and 32 times as many in all. The paper leaves the factor of tokens out
of the rates of embedding and head; that is the rule hyperp_paper, which measured worse (docs/optimizers.md and
departure D40).
"""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

from lit_gpt.errors import UserError
from lit_gpt.scaling.base import LEARNED_ROLES, Situation, Transfer
from lit_gpt.scaling.rules import mupp
from lit_gpt.scaling.rules.sp import embedding_init, head_init

TOKEN_EXPONENT = -0.32  # fitted in arXiv:2603.28743; ArchScale's code has the same


def transfer(s: Situation) -> Transfer:
    """Factors of HyperP; see the table above. Raises UserError for optimizers that need a factor for width."""
    if not s.steps.fits_hyperp or s.steps.growth["matrix"]:
        raise UserError(
            "HyperP (--parameterization hyperp, hyperp_paper) has no factor for the width. That is right only where "
            f"steps are relative to the size of the weights, and those of {s.steps.typed} are not. "
            "Give --optimizer muonh (or muon, normuon, muonball), or --parameterization mupp."
        )
    base = mupp.transfer(replace(s, head_start="fixed"))  # its start is muP's no more: see head_init
    lr = sqrt(s.base_depth / s.depth) * (s.tokens / s.base_tokens) ** TOKEN_EXPONENT
    return replace(
        base,
        lr=dict.fromkeys(LEARNED_ROLES, lr),
        weight_decay=dict.fromkeys(LEARNED_ROLES, 0.0),
        independent_decay=dict.fromkeys(LEARNED_ROLES, 0.0),
        init={
            **base.init,
            "embedding": embedding_init(s),
            "router": base.init["matrix"],
            "head": head_init(s, s.head_init_std),
        },
        multipliers=replace(base.multipliers, logit=1.0, router=1.0),
    )
