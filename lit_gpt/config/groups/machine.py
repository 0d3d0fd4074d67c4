"""Options of the machine, the run folder and logging, and those that only old command lines have.

The format of the docstrings is that of lit_gpt/config/help.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from lit_gpt.config.bounds import Bounds, Choices, StepsOrLast
from lit_gpt.config.groups.kinds import AutoOrPath, File, Folder, Label, Length, Name, Path, Steps, StepsOrNever
from lit_gpt.config.words import Words


@dataclass
class RunOptions:
    """Run folder and checkpoints: where a run is kept, and what it starts from.

    train_name: Name of the run and of its folder; words of it that are tokens, such as mup, set options. Words are what
        stands between underscores; those that are no token are labels. README lists all tokens.
        Example: --train_name first_try_mup sets --parameterization mupp
    out_dir: Folder that the run folders are in.
        Default: $LIGHTNING_ARTIFACTS_DIR, else out
    resume: Continue the run: true needs a checkpoint of it, auto starts where there is none, a path is that of the
        checkpoint or run to continue.
        Example: --resume auto
    dry_run: Print the Plan of the run and end: nothing is trained or written.

    init_from: Start from the weights of this checkpoint, and everything else from zero. A mixture of experts can start
        from a dense model.
        Default: random weights
        Example: --init_from out/mup_transformer_d8_ctx4096
    fork_from: Go on from this run or checkpoint under a Plan of its own: with weights, optimizer state, counts of
        tokens and steps, and place in the data. --max_tokens includes what that run had trained.
        Default: no fork
        Example: --fork_from out/trunk_transformer_d8_ctx4096/checkpoints/step-005000 --decay_tokens 1B
    validation: Validate the weights of --init_from, and end.
        Default: false
    stop_after: End, with a checkpoint, after this many steps of this start; for schedulers with short time limits.
        Default: the whole budget
    seed: Seed of the initial weights, and of the order of the data without --data_seed.
    data_seed: Seed of the order of the data: runs that share it, and have other seeds, see the same tokens.
        Default: --seed
        Example: --seed 2 --data_seed 1
    save_step: Steps between checkpoints.
        Default: 1000
    keep_last: Number of newest checkpoints to keep; older ones are deleted. 0 keeps the newest while the run lasts, and
        once it has finished and its summary is written, only those of --keep_every and --keep_best.
    keep_every: Keep every checkpoint whose step is a multiple of this; 0 keeps none for that reason.
    keep_best: Save whenever the validation loss is a new lowest one, and keep that checkpoint until there is a better.
    async_save: Write checkpoints while training goes on.
    """

    train_name: Label = "scaling_mup_tie_rbase_prolong_varlen"
    out_dir: Folder | None = None
    resume: bool | AutoOrPath = False
    dry_run: bool = False
    init_from: Path | None = None
    fork_from: Path | None = None
    validation: bool | None = None
    stop_after: Steps | None = None
    seed: Annotated[int, Bounds(0, 2**32 - 1)] = 3407
    data_seed: Annotated[int, Bounds(0, 2**32 - 1)] | None = None
    save_step: Steps | None = None
    keep_last: StepsOrNever = 2
    keep_every: StepsOrNever = 0
    keep_best: bool = False
    async_save: bool = True


@dataclass
class ValidationOptions:
    """Validation and evaluation: what is measured of the model while it trains, and how often.

    eval_step: Steps between validations.

    eval_sequences: Number of sequences in a validation.
    full_eval_at: Measure all of the validation data after these steps, and not only --eval_sequences of it.
        Default: never
        Example: --full_eval_at 1000,5000,last
    eval_positions: Measure the validation loss by position in the context, too.
    sample_prompts: File with a prompt in each line: after each validation the model continues them, always with the
        likeliest token, into samples.jsonl of the run folder.
        Default: none
        Example: --sample_prompts prompts.txt
    sample_tokens: Length of these continuations in tokens, at most.
    eval_tasks: Evaluations of the model while it trains: of this project, such as phonebook, and tasks of lm-eval.
        Default: none
        Example: --eval_tasks phonebook,lambada_openai
    eval_tasks_step: Steps between two of these; the last step has them, too.
        Default: --eval_step
    eval_tasks_limit: Examples of each task of lm-eval, the first ones.
    eval_tasks_path: Folder with lm-eval tasks of your own.
        Default: none
        Example: --eval_tasks_path my_tasks
    eval_task_options: Options of this project's evaluations.
        Default: those of each evaluation
        Example: --eval_task_options '{"phonebook": {"min_eval_len": 20, "max_eval_len": 20}}'
    num_extrp: Validate at 1, 2, ... and up to this many times the training context.
        Default: 4
    """

    eval_step: Steps = 1000
    eval_sequences: Steps = 200
    full_eval_at: Annotated[Words, StepsOrLast()] = field(default_factory=list)
    eval_positions: bool = False
    sample_prompts: File | None = None
    sample_tokens: Length = 64
    eval_tasks: Words = field(default_factory=list)
    eval_tasks_step: Steps | None = None
    eval_tasks_limit: Steps = 200
    eval_tasks_path: Folder | None = None
    eval_task_options: dict[str, dict[str, Any]] | None = None
    num_extrp: Annotated[int, Bounds(1, 1024)] | None = None


@dataclass
class LoggingOptions:
    """Logging: which numbers are logged, how often, and where they go.

    log_step: Steps between log lines.
    loggers: Where numbers go, beside metrics.jsonl in the run folder.
        Default: metrics.jsonl only
        Example: --loggers wandb,csv

    wandb_project: Project of wandb, and experiment of mlflow.
    wandb_entity: Team or user of wandb.
        Default: that of the login
    tracker_name: Name of the run in wandb and mlflow.
        Default: that of the run folder
    tracker_group: Group of the run in wandb, and its tag "group" in mlflow; launch_scripts/sweep.py gives its own.
        Default: none
    tracker_tags: Tags of the run in wandb and mlflow.
        Default: none
        Example: --tracker_tags d8,ablation
    health_step: Steps between statistics of the activations (size and outliers of every branch); 0 is never.
    profile_steps: Profile this many steps, from the sixth on, into the folder profile of the run; 0 is off.
        Example: --profile_steps 3
    """

    log_step: Steps = 10
    loggers: Annotated[Words, Choices(("csv", "tensorboard", "wandb", "mlflow"))] = field(default_factory=list)
    wandb_project: Name = "discrete-llm"
    wandb_entity: Name | None = None
    tracker_name: Name | None = None
    tracker_group: Name | None = None
    tracker_tags: Words | None = None
    health_step: StepsOrNever = 0
    profile_steps: StepsOrNever = 0


@dataclass
class PrecisionOptions:
    """Precision and memory: how the machine computes.

    precision: bf16 computes in bf16 and keeps weights in fp32; fp32 does both in fp32. bf16-mixed and 32 are older
        names of the two.
        Default: bf16 on a GPU, fp32 on a CPU
    fp8: Multiply large matrices of blocks in 8 bits while training (H100 and later). Checkpoints and evaluation stay as
        they are.
    fp8_recipe: What shares a scale: tensorwise a tensor, rowwise each row. mxfp8_emulated computes as MXFP8 does;
        torchao and te (TransformerEngine, MXFP8 and NVFP4 for Blackwell) need these packages.
    act_ckpt: Recompute activations in the backward pass, which saves memory and costs time: full (or true) all of
        them; selective all but the results of matrix products and attention; cheap only what the compiler can join
        with the kernels of backward, at next to no cost.
        Example: --act_ckpt cheap

    act_offload: Share of the layers whose activations wait in the memory of the host between forward and backward,
        copied while other layers compute. On a CPU it does nothing.
        Default: 0
        Example: --act_offload 0.25
    compile: Compile each block with torch.compile.
        Default: true on a GPU, false on a CPU
    compile_cache: Folder for compiled code, which later starts read, here and on machines of the same kind. It is
        executed, so use folders of people whom you trust.
        Default: the compilers' own folders on this machine
        Example: --compile_cache compiled
    offloading: Keep parameters and optimizer state in the memory of the host, not of the GPU.
    fsdp_save_mem: Both --offloading true and --act_ckpt full.
    use_flce: Compute head and loss in slices, so that there is never a table of all logits.
        Default: true
    residual_precision: Precision of the residual stream of pre-norm models; bf16 is about 2 percent faster.
    table_precision: Precision in which one process stores the token table and value tables, with their gradients and
        AdamW's averages; bf16 halves that memory and its traffic. Checkpoints hold what is stored.
    logits_precision: Precision of the logits on their way from the head to the training loss, which computes in fp32;
        bf16 halves their traffic. Validation and evaluation read them in fp32.
    kernels: Implementation of all operations but attention: auto takes kernels of libraries and of this project where
        they fit, plain never does; reference is an older name of plain.
    deterministic: Use deterministic kernels, which are slower: a resumed run then has the same bits on a GPU, too.
    """

    precision: Literal["bf16", "fp32", "bf16-mixed", "32"] | None = None
    fp8: bool = False
    fp8_recipe: Literal[
        "tensorwise",
        "rowwise",
        "mxfp8_emulated",
        "torchao_tensorwise",
        "torchao_rowwise",
        "te_current",
        "te_block",
        "te_mxfp8",
        "te_nvfp4",
    ] = "tensorwise"
    act_ckpt: bool | Literal["off", "cheap", "selective", "full"] = False
    act_offload: Annotated[float, Bounds(0, 1)] = 0.0
    compile: bool | None = None
    compile_cache: Folder | None = None
    offloading: bool = False
    fsdp_save_mem: bool = False
    use_flce: bool | None = None
    residual_precision: Literal["fp32", "bf16"] = "fp32"
    table_precision: Literal["fp32", "bf16"] = "fp32"
    logits_precision: Literal["fp32", "bf16"] = "fp32"
    kernels: Literal["auto", "plain", "reference"] = "auto"
    deterministic: bool = False


@dataclass
class ProcessOptions:
    """Several processes: how those that torchrun starts share one model.

    shard_group: Processes that divide one copy of the weights, gradients and optimizer state among them. There are as
        many copies as such groups, which exchange gradients only. It divides the number of processes.
        Default: those of one node
        Example: --shard_group 4
    reduce_precision: Precision in which gradients travel between processes. bf16 halves what travels, and rounds the
        gradient of each micro-batch; what is added up over micro-batches is in fp32 all the same.
    keep_gathered: Gather the weights of all layers once per step, and keep them until its end. Otherwise each layer's
        travel twice per micro-batch, and there are those of two layers at a time.
    fp8_gather: With --fp8 true, weights travel in 8 bits, too.
    collective_timeout: Seconds that processes wait for one another, before the run ends and says who is missing.
    """

    shard_group: Annotated[int, Bounds(1, 100_000)] | None = None
    reduce_precision: Literal["fp32", "bf16"] = "fp32"
    keep_gathered: bool = False
    fp8_gather: bool = False
    collective_timeout: Annotated[float, Bounds(1, 1e6)] = 600.0


@dataclass
class ArchScaleOptions:
    """ArchScale compatibility: options of ArchScale that have another name here, do nothing, or are refused.

    load_dir: Older name of --init_from.
        Default: none
    use_mlflow: Older name of --loggers mlflow.
    fsdp2: Does nothing: several processes always train with FSDP2.
    logging_multiprocessing: Does nothing: logging never holds up training.
    base_hps.n0_mult: Does nothing.
    fp4: Train in 4 bits, on Blackwell; this is --fp8 true --fp8_recipe te_nvfp4.
    layer_configurator: Refused when true: the layer configurator, a router of tokens to layers, is not in this version.
        Default: false
    """

    load_dir: Path | None = None
    use_mlflow: bool = False
    fsdp2: bool = False
    logging_multiprocessing: bool = True
    fp4: bool = False
    layer_configurator: bool | None = None
