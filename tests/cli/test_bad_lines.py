"""Command lines that nobody can carry out: each ends with code 2, says so in a short sentence, and writes nothing.

130 of 162 such lines did before; the others trained, wrote outside of --out_dir, or ended in a traceback.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

import pretrain

# A model small enough that a line which is wrongly accepted costs little.
SMALL = "--train_model transformer --depth 2 --ar 32 --ctx_len 64 --base_hps.d0 2 --base_hps.b0 512 --total_bsz 512 "
SMALL += "--base_hps.warmup_tokens 0 --max_tokens 4096 --train_name x --vocab_size 256"

LONG = "a" * 300
# Value -> why it is refused, of options of one kind; `*` stands for the value.
KINDS = {
    "counts": (
        "depth ctx_len swa_len micro_bsz save_step log_step eval_step eval_sequences num_extrp bramp_ratio "
        "sparsity top_k share_group stop_after ar base_hps.d0 base_hps.hd0",
        {"0": "must be from 1 to", "-1": "must be from 1 to"},
    ),
    "wholes": (
        "depth seed micro_bsz save_step vocab_size eos_token_id",
        {"1.5": "give a whole number", "eight": "give a whole number", "nan": "give a whole number"},
    ),
    "from zero": (
        "head_init_std base_hps.weight_decay aux_gamma router_z_loss bias_rate "
        "base_hps.weight_lr_scale base_hps.warmup_tokens grad_clip num_workers keep_last keep_every health_step "
        "profile_steps seed eos_token_id share_per_layer",
        {"-1": "must be from 0 to"},
    ),
    "rates": (
        "base_hps.eta0",
        {"0": "must be above 0", "-1e-8": "must be above 0", ".nan": "must be above 0", ".inf": "must be above 0"},
    ),
    "betas": (
        "base_hps.beta1 base_hps.beta2 base_hps.muon_beta",
        {"1": "at least 0 and below 1", "-0.1": "at least 0 and below 1", ".nan": "at least 0 and below 1"},
    ),
    "shares": (
        "label_smoothing dropout",
        {"1": "must be 0, or at least 1e-06 and below 1", "-0.1": "must be 0, or", "1e-12": "must be 0, or"},
    ),
    "initial weights": (
        "base_hps.w_init_scale",
        {"0": "from 1e-06 to", "1e-60": "from 1e-06 to", ".nan": "from 1e-06"},
    ),
    "epsilons": ("base_hps.eps norm_eps", {"0": "from 1e-30 to 1", "1e-60": "from 1e-30 to 1", ".nan": "to 1"}),
    "fractions": ("base_hps.min_lr_mult", {"1.5": "from 0 to 1", "-.1": "from 0 to 1", ".inf": "from 0 to 1"}),
    "tokens": (
        "max_tokens total_bsz base_hps.b0 base_hps.t0",
        {"0": "must be from 1 to", "-5": "must be from 1 to", "1e30": "must be from 1 to", "10X": "such as 5e9, 10B"},
    ),
    "paths": (
        "train_data_dir val_data_dir data_mixture out_dir init_from load_dir resume",
        {"''": "must be a path of 1 to", LONG: "must be a path of 1 to"},
    ),
    "switches": ("dry_run varlen fp8 compile", {"maybe": "give true or false", "2": "give true or false"}),
}
# Line -> what the message says.
LINES = {
    # beyond anything
    "--depth 99999999": "--depth is 99999999; it must be from 1 to 2,000",
    f"--depth {'9' * 50}": "--depth is 999",
    "--ctx_len 99999999999": "--ctx_len is 99999999999; it must be from 1 to 1,073,741,824",
    "--vocab_size 1": "--vocab_size is 1; it must be from 2 to",
    "--seed 99999999999": "--seed is 99999999999; it must be from 0 to",
    "--eos_token_id 256": "--eos_token_id is 256; it must be below the vocabulary of 256",
    "--rope_base 0": "--rope_base is 0.0; it must be above 1",
    "--rope_base -1e4": "--rope_base is -10000.0; it must be above 1",
    "--yarn_scale 0.5": "--yarn_scale is 0.5; it must be from 1 to",
    "--decay_fraction 0": "--decay_fraction is 0.0; it must be above 0 and at most 1",
    "--expert_capacity 0": "--expert_capacity is 0.0; it must be above 0",
    "--train_model transformer_gqa4_h2_moe --depth 2000 --ar 10000 --sparsity 10000": "too large to be described",
    # text
    "--train_name ../../x": "--train_name is '../../x'; it must be a name of 1 to 150 bytes of UTF-8 without control",
    "--train_name a/b": "--train_name is 'a/b'; it must be a name",
    "--train_name 'a\\b'": "--train_name is",
    "--train_name /etc/x": "--train_name is '/etc/x'",
    "--train_name ''": "--train_name is ''",
    "--train_name ' '": "--train_name is ' '",
    "--train_name 'a\nb'": "--train_name is 'a\\nb'; it must be a name",
    "--train_name 'a\x1b[31m'": "--train_name is 'a\\x1b[31m'",
    "--train_name 'a\udcff'": "--train_name is 'a\\udcff'",
    f"--train_name {LONG}": "(302 characters); it must be a name of 1 to 150 bytes",
    "--train_model ''": "--train_model is ''; it must be a name",
    f"--train_model {LONG}": "--train_model is 'aaa",
    "--train_model 'a\nb'": "--train_model is 'a\\nb'; it must be a name",
    "--train_model ../x": "Unknown model family '../x'",
    f"--train_model transformer_d{'9' * 60}": "Unknown model family",
    "--train_model transformer_d8": "--train_model transformer_d8 and --depth 2 disagree",
    "--optimizer ''": "--optimizer is ''; it must be a name",
    f"--optimizer {LONG}": "--optimizer is 'aaa",
    "--parameterization ''": "--parameterization is ''",
    "--norm_class batchnorm": "--norm_class batchnorm is unknown",
    "--doc_len 8": "which nothing keeps apart here: give --varlen true too, or --doc_len 0.",
    "--doc_len 64 --varlen true": "cuts nothing in rows of 64 tokens (--ctx_len): give fewer tokens than these",
    "--doc_len -1": "--doc_len is -1",
    "--ffn_multiple 1e-9": "ffn_multiple is 1e-09, which times 64 is no width; raise it",
    "--ffn_multiple 4 --ffn_multiple_of 64": "both say how wide the networks are; give one of them.",
    "--grad_clip 0 --grad_clip_type local": "needs a limit, and --grad_clip is 0; drop one of them.",
    "--weight_decay_schedule cosine --base_hps.weight_decay 0": "--weight_decay_schedule cosine cannot act. Drop it.",
    "--attention ''": "--attention is ''",
    "--wandb_project ''": "--wandb_project is ''",
    "--tracker_group 'a\nb'": "--tracker_group is 'a\\nb'",
    "--out_dir 'a\nb'": "--out_dir is 'a\\nb'",
    f"--out_dir {'/'.join(['a' * 200] * 30)}": "it must be a path of 1 to 4,096 bytes",
    # a choice of words
    "--precision fp16": "--precision cannot be 'fp16'; give one of bf16, fp32, bf16-mixed, 32.",
    "--schedule linaer": "--schedule cannot be 'linaer'; give one of linear, cosine, cos_inf, wsd, wsd_s, constant, "
    "none.",
    "--decay 3": "--decay cannot be '3'; give one of linear, cosine, 1-sqrt, sqrt, square, exp, mirror_cosine, "
    "miror_cosine.",
    "--act_ckpt maybe": "--act_ckpt cannot be 'maybe'; give true or false or one of off, cheap, selective, full.",
    "--kernels x": "--kernels cannot be 'x'; give one of auto, plain, reference.",
    "--skip x": "--skip cannot be 'x'; give one of add, none, sum.",
    "--mlp x": "--mlp cannot be 'x'; give one of swiglu, relu2, oss_swiglu, gelu, none.",
    "--aux_style x": "--aux_style cannot be 'x'; give one of",
    "--batch_rule x": "--batch_rule cannot be 'x'; give one of",
    "--loggers foo": "--loggers is foo; it must be any of csv, tensorboard, wandb, mlflow",
    "--loggers csv,foo": "--loggers is csv,foo; it must be any of",
    "--loggers ,": "--loggers cannot be",
    "--ema ten": "--ema cannot be 'ten'; give counts of tokens such as 100M,1B: numbers joined by commas, each",
    "--ema 1B,0": "--ema is 0.0,1000000000.0; it must be numbers joined by commas, each from 1 to 1e16",
    # structure
    "--mixer_options 3": '--mixer_options cannot be \'3\'; give JSON such as {"mixer": {"option": value}}.',
    "--mixer_options {": "--mixer_options cannot be '{'; give JSON",
    "--mixer_options '{\"attention\": 3}'": "--mixer_options cannot be",
    '--mixer_options \'{"attention": {"heads": 0}}\'': "The mixer attention has no option 'heads'",
    '--mixer_options \'{"mamba": {"d_state": 4}}\'': "No layer of transformer uses mamba (--mixer_options)",
    '--train_model mamba --mixer_options \'{"mamba": {"d_state": 0}}\'': "it must be a whole number of at least 1",
    '--train_model mamba --mixer_options \'{"mamba": {"d_stat": 4}}\'': "The mixer mamba has no option 'd_stat'",
    '--train_model mamba --mixer_options \'{"mamba": {"d_state": .nan}}\'': "its numbers must be finite",
    f'--train_model mamba --mixer_options \'{{"mamba": {{"expand": {10**18}}}}}\'': "too large to be described",
    "--optimizer_args 3": "--optimizer_args cannot be '3'; give JSON such as {\"option\": value}.",
    "--optimizer_args.foo 1": "has no option 'foo' (--optimizer_args)",
    "--optimizer muon --optimizer_args.momentum .nan": "--optimizer_args is {'momentum': nan}; its numbers must be",
    "--base_hps 3": "--base_hps cannot be '3'; give JSON such as {\"eta0\": 0.001}.",
    "--base_hps '{\"eta\": 3}'": "'base_hps.eta' is no option. Did you mean '--base_hps.eta0'",
    "--base_hps.b0 null": "--base_hps.b0 cannot be 'None'; give a count of tokens",
    "--depth.x 3": "--depth cannot be made of parts; give a whole number",
    # no value, no option
    "--depth": "--depth needs a value: a whole number from 1 to 2,000.",
    "--config": "--config needs a value: a YAML file of options.",
    "--config=": "--config needs a value: a YAML file of options.",
    "--config nowhere.yaml": "File does not exist",
    "--config .": "Path is not a file",
    "--config list.yaml": "--config list.yaml holds no options",
    "--config broken.yaml": "--config broken.yaml cannot be read as YAML",
    "--config binary.yaml": "--config binary.yaml cannot be read as YAML",
    "--config twice.yaml": "--config twice.yaml gives depth twice. Keep one line of each.",
    "--config unknown.yaml": "'depht' is no option. Did you mean '--depth'",
    "--config typed.yaml": "--depth cannot be 'eight'; give a whole number from 1 to 2,000.",
    "--config bounds.yaml": "--label_smoothing is 1.0; it must be 0, or at least 1e-06 and below 1",
    "--config null.yaml": "--log_step was given null, which it cannot be. Leave it out",
    "--config blank.yaml": "--train_data_dir was given null",
    "--config group.yaml": "--config group.yaml must give base_hps lines of its own",
    "--config no_group.yaml": "--config no_group.yaml must give base_hps lines of its own",
    "--config within.yaml": "--config within.yaml gives eta0 twice. Keep one line of each.",
    "--config keys.yaml": "--config keys.yaml has a key that is no word",
    "--config circle.yaml": "--config circle.yaml holds a part that contains itself",
    "--config old.yaml": "'gradient_checkpointing' is no option. Recomputation of activations is --act_ckpt",
    "--config pipe.yaml": "pipe.yaml is a pipe, socket or device and not a file",
    "--base_hps '{\"d0\": null}'": "--base_hps.d0 was given null",
    "--depth 4 foo": "unrecognized arguments: foo. An option begins with --",
    "--": "unrecognized arguments: --",
    "-d 8": "unrecognized arguments: -d 8.",
    "--dpeth 8": "unrecognized arguments: --dpeth 8. Did you mean '--depth'",
    "--dpeth=8": "unrecognized arguments: --dpeth=8. Did you mean '--depth'",
    "--max-tokens 1": "unrecognized arguments: --max-tokens 1. Did you mean '--max_tokens'",
    "--eta0 1": "Did you mean '--base_hps.eta0'?",
    f"--{LONG} 1": "unrecognized arguments: ",
    # as other programs call it
    "--base_hps.lr 1": "The peak learning rate is --base_hps.eta0",
    "--LEARNING-RATE 1": "The peak learning rate is --base_hps.eta0",
    "--DEPTH 1": "Did you mean '--depth'",
    "--gpus 8": "the processes that torchrun starts",
    "--device cpu": "the processes that torchrun starts",
    "--resid_dropout 0.1": "Dropout is --dropout",
    "--num_experts 8": "The number of experts is --sparsity x --top_k",
    "--num_heads 8": "Heads follow from --train_model and --depth",
    "--tokenizer gpt2": "The tokenizer is that of --train_data_dir",
    "--wandb_name x": "--tracker_name",
    "--learning_rate 1": "The peak learning rate is --base_hps.eta0",
    "--lr 1": "The peak learning rate is --base_hps.eta0",
    "--batch_size 1": "The batch is --total_bsz, in tokens; --micro_bsz is the sequences per device",
    "--weight_decay 1": "Did you mean '--base_hps.weight_decay'?",
    "--epochs 1": "The length of a run is --max_tokens",
    "--max_steps 1": "The length of a run is --max_tokens",
    "--warmup_steps 1": "The warm-up is --base_hps.warmup_tokens",
    "--seq_len 1": "The context is --ctx_len",
    "--n_layers 1": "The number of layers is --depth",
    "--wandb true": "Trackers are --loggers",
    # contradictions
    "--resume true --init_from c": "--resume continues a run and --init_from starts one",
    "--load_dir a --init_from b": "--load_dir a is the old name of --init_from",
    "--train_name validation": "validation needs --init_from",
    "--keep_best": "--keep_best needs --val_data_dir, since the best is",
    "--yarn_scale 4": "--yarn_scale only acts in a midtrain or validation run",
    "--fp4 --fp8_recipe rowwise": "--fp4 true is --fp8_recipe te_nvfp4, and this run has rowwise",
    "--train_name tie --tie_embeddings false": "--tie_embeddings False disagrees with the token 'tie'",
    "--base_hps.warmup_tokens 1e6": "Warm-up of 1,000,000 tokens does not fit",
    "--max_tokens 100": "--max_tokens 100 is less than one batch of 512",
}
LINES |= {
    f"--{option} {value}": f"--{option} "
    for options, values in KINDS.values()
    for option in options.split()
    for value in values
}
SAYS = {f"--{o} {v}": says for options, values in KINDS.values() for o in options.split() for v, says in values.items()}
FILES = {
    "list.yaml": b"- 1\n",
    "broken.yaml": b"depth: [\n",
    "binary.yaml": b"\xff\xfe\x00",
    "twice.yaml": b"depth: 8\nseed: 1\ndepth: 9\n",
    "unknown.yaml": b"depht: 8\n",
    "typed.yaml": b"depth: eight\n",
    "bounds.yaml": b"label_smoothing: 1\n",
    "null.yaml": b"log_step: null\nseed: 1\n",
    "blank.yaml": b"seed: 1\ntrain_data_dir:\n",
    "group.yaml": b"base_hps: 3\n",
    "no_group.yaml": b"base_hps:\n",
    "within.yaml": b"base_hps: {eta0: 1e-3, eta0: 2e-3}\n",
    "keys.yaml": b"[a]: 1\n",
    "circle.yaml": b"mixer_options: &a\n  mamba: *a\n",
    "old.yaml": b"gradient_checkpointing: true\n",
}


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory) -> Path:
    """Where the lines are typed; LINES name its files."""
    made, before = tmp_path_factory.mktemp("typed"), Path.cwd()
    for name, content in FILES.items():
        (made / name).write_bytes(content)
    os.mkfifo(made / "pipe.yaml")
    os.chdir(made)
    yield made
    os.chdir(before)


def test_the_table_has_a_hundred_and_sixty_lines() -> None:
    assert len(LINES) >= 160


@pytest.mark.parametrize("line", LINES, ids=lambda line: repr(line)[1:60])
def test_a_bad_line_is_one_short_sentence(line: str, folder: Path, capsys) -> None:
    assert pretrain.main(shlex.split(f"{SMALL} {line} --dry_run")) == 2
    shown = capsys.readouterr()
    message = shown.err.removeprefix("error: ").removesuffix("\n")
    assert message != shown.err and not shown.out
    assert LINES[line] in message and SAYS.get(line, "") in message
    assert "\n" not in message or message.startswith("The model transformer at depth 2 cannot be built:\n")
    assert len(message) < 1000 and "Traceback" not in message
    assert {path.name for path in folder.iterdir()} == {*FILES, "pipe.yaml"}, "nothing is written"
