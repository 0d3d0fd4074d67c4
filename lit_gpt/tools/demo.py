"""Watch a real model learn from real text, on this machine, in minutes.

python -m lit_gpt.tools.demo

The corpus is the Python source of the running interpreter's standard library, tokenised as
bytes: it is real, every machine has it, and nothing is downloaded. The model is a small
`transformer` under muP++. Everything goes through the same code as pretrain.py.
"""

from __future__ import annotations

import gzip
import json
import shlex
import sysconfig
import time
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.config.command import run_command
from lit_gpt.config.run import BaseHyperparameters, RunConfig
from lit_gpt.data import open_corpus
from lit_gpt.data.corpus import Corpus
from lit_gpt.data.prepare import prepare
from lit_gpt.data.tokenizer import load_tokenizer
from lit_gpt.evals.generation import Sampling, generate
from lit_gpt.evals.trained_model import load_model
from lit_gpt.metrics.summary import SUMMARY_FILE
from lit_gpt.ops.loss import IGNORE
from lit_gpt.parallel import start_runtime
from lit_gpt.preflight.resolved_run import dry_run_text
from lit_gpt.preflight.resolved_run import resolve_run as plan_run
from lit_gpt.tools._cli import parser_for
from lit_gpt.train.loop import Result, Trainer

DATA = "demo_data"
PROMPT = "def "

# What four minutes on two CPU cores are spent on, found by trying (docs/demo.md): a small
# model that sees many bytes beats a larger one that sees few.
DEPTH, ASPECT_RATIO, CONTEXT = 4, 32, 256
SEQUENCES = 4  # per step: many small steps beat few large ones
TOKENS = 1.5e6
VALIDATION_WINDOWS = 1000  # of CONTEXT bytes: enough that which files they come from matters little
HPS = BaseHyperparameters(
    d0=DEPTH,
    ar0=128,  # the rates below were found as a transfer from this width, 512
    # Table, head and gains want a far larger rate than matrices when a run is this short.
    eta0=5e-2,
    weight_lr_scale=0.0085,
    b0=SEQUENCES * CONTEXT,
    t0=TOKENS,
    warmup_tokens=3e4,
    beta2=0.99,  # small batches: average the second moment over more steps (arXiv:2507.07101)
)


def main(argv: list[str]) -> int:
    """Prepare, train, measure, generate, and say what to do next."""
    parser = parser_for("demo", "Train a small model on the standard library's source and look at it.")
    parser.add_argument("--output", type=Path, default=Path("out/demo"), help="where data and runs go")
    parser.add_argument("--max_tokens", type=float, default=TOKENS, help="tokens to train on")
    parser.add_argument("--seed", type=int, default=3407, help="seed of the weights and of the order of the data")
    values = parser.parse_args(argv)
    start = time.perf_counter()
    say(1, "the corpus: the source of Python's standard library, as bytes")
    data = corpus(values.output)
    say(2, "training (Ctrl-C stops with a checkpoint)")
    result = train(values, data)
    if result.code:
        print(f"Stopped early; the checkpoint is in {result.folder / 'checkpoints'}.")
        return 0
    say(3, "a sample")
    print(sample(result.folder))
    say(4, f"summary, after {time.perf_counter() - start:.0f} s")
    print(summary(result, data))
    return 0


def say(number: int, what: str) -> None:
    """Print a heading."""
    print(f"\n[{number}/4] {what}", flush=True)


def corpus(output: Path) -> Path:
    """The prepared data, made on the first call."""
    folder = output / DATA
    stdlib = sysconfig.get_paths()["stdlib"]
    prepare(stdlib, str(folder), include="*.py", exclude="site-packages/*", validation_fraction=0.01)
    return folder


def train(values: Any, data: Path) -> Result:
    """One run in a folder of its own, named by the time."""
    run = RunConfig(
        train_data_dir=str(data),
        val_data_dir=str(data),
        train_model="transformer",
        train_name="demo_mup",
        depth=DEPTH,
        ar=ASPECT_RATIO,
        ctx_len=CONTEXT,
        micro_bsz=SEQUENCES,
        total_bsz=SEQUENCES * CONTEXT,
        max_tokens=values.max_tokens,
        head_init_std=None,  # start from the uniform guess
        base_hps=scaled_warmup(values.max_tokens),
        seed=values.seed,
        out_dir=str(values.output / time.strftime("%Y%m%d-%H%M%S")),
        log_step=50,
        num_extrp=1,
        eval_step=10**9,  # once, at the end
        eval_sequences=VALIDATION_WINDOWS,
        save_step=10**9,
        num_workers=1,
    )
    resolved = plan_run(run, ranks=1)
    print(dry_run_text(resolved))
    return Trainer(resolved, start_runtime(precision=run.precision)).fit()


def scaled_warmup(max_tokens: float) -> BaseHyperparameters:
    """The demo's hyper-parameters, with a warm-up that fits a shorter run."""
    return BaseHyperparameters(**{**vars(HPS), "warmup_tokens": min(HPS.warmup_tokens or 0.0, max_tokens / 10)})


def validation(data: Path) -> Corpus:
    """The held-out bytes in order, each a target once; the run is measured on its first windows."""
    return open_corpus(str(data), "validation", CONTEXT, seed=0, shuffle=False, repeat=False)


def gzip_bits_per_byte(data: Path) -> float:
    """What gzip -9 needs for the same validation bytes (documents one after the other)."""
    held_out = validation(data)
    windows = min(VALIDATION_WINDOWS, held_out.num_samples)
    ids = np.concatenate([held_out.sample(i)[1:] for i in range(windows)])
    text = ids[(ids != IGNORE) & (ids != held_out.eos_id)].astype(np.uint8).tobytes()
    return 8 * len(gzip.compress(text, 9)) / len(text)


def sample(folder: Path) -> str:
    """A continuation of PROMPT by the trained model."""
    model, _ = load_model(folder)
    tokenizer = load_tokenizer("bytes")
    prompt = tokenizer.encode(PROMPT)
    new = generate(model, [prompt], 300, Sampling(temperature=0.7), stop=tokenizer.eos_id)[0]
    return tokenizer.decode([*prompt, *new])


def summary(result: Result, data: Path) -> str:
    """The figures a person wants, where things are, and what to type next."""
    found = json.loads((result.folder / SUMMARY_FILE).read_text())
    bits, zipped = found["metric/val_bpb@1x"], gzip_bits_per_byte(data)
    verdict = "the model is better" if bits < zipped else "gzip is better"
    folder = shlex.quote(str(result.folder))
    return "\n".join(
        [
            f"validation loss   {found['metric/val_loss@1x']:.4f} nats per byte",
            f"bits per byte     {bits:.3f}   (gzip -9 on the same bytes: {zipped:.3f}; {verdict})",
            f"speed             {found['throughput/tokens_per_sec']:,.0f} tokens/s",
            f"run folder        {result.folder}",
            f"loss curve        {result.folder / 'loss_curve.png'}",
            "",
            "next:",
            f'  .venv/bin/python -m lit_gpt.tools.generate {folder} --prompt "class "',
            f"  .venv/bin/python -m lit_gpt.tools.inspect run {folder}",
            "  .venv/bin/python pretrain.py --train_model transformer --depth 8 --train_name mup --dry_run true",
        ]
    )


if __name__ == "__main__":
    run_command(main)
