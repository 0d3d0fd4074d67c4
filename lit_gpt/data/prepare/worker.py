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

from lit_gpt.data.documents import Splitter
from lit_gpt.data.meta import write_json
from lit_gpt.data.prepare.recipes import RECIPES, ReadOptions
from lit_gpt.data.prepare.units import Unit
from lit_gpt.data.tokenizer import Tokenizer, load_tokenizer
from lit_gpt.errors import UserError

BATCH_CHARS = 1 << 20  # texts are tokenised together up to this many characters


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
        """Written last: the unit's counts, {split: {"tokens", "bytes", "documents"}}."""
        return self.parts / f"{unit:06d}.json"


class _Part:
    """Tokenises the documents of one split into one file, in order."""

    def __init__(self, path: Path, job: Job, tokenizer: Tokenizer):
        assert tokenizer.eos_id is not None
        self.file = open(path, "wb")  # noqa: SIM115 (open for as long as the unit lasts)
        self.dtype, self.tokenizer = np.dtype(job.dtype), tokenizer
        self.before = [tokenizer.bos_id] if job.bos else []
        self.after = [tokenizer.eos_id]
        self.texts: list[str] = []
        self.chars = self.tokens = self.bytes = self.documents = 0

    def add(self, text: str) -> None:
        self.texts.append(text)
        self.chars += len(text)
        if self.chars >= BATCH_CHARS:
            self.flush()

    def flush(self) -> None:
        for text, ids in zip(self.texts, self.tokenizer.encode_batch(self.texts)):
            array = np.array([*self.before, *ids, *self.after], self.dtype)
            array.tofile(self.file)
            self.tokens += len(array)
            self.bytes += len(text.encode())
        self.documents += len(self.texts)
        self.texts, self.chars = [], 0

    def close(self) -> dict[str, int]:
        self.flush()
        self.file.close()
        return {"tokens": self.tokens, "bytes": self.bytes, "documents": self.documents}


def encode_unit(job: Job, tokenizer: Tokenizer, unit: Unit) -> int:
    """Write the unit's parts and then its counts. Empty documents have no tokens and no EOS.

    Returns the unit's index. Raises UserError naming the file that cannot be read.
    """
    read = RECIPES.load(job.recipe).read
    parts: dict[str, _Part] = {}
    for piece in unit.pieces:
        for document in read(piece, job.options):
            for split, text in [(unit.split, document.text)] if unit.split else job.splitter(document):
                if text:
                    if split not in parts:
                        parts[split] = _Part(job.part(unit.index, split), job, tokenizer)
                    parts[split].add(text)
    write_json(job.done(unit.index), {split: part.close() for split, part in parts.items()})
    return unit.index


def read_counts(job: Job, unit: int) -> dict[str, dict[str, int]]:
    """The counts of a finished unit."""
    return json.loads(job.done(unit).read_text())


def total_counts(job: Job, num_units: int) -> dict[str, dict[str, int]]:
    """Exact totals per split over all units."""
    totals: dict[str, dict[str, int]] = defaultdict(lambda: {"tokens": 0, "bytes": 0, "documents": 0})
    for unit in range(num_units):
        for split, counts in read_counts(job, unit).items():
            for name, value in counts.items():
                totals[split][name] += value
    return dict(totals)


def load_job_tokenizer(job: Job) -> Tokenizer:
    """The tokenizer documents are encoded with. Raises UserError when it lacks what the job needs."""
    tokenizer = load_tokenizer(job.tokenizer, parse_special=job.parse_special)
    if tokenizer.eos_id is None:
        raise UserError(
            f"The tokenizer {tokenizer.name!r} has no end-of-document token that is known: name it with --eos_token."
        )
    if job.bos and tokenizer.bos_id is None:
        raise UserError(f"--bos was given, but the tokenizer {tokenizer.name!r} has no BOS token.")
    return tokenizer


_state: tuple[Job, Tokenizer] | None = None


def start_worker(job: Job) -> None:
    """Called once in every worker process."""
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
    """encode_unit with what start_worker loaded."""
    assert _state
    return encode_unit(*_state, unit)
