"""A trained model with its tokenizer, ready to be asked: what every evaluation is given."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lit_gpt.config.model import ModelConfig
from lit_gpt.config.names import ModelName, read_model_name
from lit_gpt.errors import UserError
from lit_gpt.evals.archscale_file import TrainedWith
from lit_gpt.evals.extension import UNCHANGED, Extension
from lit_gpt.evals.generation import GREEDY, Sampling, generate
from lit_gpt.evals.model_tokenizer import tokenizer_of
from lit_gpt.evals.results import Subject, subject_of
from lit_gpt.evals.scoring import Request, Score, score
from lit_gpt.evals.trained_model import device_of, load_model

DTYPES = {
    "auto": None,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float32": torch.float32,
    "fp32": torch.float32,
    "float64": torch.float64,
}
GENERATED = {"cuda": 2**17, "cpu": 2**13}  # tokens of rows that are continued together, prompts included


class Judged:
    """A model to be judged.

    path: run folder, step folder, exported file, or ArchScale's checkpoint. config: `<family>_d<depth>`, or with
    experts also `<family>_s<S>_k<k>_d<depth>`, only compared with what the checkpoint says (departure D10); of one of
    ArchScale's that does not say it, this is what it is, and trained_with how it was trained. tokenizer: a spec of
    load_tokenizer, by default the one of the model's data. weights: an average that --ema kept. dtype: of DTYPES; auto
    is bf16 on a GPU, fp32 elsewhere. extension: of the context. max_length: longest input in tokens, by default the
    context of training, or the extended one.
    batch_tokens: of one batch; by default what memory takes.
    Raises UserError where one of these means nothing.
    """

    def __init__(
        self,
        path: Path,
        *,
        config: str | None = None,
        device: str | None = None,
        dtype: str = "auto",
        weights: str | None = None,
        tokenizer: str | None = None,
        max_length: int | None = None,
        extension: Extension = UNCHANGED,
        batch_tokens: int | None = None,
        trained_with: Mapping[str, Any] | None = None,
    ):
        if dtype not in DTYPES:
            raise UserError(f"dtype is {dtype}; give one of {', '.join(DTYPES)}.")
        if max_length is not None and max_length < 2:
            raise UserError(f"max_length is {max_length}; give 2 tokens or more.")
        self.path, self.weights, self.extension, self.batch_tokens = path, weights, extension, batch_tokens
        self.device = device_of(device)
        typed = TrainedWith(config, trained_with or {})
        # What a result depends on beside the file, where a person said how it was trained.
        self.said = {"trained_with": {"config": config, **typed.options}} if typed.options else {}
        options = {"compute_dtype": DTYPES[dtype], "weights": weights, "extension": extension, "typed": typed}
        self.model, self.meta = load_model(path, self.device, **options)
        if config is not None:
            _compare(config.strip("\"'"), self.model.config, path)
        self.max_length = max_length or extension.longest(self.model.config)
        self.tokenizer, self.bos_id = tokenizer_of(path, tokenizer, self.meta, "as the tokenizer")
        if self.tokenizer.vocab_size > self.model.config.padded_vocab_size:
            raise UserError(
                f"The tokenizer {self.tokenizer.name!r} has {self.tokenizer.vocab_size} tokens, and the model "
                f"{self.model.config.vocab_size}. Give the tokenizer that it was trained with."
            )

    @property
    def eos_id(self) -> int:
        """What ends a document. Raises UserError where the tokenizer has no such token."""
        if self.tokenizer.eos_id is None:
            raise UserError(f"The tokenizer {self.tokenizer.name!r} has no token that ends a document. Give another.")
        return self.tokenizer.eos_id

    @property
    def prefix_id(self) -> int:
        """What a text without context follows: what starts or else ends a document of the training data."""
        return self.eos_id if self.bos_id is None else self.bos_id

    def encode(self, text: str, *, start: bool = True) -> list[int]:
        """Tokens of a text; with `start` after BOS, where the training data has it."""
        return ([self.bos_id] if start and self.bos_id is not None else []) + list(self.tokenizer.encode(text))

    def score(self, requests: Sequence[Request], *, show: bool = False) -> list[Score]:
        """See lit_gpt.evals.scoring.score."""
        return score(self.model, requests, max_length=self.max_length, batch_tokens=self.batch_tokens, show=show)

    def continue_texts(
        self, prompts: Sequence[str], max_new_tokens: int, *, until: Sequence[str] = (), sampling: Sampling = GREEDY
    ) -> list[str]:
        """Continuations of texts, each up to the first of `until`, which is no part of it, or EOS.

        Of a prompt that leaves no room for max_new_tokens the first tokens are left out.
        """
        room = self.max_length - max_new_tokens
        if room < 1:
            raise UserError(
                f"{max_new_tokens} new tokens leave no room for a prompt in max_length {self.max_length}. Give a "
                "larger max_length, or fewer new tokens."
            )
        stops, decode = [stop for stop in until if stop], self.tokenizer.decode
        budget = self.batch_tokens or GENERATED.get(self.device.type, GENERATED["cpu"])
        rows = generate(
            self.model,
            [(self.encode(text) or [self.prefix_id])[-room:] for text in prompts],
            max_new_tokens,
            sampling,
            stop=self.tokenizer.eos_id,
            ended=(lambda ids: any(stop in decode(ids) for stop in stops)) if stops else None,
            batch_size=max(1, budget // self.max_length),
        )
        return [_before(decode(ids), stops) for ids in rows]

    def subject(self) -> Subject:
        """Which weights these are."""
        return subject_of(self.path, self.meta, self.weights)


def _compare(named: str, config: ModelConfig, path: Path) -> None:
    """Raises UserError where a model's name, such as transformer_gqa4_moe_s8_k4_d16, is not that of `config`.

    A word that is no such name is only noted: ArchScale's guide types "model_config", and needs the name where this
    reads the checkpoint.
    """
    if not re.search(r"_d\d+$", named):
        print(f"note: config {named} is no name of a model, and nothing is compared with it", file=sys.stderr)
        return
    asked, experts = read_model_name(named), config.experts
    is_ = ModelName(config.family, config.depth, *((experts.sparsity, experts.top_k) if experts else (None, None)))
    if asked.sparsity is None:  # as in `transformer_gqa4_moe_d16`
        is_ = replace(is_, sparsity=None, top_k=None)
    if asked != is_:
        sizes = "" if is_.sparsity is None else f"_s{is_.sparsity}_k{is_.top_k}"
        raise UserError(f"config is {named}, but {path} is {is_.family}{sizes}_d{is_.depth}. Drop config.")


def _before(text: str, stops: Sequence[str]) -> str:
    return min((text.partition(stop)[0] for stop in stops), key=len, default=text)
