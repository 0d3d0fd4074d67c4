"""How likely a model finds given texts: many continuations of many contexts, each token computed once.

Requests are sorted by length, and share batches of a fixed number of tokens. The head, whose logits are most of the
memory, is applied to the positions that are asked for. Continuations of one context are computed from one copy of its
cache, which is what multiple choice needs: its context is the long part. So are contexts that begin alike, where that
saves more than it costs: questions after the same examples, or about the same document.

Shapes: B rows, T tokens, R selected rows, N selected positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lit_gpt.errors import UserError
from lit_gpt.evals.decoding import Decoder
from lit_gpt.evals.memory import Limit
from lit_gpt.evals.prefixes import Ids, families
from lit_gpt.evals.requests import Request, Score
from lit_gpt.model import GPT
from lit_gpt.ops.dtypes import matmul_fp32
from lit_gpt.ops.fused import fused
from lit_gpt.ops.loss import soft_cap
from lit_gpt.ops.transfer import to_device

NO_NUMBERS = "The model's logits are not numbers (NaN): its weights are damaged or its training diverged."
LOGITS = {"cuda": 2**28, "cpu": 2**23}  # numbers of one chunk of logits: 1 GiB and 32 MiB in fp32
SAVING = 0.8  # of the tokens, computed from a shared beginning: else its smaller batches cost what is saved
# What a call of the model costs beside its tokens, in tokens. On an H200 the launches of a small batch take 50 to 100
# ms, in which full batches do 10,000 to 30,000 tokens. Without it, cloze questions came in batches of two to seven.
CALL_TOKENS = {"cuda": 2**14, "cpu": 0}
BATCH_TOKENS = {"cuda": 2**17, "cpu": 2**12}  # halved where memory does not suffice


class Group(NamedTuple):
    """The distinct continuations of one context, of which the first `shared` tokens are in a cache already."""

    context: Ids
    continuations: list[Ids]
    shared: int = 0

    @property
    def inputs(self) -> list[Ids]:
        """What is fed after the context, once each: a continuation's last token is only predicted."""
        return sorted({c[:-1] for c in self.continuations})

    @property
    def tokens(self) -> int:
        """Of memory: rows times their length."""
        longest = max(len(c) for c in self.continuations) - 1
        return len(self.inputs) * (len(self.context) + longest)

    @property
    def computed(self) -> int:
        """Tokens that go through the model. After a shared beginning every row has the rest of the context."""
        inputs = self.inputs
        rest = len(self.context) - self.shared
        return rest * (len(inputs) if self.shared else 1) + sum(map(len, inputs))


@torch.inference_mode()
def score(
    model: GPT,
    requests: Sequence[Request],
    *,
    max_length: int,
    batch_tokens: int | None = None,
    show: bool = False,
) -> list[Score]:
    """The score of each request, in their order.

    max_length: the longest input in tokens; of a longer request the first tokens of the context are left out.
    batch_tokens: tokens of one batch, by default what the device takes. show: a progress bar. Raises UserError for a
    continuation longer than max_length, for a model whose experts choose among the tokens of a batch, and for one whose
    logits are NaN.
    """
    experts = model.config.experts
    if experts is not None and (experts.routing == "expert_choice" or experts.capacity is not None):
        raise UserError(
            "This model's experts choose among the tokens of a batch (expert_choice, or a capacity): what it says "
            "about a text would depend on its neighbours. With a capacity alone it can be judged once it is saved."
        )
    cut = [_cut(request, max_length) for request in requests]
    groups: dict[Ids, dict[Ids, None]] = {}
    for context, continuation in cut:
        groups.setdefault(context, {})[continuation] = None
    device = model.head_weight().device.type
    limit = Limit(batch_tokens or BATCH_TOKENS.get(device, BATCH_TOKENS["cpu"]))
    call = CALL_TOKENS.get(device, CALL_TOKENS["cpu"])
    found: dict[Request, Score] = {}
    unread: _Judged | None = None  # read only when the next batch is on its way, so that the device never waits
    with tqdm(total=len(groups), desc="scoring", unit="context", disable=not show) as bar:
        for beginning, waiting in _beginnings([Group(c, list(many)) for c, many in groups.items()], call):
            decoder = _begun(model, beginning, waiting) if beginning else None
            while waiting:
                batch = _next(waiting, limit.most, max_length)
                judged = limit.attempt(
                    lambda batch=batch, decoder=decoder: _batch(model, batch, decoder),
                    size=sum(group.tokens for group in batch),
                    single=len(batch) == 1,
                )
                if judged is not None:
                    found.update(unread.scores() if unread else {})
                    unread = judged
                    waiting = waiting[len(batch) :]
                    bar.update(len(batch))
    found.update(unread.scores() if unread else {})
    return [found[request] for request in cut]


def _beginnings(groups: Sequence[Group], call: int) -> Iterator[tuple[Ids, list[Group]]]:
    """(what their contexts begin with, groups), largest first; groups that share nothing that pays come as one lot.

    call: what a call of the model costs, in tokens. A beginning takes two more, one for itself and one for the rest.
    """
    by_context, lone = {group.context: group for group in groups}, list[Group]()
    for shared, contexts in families(list(by_context)):
        alone = [by_context[context] for context in contexts]
        after = [group._replace(shared=shared) for group in alone]
        if shared and shared + _computed(after) + 2 * call < SAVING * _computed(alone):
            yield contexts[0][:shared], _by_size(after)
        else:
            lone += alone
    yield (), _by_size(lone)


def _computed(groups: Sequence[Group]) -> int:
    return sum(group.computed for group in groups)


def _by_size(groups: Sequence[Group]) -> list[Group]:
    return sorted(groups, key=lambda g: (-g.tokens, g.context))


def _begun(model: GPT, beginning: Ids, groups: Sequence[Group]) -> Decoder:
    """One row that has read the beginning, and can be continued by each of the groups."""
    decoder = Decoder(model, 1, max(group.tokens // len(group.inputs) for group in groups))
    decoder.hidden(_padded(model, [beginning]), last_only=True)
    return decoder


def _cut(request: Request, max_length: int) -> Request:
    context, continuation = tuple(request.context), tuple(request.continuation)
    assert context and continuation, "the caller puts a token before what has no context"
    if len(continuation) > max_length:
        raise UserError(
            f"A continuation of {len(continuation)} tokens is longer than max_length {max_length}. Give a larger "
            "max_length."
        )
    return Request(context[max(0, len(context) + len(continuation) - 1 - max_length) :], continuation)


def _next(waiting: Sequence[Group], tokens: int, max_length: int) -> list[Group]:
    """The first groups that fit into so many tokens, of one kind: with one input each, or with several.

    After a shared beginning there is one kind only. Else contexts of several inputs are padded to end together, and the
    longest context and the longest input, which may be of two groups, are max_length at most: a table of learned
    positions has no more.
    """
    several, rows, context, inputs, longest, batch = len(waiting[0].inputs) > 1, 0, 0, 0, 0, []
    for group in waiting:
        count, length = len(group.inputs), group.tokens // len(group.inputs)
        context, inputs = max(context, len(group.context)), max(inputs, length - len(group.context))
        rows, longest = rows + count, max(longest, length)
        if several and not group.shared:
            longest = context + inputs
        other = not group.shared and (count > 1) != several
        if batch and (rows * longest > tokens or longest > max_length or other):
            break
        batch.append(group)
    return batch


class _Judged(NamedTuple):
    """requests: of one batch. values_2N: ln p of their tokens, and 1 where one was the likeliest; on the device."""

    requests: list[Request]
    values_2N: Tensor

    def scores(self) -> dict[Request, Score]:
        """Wait for the device, and read. Raises UserError where a logarithm is no number."""
        values, likeliest = self.values_2N.tolist()
        if math.isnan(sum(values)):
            raise UserError(NO_NUMBERS)
        found, start = {}, 0
        for request in self.requests:
            end = start + len(request.continuation)
            found[request] = Score(values[start:end], [one == 1 for one in likeliest[start:end]])
            start = end
        return found


def _batch(model: GPT, groups: Sequence[Group], begun: Decoder | None) -> _Judged:
    if begun is not None:
        rows = _after(begun, model, groups)
    else:
        rows = _shared(model, groups) if len(groups[0].inputs) > 1 else _alone(model, groups)
    asked: list[tuple[Request, int, int]] = []  # request, its row, where its first token is predicted
    for (group, inputs), row, offset in rows.places:
        for c in group.continuations:
            if c[:-1] == inputs:
                asked.append((Request(group.context, c), row, offset))
    return _read(model, rows, asked)


class _Rows(NamedTuple):
    """hidden_RTn: what the head reads. places: (group, input), its row, and the column before the continuation."""

    hidden: Tensor
    places: list[tuple[tuple[Group, Ids], int, int]]


def _alone(model: GPT, groups: Sequence[Group]) -> _Rows:
    """One row per group, padded on the right, where a causal model does not see it."""
    rows = [g.context + g.inputs[0] for g in groups]
    hidden, _ = model.hidden(_padded(model, rows))
    return _Rows(hidden, [((g, g.inputs[0]), i, len(g.context) - 1) for i, g in enumerate(groups)])


def _shared(model: GPT, groups: Sequence[Group]) -> _Rows:
    """Contexts first, padded on the left as documents of their own; then every input from a copy of its cache."""
    contexts = [g.context for g in groups]
    longest = max(map(len, contexts))
    fed = [(i, inputs) for i, g in enumerate(groups) for inputs in g.inputs]
    length = longest + max(len(inputs) for _, inputs in fed)
    decoder = Decoder(model, len(groups), length)
    padding, device = np.array([longest - len(c) for c in contexts]), decoder.start_B.device
    tokens_BT = _padded(model, contexts, left=True)
    doc_ids_BT = None
    if padding.any():
        doc_ids_BT = to_device((np.arange(longest) >= padding[:, None]).astype(np.int32), device)
    last_B1n = decoder.hidden(tokens_BT, doc_ids_BT, last_only=True)
    index_R = to_device(np.array([i for i, _ in fed]), device)
    decoder.select(index_R)
    hidden = torch.cat([last_B1n[index_R], decoder.hidden(_padded(model, [inputs for _, inputs in fed]))], dim=1)
    return _Rows(hidden, [((groups[i], inputs), row, 0) for row, (i, inputs) in enumerate(fed)])


def _after(begun: Decoder, model: GPT, groups: Sequence[Group]) -> _Rows:
    """One row per input, padded on the right: the rest of its context and itself, from a copy of what has been read."""
    fed = [(g, inputs) for g in groups for inputs in g.inputs]
    rows = [g.context[g.shared :] + inputs for g, inputs in fed]
    decoder = begun.copies(len(rows))
    hidden = decoder.hidden(_padded(model, rows))
    return _Rows(hidden, [(place, i, len(place[0].context) - place[0].shared - 1) for i, place in enumerate(fed)])


def _read(model: GPT, rows: _Rows, asked: Sequence[tuple[Request, int, int]]) -> _Judged:
    """The head at the positions that predict the continuations, in chunks of LOGITS numbers."""
    # With numpy: the device waits while Python makes lists of a hundred thousand numbers.
    counts = np.array([len(request.continuation) for request, *_ in asked])
    starts, total = np.cumsum(counts) - counts, int(counts.sum())
    firsts = np.array([offset for *_, offset in asked]) - starts
    columns = np.repeat(firsts, counts) + np.arange(total)
    targets = _joined((request.continuation for request, *_ in asked), total)
    indices = np.stack([np.repeat([row for _, row, _ in asked], counts), columns, targets])
    row_N, column_N, target_N = to_device(indices, rows.hidden.device)
    weight_nV = model.head_weight().to(rows.hidden.dtype).T
    size = max(1, LOGITS.get(rows.hidden.device.type, LOGITS["cpu"]) // weight_nV.shape[1])
    values = []
    for row, column, target in zip(row_N.split(size), column_N.split(size), target_N.split(size)):
        logits_NV = matmul_fp32(rows.hidden[row, column], weight_nV)
        values.append(judge(logits_NV, target, model.config.vocab_size, model.config.logit_softcap))
    return _Judged([request for request, *_ in asked], torch.cat(values, dim=1))


@fused
def judge(logits_NV: Tensor, target_N: Tensor, vocab_size: int, cap: float) -> Tensor:
    """ln p of each target, and 1 where it is the likeliest, else 0: (2, N). Columns after vocab_size are padding."""
    logits_NV = soft_cap(logits_NV[:, :vocab_size], cap)
    log_p_N = logits_NV.gather(1, target_N[:, None])[:, 0] - logits_NV.logsumexp(1)
    return torch.stack([log_p_N, (logits_NV.argmax(1) == target_N).to(log_p_N.dtype)])


def _padded(model: GPT, rows: Sequence[Ids], left: bool = False) -> Tensor:
    """(B, T) on the model's device, token 0 where a row is over."""
    lengths = np.array([len(row) for row in rows])
    longest = int(lengths.max())
    places = np.arange(longest)
    real = places >= (longest - lengths)[:, None] if left else places < lengths[:, None]
    filled = np.zeros(real.shape, np.int64)
    filled[real] = _joined(rows, int(lengths.sum()))
    return to_device(filled, model.head_weight().device)


def _joined(rows: Iterable[Ids], total: int) -> np.ndarray:
    return np.fromiter(chain.from_iterable(rows), np.int64, total)


def windows(tokens: Sequence[int], first: int, max_length: int) -> Iterator[Request]:
    """A text of any length as requests that predict each of its tokens once, with as much context as possible.

    first: the token before the text, BOS or EOS. All windows but the last are disjoint; the last is whole, so that its
    tokens have context too (the protocol of lm-eval's loglikelihood_rolling).
    """
    whole = (first, *tokens)
    for start in range(0, len(tokens), max_length):
        end = min(start + max_length, len(tokens))
        begin = max(0, end - max_length)
        yield Request(whole[begin : start + 1], whole[start + 1 : end + 1])
