"""Gradients for labels that the model draws itself: Gauss-Newton-Bartlett curvature (Sophia, arXiv:2305.14342).

With g the gradient of the mean loss over B tokens whose labels come from the model's own distribution,
B g^2 estimates the diagonal of the Gauss-Newton matrix.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from lit_gpt.ops.boundaries import DocumentEnds
from lit_gpt.parallel import Runtime, finish_gradients, gradient_sync
from lit_gpt.train.step import documents


def estimate_curvature(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    tokens: Tensor,
    runtime: Runtime,
    *,
    seed: int,
    ends: DocumentEnds | None,
) -> None:
    """One backward pass for the optimizer's update_curvature(B); leaves no gradients.

    tokens: (B, T) of this rank. seed: of the labels, so that a resumed run draws the same ones.
    """
    docs = documents(tokens, ends)
    labels = sample_labels(model, tokens, docs, seed)
    samples = tokens.numel() * runtime.world_size
    gradient_sync(model, True)
    (model(tokens, labels, doc_ids_BT=docs).loss * (runtime.world_size / samples)).backward()
    finish_gradients(model, runtime)
    cast(Any, optimizer).update_curvature(samples)
    optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def sample_labels(model: nn.Module, tokens: Tensor, docs: Tensor | None, seed: int) -> Tensor:
    """(B, T) labels from the model's distribution at every position."""
    generator = torch.Generator(tokens.device).manual_seed(seed)
    probabilities = model(tokens, doc_ids_BT=docs).logits.float().softmax(-1)
    return torch.multinomial(probabilities.flatten(0, 1), 1, generator=generator).view_as(tokens)
