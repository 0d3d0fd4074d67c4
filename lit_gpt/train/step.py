"""One optimizer step: the maths and nothing else. No host synchronisation on the way.

Each rank back-propagates loss_sum * world_size / (valid targets of the global batch), so
the mean over ranks that gradient reduction takes is the gradient of the mean loss over
every valid target, however they are spread over ranks and micro-batches. A model with experts adds
their auxiliary losses, see step_routing.py; the loss that is reported is without them.

A step whose gradient norm is not finite is not taken, nor one that guard.py finds to be a spike: the check happens
on the device and the optimizer skips its update there.

Read `train_step`: forward and backward of each micro-batch, reduce the gradients, norm, skip or not, clip, update.
What only a model with experts needs is in `_account_for_routers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from lit_gpt.config.groups.kinds import ClipType
from lit_gpt.config.model import Experts
from lit_gpt.errors import UserError
from lit_gpt.nn.dropout import row_keys
from lit_gpt.nn.moe import Routed
from lit_gpt.ops.boundaries import DocumentEnds, doc_ids
from lit_gpt.ops.transfer import to_device
from lit_gpt.parallel import (
    GradNorms,
    Runtime,
    clip_each_,
    finish_gradients,
    grad_norms,
    gradient_sync,
    scale_gradients_,
)
from lit_gpt.train.guard import StepGuard
from lit_gpt.train.step_routing import StepRouting


@dataclass(frozen=True)
class StepResult:
    """Device scalars, to be read when somebody asks.

    loss: this rank's share of the mean loss; the sum over ranks is the loss of the step.
    norms: of the gradients before clipping.
    skipped: 1 when the step was not taken. spiked: 1 when that was for a spike, whose (step, loss, norm) is `spike`.
    routing: this rank's sums of what its routers did, see metrics.router_metrics; None without experts.
    """

    loss: torch.Tensor
    norms: GradNorms
    skipped: torch.Tensor
    spiked: torch.Tensor
    spike: torch.Tensor
    routing: torch.Tensor | None = None


def documents(tokens_BT: torch.Tensor, ends: DocumentEnds | None) -> torch.Tensor | None:
    """Document index of every position, or None when documents are not kept apart."""
    return None if ends is None else doc_ids(tokens_BT, ends)


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    micro_batches: Iterable,
    num_micro_batches: int,
    num_valid_global: int,
    runtime: Runtime,
    *,
    grad_clip: float,
    grad_clip_type: ClipType = "global",
    label_smoothing: float = 0.0,
    ends: DocumentEnds | None = None,
    guard: StepGuard | None = None,
    step: int = 1,
    seed: int = 0,
) -> StepResult:
    """Accumulate gradients over the micro-batches, clip them, update the weights.

    micro_batches: data.Batch each, arrays of (B, T). ends: keep documents apart. guard: decides whether `step` is
    taken, default: if its gradient is finite. seed: of the masks of dropout, which follow from `step` too.
    """
    guard = guard or StepGuard(runtime, max_skips=1, sigmas=0.0)
    inputs = partial(model_inputs, model, runtime=runtime, ends=ends, seed=seed, step=step)
    routing, micro_batches = _account_for_routers(model, micro_batches, num_micro_batches, runtime, inputs)
    loss = torch.zeros((), device=runtime.device)
    for i, batch in enumerate(micro_batches):
        # Gradients add up locally and travel once, with the last micro-batch.
        gradient_sync(model, i == num_micro_batches - 1)
        (tokens, options), targets = inputs(batch), to_device(batch.targets, runtime.device)
        output = model(tokens, targets, label_smoothing=label_smoothing, **options)
        auxiliary = 0.0 if routing is None else routing.loss(output.routed, tokens.shape)
        # The reduction takes the mean over ranks, and the loss of a step is a sum over ranks: hence world_size.
        (output.loss * (runtime.world_size / num_valid_global) + runtime.world_size * auxiliary).backward()
        loss += output.loss.detach() / num_valid_global
    finish_gradients(model, runtime)
    parameters = list(model.parameters())
    norms = grad_norms(parameters, runtime)
    if len(norms.roles) < len(parameters):
        raise _without_gradients(model)
    skipped = guard.skip(step, loss, norms)
    if grad_clip > 0 and grad_clip_type != "global":
        clip_each_(parameters, grad_clip_type, grad_clip, runtime)
        grad_clip = 0.0
    update(model, optimizer, norms.total, grad_clip, skipped)
    if routing is not None:
        routing.move_biases(model, skipped)
    return StepResult(loss, norms, skipped, guard.spiked, guard.spike, routing.result() if routing else None)


def _without_gradients(model: nn.Module) -> UserError:
    """Parameters that no gradient reaches keep their start, and no optimizer says so."""
    names = [name for name, p in model.named_parameters() if p.grad is None]
    return UserError(
        f"No gradient reaches {', '.join(names)}: forward does not use them, or detaches what it makes of them. Use "
        "them, or do not make them."
    )


def model_inputs(
    model: nn.Module, batch: Any, *, runtime: Runtime, ends: DocumentEnds | None, seed: int, step: int
) -> tuple[torch.Tensor, dict[str, Any]]:
    """The tokens of a data.Batch on the device, and what the model is told of them in training."""
    tokens = to_device(batch.tokens, runtime.device)
    options: dict[str, Any] = {"doc_ids_BT": documents(tokens, ends)}
    if getattr(getattr(model, "config", None), "dropout", 0):
        options["dropout_BW"] = to_device(row_keys(seed, step, batch.first, len(tokens)).numpy(), runtime.device)
    return tokens, options


def _account_for_routers(
    model: nn.Module,
    micro_batches: Iterable,
    num_micro_batches: int,
    runtime: Runtime,
    inputs: Callable[[Any], tuple[torch.Tensor, dict[str, Any]]],
) -> tuple[StepRouting | None, Iterable]:
    """(what adds up the auxiliary losses of a model with experts, else None; the micro-batches to train on).

    With --exact_aux the balance loss of the first micro-batch needs the routes of the last one, so all of them
    are routed once before any is trained on.
    """
    experts: Experts | None = getattr(getattr(model, "config", None), "experts", None)
    if experts is None:
        return None, micro_batches
    routing = StepRouting(experts, runtime, num_micro_batches)
    if experts.exact_aux and experts.aux_gamma != 0 and num_micro_batches > 1:
        micro_batches = list(micro_batches)

        def route(batch: Any) -> Routed:
            tokens, options = inputs(batch)
            return model(tokens, head=False, **options).routed

        routing.count_first(route, micro_batches)
    return routing, micro_batches


def update(
    model: nn.Module, optimizer: torch.optim.Optimizer, norm: torch.Tensor, grad_clip: float, skipped: torch.Tensor
) -> None:
    """Clip, step unless `skipped` is 1, clear gradients; norm and skipped are 0-d tensors on the device."""
    # Clipping divides gradients by norm / grad_clip where that is above 1, and so gives them the norm grad_clip.
    divisor = (norm / grad_clip).clamp(min=1.0) if grad_clip > 0 else torch.ones_like(norm)
    if hasattr(optimizer, "grad_scale"):  # it divides and skips by itself, on the device
        optimizer.grad_scale, optimizer.found_inf = divisor, skipped  # type: ignore[attr-defined]
        optimizer.step()
    elif not skipped.item():  # other optimizers cannot, so the host must wait and ask
        scale_gradients_(model.parameters(), 1 / divisor)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
