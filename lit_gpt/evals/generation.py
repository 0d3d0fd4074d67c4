"""Text from a model: greedy or sampled, batched, with the key-value cache.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lit_gpt.config.model import ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.evals.decoding import Decoder
from lit_gpt.evals.memory import Limit
from lit_gpt.evals.scoring import NO_NUMBERS
from lit_gpt.evals.steps import Steps, worthwhile
from lit_gpt.model import GPT


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    temperature: 0 is greedy. top_k: only the k likeliest tokens. top_p: only the fewest
    tokens whose probabilities, after top_k, reach p (nucleus sampling, arXiv:1904.09751).
    Raises UserError for values that mean nothing.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"--temperature is {self.temperature}; give 0 (greedy) or more.")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"--top_k is {self.top_k}; give 1 or more.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"--top_p is {self.top_p}; give more than 0 and at most 1.")


Ended = Callable[[Sequence[int]], bool]  # of the new tokens of one row
GREEDY = Sampling()
# Below it, differences of fp32 logits that rounding leaves (2e-38 and more) decide by themselves, while its inverse is
# still finite in fp32.
COLDEST = 1e-37


def check_generates(config: ModelConfig) -> None:
    """Raises UserError for a model whose experts choose their tokens."""
    if config.experts is not None and config.experts.routing == "expert_choice":
        raise UserError("With expert_choice, experts choose among whole rows of tokens: such a model cannot generate.")


@torch.inference_mode()
def stream(
    model: GPT,
    prompts_BT: Tensor,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    *,
    padding_B: Tensor | None = None,
    seeds: Sequence[int] | None = None,
    stop: int | None = None,
    ended: Ended | None = None,
) -> Iterator[Tensor]:
    """The next token of every row, (B,), again and again.

    prompts_BT: on the model's device. padding_B: how many tokens at the start of each row are
    padding; they are a document of their own, which the prompt does not see. seeds: one per row, default all
    0; a row's draws depend on its own seed only, not on the batch it is in. stop: ends a row,
    which then repeats it; the stream ends after max_new_tokens or when all rows have ended. ended: looks at the new
    tokens of a row, and says whether it is over for another reason.
    Raises UserError for a model whose experts choose their tokens, and for one whose logits are NaN.
    """
    check_generates(model.config)
    batch, length = prompts_BT.shape
    uniform_BN = _uniform([0] * batch if seeds is None else seeds, max_new_tokens).to(prompts_BT.device)
    ended_B = torch.zeros(batch, dtype=torch.bool, device=prompts_BT.device)
    new: list[list[int]] = [[] for _ in range(batch)]
    decoder, doc_ids_BT = Decoder(model, batch, length + max_new_tokens), None
    step: Callable[[Tensor], Tensor] = decoder
    if padding_B is not None:
        doc_ids_BT = (torch.arange(length, device=prompts_BT.device) >= padding_B[:, None]).int()
    if max_new_tokens < 1:
        return
    logits_BV = decoder(prompts_BT, doc_ids_BT, last_only=True)[:, 0]
    if logits_BV.isnan().any():
        raise UserError(NO_NUMBERS)
    for i in range(max_new_tokens):
        token_B = sample(logits_BV, uniform_BN[:, i], sampling)
        if stop is not None:
            token_B = torch.where(ended_B, stop, token_B)
            ended_B |= token_B == stop
        yield token_B
        if ended is not None:
            for row, token in enumerate(token_B.tolist()):
                new[row].append(token)
            ended_B |= torch.tensor([over or ended(ids) for over, ids in zip(ended_B.tolist(), new)]).to(ended_B.device)
        if i + 1 == max_new_tokens or ended_B.all():
            return
        if i == 0 and worthwhile(model, max_new_tokens - 1):
            step = Steps(decoder)
        logits_BV = step(token_B[:, None])[:, 0]


def _uniform(seeds: Sequence[int], count: int) -> Tensor:
    """Numbers in [0, 1), (len(seeds), count): each row from its own seed."""
    return torch.stack([torch.rand(count, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def sample(logits_BV: Tensor, uniform_B: Tensor, sampling: Sampling) -> Tensor:
    """One token per row, (B,), by inverting the cumulative distribution at uniform_B in [0, 1)."""
    if sampling.temperature == 0:
        return logits_BV.argmax(-1)
    below_BV = logits_BV - logits_BV.amax(-1, keepdim=True)  # so that the likeliest stays 0 at any temperature
    p_BV, order_BV = (below_BV / max(sampling.temperature, COLDEST)).softmax(-1).sort(-1, descending=True)
    if sampling.top_k is not None:
        p_BV[:, sampling.top_k :] = 0
    if sampling.top_p is not None:
        before_BV = p_BV.cumsum(-1) - p_BV
        beyond_BV = before_BV >= sampling.top_p * p_BV.sum(-1, keepdim=True)
        p_BV[beyond_BV & (before_BV > 0)] = 0  # the likeliest stays where the product is below fp32's least number
    cumulative_BV = p_BV.cumsum(-1)
    target_B1 = uniform_B[:, None] * cumulative_BV[:, -1:]
    rank_B1 = torch.searchsorted(cumulative_BV, target_B1, right=True)
    last_B1 = (p_BV > 0).sum(-1, keepdim=True) - 1  # where rounding makes the target the whole sum
    return order_BV.gather(-1, torch.minimum(rank_B1, last_B1))[:, 0]


def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    *,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    stop: int | None = None,
    ended: Ended | None = None,
    batch_size: int = 32,
) -> list[list[int]]:
    """Continuations of prompts of any lengths, in their order, without the stop token.

    stop, ended: see stream; what comes after the end of a row in a batch of longer ones is no part of its result.
    Prompts of similar length share a batch of batch_size, or of fewer where memory does not suffice, the shorter ones
    padded on the left; where experts have a capacity, for which neighbours would compete, each is alone. Prompt i draws
    with seeds[i], by default seed + i.
    Raises UserError for an empty prompt.
    """
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise UserError(f"Prompt {i} is empty: there is nothing to continue. Give at least one token.")
    results: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    device = model.head_weight().device
    experts = model.config.experts
    limit, start = Limit(1 if experts is not None and experts.capacity is not None else batch_size), 0
    while start < len(order):
        rows = order[start : start + limit.most]
        longest = len(prompts[rows[-1]])
        padding = [longest - len(prompts[i]) for i in rows]
        prompts_BT = torch.tensor([[0] * pad + list(prompts[i]) for i, pad in zip(rows, padding)], device=device)
        padding_B = torch.tensor(padding, device=device) if any(padding) else None
        drawn = [seed + i if seeds is None else seeds[i] for i in rows]
        options = {"padding_B": padding_B, "seeds": drawn, "stop": stop, "ended": ended}
        work = partial(stream, model, prompts_BT, max_new_tokens, sampling, **options)
        steps = limit.attempt(lambda work=work: list(work()), size=len(rows), single=len(rows) == 1)
        if steps is None:
            continue
        start += len(rows)
        for i, tokens in zip(rows, torch.stack(steps, dim=1).tolist() if steps else [[] for _ in rows]):
            results[i] = _until_end(tokens, stop, ended)
    return results


def _until_end(tokens: list[int], stop: int | None, ended: Ended | None) -> list[int]:
    """The tokens before `stop`, and none after the one with which the row was over."""
    tokens = tokens[: tokens.index(stop)] if stop in tokens else tokens
    if ended is None:
        return tokens
    return tokens[: next((n for n in range(1, len(tokens) + 1) if ended(tokens[:n])), len(tokens))]
