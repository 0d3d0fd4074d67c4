"""The cursor: where in the global order of samples a run stands, and a fork of it in each of its sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from lit_gpt.data.corpus import Corpus
from lit_gpt.errors import UserError

VERSION = 1


def is_count(value: object) -> TypeGuard[int]:
    """Whether it can be a number of samples."""
    return type(value) is int and 0 <= value < 1 << 63


@dataclass
class Cursor:
    """How many samples of a corpus a run has seen, which is all that is needed to continue.

    It does not depend on the number of ranks or the micro-batch. fingerprint, content: of the corpus, see Corpus.
    """

    fingerprint: str
    content: str
    samples_seen: int = 0

    def state(self) -> dict[str, Any]:
        """{"samples_seen", "fingerprint", "content", "version"}: all that a resume needs."""
        seen = {"samples_seen": self.samples_seen, "fingerprint": self.fingerprint}
        return {**seen, "content": self.content, "version": VERSION}

    @classmethod
    def restore(cls, state: Mapping[str, Any], fingerprint: str, content: str) -> Cursor:
        """The cursor a state describes. Raises UserError when it belongs to another order of samples.

        Checkpoints of releases that did not look at the content have none, and any fits.
        """
        seen = state.get("samples_seen") if isinstance(state, Mapping) else None
        if not is_count(seen) or not {"version", "fingerprint"} <= state.keys():
            raise UserError(f"The checkpoint's data state is none: {str(state)[:80]}. Use another step of the run.")
        if state["version"] != VERSION:
            raise UserError(
                f"The checkpoint's data state has version {state['version']}, this program reads {VERSION}. "
                "Resume with the program that wrote it, or start a new run."
            )
        if state["fingerprint"] != fingerprint:
            raise UserError(
                f"The data is not what the checkpoint was trained on (fingerprint {fingerprint}, the "
                f"checkpoint has {state['fingerprint']}): the files, the mixture, the context length or the "
                "seed of the data differ. Give the same ones to resume, or start a new run from these weights."
            )
        if state.get("content", content) != content:
            raise UserError(
                "The data is not what the checkpoint was trained on: the files have the same names and sizes, but "
                "other tokens. Put the old files back to resume, or start a new run from these weights: --init_from."
            )
        return cls(fingerprint, content, seen)


def offsets_from(state: Mapping[str, Any], corpus: Corpus) -> dict[str, int]:
    """Source -> windows of it that another run had seen, to go on behind them: the offsets of its corpus.

    state: the data state of that run's checkpoint. corpus: the new run's, without offsets. 0 for a source whose name,
    files, context or seed were others there, since it was not read or its windows were in another order. Earlier
    checkpoints do not say it of sources, so theirs count where the whole corpus is the same. Raises UserError for
    windows that are no count.
    """
    here = corpus.place(0)
    if "sources" not in state and state["fingerprint"] == corpus.fingerprint:
        state = corpus.place(state["samples_seen"])
    same = all(state.get(key) == here[key] for key in ("block", "seed"))
    there = state.get("sources", {}) if same else {}
    offsets = dict.fromkeys(here["sources"], 0)
    for name, new in here["sources"].items():
        if name in there and there[name]["stream"] == new["stream"]:
            offsets[name] = there[name]["windows"]
        if not is_count(offsets[name]):
            found = f"{str(offsets[name])[:40]} windows of {name!r}"
            raise UserError(f"The checkpoint's data state is none: {found}. Use another step of the run.")
    return offsets
