"""A trained model as lm-eval sees one: `--model ArchScale --model_args pretrained=...` (pip install -e ".[eval]").

What the model is comes from its checkpoint; `config=sambay_d16` is only compared with it (departure D10).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

from lit_gpt.data.tokenizer import Tokenizer
from lit_gpt.errors import UserError
from lit_gpt.evals.generation import Sampling, generate
from lit_gpt.evals.model_tokenizer import find_tokenizer
from lit_gpt.evals.scoring import Request, score, windows
from lit_gpt.evals.trained_model import load_model

DTYPES = {"auto": None, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
IGNORED = ("trust_remote_code", "max_batch_size")  # lm-eval hands these to every model
NEW_TOKENS = 256  # lm-eval's own default


class TrainedModel(TemplateLM):
    """See the module. pretrained: run folder, step folder or exported file. config: `<family>_d<depth>`, checked.

    max_length: longest input in tokens, by default the training context. tokenizer: a spec of load_tokenizer, by
    default the one of the model's data. weights: an average that --ema kept. batch_size: sequences of max_length that
    fit into memory; "auto", and 1, which lm-eval gives when nothing was typed: as many as do. Under torchrun or
    accelerate each process takes a part of the examples. Raises UserError for arguments that mean nothing.
    """

    def __init__(
        self,
        pretrained: str,
        config: str | None = None,
        max_length: int | None = None,
        tokenizer: str | None = None,
        weights: str | None = None,
        dtype: str = "auto",
        batch_size: int | str | None = None,
        device: str | None = None,
        max_gen_toks: int = NEW_TOKENS,
        **others: Any,
    ):
        super().__init__()
        if unknown := sorted(set(others) - set(IGNORED)):
            raise UserError(
                f"--model_args {unknown[0]} is unknown; give pretrained, config, max_length, tokenizer, "
                "weights, dtype or max_gen_toks."
            )
        if dtype not in DTYPES:
            raise UserError(f"--model_args dtype is {dtype}; give one of {', '.join(DTYPES)}.")
        self._rank, self._world_size = _join()
        path = Path(pretrained).expanduser()
        self.pretrained, self.weights = path, weights
        self._device = _device(device)
        self.model, self.meta = load_model(path, self._device, compute_dtype=DTYPES[dtype], weights=weights)
        _check_config(config, self.model.config.family, self.model.config.depth)
        self.text, self.bos_id = _tokenizer(path, self.meta, tokenizer)
        if self.text.vocab_size > self.model.config.padded_vocab_size:
            raise UserError(
                f"The tokenizer has {self.text.vocab_size} tokens, and the model "
                f"{self.model.config.vocab_size}. Give the --model_args tokenizer that it was trained with."
            )
        self.max_length = max_length or self.model.config.block_size
        self.max_gen_toks = max_gen_toks
        given = 1 if batch_size in (None, "") or str(batch_size).startswith("auto") else int(batch_size or 1)
        self.batch_tokens = None if given == 1 else given * self.max_length
        self.batch_size = given

    @property
    def eot_token_id(self) -> int:
        if self.text.eos_id is None:
            raise UserError(f"The tokenizer {self.text.name!r} has no token that ends a document. Give another one.")
        return self.text.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What a text without context follows: what starts or else ends a document of the training data."""
        return self.eot_token_id if self.bos_id is None else self.bos_id

    @property
    def tokenizer_name(self) -> str:
        return self.text.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        start = [] if self.bos_id is None or add_special_tokens is False else [self.bos_id]
        return start + list(self.text.encode(string))

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        asked = [Request(tuple(context), tuple(continuation)) for _, context, continuation in requests]
        scores = self._score(asked, disable_tqdm)
        for (texts, _, _), found in zip(requests, scores):
            self.cache_hook.add_partial("loglikelihood", texts, found)
        return scores

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """ln p of whole texts, each token with as much context as fits."""
        parts = [
            list(windows(self.tok_encode(text, add_special_tokens=False), self.prefix_token_id, self.max_length))
            for (text,) in (request.args for request in requests)
        ]
        scores = iter(self._score([window for part in parts for window in part], disable_tqdm))
        return [sum(next(scores)[0] for _ in part) for part in parts]

    def _score(self, asked: list[Request], disable_tqdm: bool) -> list[tuple[float, bool]]:
        show = not disable_tqdm and self._rank == 0
        found = score(self.model, asked, max_length=self.max_length, batch_tokens=self.batch_tokens, show=show)
        return [(one.total, one.greedy) for one in found]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continuations until one of each request's stop texts."""
        texts: dict[int, str] = {}
        order = sorted(range(len(requests)), key=lambda i: repr(requests[i].args[1]))
        for _, same in groupby(order, key=lambda i: repr(requests[i].args[1])):
            rows = list(same)
            texts |= zip(rows, self._generate([requests[i].args[0] for i in rows], dict(requests[rows[0]].args[1])))
        return [texts[i] for i in range(len(requests))]

    def _generate(self, contexts: list[str], arguments: dict[str, Any]) -> list[str]:
        options = dict(normalize_gen_kwargs(arguments, self.max_gen_toks))
        limit = int(options["max_gen_toks"])
        if limit >= self.max_length:
            raise UserError(
                f"{limit} new tokens leave no room for a prompt in max_length {self.max_length}. Give "
                "--model_args a larger max_length, or --gen_kwargs a smaller max_gen_toks."
            )
        stops = [s for s in handle_stop_sequences(options.get("until"), None) if s]
        sampling = Sampling(options["temperature"], options.get("top_k"), options.get("top_p"))
        prompts = [(self.tok_encode(text) or [self.prefix_token_id])[limit - self.max_length :] for text in contexts]
        rows = (self.batch_tokens or 2**15) // self.max_length
        found = generate(
            self.model,
            prompts,
            limit,
            sampling,
            stop=self.eot_token_id,
            ended=lambda ids: any(s in self.text.decode(ids) for s in stops),
            batch_size=max(1, rows),
        )
        return [postprocess_generated_text(self.text.decode(ids), stops, None) for ids in found]

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._world_size == 1:
            return tensor
        everyone = [torch.empty_like(tensor, device="cpu") for _ in range(self._world_size)]
        dist.all_gather(everyone, tensor.cpu())
        return torch.stack(everyone)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        if self._world_size == 1:
            return [obj]
        everyone = [None] * self._world_size if self._rank == dst else None
        dist.gather_object(obj, everyone, dst=dst)
        return everyone

    def barrier(self) -> None:
        if self._world_size > 1:
            dist.barrier()


def _join() -> tuple[int, int]:
    """Rank and number of the processes that torchrun or accelerate started. They exchange results only, over gloo."""
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count > 1 and not dist.is_initialized():
        dist.init_process_group("gloo")
    return (dist.get_rank(), count) if count > 1 else (0, 1)


def _device(given: str | None) -> torch.device:
    """The device that was asked for, by default a GPU where there is one; each process of a node has its own GPU."""
    if given in (None, "cuda") and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    if given and given.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {given}: there is no GPU here. Give --device cpu.")
    return torch.device(given or "cpu")


def _check_config(given: str | None, family: str, depth: int) -> None:
    if given is not None and given.strip("\"'") != f"{family}_d{depth}":
        raise UserError(f"--model_args config is {given}, but the checkpoint is {family}_d{depth}. Drop config.")


def _tokenizer(path: Path, meta: dict[str, Any], given: str | None) -> tuple[Tokenizer, int | None]:
    found = find_tokenizer(path, meta, given)
    if found is None:
        raise UserError(f"{path} does not say which tokenizer its data had. Give --model_args tokenizer=...")
    if not found.present:
        raise UserError(f"The tokenizer of {path} is no longer at {found.source}. Give --model_args tokenizer=...")
    return found.load(), found.bos_id
