"""How much weight decay: a number, or the timescale law of Power Lines.

Decoupled decay makes the weights a moving average of updates over B / (eta lambda) tokens; as a
fraction of the run, tau = B / (eta lambda D). Power Lines (arXiv:2505.13738) finds the best tau to be
1.084 TPP^-0.527 with TPP = D / N tokens per parameter, so lambda = B TPP^0.527 / (1.084 eta D).
B and D in tokens, N the active parameters with embeddings, eta the peak rate of the role.
"""

from __future__ import annotations

from lit_gpt.config.run import RunConfig
from lit_gpt.errors import UserError
from lit_gpt.scaling.optimizer_facts import OptimizerFacts

DEFAULT = 0.1
# With independent decay the shrink per step is the decay itself, so 0.1 would destroy a
# model in a hundred steps; 4e-5 is what ArchScale announces and does not set.
DEFAULT_INDEPENDENT = 4e-5


def base_decay(given: float | None, facts: OptimizerFacts, independent: bool) -> float:
    """The given --base_hps.weight_decay, or the optimizer's default, or that of all."""
    if given is not None:
        return given
    if facts.default_decay is not None:
        return facts.default_decay
    return DEFAULT_INDEPENDENT if independent else DEFAULT


def best_timescale(tokens_per_parameter: float) -> float:
    """tau of Power Lines: the averaging time of decay as a fraction of the run."""
    return 1.084 * tokens_per_parameter**-0.527


def shrink_per_step(batch_tokens: float, tokens: float, parameters: float) -> float:
    """eta lambda of Power Lines: B / (tau D)."""
    return batch_tokens / (best_timescale(tokens / parameters) * tokens)


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
    if run.weight_decay_rule == "power_lines" and not decays:
        raise UserError(
            f"Nothing is decayed by --optimizer {run.optimizer} under --parameterization {run.parameterization}, so "
            "--weight_decay_rule power_lines cannot act. Drop it."
        )
