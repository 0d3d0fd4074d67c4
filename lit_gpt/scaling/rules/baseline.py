"""Rates of public speed runs for their transformer, the family `baseline`: one for each role, with Muon on matrices.

With n the width, L the depth, L0 the base depth and eta0 the rate of matrices, tuned at depth 8 and width 512:

| item | rule |
|---|---|
| matrix, output, expert, router learning rate | (base width / n)^p; p = 0 for Muon, 1 for Adam, see GROWTH |
| embedding, value table | 15 and 7.5 times sqrt(768 / n) |
| head, also a tied table | 0.4 sqrt(768 / 512) times (512 / n)^(3/4) |
| gate | 1 |
| vector, convolution | 1/4 |
| scalar, residual scalar | 1 and 1/4 times L0 / L |
| every branch | times L0 / L before it is added |
| betas of Adam | 0.8 and 0.995 for tables, 0.8 and 0.96 for head and tied table, 0.8 and 0.95 for scalars and gates |
| weight decay | of matrices alone, falling to zero by half a cosine |
| momentum of Muon | rises at first, falls with the rate; see --momentum_schedule |
| matrix init | U(+-sqrt(3 / fan_in)), of variance 1 / fan_in |
| embedding and head init | N(0, embedding_init_std), N(0, head_init_std): 0.8 and 0.001 in configs/baseline.yaml |

The numbers are nanochat's (github.com/karpathy/nanochat, 92d63d4) at its eta0 of 0.02: 0.3 for the table, 0.15 for
value tables, 0.008 for the head. Its rate of 0.5 for how much of the first embedding is mixed in cost 0.6 nats at depth
8, so that is a scalar like the others here. All of them times 1.4 do better on 120M tokens, which configs/baseline.yaml
says by its eta0 (docs/examples/baseline).

The factors L0 / L are not nanochat's. A step of Muon changes the output of a branch by one size at any depth, and the
first steps of all layers point the same way, so what 2 L branches add grows as L; CompleteP (arXiv:2505.01618) divides
them by L. So do the steps of r and e, and the family starts e at 0.8 / L: x0 arrives L times. Backout's b and the
smear's s are scalars too, and slow down with e.

Nor is the power 3/4 of the head, whose factor is 1 where the recipe was tuned. Each row of it is a sum over n inputs,
all moved by Adam by one size. Where these steps and the inputs point the same way, rates must fall as 1 / n, which is
muP's (arXiv:2203.03466, table 8), and where they are independent as 1 / sqrt(n) (arXiv:2407.05872), as nanochat's do.
In four steps from width 64 to 512 logits grew as n^0.26 with the root, shrank as n^-0.18 with 1 / n, and with 3/4 go
as n^0.04. Small models learn by it almost as well as with the root, and worse with 1 / n (docs/examples/baseline).

A row of a tied table is such a sum, too, and every row has a gradient at every token. So it has the rate and betas of
the head: that of a table by itself, which is read by the row, behind a norm, is 37.5 times as high at width 512, and
with it a small model did not learn (docs/architectures.md).
"""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

from lit_gpt.scaling.base import HIDDEN, LEARNED_ROLES, Init, Multipliers, Situation, Transfer
from lit_gpt.scaling.rules import sp

PUBLISHED_WIDTH, TUNED_WIDTH = 768, 512  # where nanochat tuned the rates of tables and head, and where the recipe was
RATES = {"embedding": 15.0, "value_table": 7.5}
HEAD = 0.4 * sqrt(PUBLISHED_WIDTH / TUNED_WIDTH)
TABLES, FIRST = (0.8, 0.995), (0.8, 0.95)  # betas: rows of tables are seen seldom, scalars at every token


def transfer(s: Situation) -> Transfer:
    """Factors of the baseline; see the table above."""
    base, narrow, deep = sp.transfer(s), sqrt(PUBLISHED_WIDTH / s.width), s.base_depth / s.depth
    quarter = dict.fromkeys(("vector", "conv"), 0.25) | {"residual_scalar": 0.25 * deep, "scalar": deep}
    lr = dict.fromkeys(LEARNED_ROLES, 1.0) | quarter | {role: rate * narrow for role, rate in RATES.items()}
    lr |= {role: (s.base_width / s.width) ** s.steps.growth[role] for role in HIDDEN}
    lr["head"] = HEAD * (TUNED_WIDTH / s.width) ** 0.75
    betas = dict.fromkeys(RATES, TABLES) | dict.fromkeys(("scalar", "residual_scalar", "gate"), FIRST)
    betas["head"] = (0.8, 0.96)
    if s.tied:
        lr["embedding"], betas["embedding"] = lr["head"], betas["head"]
    hidden = Init("fan_in_uniform", gain=sqrt(3))
    return replace(
        base,
        lr=lr,
        weight_decay={role: 1.0 if role in HIDDEN else 0.0 for role in LEARNED_ROLES},
        init=base.init
        | dict.fromkeys(("matrix", "expert", "router"), hidden)
        | {"head": sp.head_init(s, s.head_init_std)},
        multipliers=Multipliers(residual=deep),
        betas=betas,
        momentum_schedule="rise_and_fall",
        decay_schedule="cosine",
    )
