"""Coordinate check: does a scaling rule keep activations the same size in width and depth?

    python -m lit_gpt.tools.coord_check --parameterization mupp --output_dir out/coord

Trains a family for a few steps at several widths and at several depths, through the same
Plan, parameter groups and optimizer as pretrain.py, and fits the power of the size with
which each activation, and its change since initialisation, goes (the coordinate check of
arXiv:2203.03466's mup package; arXiv:2310.02244 for depth). A right rule has powers near
zero: sizes differ in quality but not in dynamics, so a learning rate tuned on one is right
for all. What all layers add together is measured beside the stream, in which a table that changes fast hides it.
It sees sizes, not attention patterns: a wrong softmax scale goes unnoticed.
Gradients have at most the rank of the vocabulary and of a batch's tokens. Steps of NorMuon are as long as if that were
the width, so what they do grows with widths beyond it: --widths 64 128 256 512 want --vocab_size 2048 --micro_bsz 64.
With --fp8 true the activations are those of the products in 8 bits, which maps from 256 on have: --widths 256 512 1024.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jsonargparse import Namespace

from lit_gpt.config.cli import add_run_options, parse_words, run_config
from lit_gpt.config.command import answer_early, run_command
from lit_gpt.config.model import ModelConfig
from lit_gpt.config.resolve import resolve
from lit_gpt.config.run import RunConfig
from lit_gpt.errors import UserError
from lit_gpt.tools._cli import parser_for

# fmt: off
KEPT = {  # the options of pretrain.py that mean something here
    "plugins", "train_model", "swa_len", "norm_class", "mlp", "post_norm", "decoupled_norm", "skip_gain", "skip",
    "qkv_bias", "qk_norm", "attn_gate", "attn_norm", "ffn_norm", "bias", "position", "rope_base", "tie_embeddings",
    "mixer_options", "reordered_norm", "parallel_block", "joint_qk_norm", "qk_norm_scale", "norm_eps", "norm_gain",
    "embedding_norm", "residual_scalars", "token_smear", "backout", "zero_output", "logit_softcap", "ffn_multiple",
    "ffn_multiple_of", "value_embeddings", "train_name", "parameterization", "depth_scale", "base_hps", "batch_rule",
    "independent_weight_decay", "ortho_init", "diag_init", "maxfan_init", "embedding_init_std", "head_init_std",
    "head_start", "init_std", "optimizer", "optimizer_args", "grad_clip", "grad_clip_type", "seed", "precision",
    "vocab_size", "ctx_len", "micro_bsz", "attention", "fp8", "fp8_recipe",
    "weight_decay_rule", "cautious_weight_decay",
}
# fmt: on
WIDTHS, DEPTHS = [64, 128, 256, 512], [4, 8, 16]
DESCRIPTION = "Does a scaling rule keep activations the same size in width and in depth?"
CODES = "Exit code: 0 PASS, 1 FAIL, 2 bad options."
DEFAULTS = {
    "train_name": "coord",
    "vocab_size": 256,
    "ctx_len": 32,
    "micro_bsz": 16,
    "precision": "fp32",
    "base_hps.eta0": 2e-3,
}


def parse(argv: list[str]) -> Namespace:
    """The parsed command line of this tool."""
    parser = parser_for("coord_check", DESCRIPTION, epilog=CODES, exit_on_error=False)
    parser.add_argument(
        "--widths",
        type=int,
        nargs="+",
        default=[64, 128, 256, 512],
        help="widths of the models, which have the smallest depth",
    )
    parser.add_argument(
        "--depths", type=int, nargs="+", default=DEPTHS, help="depths of the models, which have the smallest width"
    )
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps that each is trained")
    parser.add_argument("--seeds", type=int, default=2, help="seeds to average over")
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=None,
        help="folder for coord_<rule>.json and .png; default: nothing is written",
    )
    add_run_options(parser, skip=set(RunConfig.__dataclass_fields__) - KEPT)
    parser.set_defaults(DEFAULTS)
    return parse_words(parser, argv)


answer_early(__name__, parse)

from lit_gpt.optim import OPTIMIZERS
from lit_gpt.parallel import start_runtime
from lit_gpt.parallel.fp8 import SMALLEST, in_8_bits
from lit_gpt.plugins import load_plugins
from lit_gpt.preflight.meta_model import meta_model
from lit_gpt.preflight.model_options import model_config
from lit_gpt.tools import _coord_report as report
from lit_gpt.tools._coord_fit import Axis, CoordResult, fit_axis
from lit_gpt.tools._coord_measure import Coordinates, coordinates, embedding_rate


def run_check(
    run: RunConfig,
    widths: Sequence[int] = WIDTHS,
    depths: Sequence[int] = DEPTHS,
    *,
    steps: int = 4,
    seeds: int = 2,
    note: Callable[[str], None] = lambda _: None,
) -> CoordResult:
    """Train every width at the smallest depth and every depth at the smallest width.

    The smallest model is the base that hyper-parameters transfer from. run: as typed; of it
    count the model's options, the rule, the optimizer, base_hps (eta0, betas, ...), ctx_len,
    micro_bsz (sequences per batch) and seed. An axis with one size is left out.
    seeds: means of |x| are averaged over this many. note: gets a line per trained model.
    Raises UserError for sizes that cannot be compared.
    """
    load_plugins(run.plugins)
    run, _ = resolve(run if run.optimizer is None else replace(run, optimizer=OPTIMIZERS.resolve(run.optimizer)))
    configs = _configs(run, _sizes("widths", widths), _sizes("depths", depths))
    if not configs:
        raise UserError("One width and one depth leave nothing to compare. Give two or more to --widths or --depths.")
    if run.fp8:
        _check_fp8(run, configs)
    runtime, fits = start_runtime(precision=run.precision), []
    for axis, models in configs.items():
        base, per_size = next(iter(models.values())), []
        for size, config in models.items():
            note(f"{run.parameterization}: {axis} {size}")
            runs = [coordinates(run, config, base, steps, run.seed + i, runtime) for i in range(seeds)]
            per_size.append(_average(runs))
        rates = [embedding_rate(run, config, base) for config in models.values()]
        fits += fit_axis(axis, list(models), per_size, rates)
    return CoordResult(str(run.parameterization), {a: tuple(m) for a, m in configs.items()}, tuple(fits))


def _sizes(name: str, values: Sequence[int]) -> list[int]:
    if not values or min(values) < 1 or len(set(values)) != len(values):
        raise UserError(f"--{name} is {list(values)}; it must be a list of different positive sizes.")
    return sorted(values)


def _configs(run: RunConfig, widths: list[int], depths: list[int]) -> dict[Axis, dict[int, ModelConfig]]:
    """Axis -> size -> model.

    The width comes from the aspect ratio, and heads grow with it, so that no inner width stays behind
    (of mixers with heads of their own, `mixer_options` sets the size). Depth adds layers, with the starts that the
    family gives them, and nothing else.
    """
    d0 = depths[0]
    if odd := [w for w in widths if w % d0]:
        raise UserError(f"--widths {odd} are no multiples of the smallest depth {d0}: width = aspect ratio x depth.")
    own = model_config(run, d0, None)
    head_dim = max(2, own.head_dim * widths[0] // own.n_embd // 2 * 2)
    wide = {w: model_config(run, d0, w // d0).replace(head_dim=head_dim * w // widths[0]) for w in widths}
    base = wide[widths[0]]
    families = {d: model_config(run, d, None) for d in depths}
    deep = {d: base.replace(depth=d, layers=f.layers, starts=f.starts) for d, f in families.items()}
    axes: dict[Axis, dict[int, ModelConfig]] = {"width": wide, "depth": deep}
    return {axis: models for axis, models in axes.items() if len(models) > 1}


def _check_fp8(run: RunConfig, configs: dict[Axis, dict[int, ModelConfig]]) -> None:
    """Raise UserError where the smallest model has nothing in 8 bits, so that sizes would not compare."""
    base = next(iter(next(iter(configs.values())).values()))
    if not in_8_bits(meta_model(base), run.fp8_recipe)[0]:
        raise UserError(
            f"No map of the model of width {base.n_embd} trains in 8 bits, since a side is below {SMALLEST}. Drop "
            f"--fp8, or give larger --widths, such as {SMALLEST} {2 * SMALLEST} {4 * SMALLEST}."
        )


def _average(runs: list[Coordinates]) -> Coordinates:
    """Mean over seeds of [step][site] -> (activation, change)."""
    return [
        {site: tuple(np.mean([r[site] for r in step], axis=0).tolist()) for site in step[0]}  # type: ignore[misc]
        for step in zip(*runs)
    ]


def main(argv: list[str]) -> int:
    """Run the check and print the table; 0 when it passes."""
    values = parse(argv)
    if values.steps < 1 or values.seeds < 1:
        raise UserError(f"--steps {values.steps} and --seeds {values.seeds} must be at least 1.")
    result = run_check(
        run_config(values), values.widths, values.depths, steps=values.steps, seeds=values.seeds, note=report.progress
    )
    print(report.table(result))
    if values.output_dir is not None:
        for path in report.write(result, values.output_dir):
            print(f"wrote {path}")
    return 0 if all(map(result.passed, result.sizes)) else 1  # type: ignore[arg-type]


if __name__ == "__main__":
    run_command(main)
