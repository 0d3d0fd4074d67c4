"""What a model makes of fixed prompts while it trains: greedy continuations in samples.jsonl of the run folder.

They draw no random numbers and change nothing that training reads, so the numbers of a run are the same without them.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from lit_gpt.config.model import ModelConfig
from lit_gpt.data.kept_tokenizer import KeptTokenizer
from lit_gpt.errors import UserError
from lit_gpt.evals.generation import generate
from lit_gpt.evals.model_tokenizer import prompt_ids
from lit_gpt.model import GPT
from lit_gpt.utils.files import regular, replacing, sync

SAMPLES_FILE = "samples.jsonl"


class Samples:
    """The prompts of a run and the file of what became of them, which is written by one process.

    prompts: file with a prompt per line. count: tokens of a continuation, at most. tokenizer: of the training data.
    Raises UserError for a file without prompts, and for a model or data that cannot continue them.
    """

    def __init__(self, prompts: str, count: int, config: ModelConfig, tokenizer: KeptTokenizer | None):
        experts = config.experts
        if experts is not None and experts.routing == "expert_choice":
            raise UserError("--sample_prompts: with expert_choice a model cannot generate; leave the option out.")
        if tokenizer is None:
            raise UserError("--sample_prompts: the training data does not say which tokenizer it has; add a meta.json.")
        self.tokenizer, self.prompts, self.count = tokenizer.load(), read_prompts(prompts), count
        size = config.vocab_size
        self.ids = [prompt_ids(size, self.tokenizer, prompt, tokenizer.bos_id) for prompt in self.prompts]
        self.lines, self.newest, self.path = list[str](), list[tuple[str, str | None]](), Path()

    def open(self, folder: Path, resume_step: int, owned: Callable[[], None]) -> None:
        """Go on with the file of a run folder, without what it says of steps after `resume_step`."""
        self.path, self.owned = folder / SAMPLES_FILE, owned
        if resume_step and self.path.is_file():
            try:
                lines = self.path.read_text(encoding="utf-8").split("\n")[:-1]
                self.lines = [line for line in lines if json.loads(line)["step"] <= resume_step]
            except (ValueError, TypeError, KeyError) as error:  # no reason not to go on with the run
                aside = self.path.with_name(f"{SAMPLES_FILE}.corrupt")
                self.path.replace(aside)
                warnings.warn(f"{self.path} had lines that are no samples ({error}); it is {aside} now.", stacklevel=2)

    def take(self, model: GPT, step: int, tokens: int, *, write: bool) -> str:
        """Continue every prompt, and with `write` write the file; a sentence on what went wrong, "" for nothing.

        model: in evaluation mode, with all weights; every process continues the prompts, so that none waits.
        """
        said, texts = "", list[str | None]([None] * len(self.ids))
        try:
            texts = [self.tokenizer.decode(ids) for ids in self._continued(model)]
        except UserError as error:  # such as logits that are NaN, with which the guard of the steps deals
            said = f"warning: no samples at step {step}: {error}"
        for prompt, text in zip(self.prompts, texts):
            row = {"step": step, "tokens": tokens, "prompt": prompt, "text": text}
            self.lines.append(json.dumps(row, ensure_ascii=False))
        self.newest = list(zip(self.prompts, texts))
        if write:
            self._write(step)
        return said

    def _continued(self, model: GPT) -> list[list[int]]:
        with torch.compiler.set_stance("force_eager"):  # a graph for every length would push out those of training
            # One at a time: in a batch, the last digits of logits depend on the other prompts.
            stop = self.tokenizer.eos_id
            return [generate(model, [ids], self.count, stop=stop)[0] for ids in self.ids]

    def _write(self, step: int) -> None:
        """The whole file; while that fails, the lines wait for the next time."""
        self.owned()
        try:
            with replacing(self.path) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in self.lines), encoding="utf-8")
                sync(temporary)  # as those of metrics.jsonl, see sinks.py
                self.owned()
        except OSError as error:  # with the step, as Python drops a text that it has shown
            warnings.warn(
                f"{self.path} cannot be written at step {step} ({error.strerror}); training goes on, and its lines "
                "wait for the next time.",
                stacklevel=3,
            )


def read_prompts(path: str) -> list[str]:
    """The lines of a file that hold something. Raises UserError where there are none."""
    wanted = "Give --sample_prompts a text file with a prompt in each line."
    try:
        lines = regular(Path(path), wanted).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--sample_prompts {path} cannot be read as UTF-8 text ({error}).") from error
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"--sample_prompts {path} holds no prompt; write one in each line.")
    return prompts
