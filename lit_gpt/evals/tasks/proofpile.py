"""Perplexity of long texts, over the length of the context (ArchScale's Proof-Pile protocol; after arXiv:2309.00071).

The data is one long stream of tokens (scripts/prepare_proofpile.py). Windows of seq_length start at every
sliding_window tokens. The loss counts all positions of every window, as in ArchScale, whose tokens are then counted
several times; loss@n is that of the positions in (n/2, n], which says what a longer context is worth, and bpb@n the
same in bits per byte of text.
"""

from __future__ import annotations

import copy
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
from tqdm import tqdm

from lit_gpt.config.bounds import Bounds
from lit_gpt.errors import UserError
from lit_gpt.evals.requests import Request
from lit_gpt.evals.results import Metric
from lit_gpt.evals.tasks import Judged, Outcome
from lit_gpt.utils.files import regular

SHORTEST = 16  # positions of the first part of loss@n


@dataclass(frozen=True)
class Options:
    """The flags are ArchScale's.

    Args:
        data_path: tokens as 16-bit numbers without a header, or a .npy of any whole numbers.
        seq_length: tokens of a window; also the model's max_length.
        sliding_window: how many tokens later the next window starts.
        batch_size: windows in a batch.
        max_windows: how many windows at most, evenly spaced; all when left out.
    """

    data_path: Path = Path("test_sampled_data.bin")
    seq_length: Annotated[int, Bounds(2)] = 65536
    sliding_window: Annotated[int, Bounds(1)] = 4096
    batch_size: Annotated[int, Bounds(1)] = 1
    max_windows: Annotated[int, Bounds(1)] | None = None


def check(judged: Judged, options: Options) -> None:
    """Raises UserError for data that the model cannot read, or too few for a window."""
    window_starts(len(read_tokens(options.data_path, judged.model.config.vocab_size)), options)


def evaluate(judged: Judged, options: Options) -> Outcome:
    """loss (nats per token), ppl, acc (share of tokens that were the likeliest), loss@n, and bpb@n where the bytes of
    tokens are known.

    Standard errors are of the means of windows, and know how far these overlap; see `apart`. Raises UserError for data
    that the model cannot read.
    """
    tokens = read_tokens(options.data_path, judged.model.config.vocab_size)
    starts = window_starts(len(tokens), options)
    judged = copy.copy(judged)  # the next evaluation has the model's own length again
    judged.max_length = max(judged.max_length, options.seq_length)
    judged.batch_tokens = options.batch_size * options.seq_length
    losses, hits = [], []
    size = options.batch_size * judged.crew.count
    hidden = judged.crew.rank > 0
    if options.sliding_window > options.seq_length and not hidden:
        print(
            f"note: windows of {options.seq_length:,} tokens start every {options.sliding_window:,}, and what lies "
            f"between them is not read; --sliding_window {options.seq_length} reads all of the text",
            file=sys.stderr,
        )
    for begin in tqdm(range(0, len(starts), size), desc="proofpile", unit="batch", disable=hidden):
        texts = [tokens[s : s + options.seq_length + 1].tolist() for s in starts[begin : begin + size]]
        for found in judged.score([Request((first,), tuple(rest)) for first, *rest in texts]):
            losses.append(-np.array(found.log_p))
            hits.append(found.likeliest)
    stride = (starts[-1] - starts[0]) / max(len(starts) - 1, 1) or math.inf
    loss = apart(Metric.mean([float(row.mean()) for row in losses], "lower"), len(starts), options.seq_length / stride)
    metrics = {
        "loss": loss,
        "ppl": Metric(
            math.exp(loss.value), None if loss.stderr is None else math.exp(loss.value) * loss.stderr, "lower"
        ),
        "acc": Metric(float(np.mean(hits))),
    }
    asked = [np.asarray(tokens[start : start + options.seq_length + 1]) for start in starts]
    sizes, rows = sizes_of(judged, asked), [dict[str, float]() for _ in starts]
    for first, last in parts(options.seq_length):
        means = [float(row[first:last].mean()) for row in losses]
        metrics[f"loss@{last}"] = apart(Metric.mean(means, "lower"), len(starts), (last - first) / stride)
        values = {f"loss@{last}": means}
        if (counts := [float(row[first:last].sum()) for row in sizes]) and sum(counts):
            bits = [mean * (last - first) / math.log(2) for mean in means]
            metrics[f"bpb@{last}"] = apart(Metric.ratio(bits, counts, "lower"), len(starts), (last - first) / stride)
            values[f"bpb@{last}"] = [one * len(counts) / sum(counts) for one in bits]  # of which that is the mean
        for name, found in values.items():
            for row, value in zip(rows, found):
                row[name] = value
    return Outcome(len(starts), metrics, {"tokens": len(tokens)}, asked, rows)


def apart(metric: Metric, count: int, overlap: float) -> Metric:
    """A figure of `count` windows whose standard error takes them for independent, with one that does not.

    overlap: how many windows a token is in. Windows that are j apart share 1 - j / overlap of their tokens, which is
    the correlation of their means where tokens are independent; so the mean of all has the variance of count / shared
    windows, and the spread among them is too small by (count - shared) / (count - 1). Tokens of a text are not quite
    independent, so that this is the least that the error can be. None where all windows are worth less than two.
    """
    j = np.arange(1, min(count, math.ceil(overlap)))
    shared = 1 + 2 * float(((1 - j / count) * (1 - j / max(overlap, 1))).sum())
    if metric.stderr is None or count < 2 * shared:
        return replace(metric, stderr=None)
    return replace(metric, stderr=metric.stderr * math.sqrt(shared * (count - 1) / (count - shared)))


def sizes_of(judged: Judged, windows: list[np.ndarray]) -> list[np.ndarray]:
    """Bytes of text of all tokens of each window but the first; [] where they are not known."""
    if (table := judged.token_bytes) is None:
        return []
    sizes = [table.of(window[:-1], window[1:]) for window in windows]
    return sizes if all(np.isfinite(row).all() for row in sizes) else []


def parts(length: int) -> list[tuple[int, int]]:
    """(first, last) positions, from 0, the last excluded: 0 to SHORTEST, then each as far again, up to length."""
    ends = [min(length, SHORTEST)]
    while ends[-1] < length:
        ends.append(min(2 * ends[-1], length))
    return list(zip([0, *ends], ends))


def window_starts(count: int, options: Options) -> list[int]:
    """Where windows start among `count` tokens; each needs one token more than its length, which is predicted.

    Raises UserError where there is none.
    """
    starts = list(range(0, count - options.seq_length, options.sliding_window))
    if not starts:
        raise UserError(
            f"{options.data_path} has {count:,} tokens, too few for a window of {options.seq_length:,} and the token "
            "after it. Give a smaller --seq_length."
        )
    if options.max_windows and options.max_windows < len(starts):
        return [starts[i * len(starts) // options.max_windows] for i in range(options.max_windows)]
    return starts


def read_tokens(path: Path, vocab_size: int) -> np.ndarray:
    """The stream of token ids, (N,). Raises UserError for anything else."""
    wanted = "Give --data_path a file that scripts/prepare_proofpile.py has made."
    if not path.exists():
        raise UserError(f"{path} is not there. {wanted}")
    try:
        if path.suffix == ".npy":
            tokens = np.load(regular(path, wanted), mmap_mode="r", allow_pickle=False)
        else:
            tokens = np.memmap(regular(path, wanted), dtype="<u2", mode="r")
    except ValueError as error:
        raise UserError(
            f"{path} cannot be read as tokens ({error}). Make it with scripts/prepare_proofpile.py."
        ) from error
    if tokens.ndim != 1 or tokens.dtype.kind not in "ui" or not len(tokens):
        raise UserError(f"{path} holds {tokens.dtype} of shape {tokens.shape}; one row of whole numbers is needed.")
    lowest, highest = int(tokens.min()), int(tokens.max())  # each reads the whole file
    if not 0 <= lowest <= highest < vocab_size:
        raise UserError(
            f"{path} has token {highest}, and the model knows {vocab_size} tokens: it was made with another "
            "tokenizer. Make it again with scripts/prepare_proofpile.py."
        )
    return tokens
