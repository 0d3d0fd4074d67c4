"""Token budgets, batch rounding, and ArchScale's analytic parameter count.

The budget is t0 * N / N0 tokens, with N and N0 the active parameters of this model and of the model of the family at
the base depth: the number of tokens per parameter stays the same (arXiv:2203.15556, section 3). N is counted on the
model; `analytic_parameters` is ArchScale's formula, kept for comparison and for `--param_count analytic` (departures
D34 and D35).
"""

from __future__ import annotations

from fractions import Fraction

from lit_gpt.config.model import ModelConfig
from lit_gpt.config.run import BaseHyperparameters
from lit_gpt.errors import UserError

# Tokens: ArchScale's warm-up, and the budget t0 that it is meant for. A fixed number of tokens is too long for small
# runs (arXiv:2406.19146, section 3.3), so below this budget it keeps its share of it, 10.5 percent (departure D89).
DEFAULT_WARMUP, ITS_BUDGET = 1e9, 9.5e9
# ArchScale's batch of 2M tokens would end a run of 10M tokens after five steps, so below 2.1e9 tokens the default of b0
# is what makes this many (departure D90). Its rates stay: the batch rule alone would lower them by the square root of
# the batch, and HyperP's exponent of the budget (rules/hyperp.py) raises them by its -0.32th power, which is near to
# the inverse. A thousand steps are fifty times the memory of Adam's second moment, 1 / (1 - 0.95) steps.
FEWEST_STEPS = 1000

# Coefficients (a, b) of (a * ar^2 + b * ar) * depth^3, by family; the mixture-of-experts
# and skip-projection variants of a family count as the family itself.
CUBIC: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("samba",), (15, 160)),
    **dict.fromkeys(("sambay", "sambay2", "sambayda", "phi4miniflash"), (14.5, 144)),
    **dict.fromkeys(("sambayw", "sambaywr", "sambaywdr", "sambaywsa"), (14.5, 144)),
    "sgdny": (14.5, 144),  # ArchScale takes it for gdny, whose name it contains (departure D29)
    **dict.fromkeys(("sambayoco", "sambayattn", "sambayattnall"), (13.5, 208)),
    **dict.fromkeys(("mambay", "gdny", "mambay2"), (16, 64)),
    "sambaymlp": (15.5, 144),
    "swayoco": (12, 288),
    "transformer": (12, 0),
}
DEFAULT_CUBIC = (14.5, 0)


def analytic_parameters(config: ModelConfig, count_embeddings: bool = False) -> float:
    """Active parameters by ArchScale's formula, (a ar^2 + b ar) depth^3 with ar = width / depth.

    It does not count gates, routers and norms, nor how wide a feed-forward network is where it is not 4 times the
    width; departure D34 compares it with the exact count.
    """
    stem = "transformer" if config.family.startswith("transformer") else config.family.split("_")[0]
    a, b = CUBIC.get(stem, DEFAULT_CUBIC)
    ratio = config.n_embd / config.depth
    count = (a * ratio**2 + b * ratio) * config.depth**3
    if count_embeddings:
        count += config.n_embd * config.vocab_size * (1 if config.tie_embeddings else 2)
    count += config.n_embd**2 * sum(layer.skip_projection for layer in config.layers)
    if stem == "transformer":
        count += 2 * ratio * config.depth**2 * (config.n_head + config.n_kv_head) * config.head_dim
    return count


def token_budget(base_tokens: float, parameters: float, base_parameters: float) -> int:
    """t0 * N / N0, rounded down to whole tokens; exact, since floats miss t0 itself at N = N0."""
    return int(Fraction(base_tokens) * Fraction(parameters) / Fraction(base_parameters))


def default_warmup(tokens: float) -> float:
    """Tokens, whole, of a warm-up that nobody gave, in a budget of `tokens` tokens."""
    return min(DEFAULT_WARMUP, tokens * DEFAULT_WARMUP // ITS_BUDGET)


def default_batch(b0: float, tokens: float, multiple: int) -> float:
    """The base batch in tokens where no batch was given: b0, and where that is the default one that fits the budget.

    tokens: the budget. multiple: the smallest batch, see round_batch.
    """
    return b0 if b0 != BaseHyperparameters.b0 else min(b0, max(tokens // FEWEST_STEPS, multiple))


def round_batch(requested_tokens: float, multiple: int) -> int:
    """The multiple of `multiple` tokens nearest to the request, ties upward.

    multiple: ranks * micro-batch * context. Raises UserError when that rounds to zero.
    """
    rounded = int((requested_tokens + multiple // 2) // multiple) * multiple
    if rounded == 0:
        raise UserError(
            f"A batch of {requested_tokens:,.0f} tokens rounds to zero: one step of this set-up is "
            f"{multiple:,} tokens (ranks x micro_bsz x ctx_len). Raise --total_bsz, or lower --micro_bsz, "
            "--ctx_len or the number of processes."
        )
    return rounded


def ramped_batch(tokens_seen: float, total_tokens: float, initial: int, ratio: int, multiple: int) -> int:
    """The global batch in tokens while it grows: initial * m, rounded down to a multiple of `multiple` tokens.

    m grows linearly from 1 to `ratio` over the first 5 percent of the tokens. ArchScale counts micro-batches;
    here it is tokens, so that a change of the micro-batch cannot shift the ramp (departure D31).
    """
    progress = min(tokens_seen / (0.05 * total_tokens), 1.0)
    wanted = initial * (1 + (ratio - 1) * progress)
    return max(int(wanted // multiple), 1) * multiple
