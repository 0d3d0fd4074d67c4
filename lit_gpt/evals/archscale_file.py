"""The model in a checkpoint file of ArchScale: its weights under our names, and a meta that says what they are.

The file itself may say how it was trained (its hparams); a bare table of tensors does not. What is missing is typed:
config=sambay_d16 and train_name=scaling_mup_rbase, and options of pretrain.py such as ctx_len. All of it is checked
against the shapes of the tensors, each of which is used once.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from lit_gpt.checkpoint import CHECKPOINT_VERSION
from lit_gpt.checkpoint.bare import Bare
from lit_gpt.config.cli import parse
from lit_gpt.config.model import ModelConfig
from lit_gpt.config.names import TOKENS, read_model_name, read_train_name
from lit_gpt.config.resolve import resolve
from lit_gpt.config.run import RunConfig
from lit_gpt.errors import UserError
from lit_gpt.evals.archscale_names import places, unread
from lit_gpt.optim import OPTIMIZERS
from lit_gpt.preflight.meta_model import meta_model
from lit_gpt.preflight.model_options import base_config, model_config
from lit_gpt.scaling.plan import transfer_of

Weights = dict[str, torch.Tensor]
# What its hparams call an option that decides what the forward pass computes.
KEPT = {"model_name": "train_model", "train_config": "train_name", "seq_len": "ctx_len"} | {
    name: name
    for name in ("ar", "swa_len", "post_norm", "norm_class", "share_expert", "sqrt_gate", "base_hps.d0", "base_hps.hd0")
}
# How it looks for a token in train_name, where that is not just `_token`: as a substring.
ANYWHERE = {"mup", "super_mup", "muonh", "muonball", "muon", "hadam", "v2scale", "postnorm_decouple"} | {
    *("midtrain", "validation", "wsd", "cosine")
}
ENCLOSED = {"rbase", "ls", "dsca", "ga"}  # an underscore must follow, so at the end of a name they do nothing
# Families that it has at one depth, which is their base depth there too: its pretrain.py stops otherwise.
ONE_DEPTH = {"mambay", "mambay2", "gdny", "sgdny", "sambay2", "sambayattn", "sambayattnall", "sambaymlp"} | {
    "phi4miniflash"
}
EXAMPLE = "config=sambay_d16,train_name=scaling_mup_rbase (of train_name its tokens count; type scaling for none)"


@dataclass(frozen=True)
class TrainedWith:
    """What a person says of a file that does not say what it is.

    config: the model's name, such as sambay_d16. options: of pretrain.py, with their values as they are typed.
    """

    config: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


UNSAID = TrainedWith()


def read_typed(text: str | None) -> dict[str, str]:
    """Options of the words "train_name=scaling_mup,ctx_len=8192". Raises UserError for words of another form."""
    pairs = [word.partition("=") for word in text.split(",")] if text else []
    if wrong := [name for name, equals, value in pairs if not (name and equals and value)]:
        raise UserError(
            f"--trained_with has {wrong[0]!r}, which is no option=value. Type --trained_with "
            "train_name=scaling_mup,ctx_len=8192."
        )
    return {name.lstrip("-"): value for name, _, value in pairs}


def model_of_file(file: Bare, path: Path, typed: TrainedWith = UNSAID) -> tuple[Weights, dict[str, Any]]:
    """Weights and meta, as load_exported gives them.

    Raises UserError where it is not known what the model is, where a tensor is missing, left over or of another shape,
    and for a model whose layout in such files is not known.
    """
    run = _run(_words(file, path, typed), path)
    config = model_config(run, run.depth, run.ar)
    facts = OPTIMIZERS.facts(run.optimizer or "adamw")
    transfer = transfer_of(run, facts, config, base_config(run), int(run.base_hps.t0))
    weights = _renamed(file.tensors, config, path)
    described = {"model": config.to_dict(), "multipliers": asdict(transfer.multipliers)}
    return weights, {"version": CHECKPOINT_VERSION, "step": file.step, "tokens": 0, **described, "tokenizer": None}


def _words(file: Bare, path: Path, typed: TrainedWith) -> dict[str, str]:
    """Options of pretrain.py: those of the file, and over them what was typed."""
    said = file.options
    kept = {ours: str(said[theirs]) for theirs, ours in KEPT.items() if theirs in said}
    if "midtrain" in str(said.get("train_config")) and "yarn_scale" in said:  # elsewhere it does not act
        kept["yarn_scale"] = str(said["yarn_scale"])
    options = {name: str(value) for name, value in typed.options.items()}
    if typed.config is not None:
        named = typed.config.strip("\"'")
        if "train_model" in kept and read_model_name(kept["train_model"]) != read_model_name(named):
            raise UserError(f"config is {named}, but {path} is {kept['train_model']}. Drop config.")
        options["train_model"] = named
    for name in sorted(kept.keys() & options.keys()):
        if kept[name] != options[name]:
            print(f"note: {path} was trained with {name} {kept[name]}; {options[name]} is used", file=sys.stderr)
    words = kept | options
    if missing := [name for name in ("train_model", "train_name") if name not in words]:
        what = {"train_model": "which model it is", "train_name": "how it was trained"}
        raise UserError(
            f"{path} is a checkpoint of ArchScale that does not say {' and '.join(what[m] for m in missing)}. Give "
            f"{EXAMPLE}."
        )
    words["train_name"] = _acting(words["train_name"])
    model = read_model_name(words["train_model"])
    if model.family in ONE_DEPTH and model.depth is not None:
        words.setdefault("base_hps.d0", str(model.depth))
    return words


def _acting(train_name: str) -> str:
    """The name with the tokens that ArchScale sees in it, which looks for substrings.

    Raises UserError for a part of a label that is a token there.
    """
    read = set(read_train_name(train_name).tokens)
    seen = {token for token in TOKENS if _pattern(token) in train_name}
    if hidden := sorted(t for t in seen - read if not any(t in other for other in read)):
        raise UserError(
            f"In the train_name {train_name} ArchScale sees {hidden[0]!r}, which is a part of a label. Put underscores "
            "around it, or type another name with the tokens that the model was trained with."
        )
    for token in sorted(read - seen):
        print(
            f"note: ArchScale does not see the token {token} in the train_name {train_name} (it looks for "
            f"{_pattern(token)!r}), so it is left out",
            file=sys.stderr,
        )
    return "_".join(sorted(read & seen)) or "scaling"


def _pattern(token: str) -> str:
    if token in ENCLOSED:
        return f"_{token}_"
    return token if token in ANYWHERE else f"_{token}"


def _run(words: Mapping[str, str], path: Path) -> RunConfig:
    try:
        return resolve(parse([f"--{name}={value}" for name, value in words.items()]), OPTIMIZERS.resolve)[0]
    except UserError as error:
        raise UserError(f"{path} cannot be described with these options: {error}") from error


def _renamed(tensors: Weights, config: ModelConfig, path: Path) -> Weights:
    """The weights under our names. Raises UserError unless the file's tensors are exactly those of the model."""
    shapes = {name: t.shape for name, t in meta_model(config).state_dict().items()}
    rows, tensors = places(config, shapes.keys()), dict(tensors)
    _untie(tensors, config, path)
    if dropped := unread(config) & tensors.keys():
        print(f"note: {', '.join(sorted(dropped))} are read by nothing in a pre-norm model; left out", file=sys.stderr)
    tensors = {name: t for name, t in tensors.items() if name not in dropped}
    used = {name for row in rows for name in row.theirs}
    for problem, names in (("lacks", used - tensors.keys()), ("has also", tensors.keys() - used)):
        if names:
            raise UserError(_misfit(tensors, config, path, f"it {problem} {_some(names)}"))
    weights: Weights = {}
    for row in rows:
        joined = torch.cat([torch.atleast_1d(tensors[name]) for name in row.theirs])
        joined = joined if not row.interleaved else joined.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2)
        mine = [shapes[name] for name in row.ours]
        if joined.shape != (sum(shape[0] for shape in mine), *mine[0][1:]):
            wanted = " and ".join(str(tuple(shape)) for shape in mine)
            raise UserError(_misfit(tensors, config, path, f"{row.theirs[0]} is {tuple(joined.shape)}, not {wanted}"))
        parts = joined.split([shape[0] for shape in mine])
        weights |= {name: part.contiguous() for name, part in zip(row.ours, parts)}
    return weights


def _untie(tensors: Weights, config: ModelConfig, path: Path) -> None:
    """Leave out the head of tied embeddings, which the file holds once more."""
    head, table = tensors.get("lm_head.weight"), tensors.get("transformer.wte.weight")
    same = head is not None and table is not None and torch.equal(head, table)
    if config.tie_embeddings and head is not None and not same:
        raise UserError(
            f"{path} has a head that is not its token table, so its embeddings are not tied: leave tie out of "
            "train_name, or give tie_embeddings=false."
        )
    if not config.tie_embeddings and same:
        raise UserError(
            f"{path} has its token table as its head, so its embeddings are tied: give tie_embeddings=true."
        )
    if config.tie_embeddings:
        tensors.pop("lm_head.weight", None)


def _misfit(tensors: Weights, config: ModelConfig, path: Path, what: str) -> str:
    """One sentence: what does not fit, what the file looks like, and what to type."""
    blocks = {name.split(".")[2] for name in tensors if name.startswith("transformer.h.")}
    table = tensors.get("transformer.wte.weight")
    size = "" if table is None else f" of width {table.shape[-1]}, with {table.shape[0]:,} rows of vocabulary"
    return (
        f"{path} is no {config.family}_d{config.depth} as described ({what}): it has {len(blocks)} blocks{size}, and "
        f"the description {config.depth} layers of width {config.n_embd}, with {config.padded_vocab_size:,}. Give "
        f"config and train_name as in {EXAMPLE}, and options such as ar=128, vocab_size=32000 or qk_norm=true."
    )


def _some(names: set[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(sorted(names)[:3]) + more
