"""One pass from what was typed to what is meant: tokens, aliases, defaults, contradictions."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from typing import Annotated, Any, get_args, get_origin

from lit_gpt.config.bounds import hints, parts, path_fields, unset, violations
from lit_gpt.config.names import NameFields, merge, read_model_name, read_train_name, without_tokens
from lit_gpt.config.run import BaseHyperparameters, RunConfig
from lit_gpt.config.validation_sets import validation_sets
from lit_gpt.config.words import TokenCounts, Words
from lit_gpt.errors import UserError

# Old or alternative spellings of command-line options -> today's.
ALIASES = {
    "--gradient_checkpointing": "--act_ckpt",
    "--base_hps.warmup_tokens0": "--base_hps.warmup_tokens",
}
NEGATIVE = re.compile(r"-\.?\d")  # argparse knows -1 and -0.1 as numbers, but not -1e-8
# Of options that were not given (None; a 0 was given, and is checked) and need neither another option nor a model.
DEFAULTS = {
    "parameterization": "sp",
    "optimizer": "adamw",
    "save_step": 1000,
    "num_extrp": 4,
    "bramp_ratio": 1,
}
SHAPES = {"sqrt": "1-sqrt", "miror_cosine": "mirror_cosine"}  # as the code of arXiv:2509.01440 spells them
NOT_YET = {  # field -> what is said of it
    "layer_configurator": "the layer configurator (token lc) is not in this version; every token passes every "
    "layer: drop it, and for less work per token lower --depth or --ar",
}

NVFP4 = "te_nvfp4"  # the recipe of --fp8 that --fp4 stands for


def translate_aliases(argv: list[str]) -> list[str]:
    """Command-line words with old option spellings replaced, and with `=` where a value is easily taken for an option:
    `=true` after a switch without a value, and before a negative number. Words of a list that stand apart are joined.
    """
    lists = {f"--{name}" for name, hint in hints(RunConfig).items() if any(_is_list(part) for part in parts(hint))}
    switches = {f"--{name}" for name, hint in hints(RunConfig).items() if bool in parts(hint)}
    words, given = [], list(reversed(argv))
    while given:
        option, equals, value = given.pop().partition("=")
        option, following = ALIASES.get(option, option), given[-1] if given else "--"
        if not equals and option.startswith("--") and NEGATIVE.match(following):
            equals, value = "=", given.pop()
        elif not equals and option in switches and following.startswith("-"):
            equals, value = "=", "true"
        elif not equals and option in lists and not following.startswith("--"):
            while given and not given[-1].startswith("--"):
                value += f",{given.pop()}" if value else given.pop()
            equals = "="
        words.append(option + equals + value)
    return words


def _is_list(hint: Any) -> bool:
    return (get_args(hint)[0] if get_origin(hint) is Annotated else hint) in (Words, TokenCounts)


def resolve(run: RunConfig, optimizer_name: Callable[[str], str] = str) -> tuple[RunConfig, NameFields]:
    """The run with every token applied and every default filled in that needs no model.

    optimizer_name: the name of an optimizer for any spelling of it, so that a spelling agrees with a token.
    Raises UserError with every value that is not allowed and every contradiction found in the flags.
    """
    if missing := unset(run):
        raise UserError(f"--{missing[0]} was given null, which it cannot be. Leave it out to have its default.")
    flags = dict(vars(run))
    if run.optimizer is not None and not violations(run):  # what is out of bounds is said first, below
        flags["optimizer"] = optimizer_name(run.optimizer)
    unasked = run.train_name == RunConfig.train_name
    if unasked:  # a default, which nobody typed, gives way to flags
        flags["train_name"] = without_tokens(run.train_name, flags)
    name = dataclasses.replace(read_train_name(flags["train_name"]), default=unasked)
    run = dataclasses.replace(run, **merge(flags, name, flags["train_name"]))
    run = dataclasses.replace(run, **_of_model_name(run.train_model, run.depth, run.sparsity, run.top_k))
    problems = violations(run)
    artifacts = os.environ.get("LIGHTNING_ARTIFACTS_DIR")
    defaults = {
        **DEFAULTS,
        "schedule": "wsd_s" if run.decay_at else "wsd" if run.decay_tokens else "linear",
        "init_from": run.load_dir,
        "out_dir": artifacts or "out",
    }
    run = dataclasses.replace(run, **{key: value for key, value in defaults.items() if getattr(run, key) is None})
    run = dataclasses.replace(
        run,
        act_ckpt=_recomputed(run.act_ckpt, run.fsdp_save_mem),
        offloading=run.offloading or run.fsdp_save_mem,
        decay=SHAPES.get(run.decay or "", run.decay),
        precision={"bf16-mixed": "bf16", "32": "fp32"}.get(run.precision or "", run.precision),
        loggers=[*run.loggers, *(["mlflow"] if run.use_mlflow and "mlflow" not in run.loggers else [])],
    )
    problems += _contradictions(run)
    if run.fp4:
        run = dataclasses.replace(run, fp8=True, fp8_recipe=NVFP4)
    validation_sets(run.val_data_dir)
    if len(problems) == 1:
        raise UserError(f"{problems[0]}.")
    if problems:
        raise UserError("These options cannot be used:\n" + "\n".join(f"  - {p}" for p in problems))
    given = {key: path for key in path_fields(RunConfig) if isinstance(path := getattr(run, key), str)}
    return dataclasses.replace(run, **{key: os.path.expanduser(path) for key, path in given.items()}), name


def _of_model_name(train_model: str, depth: int, sparsity: int | None, top_k: int | None) -> dict[str, Any]:
    """The options that `--train_model transformer_gqa4_moe_s8_k4_d8` stands for.

    Raises UserError where a typed --depth, --sparsity or --top_k is another number than the name says.
    """
    model = read_model_name(train_model)
    given = {"depth": model.depth, "sparsity": model.sparsity, "top_k": model.top_k}
    for key, flag in {"depth": depth, "sparsity": sparsity, "top_k": top_k}.items():
        if given[key] is not None and flag not in (getattr(RunConfig, key), given[key]):
            raise UserError(f"--train_model {train_model} and --{key} {flag} disagree. Drop one.")
    return {"train_model": model.family, **{key: value for key, value in given.items() if value is not None}}


def _recomputed(act_ckpt: bool | str, save_memory: bool) -> str:
    """--act_ckpt in today's words; --fsdp_save_mem turns recomputation on where it is off."""
    if act_ckpt is True or (save_memory and act_ckpt in (False, "off")):
        return "full"
    return "off" if act_ckpt is False else act_ckpt


def _contradictions(run: RunConfig) -> list[str]:
    """Options that are each allowed and cannot be together, or not in this version."""
    problems = [what for key, what in NOT_YET.items() if getattr(run, key)]
    if run.load_dir and run.load_dir != run.init_from:
        problems.append(
            f"--load_dir {run.load_dir} is the old name of --init_from, which is {run.init_from}; give one of them"
        )
    if run.resume not in (False, "auto") and run.init_from:
        problems.append(
            "--resume continues a run and --init_from starts one; give one of them, or --resume auto with "
            "--init_from: start from the weights, later go on from the run's own checkpoints"
        )
    if run.fork_from:
        problems += _fork_contradictions(run)
    if run.fp4 and run.fp8_recipe not in (RunConfig.fp8_recipe, NVFP4):
        problems.append(f"--fp4 true is --fp8_recipe {NVFP4}, and this run has {run.fp8_recipe}; drop one of them")
    if run.schedule == "wsd_s" and not run.decay_at:
        problems.append("--schedule wsd_s needs the ends of its decays, such as --decay_at 0.5x,1x,2x,4x")
    if run.schedule != "wsd_s" and (run.decay_at or run.lower_peaks):
        given = "--decay_at" if run.decay_at else "--lower_peaks"
        problems.append(f"{given} acts in --schedule wsd_s, and this run has {run.schedule}; drop one of them")
    if run.decay_tokens and run.schedule not in ("wsd", "wsd_s"):
        problems.append(f"--decay_tokens acts in wsd and wsd_s, and this run has {run.schedule}; drop one of them")
    problems += _ends_of_schedules(run.schedule, run.decay, run.cos_inf_tokens, run.base_hps)
    if run.ffn_multiple is not None and run.ffn_multiple_of is not None:
        problems.append("--ffn_multiple and --ffn_multiple_of both say how wide the networks are; give one of them")
    if run.grad_clip_type != "global" and not run.grad_clip:
        problems.append(f"--grad_clip_type {run.grad_clip_type} needs a limit, and --grad_clip is 0; drop one of them")
    if run.validation and not (run.init_from and run.val_data_dir):
        problems.append("validation needs --init_from (or --load_dir) and --val_data_dir")
    if run.keep_best and not run.val_data_dir:
        problems.append("--keep_best needs --val_data_dir, since the best is that of the lowest validation loss")
    if run.full_eval_at and not run.val_data_dir:
        problems.append("--full_eval_at needs --val_data_dir, all of which it measures")
    if run.sample_prompts and not run.val_data_dir:
        problems.append("--sample_prompts needs --val_data_dir, since prompts are continued after each validation")
    for name in ("eval_tasks_step", "eval_tasks_path", "eval_task_options"):
        if getattr(run, name) is not None and not run.eval_tasks:
            problems.append(f"--{name} acts on --eval_tasks only; name some, or drop it")
    if run.yarn_scale > 1 and not (run.midtrain or run.validation):
        problems.append("--yarn_scale only acts in a midtrain or validation run; add that token to --train_name")
    return problems


def _ends_of_schedules(
    schedule: str | None, decay: str | None, constant_end: float | None, hps: BaseHyperparameters
) -> list[str]:
    """What schedules cannot be that end above 0 or begin at the peak. constant_end: --cos_inf_tokens."""
    inf, exp = schedule == "cos_inf", decay == "exp" and schedule in ("wsd", "wsd_s")
    checks = {
        "--schedule cos_inf needs the length of its constant end, --cos_inf_tokens 1B": inf and not constant_end,
        f"--cos_inf_tokens acts in --schedule cos_inf, and this run has {schedule}; drop one": constant_end and not inf,
        "the constant end of cos_inf would have a rate of 0; give --base_hps.min_lr_mult, such as 0.1": (
            inf and not hps.min_lr_mult
        ),
        "--decay exp never reaches a rate of 0; give --base_hps.min_lr_mult, such as 0.01": exp and not hps.min_lr_mult,
        "--schedule none has no warm-up; drop --base_hps.warmup_tokens, or give --schedule constant": (
            schedule == "none" and hps.warmup_tokens
        ),
    }
    return [message for message, wrong in checks.items() if wrong]


def _fork_contradictions(run: RunConfig) -> list[str]:
    """Options that say otherwise where a run starts."""
    problems = []
    if run.init_from:
        problems.append(
            "--fork_from brings weights, optimizer state and counts, --init_from weights alone; give one of them"
        )
    if run.resume not in (False, "auto"):
        problems.append(
            "--resume continues a run and --fork_from starts one; give one of them, or --resume auto with --fork_from: "
            "start as a fork, later go on from the run's own checkpoints"
        )
    if run.validation:
        problems.append(
            "validation measures the weights of --init_from, and --fork_from starts a run; drop one of them"
        )
    return problems
