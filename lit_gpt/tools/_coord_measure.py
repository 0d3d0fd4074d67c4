"""What coord_check measures: one model trained for a few steps, its activations before and after each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lit_gpt.config.model import ModelConfig
from lit_gpt.config.names import NameFields
from lit_gpt.config.run import RunConfig
from lit_gpt.optim import OPTIMIZERS
from lit_gpt.optim.engine.groups import set_hyperparameters
from lit_gpt.parallel import Runtime
from lit_gpt.preflight.meta_model import count, meta_model
from lit_gpt.preflight.resolved_run import ResolvedRun
from lit_gpt.scaling.plan import build_plan, step_values
from lit_gpt.train.build import build_model, build_optimizer
from lit_gpt.train.step import train_step

# Share of the toy stream's tokens that are the successor of the one before: learnable in a few steps, and not solved.
FOLLOWS = 0.75

Coordinates = list[dict[str, tuple[float, float]]]  # step -> site -> (mean |x|, mean |x - x of step 0|)


class ToyBatch(NamedTuple):
    """tokens and their next tokens, (B, T) each."""

    tokens: np.ndarray
    targets: np.ndarray


def toy_stream(vocab: int, batch: int, length: int, seed: int) -> Iterator[ToyBatch]:
    """Endless learnable data: each token has one successor, which follows it three times in four."""
    random = np.random.default_rng(seed)
    successor = random.permutation(vocab)
    while True:
        tokens = random.integers(0, vocab, (batch, length + 1))
        follows = random.random((batch, length)) < FOLLOWS
        for t in range(length):
            tokens[:, t + 1] = np.where(follows[:, t], successor[tokens[:, t]], tokens[:, t + 1])
        yield ToyBatch(tokens[:, :-1].copy(), tokens[:, 1:].copy())


def coordinates(
    run: RunConfig, config: ModelConfig, base: ModelConfig, steps: int, seed: int, runtime: Runtime
) -> Coordinates:
    """Train `config` for some steps as a transfer from `base`; coordinates at steps 0..steps.

    run: resolved; base becomes what its hyper-parameters were tuned on, whatever the family's
    own model at that depth is. They are of one fixed batch that training does not see.
    """
    resolved = _resolved(run, config, base, steps, seed)
    model = build_model(resolved, runtime)
    plan = resolved.plan
    optimizer = build_optimizer(model, plan)
    data = toy_stream(config.vocab_size, run.micro_bsz, plan.context, seed)
    probe = torch.from_numpy(next(data).tokens).to(runtime.device)
    first = activations(model, probe, run.fp8)
    found = [_means(first, first)]
    for step in range(steps):
        set_hyperparameters(optimizer, step_values(plan, step * plan.batch_tokens, plan.batch_tokens))
        limit: Any = {"grad_clip": plan.grad_clip, "grad_clip_type": plan.grad_clip_type}
        train_step(model, optimizer, [next(data)], 1, probe.numel(), runtime, **limit)
        found.append(_means(activations(model, probe, run.fp8), first))
    return found


def embedding_rate(run: RunConfig, config: ModelConfig, base: ModelConfig) -> float:
    """The learning rate of the token table in `coordinates`."""
    return _resolved(run, config, base, 1, run.seed).plan.roles["embedding"].lr


def _resolved(run: RunConfig, config: ModelConfig, base: ModelConfig, steps: int, seed: int) -> ResolvedRun:
    """Constant learning rate eta0, batch and budget of the base: only width and depth transfer."""
    batch = run.micro_bsz * config.block_size
    hps = dataclasses.replace(
        run.base_hps, d0=base.depth, hd0=base.head_dim, b0=batch, t0=steps * batch, warmup_tokens=0.0
    )
    run = dataclasses.replace(
        run,
        depth=config.depth,
        base_hps=hps,
        total_bsz=batch,
        max_tokens=steps * batch,
        schedule="constant",
        compile=False,
        seed=seed,
    )
    model, tuned = count(meta_model(config)), count(meta_model(base))
    plan = build_plan(run, OPTIMIZERS.facts(run.optimizer or "adamw"), model, tuned, 1)
    return ResolvedRun(run, NameFields(), config, plan, Path())


@torch.no_grad()
def activations(model: nn.Module, tokens_BT: Tensor, training: bool = False) -> dict[str, Tensor]:
    """Site -> activation: embedding, outputs of single branches, branches, stream, hidden, logits.

    Single branches are mixers and feed-forward networks, before the residual multiplier,
    of the first, the middle and the last block, so that depths compare. branches: the sum of what all layers add to the
    stream, where there is such a sum. stream: what the last norm reads. hidden: what it gives.

    training: of the forward pass that trains, which alone is in 8 bits (--fp8).
    """
    model = model.train(training)
    blocks: Any = model.blocks
    config: Any = model.config
    # Behind its norm, where there is one: that is what the layers read.
    watched = {"embedding": model.embedding_norm or model.wte, "stream": model.norm}
    for name, block in (("first", blocks[0]), ("middle", blocks[len(blocks) // 2]), ("last", blocks[-1])):
        watched[f"{name} mixer"] = block.mixer
        if block.ffn is not None:
            watched[f"{name} ffn"] = block.ffn
    summed = blocks if config.skip == "add" and not config.post_norm else ()
    with _capturing(watched, summed) as seen:
        logits = model(tokens_BT).logits
    model.train()
    return {**seen, "logits": logits}


@contextmanager
def _capturing(watched: dict[str, Any], summed: Iterable[Any]) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of modules; of the last norm both sides. summed: blocks, of which "branches" is the sum."""
    seen: dict[str, Tensor] = {}

    def hook(site: str) -> Any:
        def keep(_: nn.Module, inputs: tuple, output: Any) -> None:
            if site == "stream":
                seen["stream"], seen["hidden"] = inputs[0].clone(), output.clone()
            else:
                seen[site] = (output[0] if isinstance(output, tuple) else output).clone()

        return keep

    def add(block: Any, inputs: tuple, output: Any) -> None:
        added = output[0].x - block.enter(inputs[0])
        seen["branches"] = added + seen["branches"] if "branches" in seen else added

    handles = [module.register_forward_hook(hook(site)) for site, module in watched.items()]
    handles += [block.register_forward_hook(add) for block in summed]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _means(now: dict[str, Tensor], first: dict[str, Tensor]) -> dict[str, tuple[float, float]]:
    return {
        site: (x.float().abs().mean().item(), (x.float() - first[site].float()).abs().mean().item())
        for site, x in now.items()
    }
