"""Ours beside others at one size: a loop by hand, litgpt and torchtitan, in bf16 and in 8 bits, as ratios.

    python benchmarks/compare.py --sizes 16:8 --rounds 3 --output compare.json
    PYTHONPATH=FOLDER python benchmarks/compare.py --peers plain,litgpt,ours

FOLDER has what is not installed: pip install --no-deps --target FOLDER, which leaves torch as it is.

    plain        benchmarks/plain_loop.py: a compiled Llama in our shapes, cuDNN's attention, Liger's loss, fused AdamW
    litgpt       litgpt's GPT in that loop, with that loss
    torchtitan   torchtitan's Llama 3 in that loop, with that loss
    ours         the Trainer of pretrain.py, through train_step.py

NAME_RECIPE is NAME in 8 bits: all linear maps of its blocks, by torchao's recipe or, for ours, by one of --fp8_recipe.
All have the shapes of our `transformer`, the same tokens per step, an optimizer step after every micro-batch, weights
in fp32 and products in bf16 (fp32 on a CPU). Each runs in a process of its own, once a round, and every other round in
the opposite order; a ratio is that of two runs of one round. The table has medians over rounds, and quartiles. What is
not installed is left out with a sentence. Beside them: the rate of bf16 products of two 8192 x 8192 matrices.
"""

from __future__ import annotations

import json
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from sizes import CONTEXT, VOCAB

from lit_gpt import architectures
from lit_gpt.config.command import answer_early, command_of, reader_of, run_command
from lit_gpt.config.model import ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.utils.files import write_text

ALL = "plain,plain_tensorwise,plain_rowwise,litgpt,torchtitan,ours,ours_tensorwise"


def main(
    peers: str = ALL,
    sizes: str = "16:8",
    rounds: int = 3,
    context: int = CONTEXT,
    steps: int = 40,
    warmup: int = 10,
    residual_precision: Literal["fp32", "bf16"] = "fp32",
    loss: Literal["liger", "chunked"] | None = None,
    ar: int | None = None,
    limit: int = 600,
    output: str | None = None,
    one: str | None = None,
) -> None:
    """Run all peers in several rounds, and print their speeds and ratios.

    Args:
        peers: comma-separated names, NAME or NAME_RECIPE; see the top of this file.
        sizes: comma-separated depth:micro_bsz pairs.
        rounds: how often each peer runs.
        context: tokens of a sequence.
        steps: timed steps of a run.
        warmup: steps before them, at least 1.
        residual_precision: of the residual stream of plain and ours; the other two keep what autocast gives, fp32.
        loss: of all but ours; default Liger Kernel's where it is installed, and else the loop's own.
        ar: aspect ratio; default the family's.
        limit: seconds after which a run is given up.
        output: JSON file for the rows and the table, written after each run.
        one: internal; measure this peer in this process and print a line of JSON.
    """
    names = checked(peers)
    if warmup < 1:
        raise UserError(f"--warmup is {warmup}: the first step compiles and is not timed. Give at least 1.")
    pairs = [(int(d), int(m)) for d, m in (pair.split(":") for pair in sizes.split(","))]
    settings = [Setting(d, m, context, steps, warmup, residual_precision, loss, ar) for d, m in pairs]
    if one:
        print(json.dumps(measured(one, settings[0])), flush=True)
        return
    # Of the machine, too, where its rate can be measured; asking whether there is a GPU does not use it.
    names = [*([PRODUCTS] if torch.cuda.is_available() else []), *names]
    done: list[list[dict[str, Any]]] = []
    for s in settings:
        done.append([])
        for row in compare(names, s, rounds, limit):
            done[-1].append(row)
            print(progress(row), flush=True)
            if output:
                keep(done, Path(output))
        print(f"\ntransformer d{s.depth}, {s.context:,} tokens, micro-batch {s.micro_bsz}\n{HEADER}")
        print("\n".join(map(text, summary(done[-1]))) + "\n", flush=True)
    failed = {row["peer"] for rows in done for row in rows if "failed" in row}
    if failed:
        sys.exit(f"{', '.join(sorted(failed))} failed; what they said is above.")


answer_early(__name__, reader_of(main))

import torch
from plain_loop import Peer, plain, train
from torch import nn
from train_step import device_name, measure, speeds

from lit_gpt.ops.fp8 import RECIPES
from lit_gpt.tools.baseline import products_per_second

TORCHAO = ("tensorwise", "rowwise", "rowwise_with_gw_hp")
PRODUCTS = "products"  # stands among the peers' names for the machine's rate
NEAR = 0.01  # models with more than this between their sizes are not compared


class Setting(NamedTuple):
    """What all peers of a table share."""

    depth: int
    micro_bsz: int
    context: int
    steps: int
    warmup: int
    residual_precision: str
    loss: str | None = None
    ar: int | None = None

    @property
    def shapes(self) -> ModelConfig:
        """Of our transformer."""
        model = architectures.build("transformer", self.depth, aspect_ratio=self.ar, block_size=self.context)
        return model.replace(vocab_size=VOCAB)


def litgpt(c: ModelConfig) -> Peer:
    """litgpt's model, seen with 0.5.13."""
    from litgpt import GPT, Config

    config = Config(
        block_size=c.block_size,
        n_layer=c.depth,
        n_embd=c.n_embd,
        n_head=c.n_head,
        n_query_groups=c.n_kv_head,
        head_size=c.head_dim,
        padded_vocab_size=c.padded_vocab_size,
        norm_class_name="RMSNorm",
        norm_eps=c.norm_eps,
        rope_base=int(c.rope_base),
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        mlp_class_name="LLaMAMLP",
        intermediate_size=c.intermediate_size,
    )
    model = GPT(config)
    model.apply(model._init_weights)
    head_VD, model.lm_head = model.lm_head.weight, nn.Identity()
    return Peer(model, head_VD)


def torchtitan(c: ModelConfig) -> Peer:
    """torchtitan's Llama 3, seen with 0.2.2 and 0.3.0, whose names differ."""
    from torchtitan.models import llama3

    model = (titan_0_3 if hasattr(llama3, "Llama3Model") else titan_0_2)(llama3, c)
    name = "lm_head" if hasattr(model, "lm_head") else "output"
    head_VD = getattr(model, name).weight
    setattr(model, name, None)  # as on all stages of a pipeline but the last: the model then returns hidden states
    return Peer(model, head_VD)


def titan_0_2(llama3: Any, c: ModelConfig) -> nn.Module:
    """Its hidden width is 2/3 of 4 n, times a factor, rounded up to a multiple. Its RoPE is that of Llama 3.1."""
    arguments = llama3.TransformerModelArgs(
        dim=c.n_embd,
        n_layers=c.depth,
        n_heads=c.n_head,
        n_kv_heads=c.n_kv_head,
        vocab_size=c.padded_vocab_size,
        multiple_of=16,
        ffn_dim_multiplier=c.intermediate_size / int(8 * c.n_embd / 3),
        norm_eps=c.norm_eps,
        rope_theta=c.rope_base,
        max_seq_len=c.block_size,
    )
    model = llama3.Transformer(arguments)
    with torch.no_grad():
        model.init_weights()
    return model


def titan_0_3(llama3: Any, c: ModelConfig) -> nn.Module:
    """Its trainer masks documents; here attention is causal and nothing else, as for all others."""
    from torchtitan.models.common import ComplexRoPE, Embedding, Linear, RMSNorm
    from torchtitan.models.common.attention import ScaledDotProductAttention

    rope = ComplexRoPE.Config(dim=c.head_dim, max_seq_len=c.block_size, theta=c.rope_base)
    layers = llama3._build_llama3_layers(
        n_layers=c.depth,
        dim=c.n_embd,
        n_heads=c.n_head,
        n_kv_heads=c.n_kv_head,
        hidden_dim=c.intermediate_size,
        rope=rope,
        attn_backend="varlen",
    )
    for layer in layers:
        layer.attention.inner_attention = ScaledDotProductAttention.Config()
    n, vocabulary, init = c.n_embd, c.padded_vocab_size, {"weight": partial(nn.init.normal_, std=0.02)}
    model = llama3.Llama3Model.Config(
        dim=n,
        vocab_size=vocabulary,
        tok_embeddings=Embedding.Config(num_embeddings=vocabulary, embedding_dim=n, param_init=init),
        norm=RMSNorm.Config(normalized_shape=n, param_init={"weight": nn.init.ones_}),
        lm_head=Linear.Config(in_features=n, out_features=vocabulary, param_init=init),
        layers=layers,
    ).build()
    model.init_states()
    return model


def in_the_loop(build: Callable[[ModelConfig], Peer], s: Setting, recipe: str) -> dict[str, Any]:
    """A row of a model that plain_loop.py trains."""
    tokens = s.micro_bsz * s.context
    found = train(partial(build, s.shapes), VOCAB, s.micro_bsz, s.context, s.steps + s.warmup, recipe or None, s.loss)
    return speeds(found.pop("times")[s.warmup :], tokens) | found


def by_hand(s: Setting, recipe: str) -> dict[str, Any]:
    """The row of the loop's own model."""
    stream = torch.bfloat16 if s.residual_precision == "bf16" else torch.float32
    return in_the_loop(partial(plain, stream=stream), s, recipe)


def ours(s: Setting, recipe: str) -> dict[str, Any]:
    """The row of our trainer."""
    options = {"residual_precision": s.residual_precision} | ({"ar": s.ar} if s.ar else {})
    options |= {"fp8": True, "fp8_recipe": recipe} if recipe else {}
    return measure("transformer", s.depth, s.micro_bsz, s.context, s.steps, s.warmup, 0, options)


PEERS: dict[str, Callable[[Setting, str], dict[str, Any]]] = {
    "plain": by_hand,
    "litgpt": partial(in_the_loop, litgpt),
    "torchtitan": partial(in_the_loop, torchtitan),
    "ours": ours,
}
RATIOS = ("of_plain", "of_plain_in_8_bits")
KEPT = ("parameters", "tokens_per_sec", "quartiles", "peak_memory_gib", "first_step_seconds", "loss", "loss_function")


def measured(name: str, s: Setting) -> dict[str, Any]:
    """The row of one peer, measured in this process; "missing" or "failed" says why there is none."""
    peer, _, recipe = name.partition("_")
    try:
        if name == PRODUCTS:
            return {"tflops": round(products_per_second() / 1e12, 1)}
        row = PEERS[peer](s, recipe)
    except ImportError as error:
        return {"missing": str(error).splitlines()[0]}
    except Exception as error:
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'without a word'}"}
    libraries = [peer] * (peer not in ("plain", "ours")) + ["torchao"] * (recipe != "" and peer != "ours")
    of = {"device": device_name(), "versions": {library: version_of(library) for library in ("torch", *libraries)}}
    return {key: row[key] for key in KEPT if key in row} | of


def version_of(library: str) -> str:
    """Its version, "unknown" for one that is only a folder of sources."""
    try:
        return version(library)
    except PackageNotFoundError:
        return "unknown"


def alone(name: str, s: Setting, limit: int) -> dict[str, Any]:
    """The same, measured in a process of its own, which has so many seconds."""
    words = ["--one", name, "--sizes", f"{s.depth}:{s.micro_bsz}", "--context", str(s.context)]
    words += ["--steps", str(s.steps), "--warmup", str(s.warmup), "--residual_precision", s.residual_precision]
    words += [word for key in ("ar", "loss") if (value := getattr(s, key)) for word in (f"--{key}", str(value))]
    try:
        done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"failed": f"it took longer than {limit} seconds"}
    rows = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return json.loads(rows[-1]) if rows else {"failed": f"it ended with code {done.returncode} before it had a figure"}


def spread(values: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return np.quantile(values, [0.25, 0.5, 0.75]).round(4).tolist()


def ratio(rows: list[dict[str, Any]], name: str, to: str) -> list[float] | None:
    """The spread of a peer's speed over that of another in the same round; None without such rounds."""
    pairs = [{row["peer"]: row for row in rows if row["round"] == r} for r in {row["round"] for row in rows}]
    speed = "tokens_per_sec"
    found = [p[name][speed] / p[to][speed] for p in pairs if speed in p.get(name, {}) and speed in p.get(to, {})]
    return spread(found) if found else None


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each peer of one size, over its rounds."""
    sizes = {row["peer"]: row["parameters"] for row in rows if "parameters" in row}
    found: list[dict[str, Any]] = []
    for name in dict.fromkeys(row["peer"] for row in rows if row["peer"] != PRODUCTS):
        mine = [row for row in rows if row["peer"] == name]
        runs, recipe = [row for row in mine if "parameters" in row], name.partition("_")[2]
        if not runs:
            found.append({"peer": name, "why": why_not(mine[0])})
            continue
        found.append({"peer": name, "parameters": sizes[name], "rounds": len(runs)})
        found[-1]["tokens_per_sec"] = spread([row["tokens_per_sec"] for row in runs])
        found[-1]["peak_memory_gib"] = max(row["peak_memory_gib"] or 0 for row in runs) or None
        if abs(sizes[name] / sizes.get("plain", sizes[name]) - 1) > NEAR:
            found[-1]["why"] = f"no ratio: it has {sizes[name]:,} parameters, and plain {sizes['plain']:,}"
            continue
        found[-1]["of_plain"] = ratio(rows, name, "plain")
        found[-1]["of_plain_in_8_bits"] = ratio(rows, name, f"plain_{recipe}") if recipe else None
    return found


HEADER = f"{'':<20}{'parameters':>15}{'tokens/s':>11}{'quartiles':>18}{'GiB':>7}{'of plain':>10}{'quartiles':>14}"
HEADER += f"{'of plain_RECIPE':>22}"


def text(row: dict[str, Any]) -> str:
    """A row of the summary as a line."""
    if "parameters" not in row:
        return f"{row['peer']:<20}none: {row['why']}"
    low, middle, high = row["tokens_per_sec"]
    memory = f"{row['peak_memory_gib']:.1f}" if row["peak_memory_gib"] else "-"
    line = f"{row['peer']:<20}{row['parameters']:>15,}{middle:>11,.0f}{f'{low:,.0f}-{high:,.0f}':>18}{memory:>7}"
    if "why" in row:
        return f"{line}  {row['why']}"
    both = [(f"{r[1]:.3f}", f"{r[0]:.3f}-{r[2]:.3f}") if (r := row[key]) else ("", "") for key in RATIOS]
    return (line + "".join(f"{middle:>10}{around:>14}" for middle, around in both)).rstrip()


def checked(peers: str) -> list[str]:
    """The names of --peers. Raises UserError for one that is none."""
    names = peers.split(",")
    for name in names:
        peer, _, recipe = name.partition("_")
        recipes = tuple(RECIPES) if peer == "ours" else TORCHAO
        if peer not in PEERS or (recipe and recipe not in recipes):
            ways = f", or {peer}_RECIPE with one of {', '.join(recipes)}" if peer in PEERS else ""
            raise UserError(f"--peers has {name}, which is none. Give some of {', '.join(PEERS)}{ways}.")
    return names


def compare(names: list[str], s: Setting, rounds: int, limit: int) -> Iterator[dict[str, Any]]:
    """The row of each run of one size as it ends. Who has no figure once is not asked again."""
    gone: set[str] = set()
    for r in range(rounds):
        for name in names if r % 2 == 0 else names[::-1]:
            if name not in gone:
                row = alone(name, s, limit)
                if why_not(row):
                    gone.add(name)
                yield {"peer": name, "round": r, **s._asdict(), **row}


def why_not(row: dict[str, Any]) -> str:
    """Why a run has no figure, "" where it has one."""
    return row.get("missing") or row.get("failed") or ""


def progress(row: dict[str, Any]) -> str:
    """One run as a line."""
    figure = f"{row['tflops']:,.0f} TFLOP/s" if "tflops" in row else f"{row.get('tokens_per_sec', 0):,.0f} tokens/s"
    return f"d{row['depth']}, round {row['round'] + 1}: {row['peer']}: {why_not(row) or figure}"


def keep(done: list[list[dict[str, Any]]], output: Path) -> None:
    """All runs so far and the tables of them."""
    found = {"rows": [row for rows in done for row in rows], "tables": [summary(rows) for rows in done]}
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    run_command(command_of(main))
