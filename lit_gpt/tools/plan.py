"""The Plan of a run, and the model layer by layer, without touching data or a GPU."""

from __future__ import annotations

from dataclasses import replace

from jsonargparse import Namespace

from lit_gpt.config.cli import add_run_options, parse_words, run_config
from lit_gpt.config.command import answer_early, run_command
from lit_gpt.config.model import ModelConfig
from lit_gpt.config.parsers import Parser
from lit_gpt.errors import UserError
from lit_gpt.scaling.budget import token_budget
from lit_gpt.tools._cli import parser_for
from lit_gpt.utils.text import aligned

EXAMPLES = (
    ("--train_model sambay --depth 16 --train_name mup --layers", "the Plan, and a line for each layer"),
    ("--depth 16 --ranks 8", "what eight GPUs would do; none is needed"),
    ("--depth 16 --compare_analytic", "parameters beside ArchScale's formula"),
)


def build_parser() -> Parser:
    """The command line: pretrain.py's options and what to show."""
    about = "The Plan of a run, and the model layer by layer, without touching data or a GPU."
    parser = parser_for("plan", about, EXAMPLES, exit_on_error=False)
    switch = {"type": bool, "nargs": "?", "const": True, "default": False}
    parser.add_argument("--layers", **switch, help="also print one line per layer")
    parser.add_argument(
        "--compare_analytic", **switch, help="also print our count of parameters beside ArchScale's formula"
    )
    ranks = "number of processes that the batch is divided over; default: those of torchrun, else 1"
    parser.add_argument("--ranks", type=int | None, default=None, help=ranks)
    add_run_options(parser, skip={"dry_run"})
    return parser


def read(argv: list[str]) -> Namespace:
    """The parsed command line. Raises UserError for less than one process."""
    values = parse_words(build_parser(), argv)
    if values.ranks is not None and values.ranks < 1:
        raise UserError(f"--ranks is {values.ranks}; give the number of processes, 1 or more.")
    return values


answer_early(__name__, read)

from torch import nn

from lit_gpt.metrics.counting import flops_per_token, param_counts
from lit_gpt.model import GPT
from lit_gpt.preflight.meta_model import count, meta_model
from lit_gpt.preflight.model_options import base_config
from lit_gpt.preflight.resolved_run import ResolvedRun, dry_run_text, resolve_run
from lit_gpt.utils.launcher import world_size

PATTERN = ("mixer", "ffn", "window", "reads", "shares")


def layer_table(config: ModelConfig) -> str:
    """One line per layer, and embedding and head: what it is, parameters, forward FLOPs per token.

    FLOPs are of matrix products, attention averaged over a sequence of the training context.
    """
    model = meta_model(config)
    rows: list[tuple[str, ...]] = [("layer", *PATTERN, "parameters", "forward FLOPs/token")]
    entrance = _size(model.wte, model.wpe, model.embedding_norm, model.smear)
    rows.append(_row("embedding", f"{entrance:,}", f"{0 if model.smear is None else model.smear.flops():,.0f}"))
    for i in range(config.depth):
        block, first = model.blocks[model.block_of[i]], config.first_layer(i)
        size = f"{_size(block):,}" if first == i else f"of layer {first}"
        flops = block.flops(config.block_size)  # type: ignore[operator]
        rows.append((str(i), *_pattern(model, i), size, f"{flops:,.0f}"))
    rows.append(_row("norm", f"{_size(model.norm) + (model.backout is not None):,}", "0"))  # backout is one number
    head = "tied" if model.head is None else f"{model.head.weight.numel():,}"
    rows.append(_row("head", head, f"{2 * model.head_weight().numel():,}"))
    total = param_counts(model)["total"]
    rows.append(_row("all", f"{total:,}", f"{flops_per_token(model, config.block_size) / 3:,.0f}"))
    return aligned(rows, right=(len(PATTERN) + 1, len(PATTERN) + 2))


def _size(*modules: nn.Module | None) -> int:
    """Parameters of those modules that there are."""
    return sum(p.numel() for module in modules if module is not None for p in module.parameters())


def _row(name: str, *numbers: str) -> tuple[str, ...]:
    return (name, *[""] * len(PATTERN), *numbers)


def _pattern(model: GPT, layer: int) -> tuple[str, ...]:
    """The cells of PATTERN. Reads and shares: keys and values (K,V), or a memory for Gated Memory Units."""
    layers = model.config.layers
    spec = layers[layer]
    attends = spec in model.attending
    window = f"{spec.window:,}" if spec.window is not None else "all" if attends else "-"
    reads = "-" if spec.shares is None else f"{'K,V' if attends else 'memory'} of {spec.shares}"
    readers = [other for other in layers if other.shares == layer]
    shared = ["K,V"] if any("attention" in other.mixer for other in readers) else []
    shared += [] if spec.memory is None else [f"memory ({spec.memory})"]
    mixer = spec.mixer + (" + skip projection" if spec.skip_projection else "")
    mixer += " + value embedding" if spec.value_embedding else ""
    ffn = "-" if spec.ffn is None else spec.ffn + (" experts" if spec.experts else "")
    return mixer, ffn, window, reads, ", ".join(shared) or "-"


def comparison(resolved: ResolvedRun) -> str:
    """Exact and analytic active parameters of this model and of the base, and the token budgets they give."""
    run, hps = resolved.run, resolved.run.base_hps
    models = [count(meta_model(config)) for config in (resolved.model, base_config(run, resolved.data.vocab_size))]
    sizes = [[m.budget_parameters(way, run.count_embeddings) for way in ("exact", "analytic")] for m in models]
    budgets = [token_budget(hps.t0, n, n0) for n, n0 in zip(*sizes)]
    title = f"active parameters, {'with' if run.count_embeddings else 'without'} embeddings"
    rows = [(title, "exact", "analytic", "analytic / exact")]
    named = {"this model": sizes[0], f"base, depth {hps.d0}": sizes[1], "token budget t0 N / N0": budgets}
    for name, (exact, analytic) in named.items():
        rows.append((name, f"{exact:,}", f"{analytic:,.0f}", f"{analytic / exact:.4f}"))
    return aligned(rows, right=(1, 2, 3))


def main(argv: list[str]) -> int:
    """Print the tables."""
    values = read(argv)
    run = replace(run_config(values), dry_run=True)  # with the memory it needs, on a machine without a GPU, too
    resolved = resolve_run(run, values.ranks or world_size())
    parts = [dry_run_text(resolved)]
    parts += [layer_table(resolved.model)] if values.layers else []
    parts += [comparison(resolved)] if values.compare_analytic else []
    print("\n\n".join(parts))
    return 0


if __name__ == "__main__":
    run_command(main)
