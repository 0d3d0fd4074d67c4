"""Watch a real model learn from real text, on this machine, in minutes.

python -m lit_gpt.tools.demo

The corpus is the Python source of the running interpreter's standard library, without its tests, in the tokens of a BPE
that is trained on it: it is real, every machine has it, and nothing is downloaded. The model is a small `transformer`
under muP++, trained with Muon. Everything goes through the same code as pretrain.py.
"""

from __future__ import annotations

import gzip
import json
import lzma
import shlex
import sysconfig
import time
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.config.command import answer_early, run_command
from lit_gpt.config.model import IGNORE
from lit_gpt.config.parsers import Parser
from lit_gpt.config.run import BaseHyperparameters, RunConfig
from lit_gpt.data import open_corpus
from lit_gpt.data.prepare import prepare
from lit_gpt.data.tokenizer import load_tokenizer
from lit_gpt.metrics.summary import SUMMARY_FILE
from lit_gpt.tools._cli import parser_for

DATA = "stdlib_bpe"
TESTS = ["site-packages/*", "test/*", "*/test/*", "*/tests/*", "*/idle_test/*"]  # left out: not all machines have them
PROMPT = "class Reader:\n    def __init__(self"
# What four minutes on two CPU cores are spent on, found by trying (docs/demo.md).
VOCABULARY = 2048  # some three bytes a token: three times the text of bytes in the same time
BPE_BYTES = 4 * 2**20  # of text the BPE is trained on: more is no better and takes longer
DEPTH, ASPECT_RATIO, CONTEXT = 4, 32, 128  # a small model that sees much text beats a larger one that sees little
SEQUENCES = 8  # per step: many small steps beat few large ones
TOKENS = 1.5e6
HPS = BaseHyperparameters(
    d0=DEPTH,  # the model is its own base: nothing is transferred
    b0=SEQUENCES * CONTEXT,
    eta0=4e-2,
    muon_beta=0.9,
    beta2=0.99,  # small batches: average the second moment over more steps (arXiv:2507.07101)
)


def build_parser() -> Parser:
    """The parser of this tool's command line."""
    parser = parser_for("demo", "Train a small model on the standard library's source and look at it.")
    parser.add_argument("--output", type=Path, default=Path("out/demo"), help="where data and runs go")
    parser.add_argument("--max_tokens", type=float, default=TOKENS, help="tokens to train on")
    parser.add_argument("--seed", type=int, default=3407, help="seed of the weights and of the order of the data")
    parser.add_argument("--prepare_only", action="store_true", help="end when the corpus is there")
    return parser


answer_early(__name__, lambda words: build_parser().parse_args(words))

from lit_gpt.evals.generation import Sampling, generate
from lit_gpt.evals.trained_model import load_model
from lit_gpt.parallel import start_runtime
from lit_gpt.preflight.resolved_run import dry_run_text
from lit_gpt.preflight.resolved_run import resolve_run as plan_run
from lit_gpt.train.loop import Result, Trainer


def main(argv: list[str]) -> int:
    """Prepare, train, measure, generate, and say what to do next."""
    values = build_parser().parse_args(argv)
    start = time.perf_counter()
    say(1, "the corpus: the source of Python's standard library, and a BPE trained on it")
    data = corpus(values.output)
    if values.prepare_only:
        print(f"The corpus is in {data}.")
        return 0
    say(2, "training (Ctrl-C stops with a checkpoint)")
    result = train(values, data)
    if result.code:
        print(
            f"Stopped early; the checkpoint is in {result.folder / 'checkpoints'}. The demo starts anew each time. To "
            f"see what this model writes, type:\n  .venv/bin/python -m lit_gpt.tools.generate "
            f"{shlex.quote(str(result.folder))} --prompt {shlex.quote(PROMPT)}"
        )
        return 0
    say(3, f"a sample, continuing {PROMPT!r}")
    print(sample(result.folder, data))
    say(4, f"summary, after {time.perf_counter() - start:.0f} s")
    print(summary(result, data))
    return 0


def say(number: int, what: str) -> None:
    """Print a heading."""
    print(f"\n[{number}/4] {what}", flush=True)


def corpus(output: Path) -> Path:
    """The prepared data, made on the first call; one document in fifty is held out."""
    folder, source = output / DATA, sysconfig.get_paths()["stdlib"]
    bpe: dict[str, Any] = {"tokenizer": "train", "vocab_size": VOCABULARY, "train_bytes": BPE_BYTES}
    prepare(source, str(folder), include="*.py", exclude=TESTS, validation_fraction=0.02, **bpe)
    return folder


def train(values: Any, data: Path) -> Result:
    """One run in a folder of its own, named by the time."""
    run = RunConfig(
        train_data_dir=str(data),
        val_data_dir=str(data),
        train_model="transformer",
        train_name="demo_mup_muon_tie",
        depth=DEPTH,
        ar=ASPECT_RATIO,
        ctx_len=CONTEXT,
        micro_bsz=SEQUENCES,
        total_bsz=SEQUENCES * CONTEXT,
        max_tokens=values.max_tokens,
        base_hps=HPS,
        seed=values.seed,
        out_dir=str(values.output / time.strftime("%Y%m%d-%H%M%S")),
        log_step=50,
        num_extrp=1,
        eval_step=10**9,  # once, at the end
        eval_sequences=10**9,  # all that is held out, which gzip gets, too
        save_step=10**9,
        num_workers=1,
    )
    resolved = plan_run(run, ranks=1)
    print(dry_run_text(resolved))
    return Trainer(resolved, start_runtime(precision=run.precision)).fit()


def held_out(data: Path) -> bytes:
    """The bytes that the model is measured on: the text of every target of the validation split, in order."""
    split = open_corpus(str(data), "validation", CONTEXT, seed=0, shuffle=False, repeat=False)
    ids = np.concatenate([split.sample(i)[1:] for i in range(split.num_samples)])
    return load_tokenizer(str(data)).decode(ids[(ids != IGNORE) & (ids != split.eos_id)].tolist()).encode()


def sample(folder: Path, data: Path) -> str:
    """A continuation of PROMPT by the trained model."""
    model, _ = load_model(folder)
    tokenizer = load_tokenizer(str(data))
    prompt = tokenizer.encode(PROMPT)
    new = generate(model, [prompt], 200, Sampling(temperature=0.5, top_k=40), stop=tokenizer.eos_id)[0]
    return tokenizer.decode([*prompt, *new])


def summary(result: Result, data: Path) -> str:
    """The figures a person wants, where things are, and what to type next."""
    found, text = json.loads((result.folder / SUMMARY_FILE).read_text()), held_out(data)
    bits = found["metric/val_bpb@1x"]
    zipped, xz = (8 * len(packed) / len(text) for packed in (gzip.compress(text, 9), lzma.compress(text, preset=9)))
    verdict = "the model is better" if bits < zipped else "gzip is better"
    folder = shlex.quote(str(result.folder))
    return "\n".join(
        [
            f"validation loss   {found['metric/val_loss@1x']:.4f} nats per token, on {len(text):,} bytes it never saw",
            f"bits per byte     {bits:.3f}   (of the same bytes gzip -9 makes {zipped:.3f}, xz -9 {xz:.3f}; {verdict})",
            f"speed             {found['throughput/tokens_per_sec']:,.0f} tokens/s",
            f"run folder        {result.folder}",
            f"loss curve        {result.folder / 'loss_curve.png'}",
            "",
            "next:",
            f'  .venv/bin/python -m lit_gpt.tools.generate {folder} --prompt "class " --temperature 0.5 --top_k 40',
            f"  .venv/bin/python -m lit_gpt.tools.inspect run {folder}",
            f"  .venv/bin/python pretrain.py --config configs/laptop.yaml --train_data_dir {shlex.quote(str(data))}",
        ]
    )


if __name__ == "__main__":
    run_command(main)
