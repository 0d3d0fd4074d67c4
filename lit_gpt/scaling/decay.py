"""How much weight decay: a number, or the timescale law of Power Lines.

With decoupled decay lambda and learning rate eta, the weights are a moving average of their updates over the last
B / (eta lambda) tokens, where B is the batch in tokens. As a fraction of a run of D tokens that is
tau = B / (eta lambda D). Power Lines (arXiv:2505.13738) measured the best tau as 1.084 TPP^-0.527, where TPP = D / N
is the number of tokens per parameter. So lambda = B TPP^0.527 / (1.084 eta D). N are the active parameters with
embeddings, eta is the peak rate of the role. Where the batch grows (--bramp_ratio), B is the one it has grown to.
"""

from __future__ import annotations

from lit_gpt.config.run import RunConfig
from lit_gpt.errors import UserError
from lit_gpt.scaling.optimizer_facts import OptimizerFacts

DEFAULT = 0.1  # ArchScale's
# Independent decay takes this share off every weight in every step, whatever the learning rate. With 0.1 nothing would
# be left of a model after a hundred steps; 4e-5 is what ArchScale announces and does not set (departure D38).
DEFAULT_INDEPENDENT = 4e-5
POWER_LINES = 1.084, -0.527  # a and b of the paper, by a secondary source; its interval of b is -0.529 to -0.507


def base_decay(given: float | None, facts: OptimizerFacts, independent: bool) -> float:
    """The given --base_hps.weight_decay, or the optimizer's default, or that of all."""
    if given is not None:
        return given
    if facts.default_decay is not None:
        return facts.default_decay
    return DEFAULT_INDEPENDENT if independent else DEFAULT


def shrink_per_step(
    batch_tokens: float, tokens: float, parameters: float, law: tuple[float, float] = POWER_LINES
) -> float:
    """Power Lines' eta lambda = B / (tau D): the share of a weight that one step at the peak rate takes off."""
    a, b = law
    return batch_tokens / (a * (tokens / parameters) ** b * tokens)


def check_decay(run: RunConfig, facts: OptimizerFacts, decays: bool) -> None:
    """Raise UserError for decay options that contradict each other or cannot act.

    decays: whether the Plan decays any role that the model has.
    """
    if run.weight_decay_rule == "power_lines" and run.base_hps.weight_decay is not None:
        raise UserError(
            f"--weight_decay_rule power_lines computes the decay, and --base_hps.weight_decay is "
            f"{run.base_hps.weight_decay}. Drop one of them."
        )
    if run.cautious_weight_decay and not facts.cautious_decay:
        raise UserError(
            f"--cautious_weight_decay is not known to the optimizer {run.optimizer}. "
            "Drop it, or use one that does, such as adamw, lion or muon."
        )
    if run.independent_weight_decay and decays and facts.rate_decides:
        raise UserError(
            f"--independent_weight_decay takes a fixed share of a weight in a step, and the decay of {run.optimizer} "
            "is times a rate that it finds itself. Give --independent_weight_decay false, or --base_hps.weight_decay 0."
        )
    acting = {
        "--weight_decay_rule power_lines": run.weight_decay_rule == "power_lines",
        "--weight_decay_schedule cosine": run.weight_decay_schedule == "cosine",
    }
    if not decays and any(acting.values()):
        raise UserError(
            f"Nothing is decayed by --optimizer {run.optimizer} under --parameterization {run.parameterization}, so "
            f"{next(option for option, given in acting.items() if given)} cannot act. Drop it."
        )
