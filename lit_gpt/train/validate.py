"""Validation: mean loss at 1x, 2x, ... the training context, on the same tokens for any number of ranks.

In ArchScale every rank has its own sequences, and the loss is rank 0's (departure D74). Bits per byte are D86.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lit_gpt.data.corpus import Batch, Corpus
from lit_gpt.ops.boundaries import DocumentEnds
from lit_gpt.ops.loss import IGNORE
from lit_gpt.ops.transfer import to_device
from lit_gpt.parallel import Runtime
from lit_gpt.preflight.resolved_run import ResolvedRun
from lit_gpt.train.reading import together
from lit_gpt.train.step import documents

DELAY = 2.0  # seconds after which a validation shows how far it is, on a terminal; most end sooner
FIRST_BAND = 128  # positions; the mean of fewer is noise in a validation of 200 sequences


@torch.no_grad()
def validate(
    model: nn.Module,
    corpus: Corpus,
    runtime: Runtime,
    *,
    context: int,
    multiples: int,
    sequences: int,
    micro_batch: int,
    ends: DocumentEnds | None,
    positions: bool = False,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Loss per valid target of the first `sequences` windows, cut to i * context tokens for i = 1..multiples.

    corpus: unshuffled, its block is multiples * context, does not repeat. Returns
    metric/val_loss@<i>x, metric/val_ppl@<i>x and, where the bytes of the targets are known (see
    data/token_bytes.py), metric/val_bpb@<i>x: bits per byte of the text that was predicted. positions: also
    metric/val_loss_by_position@<n> of whole windows, see _by_position. stopped: asked before each batch, on every rank
    with the same answer; {} once it is true.
    Raises DataError when the data cannot be read.
    """
    model.eval()
    sums = torch.zeros(multiples, 3, device=runtime.device, dtype=torch.float64)
    places_T2 = torch.zeros(corpus.block if positions else 0, 2, device=runtime.device, dtype=torch.float64)
    for batch in _slices(corpus, sequences, micro_batch, runtime):
        if stopped():
            model.train()
            return {}
        tokens, targets = to_device(batch.tokens, runtime.device), to_device(batch.targets, runtime.device)
        for i in range(multiples):
            n = (i + 1) * context
            docs = documents(tokens[:, :n], ends)
            each = positions and n == corpus.block
            loss = model(tokens[:, :n], targets[:, :n], doc_ids_BT=docs, each=each).loss.double()
            if each:
                places_T2 += torch.stack([loss.sum(0), (targets != IGNORE).sum(0)], dim=1)
            sums[i, 0] += loss.sum()
            sums[i, 1] += (targets[:, :n] != IGNORE).sum()
            sums[i, 2] += _bytes(corpus, batch, n)
    model.train()
    found = _report(runtime.sum(sums).tolist())
    return found | _by_position(runtime.sum(places_T2)) if positions else found


def measure(
    model: nn.Module,
    sets: Mapping[str, Corpus],
    resolved: ResolvedRun,
    runtime: Runtime,
    ends: DocumentEnds | None,
    whole: bool = False,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Validation loss of a model at every multiple of the context that the windows of each set hold; see validate.

    whole: of all of the data, and not of --eval_sequences. The first set has the keys without a name, and each that has
    a name those with it. {} where it was stopped.
    """
    context, found = resolved.plan.context, dict[str, float]()
    for name, data in sets.items():
        values = validate(
            model,
            data,
            runtime,
            context=context,
            multiples=data.block // context,
            sequences=data.num_samples if whole else resolved.run.eval_sequences,
            micro_batch=max(2 * resolved.run.micro_bsz * context // data.block, 1),  # no gradients: room for twice
            ends=ends,
            positions=resolved.run.eval_positions,
            stopped=stopped,
        )
        if not values:
            return {}
        found = (found or values) | (labelled(values, name) if name else {})
    return found


def labelled(values: dict[str, float], label: str) -> dict[str, float]:
    """The same values under the keys of an average or a set: metric/val_loss@1x -> metric/val_loss_ema_1B@1x."""
    return {key.replace("@", f"_{label}@"): value for key, value in values.items()}


def of_all(values: dict[str, float]) -> dict[str, float]:
    """The same values under the keys of a validation on all data: metric/val_loss@1x -> metric/full_val_loss@1x."""
    return {key.replace("/val_", "/full_val_"): value for key, value in values.items()}


def _slices(corpus: Corpus, sequences: int, micro_batch: int, runtime: Runtime) -> Iterator[Batch]:
    """This rank's batches. Every rank gets as many (sharded layers meet in every forward);
    windows past the end of the data hold nothing but IGNORE and count for nothing.
    """
    rounds = -(-min(sequences, corpus.num_samples) // (micro_batch * runtime.world_size))
    hidden = None if runtime.rank == 0 else True  # None: where stderr is no terminal
    for r in tqdm(range(rounds), desc="validation", unit="batch", leave=False, delay=DELAY, disable=hidden):
        start = (r * runtime.world_size + runtime.rank) * micro_batch
        batch = together(runtime, lambda start=start: corpus.batch(start, micro_batch))
        batch.targets[max(sequences - start, 0) :] = IGNORE
        yield batch


def _bytes(corpus: Corpus, batch: Batch, length: int) -> float:
    """Bytes of text of the first `length` targets of every row, NaN where they are not known."""
    if corpus.token_bytes is None:
        return math.nan
    return float(corpus.token_bytes.of(batch.tokens[:, :length], batch.targets[:, :length]).sum())


def _report(sums: list[list[float]]) -> dict[str, float]:
    values = {}
    for i, (loss_sum, count, size) in enumerate(sums, 1):
        loss = loss_sum / count
        values[f"metric/val_loss@{i}x"] = loss
        values[f"metric/val_ppl@{i}x"] = math.exp(min(loss, 700.0))  # e^710 is more than the largest float
        if size > 0:  # not so for NaN
            values[f"metric/val_bpb@{i}x"] = loss_sum / math.log(2) / size
    return values


def _by_position(places_T2: Tensor) -> dict[str, float]:
    """Mean loss of targets by the tokens of the window before them: 1 to 128, to 256, ... doubling to the whole window.

    places_T2: (sum of losses, number of targets) of each position. The key of a band says its largest number.
    """
    values, start = {}, 0
    while start < len(places_T2):
        end = min(max(2 * start, FIRST_BAND), len(places_T2))
        loss_sum, count = places_T2[start:end].sum(0).tolist()
        if count:
            values[f"metric/val_loss_by_position@{end}"] = loss_sum / count
        start = end
    return values
