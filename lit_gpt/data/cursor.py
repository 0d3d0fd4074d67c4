"""The cursor: where in the global order of samples a run stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lit_gpt.errors import UserError

VERSION = 1


@dataclass
class Cursor:
    """How many samples of a corpus a run has seen, which is all that is needed to continue.

    It does not depend on the number of ranks or the micro-batch. fingerprint, content: of the corpus, see Corpus.
    """

    fingerprint: str
    content: str
    samples_seen: int = 0

    def state(self) -> dict[str, Any]:
        """{"samples_seen", "fingerprint", "content", "version"}: all that a checkpoint needs to hold."""
        seen = {"samples_seen": self.samples_seen, "fingerprint": self.fingerprint}
        return {**seen, "content": self.content, "version": VERSION}

    @classmethod
    def restore(cls, state: Mapping[str, Any], fingerprint: str, content: str) -> Cursor:
        """The cursor a state describes. Raises UserError when it belongs to another order of samples.

        Checkpoints of releases that did not look at the content have none, and any fits.
        """
        seen = state.get("samples_seen") if isinstance(state, Mapping) else None
        if type(seen) is not int or not 0 <= seen < 1 << 63 or not {"version", "fingerprint"} <= state.keys():
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
                "seed differ. Give the same ones to resume, or start a new run from these weights."
            )
        if state.get("content", content) != content:
            raise UserError(
                "The data is not what the checkpoint was trained on: the files have the same names and sizes, but "
                "other tokens. Put the old files back to resume, or start a new run from these weights: --init_from."
            )
        return cls(fingerprint, content, seen)
