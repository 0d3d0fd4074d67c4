"""The batch rules: how hyper-parameters follow the batch, as in ArchScale.

With r = batch / base batch:

| rule | learning rate | eps | beta2 | weight decay |
|---|---|---|---|---|
| default | sqrt(r) | 1 | beta2 | 1 |
| sde | sqrt(r) | 1/sqrt(r) | 1 - (1 - beta2) r | 1 |
| sdew | 1 | 1/sqrt(r) | 1 - (1 - beta2) sqrt(r) | sqrt(r) |
| none | 1 | 1 | beta2 | 1 |

`sde` is the square-root scaling rule of arXiv:2205.10287: Adam follows one stochastic differential equation, whatever
the batch, if its rate grows with sqrt(r), 1 - beta2 with r, and eps falls with 1/sqrt(r). The paper scales 1 - beta1
too; here, as in ArchScale's formulas, beta1 stays. In ArchScale the SDE rules cannot be chosen (departure D30).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from lit_gpt.errors import UserError


@dataclass(frozen=True)
class BatchFactors:
    """Factors on learning rate, eps and weight decay; beta2 is the new value itself."""

    lr: float
    eps: float
    beta2: float
    weight_decay: float


def batch_factors(rule: str, ratio: float, beta2: float) -> BatchFactors:
    """The table above at ratio = batch / base batch.

    Raises UserError when the rule would make beta2 negative.
    """
    root = sqrt(ratio)
    table = {
        "default": BatchFactors(root, 1.0, beta2, 1.0),
        "sde": BatchFactors(root, 1 / root, 1 - (1 - beta2) * ratio, 1.0),
        "sdew": BatchFactors(1.0, 1 / root, 1 - (1 - beta2) * root, root),
        "none": BatchFactors(1.0, 1.0, beta2, 1.0),
    }
    factors = table[rule]
    if factors.beta2 < 0:
        raise UserError(
            f"--batch_rule {rule} gives beta2 = {factors.beta2:.3f} at {ratio:g} times the base batch. "
            "Use --batch_rule default, a smaller --total_bsz, or a larger --base_hps.beta2."
        )
    return factors
