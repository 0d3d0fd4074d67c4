"""What a worker process does: documents in, one file of token ids per split out."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lit_gpt.data.kinds import Piece
from lit_gpt.data.left_out import Counts, LeftOut
from lit_gpt.data.meta import write_json
from lit_gpt.data.prepare.recipes import RECIPES, ReadOptions
from lit_gpt.data.prepare.units import Unit
from lit_gpt.data.splits import Splitter
from lit_gpt.data.tokenizer import Tokenizer, load_tokenizer
from lit_gpt.errors import UserError

# Texts are tokenised together up to this many characters: a call of the tokenizer for each short text would cost more
# than its work, and a worker holds little at a time.
BATCH_CHARS = 1 << 20


@dataclass(frozen=True)
class Job:
    """Everything a worker needs to know. parts: the folder for its output."""

    parts: Path
    recipe: str
    options: ReadOptions
    splitter: Splitter
    tokenizer: str
    parse_special: bool
    dtype: str
    bos: bool

    def part(self, unit: int, split: str) -> Path:
        """The token ids of one unit and split, raw."""
        return self.parts / f"{unit:06d}.{split}"

    def done(self, unit: int) -> Path:
        """Written last: {"splits": {split: {"tokens", "bytes", "documents"}}, "left_out": what was not used}."""
        return self.parts / f"{unit:06d}.json"


class _Part:
    """Tokenises the documents of one split into one file, in order."""

    def __init__(self, path: Path, job: Job, tokenizer: Tokenizer, left: LeftOut):
        assert tokenizer.eos_id is not None
        self.file = open(path, "wb")  # noqa: SIM115 (open for as long as the unit lasts)
        self.dtype, self.tokenizer, self.left = np.dtype(job.dtype), tokenizer, left
        self.before = np.array([tokenizer.bos_id] if job.bos else [], self.dtype)
        self.after = np.array([tokenizer.eos_id], self.dtype)
        self.texts: list[tuple[Piece, str]] = []
        self.chars = self.tokens = self.bytes = self.documents = 0

    def add(self, piece: Piece, text: str) -> None:
        self.texts.append((piece, text))
        self.chars += len(text)
        if self.chars >= BATCH_CHARS:
            self.flush()

    def flush(self) -> None:
        texts = [text for _, text in self.texts]
        arrays = []
        for (piece, text), ids in zip(self.texts, self.tokenizer.encode_batch(texts)):
            # Bytes are their own ids; reading the buffer is ten times as fast as a list.
            array = np.frombuffer(ids, np.uint8) if isinstance(ids, bytes) else np.asarray(ids, self.dtype)
            arrays += [self.before, array, self.after]
            self.bytes += len(text) if text.isascii() else len(text.encode())
            if self.tokenizer.unk_id is not None and (unknown := ids.count(self.tokenizer.unk_id)):
                self.left.add("characters", "not in the tokenizer", piece, None, unknown)
        if arrays:  # in one piece: a call for each text would cost as much as its work
            tokens = np.concatenate(arrays, dtype=self.dtype)
            self.file.write(tokens.data)
            self.tokens += len(tokens)
        self.documents += len(texts)
        self.texts, self.chars = [], 0

    def close(self) -> dict[str, int]:
        self.flush()
        self.file.close()
        return {"tokens": self.tokens, "bytes": self.bytes, "documents": self.documents}


def encode_unit(job: Job, tokenizer: Tokenizer, unit: Unit) -> int:
    """Write the unit's parts and then its counts. Empty documents have no tokens and no EOS.

    Returns the unit's index. Raises UserError naming the file that cannot be read.
    """
    read, left = RECIPES.load(job.recipe).read, LeftOut(job.options.strict)
    parts: dict[str, _Part] = {}
    for piece in unit.pieces:
        for document in read(piece, job.options, left):
            for split, text in [(unit.split, document.text)] if unit.split else job.splitter(document):
                if text:
                    if split not in parts:
                        parts[split] = _Part(job.part(unit.index, split), job, tokenizer, left)
                    parts[split].add(piece, text)
    counts = {split: part.close() for split, part in parts.items()}
    write_json(job.done(unit.index), {"splits": counts, "left_out": left.counts})
    return unit.index


def read_counts(job: Job, unit: int) -> tuple[dict[str, dict[str, int]], Counts]:
    """(counts per split, what was left out) of a finished unit."""
    saved = json.loads(job.done(unit).read_text())
    return saved["splits"], saved["left_out"]


def total_counts(job: Job, num_units: int, left: LeftOut) -> dict[str, dict[str, int]]:
    """Exact totals per split over all units; what they left out is added to `left`."""
    totals: dict[str, dict[str, int]] = defaultdict(lambda: {"tokens": 0, "bytes": 0, "documents": 0})
    for unit in range(num_units):
        splits, left_out = read_counts(job, unit)
        left.merge(left_out)
        for split, counts in splits.items():
            for name, value in counts.items():
                totals[split][name] += value
    return dict(totals)


def load_job_tokenizer(job: Job) -> Tokenizer:
    """The tokenizer documents are encoded with. Raises UserError when it lacks what the job needs."""
    return check_tokenizer(load_tokenizer(job.tokenizer, parse_special=job.parse_special), job.bos)


def check_tokenizer(tokenizer: Tokenizer, bos: bool) -> Tokenizer:
    """The tokenizer itself. Raises UserError when it has no EOS, or is asked for a BOS and has none."""
    if tokenizer.eos_id is None:
        raise UserError(
            f"The tokenizer {tokenizer.name!r} has no end-of-document token that is known: name it with --eos_token."
        )
    if bos and tokenizer.bos_id is None:
        raise UserError(f"--bos was given, but the tokenizer {tokenizer.name!r} has no BOS token.")
    return tokenizer


_state: tuple[Job, Tokenizer] | None = None


def start_worker(job: Job) -> None:
    """Prepare a worker process: load the tokenizer once, and end when the parent ends."""
    global _state
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _state = job, load_job_tokenizer(job)


def _leave_with_parent() -> None:
    """A worker whose parent was killed must not go on writing beside the next run's workers."""
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)


def run_in_worker(unit: Unit) -> int:
    """encode_unit in a worker process, with the job and tokenizer that start_worker loaded."""
    assert _state
    return encode_unit(*_state, unit)
