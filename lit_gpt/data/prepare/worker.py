"""Documents in, token ids out: what a worker process does for a unit, or the only process."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lit_gpt.data.kinds import Piece
from lit_gpt.data.left_out import LeftOut
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
        """What encode_unit returned, written when the parts are."""
        return self.parts / f"{unit:06d}.json"


class Sink(Protocol):
    """What token ids are written to, such as a file."""

    def write(self, tokens: Any, /) -> Any: ...


class _Split:
    """Tokenises the documents of one split of a unit, in order."""

    def __init__(self, sink: Sink, job: Job, tokenizer: Tokenizer, left: LeftOut):
        assert tokenizer.eos_id is not None
        self.sink, self.dtype, self.tokenizer, self.left = sink, np.dtype(job.dtype), tokenizer, left
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
            if dropped := self.tokenizer.dropped(text):
                self.left.add("dropped", "not in the tokenizer, which has no unknown token", piece, None, dropped)
        if arrays:  # in one piece: a call for each text would cost as much as its work
            tokens = np.concatenate(arrays, dtype=self.dtype)
            self.sink.write(tokens)
            self.tokens += len(tokens)
        self.documents += len(texts)
        self.texts, self.chars = [], 0

    def close(self) -> dict[str, int]:
        self.flush()
        return {"tokens": self.tokens, "bytes": self.bytes, "documents": self.documents}


def encode_unit(job: Job, tokenizer: Tokenizer, unit: Unit, sink: Callable[[str], Sink]) -> dict[str, Any]:
    """Write the token ids of each split of the unit to sink(split). Empty documents have no tokens and no EOS.

    Returns {"splits": {split: {"tokens", "bytes", "documents"}}, "left_out": what was not used}.
    Raises UserError naming the file that cannot be read.
    """
    read, left = RECIPES.load(job.recipe).read, LeftOut(job.options.strict)
    splits: dict[str, _Split] = {}
    for piece in unit.pieces:
        for document in read(piece, job.options, left):
            for split, text in [(unit.split, document.text)] if unit.split else job.splitter(document):
                if text:
                    if split not in splits:
                        splits[split] = _Split(sink(split), job, tokenizer, left)
                    splits[split].add(piece, text)
    return {"splits": {split: part.close() for split, part in splits.items()}, "left_out": left.counts}


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


def start_worker(job: Job, begun: Event) -> None:
    """Prepare a worker process: load the tokenizer once, and end when the parent ends. begun: set when that is done."""
    global _state
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _state = job, load_job_tokenizer(job)
    begun.set()


def _leave_with_parent() -> None:
    """A worker whose parent was killed must not go on writing beside the next run's workers."""
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)


def run_in_worker(unit: Unit) -> None:
    """Encode a unit into its parts, with the job and tokenizer that start_worker loaded."""
    assert _state
    job, tokenizer = _state
    with ExitStack() as files:
        encoded = encode_unit(job, tokenizer, unit, lambda s: files.enter_context(open(job.part(unit.index, s), "wb")))
    write_json(job.done(unit.index), encoded)
