"""Standard parameterization: nothing transfers but the batch rule.

One learning rate and one weight decay for everything, norms and embeddings included, and
N(0, 0.02) for every linear map: what the reference trains without a muP token (its
sections 4 and 7.1).
"""

from __future__ import annotations

from lit_gpt.scaling.base import LEARNED_ROLES, Init, Multipliers, Situation, Transfer

TIED_STD = 0.02
UNTIED_EMBEDDING_STD = 1e-4  # the reference's; under norm eps 1e-5 the first norm gives 0.03 until it has grown


def embedding_init(s: Situation) -> Init:
    """Initial distribution of the token table, the same under every rule."""
    return Init("normal", TIED_STD if s.tied else UNTIED_EMBEDDING_STD)


def transfer(s: Situation) -> Transfer:
    """Factors of the standard parameterization."""
    linear = Init("normal", 0.02)
    init = dict.fromkeys(("head", "matrix", "expert", "router"), linear)
    return Transfer(
        lr=dict.fromkeys(LEARNED_ROLES, 1.0),
        weight_decay=dict.fromkeys(LEARNED_ROLES, 1.0),
        init={**init, "embedding": embedding_init(s), "conv": Init("fan_in_uniform")},
        multipliers=Multipliers(),
    )
