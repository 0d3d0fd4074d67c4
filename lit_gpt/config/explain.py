"""What jsonargparse says of a wrong command line, as one sentence that names the option and what it takes."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Annotated, Any, get_args, get_origin

from lit_gpt.config.arguments import WORDS, described
from lit_gpt.config.bounds import hints, parts, shown
from lit_gpt.config.run import BaseHyperparameters, RunConfig
from lit_gpt.config.words import TokenCounts, Tokens, Words
from lit_gpt.errors import did_you_mean

HELP = "`--help` lists every option."
KINDS: dict[Any, str] = {Words: "words joined by commas", list[str]: "several of them"}
KINDS[Tokens] = "a count of tokens such as 5e9, 10B or 500M,"
KINDS[TokenCounts] = "counts of tokens such as 100M,1B:"
KINDS[BaseHyperparameters] = 'JSON such as {"eta0": 0.001}'
JSON, NESTED = '{"option": value}', '{"mixer": {"option": value}}'
GIVEN = (r"Given value: (.*)", r"Got value: (.*)", r"Not of type \w+: (.*)", r"Unable to load config '(.*?)'")
LONGEST = 120  # characters of a message of the parser
# What an option is called elsewhere -> what it is here. A name of base_hps without its group needs no row.
ELSEWHERE = {
    "lr learning_rate max_lr peak_lr": "The peak learning rate is --base_hps.eta0, that of the base depth.",
    "min_lr final_lr": "The final learning rate is --base_hps.min_lr_mult, a fraction of the peak.",
    "batch_size global_batch_size train_batch_size bsz": "The batch is --total_bsz, in tokens; --micro_bsz is the "
    "sequences per device.",
    "micro_batch_size device_batch_size per_device_train_batch_size": "The sequences per device are --micro_bsz.",
    "gradient_accumulation_steps grad_accum accumulation_steps": "Accumulation follows from --total_bsz, --micro_bsz, "
    "--ctx_len and the number of processes.",
    "wd": "The weight decay is --base_hps.weight_decay.",
    "epochs num_epochs num_train_epochs max_epochs": "The length of a run is --max_tokens; the data repeats.",
    "steps max_steps num_steps train_steps num_iterations max_iters": "The length of a run is --max_tokens, which is "
    "steps x --total_bsz.",
    "tokens num_tokens train_tokens": "The token budget is --max_tokens.",
    "warmup warmup_steps warmup_ratio num_warmup_steps warmup_iters warmup_tokens0": "The warm-up is "
    "--base_hps.warmup_tokens.",
    "seq_len seq_length sequence_length context_length context_len max_seq_len max_seq_length block_size": "The "
    "context is --ctx_len, in tokens.",
    "window window_size sliding_window": "The window of sliding attention is --swa_len.",
    "n_layer n_layers num_layers num_hidden_layers layers": "The number of layers is --depth.",
    "n_head n_heads num_heads num_attention_heads head_dim n_kv_head num_key_value_heads": "Heads follow from "
    "--train_model and --depth.",
    "num_experts n_experts experts": "The number of experts is --sparsity x --top_k, in a family that has them.",
    "tokenizer tokenizer_path": "The tokenizer is that of --train_data_dir, which scripts/prepare_text.py made.",
    "dropout_rate resid_dropout hidden_dropout embd_pdrop resid_pdrop attention_dropout": "Dropout is --dropout, of "
    "the embedding and of the output of each branch; attention has none of its own.",
    "gpus num_gpus devices device nproc_per_node world_size nnodes": "A run uses the processes that torchrun starts, "
    "else one GPU, or the CPU where there is none; the sequences of each are --micro_bsz.",
    "momentum": "The momentum of the Muon family is --base_hps.muon_beta, that of Adam is --base_hps.beta1.",
    "gradient_checkpointing activation_checkpointing": "Recomputation of activations is --act_ckpt.",
    "n_embd d_model hidden_size embed_dim dim width": "The width is --depth x --ar.",
    "data dataset data_dir data_path train_data": "The training data is --train_data_dir.",
    "model model_name arch architecture": "The model family is --train_model.",
    "name run_name exp_name experiment_name": "The name of a run is --train_name.",
    "output output_dir save_dir log_dir": "Run folders go to --out_dir.",
    "clip max_grad_norm clip_grad gradient_clip_val": "The largest gradient norm is --grad_clip.",
    "dtype bf16 fp16 amp mixed_precision": "The numbers are --precision bf16 or fp32.",
    "scheduler lr_scheduler lr_schedule lr_scheduler_type": "The learning-rate schedule is --schedule.",
    "save_every save_interval save_steps": "The steps between checkpoints are --save_step.",
    "eval_every eval_interval eval_steps": "The steps between validations are --eval_step.",
    "log_every log_interval logging_steps": "The steps between log lines are --log_step.",
    "ema_decay use_ema ema_half_life ema_halflife": "Averages of the weights are --ema, with half-lives in tokens such "
    "as --ema 1B.",
    "checkpoint ckpt load pretrained checkpoint_dir ckpt_dir": "Weights are --init_from, "
    "a run is continued with --resume.",
    "wandb_name wandb_run_name": "The name of a run in a tracker is --tracker_name.",
    "wandb_group": "The group of a run in a tracker is --tracker_group.",
    "wandb use_wandb report_to": "Trackers are --loggers, such as --loggers wandb.",
}


def explained(
    message: str,
    options: Collection[str],
    of: Callable[..., Any] = RunConfig,
    kinds: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    """The message of a parser that has these options, such as "base_hps.eta0", in a sentence.

    of: whose arguments they are. kinds: the types of those that are not among its arguments.
    """
    elsewhere = ELSEWHERE if of is RunConfig else {}
    if found := re.search(r'Parser key "([\w.]+)":', message):
        key, hint = found[1], _hint(found[1], of) or kinds.get(found[1])
        given = next(filter(None, (re.search(text, message, re.DOTALL) for text in GIVEN)), None)
        if hint and given:
            value = shown(given[1].strip()) if "NestedArg" not in given[1] else "made of parts"
            return f"--{key} cannot be {value}; give {_described(hint)}."
    if found := re.search(r"argument --([\w.]+)(?:/\S+)?: expected one argument", message):
        return f"--{found[1]} needs a value: {_described(_hint(found[1], of) or kinds.get(found[1]))}."
    if found := re.search(r"(?:Group '(\w+)' does not accept o|O)ption '([\w.-]+)'", message):
        name = ".".join(filter(None, found.groups()))
        return f"{name!r} is no option{meant(name, options, elsewhere)}"
    if found := re.match(r"unrecognized arguments: (-*)(\S*)", message):
        end = (
            meant(found[2].partition("=")[0], options, elsewhere) if found[1] else f". An option begins with --; {HELP}"
        )
        return textwrap.shorten(message, LONGEST, placeholder=" ...") + end
    if found := re.match(r"argument ([-\w.]+)\S*: invalid choice: (.+?) \(choose from (.*)\)", message, re.DOTALL):
        given, choices = found[2].strip("'\""), [word.strip("'") for word in found[3].split(", ")]
        cannot = f"{found[1]} cannot be" if found[1].startswith("-") else "there is no"
        return f"{cannot} {given!r}; give one of {', '.join(choices)}.{did_you_mean(given, choices)}"
    if found := re.match(r"argument (-*([\w.]+))\S*: invalid \S+ value: (.*)", message, re.DOTALL):
        return f"{found[1]} cannot be {found[3]}; give {_described(kinds.get(found[2]))}."
    if found := re.match(r'expected "\w+" to be one of {(.*)}, but it was not provided', message):
        return f"a command is needed, one of {', '.join(found[1].split(','))}. {HELP}"
    if found := re.match("the following arguments are required: (.*)", message):
        needed = [f"--{n}" if n in options else n.rpartition(".")[2] for n in found[1].split(", ")]
        kind = "options" if all(n.startswith("-") for n in needed) else "arguments"
        message = f"these {kind} are needed: {', '.join(needed)}"
    message = re.sub(r'^Parser key "([\w.]+)":', r"--\1:", message)
    return f"{one_line(message)}. {HELP}"


def meant(name: str, options: Collection[str], elsewhere: Mapping[str, str]) -> str:
    """The end of a sentence about a name that is no option: which one may have been meant."""
    name = name.replace("-", "_").lower()
    for names, sentence in elsewhere.items():
        if name.removeprefix("base_hps.") in names.split():
            return f". {sentence}"
    if elsewhere and name in BaseHyperparameters.__dataclass_fields__:
        return f". Did you mean '--base_hps.{name}'?"
    return "." + (did_you_mean(f"--{name}", [f"--{key}" for key in options]) or f" {HELP}")


def _hint(key: str, of: Callable[..., Any]) -> Any:
    """The type of an option with its notes; None for what is none."""
    group, _, name = key.rpartition(".")
    return hints(BaseHyperparameters).get(name) if group == "base_hps" else hints(of).get(key)


def _described(hint: Any) -> str:
    """What an option of this type takes, in words."""
    return " or ".join(_part(part) for part in parts(hint) if part is not type(None))


def _part(hint: Any) -> str:
    if get_origin(hint) is Annotated and (kind := get_args(hint)[0]) in KINDS:
        words = get_args(hint)[1].words
        return words if kind == Words else f"{KINDS[kind]} {words}"
    if get_origin(hint) is dict:
        return f"JSON such as {JSON if get_args(hint)[1] is Any else NESTED}"
    return KINDS.get(hint) or (described(hint) if get_origin(hint) or hint in WORDS else "a value")


def one_line(text: str) -> str:
    """The text with single spaces between its words."""
    return " ".join(text.split())
