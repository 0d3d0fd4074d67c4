"""One pass from what was typed to what is meant: tokens, aliases, defaults, contradictions."""

from __future__ import annotations

import dataclasses
import os

from lit_gpt.config.names import NameFields, merge, read_model_name, read_train_name, without_tokens
from lit_gpt.config.run import RunConfig
from lit_gpt.errors import UserError

# Old or alternative spellings of command-line options -> today's.
ALIASES = {
    "--gradient_checkpointing": "--act_ckpt",
    "--base_hps.warmup_tokens0": "--base_hps.warmup_tokens",
}
NOT_YET = {  # field -> what is said of it
    "layer_configurator": "the layer configurator (token lc) is not in this version; every token passes every "
    "layer: drop it, and for less work per token lower --depth or --ar",
    "fp8": "8-bit training (--fp8) is not in this version",
    "fp4": "4-bit training (--fp4) is not in this version",
}


def translate_aliases(argv: list[str]) -> list[str]:
    """Command-line words with old option spellings replaced."""
    words = []
    for word in argv:
        option, equals, value = word.partition("=")
        words.append(ALIASES.get(option, option) + equals + value)
    return words


def resolve(run: RunConfig) -> tuple[RunConfig, NameFields]:
    """The run with every token applied and every default filled in that needs no model.

    Raises UserError with every contradiction found in the flags.
    """
    flags = {f.name: getattr(run, f.name) for f in dataclasses.fields(run)}
    if run.train_name == RunConfig.train_name:  # a default, which nobody typed, gives way to flags
        flags["train_name"] = without_tokens(run.train_name, flags)
    name = read_train_name(flags["train_name"])
    run = dataclasses.replace(run, **merge(flags, name, flags["train_name"]))
    run = _apply_model_name(run)
    run = dataclasses.replace(run, **{k: v for k, v in _defaults(run).items() if getattr(run, k) is None})
    run = dataclasses.replace(
        run,
        act_ckpt=_act_ckpt(run),
        offloading=run.offloading or run.fsdp_save_mem,
        precision={"bf16-mixed": "bf16", "32": "fp32"}.get(run.precision or "", run.precision),
        loggers=[*run.loggers, *(["mlflow"] if run.use_mlflow and "mlflow" not in run.loggers else [])],
    )
    _check(run)
    return run, name


def _defaults(run: RunConfig) -> dict[str, object]:
    """Values of options that were not given (None; a 0 was given, and is checked)."""
    return {
        "total_bsz": run.base_hps.b0,
        "parameterization": "sp",
        "optimizer": "adamw",
        "schedule": "linear",
        "init_from": run.load_dir,
        "out_dir": os.environ.get("LIGHTNING_ARTIFACTS_DIR", "out"),
        "save_step": 1000,
        "num_extrp": 4,
        "bramp_ratio": 1,
    }


def _apply_model_name(run: RunConfig) -> RunConfig:
    """Accept `--train_model transformer_gqa4_moe_s8_k4_d8` when no flag contradicts it."""
    model = read_model_name(run.train_model)
    given = {"depth": model.depth, "sparsity": model.sparsity, "top_k": model.top_k}
    changes = {key: value for key, value in given.items() if value is not None}
    for key, value in changes.items():
        flag = getattr(run, key)
        if flag not in (getattr(RunConfig, key), value):
            raise UserError(f"--train_model {run.train_model} and --{key} {flag} disagree. Drop one.")
    return dataclasses.replace(run, train_model=model.family, **changes)


def _act_ckpt(run: RunConfig) -> str:
    if run.act_ckpt is True or (run.fsdp_save_mem and run.act_ckpt in (False, "off")):
        return "full"
    return "off" if run.act_ckpt is False else run.act_ckpt


def _check(run: RunConfig) -> None:
    """Everything wrong with the flags that needs neither model nor data."""
    hps = run.base_hps
    problems = [what for key, what in NOT_YET.items() if getattr(run, key)]
    at_least_one = [
        "depth",
        "ctx_len",
        "micro_bsz",
        "save_step",
        "log_step",
        "eval_step",
        "num_extrp",
        "bramp_ratio",
    ]
    at_least_one += ["eval_sequences", "keep_last", "sparsity", "top_k"]
    for key in at_least_one:
        value = getattr(run, key)
        if value is not None and value < 1:
            problems.append(f"--{key} is {value}; it must be at least 1")
    positive = {
        "base_hps.eta0": hps.eta0,
        "base_hps.b0": hps.b0,
        "base_hps.t0": hps.t0,
        "base_hps.d0": hps.d0,
        "base_hps.ar0": hps.ar0,
        "base_hps.hd0": hps.hd0,
    }
    positive |= {
        "total_bsz": run.total_bsz,
        "ar": run.ar,
        "swa_len": run.swa_len,
        "max_tokens": run.max_tokens,
        "stop_after": run.stop_after,
    }
    problems += [f"--{k} is {v}; it must be positive" for k, v in positive.items() if v is not None and v <= 0]
    not_negative = {"grad_clip": run.grad_clip, "num_workers": run.num_workers, "keep_every": run.keep_every}
    not_negative |= {
        "base_hps.warmup_tokens": hps.warmup_tokens or 0,
        "base_hps.weight_decay": hps.weight_decay or 0,
    }
    problems += [f"--{k} is {v}; it must not be negative" for k, v in not_negative.items() if v < 0]
    fractions = {
        "base_hps.min_lr_mult": hps.min_lr_mult,
        "label_smoothing": run.label_smoothing or 0,
        "decay_fraction": run.decay_fraction,
    }
    problems += [f"--{k} is {v}; it must be between 0 and 1" for k, v in fractions.items() if not 0 <= v <= 1]
    betas = {"base_hps.beta1": hps.beta1, "base_hps.beta2": hps.beta2, "base_hps.muon_beta": hps.muon_beta}
    problems += [f"--{k} is {v}; it must be at least 0 and below 1" for k, v in betas.items() if not 0 <= v < 1]
    if run.decay_fraction == 0:
        problems.append("--decay_fraction is 0; use --schedule constant for a run without decay")
    if run.load_dir and run.load_dir != run.init_from:
        problems.append(
            f"--load_dir {run.load_dir} is the old name of --init_from, which is {run.init_from}; give one of them"
        )
    if run.resume not in (False, "auto") and run.init_from:
        problems.append(
            "--resume continues a run and --init_from starts one; give one of them, or --resume auto with "
            "--init_from: start from the weights, later go on from the run's own checkpoints"
        )
    if run.validation and not (run.init_from and run.val_data_dir):
        problems.append("validation needs --init_from (or --load_dir) and --val_data_dir")
    if run.yarn_scale != 1 and not (run.midtrain or run.validation):
        problems.append("--yarn_scale only acts in a midtrain or validation run; add that token to --train_name")
    if problems:
        raise UserError("These options cannot be used:\n" + "\n".join(f"  - {p}" for p in problems))
