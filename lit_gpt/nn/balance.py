"""Losses that keep experts evenly used, over whatever tokens their statistics cover.

With E experts, K per token, f_i the share of all pairs that went to expert i, and p_i its mean
probability over the tokens, both summing to 1:

| style | loss of a layer, at weight 1 | balanced |
|---|---|---|
| switch (arXiv:2101.03961) | E sum_i f_i p_i | 1 |
| switch_seq | the same within each sequence, mean over sequences | 1 |
| entropy | sum_i p_i ln p_i, the negative entropy of the mean | -ln E |

f is counted and has no gradient. So the gradient of a loss with respect to the probabilities of one
token is linear in quantities that cover all tokens: each micro-batch back-propagates
sum_i w_i (sum of its p_i) with w = the derivative at the means over all of them, and the sum
over micro-batches and ranks is exactly the gradient of the loss over the global batch
(arXiv:2501.11873). Losses of layers are summed.

Shapes: L layers, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lit_gpt.config.model import Experts

TINY = 1e-30  # added under the logarithm, for an expert that no token considers: small against any probability


def value(counts_LE: Tensor, probs_LE: Tensor, experts: Experts) -> Tensor:
    """The loss at weight 1 of every layer, (L,), from sums over tokens of pairs and of probabilities."""
    p_LE = probs_LE / probs_LE.sum(-1, keepdim=True)
    if experts.aux_style == "entropy":
        return (p_LE * (p_LE + TINY).log()).sum(-1)
    f_LE = counts_LE / counts_LE.sum(-1, keepdim=True)
    return experts.routed * (f_LE * p_LE).sum(-1)


def slope(counts_LE: Tensor, probs_LE: Tensor, experts: Experts) -> Tensor:
    """Derivative of `value` with respect to p, (L, E), at the given sums.

    A constant added to it changes no gradient: the probabilities of a token sum to 1.
    """
    if experts.aux_style == "entropy":
        return (probs_LE / probs_LE.sum(-1, keepdim=True) + TINY).log()
    return experts.routed * counts_LE / counts_LE.sum(-1, keepdim=True)


@torch.no_grad()
def move_bias_(bias_E: Tensor, counts_E: Tensor, rate: Tensor | float) -> None:
    """Loss-free balancing (arXiv:2408.15664): up by `rate` where the load is below the mean, down where above."""
    # The sign alone: in the paper's ablation steps in proportion to the distance balanced a little better, but the
    # models were not.
    bias_E += rate * torch.sign(counts_E.mean() - counts_E)
