"""CompleteP (arXiv:2505.01618): muP whose residual branches shrink with depth, at alpha = 1.

With r = base width / width and l = base depth / depth:

| item | rule |
|---|---|
| matrix, output, expert, router learning rate | r |
| every other learning rate | 1 |
| rate times weight decay | 1; 0 for vectors, convolutions, gates and scalars |
| independent weight decay | the same |
| every branch | times l before it is added |
| eps of AdamW | r for embedding and head, 1 for scalars, r l for the roles inside branches |
| logits, router logits | r |
| attention | sqrt(base head dim) / head dim |

So the factor on the decay that the optimizer multiplies by its rate is 1 / r for the roles of the first row under
AdamW, and the inverse of whatever muP asks for on the rate under Muon and its relatives (optimizer_facts.GROWTH);
independent decay, which no rate multiplies, has none. At alpha = 1 the paper's depth factor on learning
rates, (L / L0)^(alpha - 1), is 1.
"""

from __future__ import annotations

from dataclasses import replace

from lit_gpt.scaling.base import LEARNED_ROLES, UNDECAYED, Situation, Transfer
from lit_gpt.scaling.rules import mup


def transfer(s: Situation) -> Transfer:
    """Factors of CompleteP; see the table above."""
    base = mup.transfer(s)
    r, depth = s.base_width / s.width, s.base_depth / s.depth
    product = dict.fromkeys(LEARNED_ROLES, 1.0) | dict.fromkeys(("vector", "conv", *UNDECAYED), 0.0)
    eps = {role: r if role in ("embedding", "head") else r * depth for role in LEARNED_ROLES}
    eps |= {"scalar": 1.0, "residual_scalar": 1.0}  # their gradient is a sum over the width, of the stream itself
    return replace(
        base,
        weight_decay={role: product[role] / base.lr[role] for role in LEARNED_ROLES},
        independent_decay=product,
        eps=eps,
        multipliers=replace(base.multipliers, residual=depth),
    )
