"""A trained model from any form it is kept in: run folder, checkpoint, exported file, or ArchScale's checkpoint."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lit_gpt.checkpoint import find_checkpoint, load_exported, load_full, newest_published, none_left, read_meta
from lit_gpt.checkpoint.bare import read_bare
from lit_gpt.checkpoint.forward_pass import model_of
from lit_gpt.config.model import ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.evals.archscale_file import UNSAID, TrainedWith, model_of_file
from lit_gpt.evals.extension import UNCHANGED, Extension
from lit_gpt.model import GPT
from lit_gpt.nn.mixers import MIXERS
from lit_gpt.plugins import changed_plugins
from lit_gpt.scaling.base import Multipliers
from lit_gpt.utils.files import near, understood

KEPT = "the run folder keeps a copy in plugins/"
FORMS = "Give a run folder, a step-* folder, or an exported .pth or .safetensors file."


def load_model(
    path: Path,
    device: torch.device | str = "cpu",
    *,
    compute_dtype: torch.dtype | None = None,
    weights: str | None = None,
    extension: Extension = UNCHANGED,
    typed: TrainedWith = UNSAID,
) -> tuple[GPT, dict[str, Any]]:
    """The model in evaluation mode, and the meta it was saved with (step, tokens, plan, model, ...).

    path: run folder (its newest checkpoint), step folder, or exported file. What the model is comes from that meta,
    where ArchScale reads it off the path (departure D10). compute_dtype: default bf16 on CUDA, else fp32; weights that
    are only multiplied are stored in it, see GPT.cast_products. weights, typed: see load_weights_and_meta. extension:
    of its context. Experts serve all tokens, see serving_all. Raises UserError when there is no model at the path.
    """
    tensors, meta = load_weights_and_meta(path, weights, typed)
    device = torch.device(device)
    if compute_dtype is None:
        compute_dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config, multipliers = describe_model(meta, path)
    check_weights(tensors, config, path)
    config = serving_all(config, path)
    with device:
        model = GPT(extension.of(config), multipliers, compute_dtype=compute_dtype)
    model.load_state_dict(tensors)
    return model.cast_products().eval(), meta


def serving_all(config: ModelConfig, path: Path) -> ModelConfig:
    """The model without a capacity of its experts, which a note says; with expert_choice it is what they take.

    A capacity is a share of a batch of training. Here it would drop other tokens of a text for each batch that the text
    is in, and of a text that is read token by token none.
    """
    experts = config.experts
    if experts is None or experts.capacity is None or experts.routing == "expert_choice":
        return config
    print(f"note: experts of {path} serve all tokens here: expert_capacity acts in training only", file=sys.stderr)
    return config.replace(experts=replace(experts, capacity=None))


def device_of(given: str | None) -> torch.device:
    """The device that was asked for, by default a GPU where there is one; each process of a node has its own GPU.

    Raises UserError for one that is not here.
    """
    if given in (None, "cuda") and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    name = "cpu" if given is None else given
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:  # no such name, not in this build of torch, or no such GPU
        raise UserError(f"--device {given!r} cannot be used here; give cpu, or leave it out.") from error
    return torch.device(name)


def load_weights_and_meta(
    path: Path, weights: str | None = None, typed: TrainedWith = UNSAID
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Full weights on the host by name, and the meta, of any form.

    weights: what --weights chose, an average of a run or checkpoint such as "ema_1B"; None for the trained weights.
    typed: what was said of a checkpoint of ArchScale, see model_of_file; of any other its config alone may be said.
    Raises UserError for an average that is not there; a file holds one set of weights.
    """
    if path.is_file() and weights is not None:
        raise UserError(
            f"{path} is an exported file, which holds one set of weights; --weights {weights} chooses among those of a "
            "run folder or a step-* folder. Give one of these, or drop --weights."
        )
    if path.is_file() and (file := read_bare(path)) is not None:
        return model_of_file(file, path, typed)
    loaded = load_exported(path) if path.is_file() else load_full(_found(path, find_checkpoint(path, "auto")), weights)
    if typed.options:
        raise UserError(
            f"{path} says itself how it was trained, so {', '.join(typed.options)} cannot be said of it: that is for "
            "checkpoints of ArchScale. Drop it."
        )
    return loaded


def load_meta(path: Path) -> dict[str, Any]:
    """The meta alone; the tensors of a checkpoint are not checked."""
    return load_exported(path)[1] if path.is_file() else read_meta(_found(path, newest_published(path)))


def _found(path: Path, found: Path | None) -> Path:
    """`found` itself. Raises UserError when it is None."""
    if not path.exists():
        raise UserError(f"{path} does not exist.{near(path)} {FORMS}")
    if found is None:
        below = [run for run in sorted(path.glob("*/")) if newest_published(run)][:3] if path.is_dir() else []
        meant = f" Did you mean {' or '.join(map(str, below))}?" if below else ""
        raise UserError(f"{path} holds no complete checkpoint.{meant} {FORMS}{none_left(path)}")
    return found


def describe_model(meta: dict[str, Any], path: Path) -> tuple[ModelConfig, Multipliers]:
    """The forward pass that the weights are for: the model, and the multipliers of its Plan.

    An imported model has no Plan, only multipliers. Raises UserError when the meta does not say, or says what this
    version does not know.
    """
    plan = meta.get("plan") or meta
    described = isinstance(plan, dict) and "multipliers" in plan
    missing = [what for what, there in (("model", "model" in meta), ("plan", described)) if not there]
    if missing:
        raise UserError(
            f"{path} does not say what its weights are: its meta has no {' and no '.join(missing)}. {FORMS}"
        )
    with understood(path):  # a field may have been added or renamed later
        changed = changed_plugins(meta.get("numerics", {}).get("plugins", {}))
        config, multipliers = model_of(meta)
    for name in changed:
        print(f"note: the plugin {name} is not what {path} was trained with; {KEPT}", file=sys.stderr)
    if strangers := {spec.mixer for spec in config.layers} - set(MIXERS.names()):
        raise UserError(
            f"{path} has layers of {', '.join(sorted(strangers))}, a mixer that is not here. If it is a plugin's, give "
            f"--plugins and its file; {KEPT}."
        )
    return config, multipliers


def check_weights(weights: Mapping[str, torch.Tensor], config: ModelConfig, path: Path | str) -> None:
    """Raises UserError unless the weights are exactly the tensors of that model, each of its shape and finite."""
    with torch.device("meta"):
        tensors = GPT(config).state_dict()
    wanted = {name: tuple(t.shape) for name, t in tensors.items()}
    found = {name: tuple(t.shape) for name, t in weights.items()}
    wrong = [name for name in sorted(wanted | found) if wanted.get(name) != found.get(name)]
    if wrong:
        listed = [f"{n} is {found.get(n, 'missing')}, not {wanted.get(n, 'part of the model')}" for n in wrong[:4]]
        more = f", and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise UserError(f"{path} does not hold the weights of its model: {', '.join(listed)}{more}.")
    for name, tensor in weights.items():
        eight_bits = tensor.is_floating_point() and tensor.dtype.itemsize == 1  # which torch cannot compute with
        if eight_bits or tensor.is_floating_point() != tensors[name].is_floating_point():
            raise UserError(f"{path} does not hold the weights of its model: {name} is of {tensor.dtype}.")
        if not tensor.isfinite().all():
            raise UserError(
                f"{name} of {path} has values that are not finite: it is damaged, or its training diverged. Use "
                "another step."
            )
