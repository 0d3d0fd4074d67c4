"""Standard parameterization: nothing transfers but the batch rule.

One learning rate and one weight decay for everything, norms and embeddings included, and
N(0, 0.02), or another --init_std, for every linear map: what ArchScale trains without a muP token. Gates of a few
channels and scalars, which ArchScale does not have, do not decay.
"""

from __future__ import annotations

from math import sqrt

from lit_gpt.errors import UserError
from lit_gpt.scaling.base import LEARNED_ROLES, UNDECAYED, Init, Multipliers, Situation, Transfer

TIED_STD = 0.02  # that of GPT-2; a tied table is the output projection too
# ArchScale's. The square of 1e-4 is far below the 1e-5 that a norm adds to it, so the first norm gives entries of
# 1e-4 / sqrt(1e-5) = 0.03 instead of 1 until the table has grown.
UNTIED_EMBEDDING_STD = 1e-4
# Of value embeddings, at any width. nanochat's is 1 / sqrt(n), which is 0.044 at the 512 of its depth 8.
VALUE_TABLE_STD = 0.04
# The starts that every rule has: a value table is read by its row, so its start need not follow the width.
COMMON = {"value_table": Init("normal", VALUE_TABLE_STD), "output": Init("zeros")}


def embedding_init(s: Situation) -> Init:
    """Initial distribution of the token table, the same under every rule; a given std is taken as it is."""
    if s.embedding_init_std is not None:
        return Init("normal", s.embedding_init_std)
    return Init("normal", TIED_STD if s.tied else UNTIED_EMBEDDING_STD)


def head_init(s: Situation, std: float | None) -> Init:
    """Initial distribution of the untied head under rules that do not multiply logits; std None starts it at zero.

    A normalised hidden vector has length sqrt(n), so logits start at std sqrt(n). `--head_start flat` takes
    std sqrt(base n / n), which starts them at one size. On MuonH's sphere a row of the head keeps its length, at most
    std n fixed and std sqrt(base n) sqrt(n) flat times a hidden vector, so what one step can change grows less, too.
    Raises UserError where there is no head whose start it could change.
    """
    if s.head_start == "flat" and (s.tied or std is None):
        why = "the head is tied to the token table (token tie)" if s.tied else "--head_init_std null starts it at zero"
        raise UserError(f"--head_start flat is about the start of an untied head, and {why}. Drop one of them.")
    if std is None:
        return Init("zeros")
    return Init("normal", std * sqrt(s.base_width / s.width) if s.head_start == "flat" else std)


def transfer(s: Situation) -> Transfer:
    """Factors of the standard parameterization; see the top of this file."""
    linear = Init("normal", s.init_std)
    init = dict.fromkeys(("matrix", "expert", "router"), linear)
    return Transfer(
        lr=dict.fromkeys(LEARNED_ROLES, 1.0),
        weight_decay=dict.fromkeys(LEARNED_ROLES, 1.0) | dict.fromkeys(UNDECAYED, 0.0),
        init={
            **COMMON,
            **init,
            "head": head_init(s, linear.std),
            "embedding": linear if s.tied and s.embedding_init_std is None else embedding_init(s),
            "conv": Init("fan_in_uniform"),
        },
        multipliers=Multipliers(),
    )
