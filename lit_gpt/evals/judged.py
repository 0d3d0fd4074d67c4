"""A trained model with its tokenizer, ready to be asked: what every evaluation is given."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lit_gpt.config.bounds import Bounds
from lit_gpt.config.model import ModelConfig
from lit_gpt.config.names import ModelName, read_model_name
from lit_gpt.data.kept_tokenizer import KeptTokenizer
from lit_gpt.data.stream import StreamInfo
from lit_gpt.data.token_bytes import TokenBytes, token_bytes
from lit_gpt.errors import UserError
from lit_gpt.evals.archscale_file import TrainedWith
from lit_gpt.evals.crew import ALONE, Crew
from lit_gpt.evals.extension import UNCHANGED, Extension
from lit_gpt.evals.generation import GREEDY, Sampling, check_generates, generate
from lit_gpt.evals.memory import leaving_room
from lit_gpt.evals.model_tokenizer import find_tokenizer, kept_of
from lit_gpt.evals.overlap import alike
from lit_gpt.evals.requests import Request, Score
from lit_gpt.evals.results import Subject
from lit_gpt.evals.scoring import score
from lit_gpt.evals.subject import subject_of
from lit_gpt.evals.trained_model import device_of, load_model
from lit_gpt.model import GPT

DTYPES = {
    "auto": None,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float32": torch.float32,
    "fp32": torch.float32,
    "float64": torch.float64,
}
LENGTHS = Bounds(2, 2**30)
GENERATED = {"cuda": 2**17, "cpu": 2**13}  # tokens of rows that are continued together, prompts included


class Judged:
    """A model to be judged.

    model: in evaluation mode. kept: its tokenizer, which says what starts each document of its data. max_length:
    longest input in tokens, by default the context of training, or the extended one. extension: of the context, which
    the model has already. batch_tokens: of one batch; by default what memory takes. path, meta, weights: where the
    model is from; a model that is being trained has no such place. said: what a result depends on beside the file,
    where a person said how it was trained. crew: the processes that share the questions.
    Raises UserError for a tokenizer with more tokens than the model.
    """

    def __init__(
        self,
        model: GPT,
        kept: KeptTokenizer,
        *,
        max_length: int | None = None,
        extension: Extension = UNCHANGED,
        batch_tokens: int | None = None,
        path: Path = Path(),
        meta: Mapping[str, Any] | None = None,
        weights: str | None = None,
        said: Mapping[str, Any] | None = None,
        crew: Crew = ALONE,
    ):
        if max_length is not None and not LENGTHS.allows(max_length):
            raise UserError(f"max_length is {max_length}; it must be {LENGTHS.words} tokens.")
        tokenizer = kept.load()
        if tokenizer.vocab_size > model.config.padded_vocab_size:
            raise UserError(
                f"The tokenizer {tokenizer.name!r} has {tokenizer.vocab_size} tokens, and the model "
                f"{model.config.vocab_size}. Give the tokenizer that it was trained with."
            )
        self.model, self.kept, self.tokenizer, self.bos_id = model, kept, tokenizer, kept.bos_id
        self.path, self.meta, self.weights, self.extension = path, dict(meta or {}), weights, extension
        self.said, self.crew = dict(said or {}), crew
        self.device, self.batch_tokens = model.wte.weight.device, batch_tokens
        self.max_length = max_length or extension.longest(model.config)

    @classmethod
    def load(
        cls,
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
    ) -> Judged:
        """The model at a path: a run folder, step folder, exported file, or ArchScale's checkpoint.

        config: `<family>_d<depth>`, or with experts also `<family>_s<S>_k<k>_d<depth>`, only compared with what the
        checkpoint says (departure D10); of one of ArchScale's that does not say it, this is what it is, and
        trained_with how it was trained. tokenizer: a spec of load_tokenizer, by default the one of the model's data.
        weights: an average that --ema kept. dtype: of DTYPES; auto is bf16 on a GPU, fp32 elsewhere.
        Raises UserError where one of these means nothing.
        """
        if dtype not in DTYPES:
            raise UserError(f"dtype is {dtype}; give one of {', '.join(DTYPES)}.")
        typed = TrainedWith(config, trained_with or {})
        options = {"compute_dtype": DTYPES[dtype], "weights": weights, "extension": extension, "typed": typed}
        model, meta = load_model(path, device_of(device), **options)
        if config is not None:
            _compare(config.strip("\"'"), model.config, path)
        kept = kept_of(path, tokenizer, meta, "as the tokenizer")
        own = find_tokenizer(path, meta) if tokenizer else None
        if own and own.present and not alike(own.load(), kept.load()):
            print(f"note: {tokenizer} is not the tokenizer of the model's data, {own.name}", file=sys.stderr)
        said: dict[str, Any] = {"trained_with": {"config": config, **typed.options}} if typed.options else {}
        said |= {"tokenizer": tokenizer} if tokenizer else {}
        source: dict[str, Any] = {"path": path, "meta": meta, "weights": weights, "said": said}
        return cls(model, kept, max_length=max_length, extension=extension, batch_tokens=batch_tokens, **source)

    @property
    def settings(self) -> dict[str, Any]:
        """What figures depend on besides the checkpoint and the questions."""
        dtype = str(self.model.compute_dtype).removeprefix("torch.")
        return {"dtype": dtype, **self.extension.settings, **self.said}

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

    @property
    def token_bytes(self) -> TokenBytes | None:
        """Bytes of text by token, None where they cannot be known."""
        made_with = self.kept.kind if self.kept.kind == "bytes" else self.kept.source
        return token_bytes(StreamInfo(eos_id=self.tokenizer.eos_id, made_with=made_with))

    def encode(self, text: str, *, start: bool = True) -> list[int]:
        """Tokens of a text; with `start` after BOS, where the training data has it."""
        return ([self.bos_id] if start and self.bos_id is not None else []) + list(self.tokenizer.encode(text))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """As encode with `start`, of many texts at once, which tokenizers do in threads."""
        start = [] if self.bos_id is None else [self.bos_id]
        return [start + list(ids) for ids in self.tokenizer.encode_batch(texts)]

    def score(self, requests: Sequence[Request], *, show: bool = False) -> list[Score]:
        """See lit_gpt.evals.scoring.score."""
        options = {"max_length": self.max_length, "batch_tokens": self.batch_tokens}
        options["show"] = show and self.crew.rank == 0
        with leaving_room(self.device):
            # Continuations of one context are computed together.
            return self.crew.divide(requests, lambda mine: score(self.model, mine, **options), lambda r: r.context)

    def check_room(self, max_new_tokens: int) -> None:
        """Raises UserError where so many new tokens leave no room for a prompt, and for a model that generates none."""
        check_generates(self.model.config)
        if max_new_tokens >= self.max_length:
            raise UserError(
                f"{max_new_tokens} new tokens leave no room for a prompt in max_length {self.max_length}. Give a "
                "larger max_length, or fewer new tokens."
            )

    def continue_texts(
        self,
        prompts: Sequence[str],
        max_new_tokens: int,
        *,
        until: Sequence[str] = (),
        sampling: Sampling = GREEDY,
        seeds: Sequence[int] | None = None,
    ) -> list[str]:
        """Continuations of texts, each up to the first of `until`, which is no part of it, or EOS.

        seeds: of what is drawn for each prompt, by default their places. Of a prompt that leaves no room for
        max_new_tokens the first tokens are left out. Raises UserError where no prompt has room for one token.
        """
        self.check_room(max_new_tokens)
        work = partial(self._continue, max_new_tokens=max_new_tokens, until=until, sampling=sampling)
        with leaving_room(self.device):
            return self.crew.divide(list(zip(prompts, range(len(prompts)) if seeds is None else seeds)), work)

    def _continue(
        self, seeded: Sequence[tuple[str, int]], *, max_new_tokens: int, until: Sequence[str], sampling: Sampling
    ) -> list[str]:
        room = self.max_length - max_new_tokens
        stops, decode = [stop for stop in until if stop], self.tokenizer.decode
        budget = self.batch_tokens or GENERATED.get(self.device.type, GENERATED["cpu"])
        rows = generate(
            self.model,
            [(self.encode(text) or [self.prefix_id])[-room:] for text, _ in seeded],
            max_new_tokens,
            sampling,
            seeds=[seed for _, seed in seeded],
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
