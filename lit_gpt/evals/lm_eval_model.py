"""A trained model as lm-eval sees one: `--model ArchScale --model_args pretrained=...` (pip install -e ".[eval]")."""

from __future__ import annotations

import warnings
import zlib
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

from lit_gpt.config.run import RunConfig
from lit_gpt.errors import UserError
from lit_gpt.evals.crew import join
from lit_gpt.evals.extension import Extension
from lit_gpt.evals.generation import Sampling
from lit_gpt.evals.judged import Judged
from lit_gpt.evals.requests import Request
from lit_gpt.evals.scoring import windows
from lit_gpt.plugins import load_plugins

OF_RUNS = RunConfig.__dataclass_fields__
IGNORED = ("trust_remote_code", "max_batch_size")  # lm-eval hands these to every model
NEW_TOKENS = 256  # lm-eval's own default
LOT = 1024  # answers that --use_cache writes at once
# Of generation: what is followed; and what lm-eval's tasks say beside it, with the value that asks for nothing.
FOLLOWED = ("until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p")
NOTHING = {"num_beams": 1, "repetition_penalty": 1, "length_penalty": 1, "min_p": 0}
Encoded = tuple[tuple[str, str], list[int], list[int]]  # context and continuation as texts, and their tokens


class TrainedModel(TemplateLM):
    """lm-eval's questions, asked of a Judged.

    batch_size: what lm-eval shows of it. max_gen_toks: longest continuation where a task names none. rank, world_size:
    of the processes that share the examples.
    """

    def __init__(
        self,
        judged: Judged,
        *,
        batch_size: int | str | None = None,
        max_gen_toks: int = NEW_TOKENS,
        rank: int = 0,
        world_size: int = 1,
    ):
        super().__init__()
        self.judged, self.batch_size, self.max_gen_toks, self._device = judged, batch_size, max_gen_toks, judged.device
        self._rank, self._world_size = rank, world_size

    @classmethod
    def load(
        cls,
        pretrained: str,
        config: str | None = None,
        max_length: int | None = None,
        tokenizer: str | None = None,
        weights: str | None = None,
        dtype: str = "auto",
        batch_size: int | str | None = None,
        device: str | None = None,
        max_gen_toks: int = NEW_TOKENS,
        yarn_scale: float | None = None,
        window: int | None = None,
        plugins: str = "",
        **trained_with: Any,
    ) -> TrainedModel:
        """The model at a path, by the words of --model_args.

        pretrained: its path; config, max_length, tokenizer, weights, dtype: of Judged.load. batch_size: sequences of
        max_length that a batch may hold; "auto", and 1, which lm-eval gives when nothing was typed: as many as memory
        takes. yarn_scale, window: of an Extension. plugins: files with mixers that the model has, joined by "+" since
        lm-eval reads commas itself. trained_with: options of pretrain.py, such as train_name, for a checkpoint of
        ArchScale that does not say how it was trained. Under torchrun or accelerate each process takes a part of the
        examples. Raises UserError for arguments that mean nothing.
        """
        trained_with = {name: value for name, value in trained_with.items() if name not in IGNORED}
        if unknown := sorted(name for name in trained_with if name.partition(".")[0] not in OF_RUNS):
            raise UserError(
                f"--model_args {unknown[0]} is unknown; give pretrained, config, max_length, tokenizer, weights, "
                "dtype, max_gen_toks, yarn_scale, window or plugins, and for a checkpoint of ArchScale train_name and "
                "other options of pretrain.py."
            )
        crew = join()
        rows = str("auto" if batch_size is None else batch_size).partition(":")[0]
        if rows != "auto" and not (rows.isdecimal() and int(rows)):
            raise UserError(f"--batch_size is {batch_size}; give a number of sequences, or auto.")
        if plugins:
            load_plugins(str(plugins).split("+"))
        # lm-eval reads a name of digits as a number.
        config, tokenizer, weights = (None if word is None else str(word) for word in (config, tokenizer, weights))
        _check_number("yarn_scale", yarn_scale, int | float)
        for name, value in (("window", window), ("max_length", max_length), ("max_gen_toks", max_gen_toks)):
            _check_number(name, value, int)
        if max_gen_toks < 1:
            raise UserError(f"--model_args max_gen_toks is {max_gen_toks}; give 1 or more.")
        judged = Judged.load(
            Path(str(pretrained)).expanduser(),
            config=config,
            device=device,
            dtype=str(dtype),
            weights=weights,
            tokenizer=tokenizer,
            max_length=max_length,
            extension=Extension(yarn_scale, window),
            trained_with=trained_with,
        )
        if rows not in ("auto", "1"):
            judged.batch_tokens = int(rows) * judged.max_length
        return cls(judged, batch_size=batch_size, max_gen_toks=max_gen_toks, rank=crew.rank, world_size=crew.count)

    @property
    def max_length(self) -> int:
        return self.judged.max_length

    @property
    def eot_token_id(self) -> int:
        return self.judged.eos_id

    @property
    def prefix_token_id(self) -> int:
        return self.judged.prefix_id

    @property
    def tokenizer_name(self) -> str:
        return self.judged.tokenizer.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self.judged.encode(string, start=add_special_tokens is not False)

    def _loglikelihood_tokens(
        self, requests: Sequence[Encoded], disable_tqdm: bool = False, **others: Any
    ) -> list[tuple[float, bool]]:
        asked = [self._request(*request) for request in requests]  # all, so that a wrong one is said at once
        _warn_of_cuts([len(r.context) + len(r.continuation) - 1 for r in asked], self.max_length)
        found: list[tuple[float, bool]] = []
        for lot in self._lots(len(asked)):
            answers = self._score([asked[i] for i in lot], disable_tqdm)
            for i, answer in zip(lot, answers):
                self.cache_hook.add_partial("loglikelihood", requests[i][0], answer)
            found += answers
        return found

    def _lots(self, count: int) -> list[range]:
        """Requests that are answered together: all of them, or so many as an interrupted --use_cache may lose."""
        size = LOT if getattr(self.cache_hook, "dbdict", None) is not None else max(1, count)
        return [range(start, min(count, start + size)) for start in range(0, count, size)]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """ln p of each continuation, and whether it is the likeliest. Raises UserError for one without a token."""
        for context, continuation in (cast(Any, request.args) for request in requests):
            if not continuation:
                raise _no_token(context, continuation)
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def _request(self, texts: tuple[str, str], before: list[int], after: list[int]) -> Request:
        """lm-eval moves spaces from the end of a context to the continuation, so nothing may be left of a context."""
        if not after:
            raise _no_token(*texts)
        return Request(tuple(before) or (self.prefix_token_id,), tuple(after))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """ln p of whole texts, each token with as much context as fits."""
        texts: list[str] = [cast(Any, request.args)[0] for request in requests]
        found: list[float] = []
        for lot in self._lots(len(texts)):
            tokens = [self.judged.encode(texts[i], start=False) for i in lot]
            parts = [list(windows(ids, self.prefix_token_id, self.max_length)) for ids in tokens]
            scores = iter(self._score([window for part in parts for window in part], disable_tqdm))
            for i, part in zip(lot, parts):
                found.append(sum(next(scores)[0] for _ in part))
                self.cache_hook.add_partial("loglikelihood_rolling", (texts[i],), found[-1])
        return found

    def _score(self, asked: list[Request], disable_tqdm: bool) -> list[tuple[float, bool]]:
        found = self.judged.score(asked, show=not disable_tqdm and self._rank == 0)
        return [(one.total, one.greedy) for one in found]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continuations until one of each request's stop texts; those with the same options share batches."""
        asked: list[tuple[str, dict[str, Any]]] = [cast(Any, request.args) for request in requests]
        options, seeds = [repr(given) for _, given in asked], _seeds(requests)
        texts: dict[int, str] = {}
        for _, same in groupby(sorted(range(len(asked)), key=options.__getitem__), key=options.__getitem__):
            rows = list(same)
            arguments = dict(asked[rows[0]][1])
            room = self.max_length - self.way_of_generating(arguments)[0]
            _warn_of_cuts([*map(len, self.judged.encode_batch([asked[i][0] for i in rows]))], room)
            for lot in self._lots(len(rows)):
                mine = [rows[i] for i in lot]
                texts |= zip(mine, self._continue([asked[i][0] for i in mine], arguments, [seeds[i] for i in mine]))
                if not arguments.get("do_sample"):  # of drawn texts lm-eval keeps none
                    for i in mine:
                        self.cache_hook.add_partial("generate_until", asked[i], texts[i])
        return [texts[i] for i in range(len(asked))]

    def _continue(self, prompts: list[str], arguments: dict[str, Any], seeds: list[int]) -> list[str]:
        longest, until, sampling = self.way_of_generating(arguments)
        return self.judged.continue_texts(prompts, longest, until=until, sampling=sampling, seeds=seeds)

    def way_of_generating(self, arguments: dict[str, Any]) -> tuple[int, list[str], Sampling]:
        """Most new tokens, stop texts, and how tokens are drawn, of a task's generation_kwargs.

        Raises UserError for what is not followed, and where so many tokens leave no room for a prompt.
        """
        given: dict[str, Any] = {**normalize_gen_kwargs(arguments, self.max_gen_toks)}
        for name in sorted(given.keys() - FOLLOWED):
            if given[name] is not None and given[name] != NOTHING.get(name):
                raise UserError(
                    f"A task, or --gen_kwargs, asks for generation with {name} = {given[name]!r}, which is not done "
                    f"here; what is followed is {', '.join(FOLLOWED)}. Leave it out."
                )
        sampling = Sampling(given.get("temperature", 0.0), given.get("top_k"), given.get("top_p"))
        if given["do_sample"] and not sampling.temperature:
            raise UserError(
                "A task, or --gen_kwargs, asks for do_sample at temperature 0, which draws nothing; lm-eval's hf model "
                "refuses it, too. Give a temperature above 0, or leave do_sample out."
            )
        longest = int(given["max_gen_toks"])
        self.judged.check_room(longest)
        return longest, handle_stop_sequences(given.get("until"), None), sampling

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._world_size == 1:
            return tensor
        everyone = [torch.empty_like(tensor, device="cpu") for _ in range(self._world_size)]
        dist.all_gather(everyone, tensor.cpu())
        return torch.stack(everyone)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any]:
        """Of every process, on `dst`; nothing on the others."""
        if self._world_size == 1:
            return [obj]
        everyone = [None] * self._world_size if self._rank == dst else []
        dist.gather_object(obj, everyone or None, dst=dst)
        return everyone

    def barrier(self) -> None:
        if self._world_size > 1:
            dist.barrier()


def _warn_of_cuts(lengths: Sequence[int], room: int) -> None:
    """Say how many inputs of so many tokens are longer than what there is room for, and lose their first tokens."""
    if cut := sum(length > room for length in lengths):
        warnings.warn(
            f"{cut} of {len(lengths)} inputs have more than {room} tokens, and lose their first ones: the longest has "
            f"{max(lengths)}. max_length sets how long an input may be.",
            stacklevel=2,
        )


def _seeds(requests: Sequence[Instance]) -> list[int]:
    """What is drawn follows from the question and how often it was asked, and not from who else asks this process."""
    asked: Counter[str] = Counter()
    found = []
    for request in requests:
        question = repr((request.task_name, request.doc_id, request.idx))
        found.append(zlib.crc32(f"{question} {asked[question]}".encode()))
        asked[question] += 1
    return found


def _no_token(context: str, continuation: str) -> UserError:
    """lm-eval's own model fails there with an assertion."""
    return UserError(
        f"A task asks how likely {continuation[:40]!r} is after {context[-40:]!r}, and it adds no token to those of "
        "that. Let each answer of the task begin with a space, or not be empty (doc_to_choice, target_delimiter)."
    )


def _check_number(name: str, value: Any, kind: Any) -> None:
    """Raises UserError for a word of --model_args that lm-eval could not read as such a number; None is none given."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
        number = "a whole number" if kind is int else "a number"
        raise UserError(f"--model_args {name} is {value!r}; give {number}.")
