"""The command line: every option of pretrain.py, its default, and its help text.

`None` means "from the train_name token or the family, else the default named in the
help"; names.py and preflight/resolved_run.py turn this into resolved values once. What a value may be
stands in its type, and bounds.py checks it, however the options were made.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from lit_gpt.config.bounds import PATH, Bounds, Choices, Each, Ends, Text
from lit_gpt.config.words import TokenCounts, Tokens, Words

ScheduleName = Literal["linear", "cosine", "wsd", "wsd_s", "constant"]
# Where several options have one meaning. Upper ends are far above what anyone trains: they catch slips, such as a
# budget typed for a depth.
Depth = Annotated[int, Bounds(1, 2_000)]
Length = Annotated[int, Bounds(1, 2**30)]  # tokens of a sequence
Experts = Annotated[int, Bounds(1, 10_000)]
Steps = Annotated[int, Bounds(1, 1e9)]
StepsOrNever = Annotated[int, Bounds(0, 1e9)]
Batch = Annotated[Tokens, Bounds(1, 1e12)]
Budget = Annotated[Tokens, Bounds(1, 1e16)]
Scale = Annotated[float, Bounds(0, 1e6)]
Beta = Annotated[float, Bounds(0, 1, "high")]  # a moving average with beta 1 never forgets
Path = Annotated[str, PATH]
Name = Annotated[str, Text("a name", 128)]
Label = Annotated[str, Text("a name", 150, without="/\\")]  # of the run folder, whose suffixes need the rest of 255


@dataclass
class BaseHyperparameters:
    """Hyper-parameters tuned once at the base depth; a scaling rule transfers them.

    Args:
        d0: base depth.
        ar0: aspect ratio of the base model; default that of the run (--ar), so that a run at the base depth is at
            the base. Give it to study the width at one depth.
        eta0: peak learning rate at the base depth, batch and token budget.
        b0: base batch in tokens; where neither it nor total_bsz is given, at most a thousandth of the budget.
        t0: base token budget at depth d0.
        hd0: base head dimension.
        w_init_scale: multiplier on the initial weights of every linear map and expert.
        n0_mult: accepted for old command lines; nothing reads it.
        weight_decay: decoupled weight decay; default 0.1, or 4e-5 with independent weight decay; 0
            with muonh and muonball.
        eps: epsilon of AdamW.
        min_lr_mult: final learning rate as a fraction of the peak.
        warmup_tokens: length of the linear warm-up in tokens; default 1e9, less for budgets below 9.5e9 (10.5 percent),
            or 0 with the Muon family.
        beta1: first Adam beta.
        beta2: second Adam beta.
        muon_beta: momentum of the Muon family.
        weight_lr_scale: extra learning-rate factor of matrices.
    """

    d0: Depth = 8
    ar0: Annotated[int, Bounds(1, 10_000)] | None = None
    eta0: Annotated[float, Bounds(0, 1000, "low")] = 6e-4
    b0: Batch = 2**21
    t0: Budget = 9.5e9
    hd0: Annotated[int, Bounds(1, 65_536)] = 128
    w_init_scale: Scale = 1.0
    n0_mult: Scale = 237568
    weight_decay: Scale | None = None
    eps: Annotated[float, Bounds(0, 1, "low")] = 1e-8
    min_lr_mult: Annotated[float, Bounds(0, 1)] = 0.0
    warmup_tokens: Annotated[Tokens, Bounds(0, 1e16)] | None = None
    beta1: Beta = 0.9
    beta2: Beta = 0.95
    muon_beta: Beta = 0.95
    weight_lr_scale: Scale = 1.0


@dataclass
class RunConfig:
    """Train a language model: a family, a depth, a scaling rule, a folder of tokens.

    Args:
        train_data_dir: folder (or az://, gs://, s3:// root) of packed .bin shards, nanoGPT, llm.c
            or Megatron files, or plain text.
        val_data_dir: the same for validation; leave it out to skip validation.
        data_mixture: JSON file, {path prefix relative to train_data_dir: weight}; or such weights by ranges of tokens:
            [{"until": "10B", "weights": {...}}, {"weights": {...}}].
        num_workers: threads that read ahead.
        eos_token_id: end-of-document token; default: what the prepared data says.
        vocab_size: size of the vocabulary; default: the family's (32000 unless it says otherwise).
        train_model: model family, without depth; an unknown name prints the list.
        depth: number of layers.
        ar: aspect ratio, width = ar * depth; default: the family's.
        ctx_len: training context in tokens; default: the family's (4096 unless it says otherwise).
        swa_len: window of the sliding-window attention layers; default: the family's.
        sparsity: mixture of experts: total over active experts (S).
        top_k: mixture of experts: active experts per token (k).
        share_expert: mixture of experts: one shared expert beside the routed ones.
        sqrt_gate: mixture of experts: square-root gates.
        global_aux: mixture of experts: balance over all ranks and micro-batches of a step, not within each.
        aux_style: mixture of experts: form of the balance loss; default switch.
        aux_gamma: mixture of experts: weight of the balance loss; default 0.001, or 0 with expert_choice or bias_rate.
        exact_aux: with global_aux, count all micro-batches of a step before training on the first: the same
            gradients for any split, at the price of one more forward pass; default: counts so far.
        router_gate: mixture of experts: softmax over the selected experts (default), softmax over all before
            the selection (default where one routed expert is selected), or a sigmoid per expert, normalised over
            the selected.
        router_z_loss: mixture of experts: weight of the router z-loss; default 0.
        bias_rate: mixture of experts: step of the selection biases of loss-free balancing; default 0, off. Above 0 the
            balance loss is off unless aux_gamma is given.
        expert_routing: mixture of experts: tokens choose experts (default), or experts choose tokens.
        expert_capacity: mixture of experts: an expert serves at most this multiple of its mean load; default: all.
        expert_parallel: mixture of experts: processes of a node share the experts, and tokens travel to them.
        expert_backend: mixture of experts: grouped matrix product; auto picks (torch, quack, padded, plain).
        norm_class: rmsnorm or layernorm; default: the family's.
        mlp: kind of feed-forward network; default: the family's.
        post_norm: normalise the skip path itself.
        decoupled_norm: post-norm with a gain on the branch only (token postnorm_decouple).
        skip_gain: a gain on the skip path, starting at 1e-4 (token skipgain).
        skip: add is x + f(x), none drops the skip path (token noskip), sum adds all branches (token noskip_sum).
        qk_norm: RMS norm on queries and keys (token qknorm).
        attn_gate: one sigmoid gate per head and token on the attention output (token ga).
        attn_norm: norm before the attention output projection (token anorm).
        ffn_norm: norm on the hidden activations of the feed-forward network (token fnorm).
        bias: biases on projections (token bias).
        position: rope or none (token nope).
        rope_base: base of the rotary frequencies; token rbase is 640000; default 10000.
        yarn_scale: YaRN context extension factor (only with token midtrain or validation).
        tie_embeddings: one table for input and output (token tie).
        varlen: attention and recurrence stop at document boundaries (token varlen).
        doc_positions: with varlen, rotary positions restart at each document (default) or
            continue through the row; the scores are the same but for rounding.
        attn_conv: a short causal convolution on queries, keys and values.
        share_per_layer: blocks in a group that its layers repeat; 0 gives each layer its own.
        share_group: groups of layers that share blocks.
        mixer_options: options of mixers as JSON, such as {"mamba": {"d_state": 32}}.
        train_name: tokens joined by underscores; known ones switch features, the rest are labels.
        parameterization: scaling rule: sp, mup, mupp (muP++, token mup), super_mup, completep, hyperp (token
            muonh), hyperp_paper; token ori_mup is mup; default sp.
        depth_scale: scale residual branches by 1/sqrt(2L) whatever the rule (token dsca).
        base_hps: hyper-parameters at the base depth.
        batch_rule: how hyper-parameters follow the batch size.
        param_count: what the token budget counts: exact from the model, or ArchScale's formula.
        count_embeddings: count embeddings in the token budget (token v2scale).
        independent_weight_decay: shrink by weight_decay x schedule per step, whatever the learning
            rate (token v2scale).
        weight_decay_rule: base takes base_hps.weight_decay; power_lines derives it from batch and budget.
        cautious_weight_decay: shrink only weights that the update shrinks too.
        ortho_init: orthogonal initial matrices.
        diag_init: identity-like initial matrices.
        maxfan_init: normal initial matrices with std 1/sqrt(max(fan_in, fan_out)).
        head_init_std: initial std of the untied head under muP; null starts it at zero.
        head_start: flat shrinks the untied head's start with the width, so that logits do not grow with it; for rules
            without a multiplier on logits (sp, plain, hyperp, hyperp_paper).
        optimizer: adamw, muon, muonh, muonball, normuon, hadam, lion (tokens muon, muonh, muonball, hadam)
            or one of some forty others, see docs/optimizers.md; default adamw.
        optimizer_args: extra arguments of that optimizer, --optimizer_args.key value.
        max_tokens: token budget, such as 10B; default: the Chinchilla-like budget of the plan, t0 * N / N(d0).
        total_bsz: global batch in tokens; default base_hps.b0.
        micro_bsz: sequences per device and forward pass.
        bramp_ratio: grow the batch from total_bsz to this multiple over the first 5 percent of the tokens.
        schedule: learning-rate schedule (tokens wsd, cosine); default linear. wsd_s decays several times, at decay_at.
        decay: shape of the decays of wsd and wsd_s; default linear, with token cosine too: cosine.
        decay_fraction: fraction of the tokens after warm-up that wsd, or each decay of wsd_s, decays over.
        decay_tokens: tokens that wsd, or each decay of wsd_s, decays over, in place of decay_fraction. A fork trains
            for just so many more where it has no max_tokens.
        decay_at: where the decays of wsd_s end, in tokens or in multiples of the default budget, such as
            --decay_at 0.5x,1x,2x,4x; a checkpoint and a validation follow each, and then the peak again.
        lower_peaks: with decay_at, the rate before a decay is lower by the square root of its end over the first end.
        grad_clip: largest global gradient norm; 0 switches clipping off.
        skip_spikes: do not take a step whose loss or gradient norm is more than this many standard deviations above
            its mean over the last 128 steps taken, such as 6; default: take it.
        max_skips: end the run, with a checkpoint, when this many steps in a row could not be taken.
        label_smoothing: smoothing of the training targets; token ls is 0.1.
        ema: keep exponential moving averages of the weights with these half-lives in tokens, such as --ema 100M,1B;
            they are validated and saved beside the weights, which train as without them.
        midtrain: continue at full learning rate: no warm-up, YaRN active (token midtrain).
        validation: only validate the weights of init_from, then stop (token validation).
        layer_configurator: per-layer token router (token lc); not in this version.
        seed: seed of the initial weights and of the order of the data.
        plugins: Python files of your own, each an entry as docs/adding.md shows them, such as --plugins my_rule.py.
        fsdp2: accepted for old command lines; several processes always train with FSDP2.
        precision: bf16 (fp32 master weights), or fp32; default bf16 on a GPU, fp32 on CPU.
        residual_precision: of the residual stream under pre-norm; bf16 is about 2 percent faster.
        fp8: 8-bit matrix products through TransformerEngine.
        fp4: 4-bit matrix products through TransformerEngine.
        compile: torch.compile each block; default on for a GPU.
        act_ckpt: recompute activations in backward; true is full. Alias --gradient_checkpointing.
        offloading: keep parameters and optimizer state in host memory.
        fsdp_save_mem: offloading and act_ckpt together.
        use_flce: compute head and loss in slices without the full logits; default on.
        attention: attention backend; auto picks the fastest that fits (python -m lit_gpt.tools.inspect env).
        kernels: plain keeps library kernels out of every operation but attention; auto picks.
        collective_timeout: seconds that processes wait for one another before the run ends and says who is missing.
        deterministic: deterministic kernels, slower; resume is then bit-exact on a GPU too.
        out_dir: root of the run folders; default $LIGHTNING_ARTIFACTS_DIR, else out.
        resume: true continues the newest checkpoint or fails, auto continues or starts, a path continues that one.
        init_from: checkpoint whose weights (for experts: or a dense model's) start this run; all else starts from zero.
        fork_from: run, or checkpoint of one, that this run goes on from under its own Plan: with its weights, optimizer
            state, counts of tokens and steps, and place in the data. max_tokens counts those of that run, too.
        load_dir: old name of init_from.
        save_step: steps between checkpoints.
        keep_last: newest checkpoints that are kept.
        keep_every: checkpoints at multiples of this many steps are kept for good; 0 keeps none but the newest.
        keep_best: save whenever the validation loss is below that of every checkpoint, and keep that checkpoint until
            there is a better one.
        async_save: write checkpoints while training goes on.
        log_step: steps between log lines.
        eval_step: steps between validations.
        eval_sequences: sequences per validation.
        num_extrp: validate at 1x to this many times the context.
        loggers: any of csv, tensorboard, wandb, mlflow, such as --loggers wandb,csv; metrics.jsonl is always written.
        wandb_project: project of the wandb logger, experiment of mlflow.
        wandb_entity: team or user of the wandb logger; default: that of the login.
        tracker_name: name of the run in wandb and mlflow; default: the run folder's.
        tracker_group: group of runs in wandb, tag "group" in mlflow; sweep.py gives its own.
        tracker_tags: tags of the run in wandb and mlflow, such as --tracker_tags d8,ablation.
        use_mlflow: old name of --loggers mlflow.
        logging_multiprocessing: accepted for old command lines; metrics never block the loop here.
        health_step: steps between activation statistics (RMS and outliers of every branch); 0 is never.
        profile_steps: profile this many steps, from the sixth on, into <run folder>/profile; 0 is off.
        stop_after: end cleanly, with a checkpoint, after this many steps of this run; for schedulers with short slots.
        dry_run: print the Plan and the model, touch nothing, read no data.
    """

    # data
    train_data_dir: Path = "data/redpajama_sample"
    val_data_dir: Path | None = None
    data_mixture: Path | None = None
    num_workers: Annotated[int, Bounds(0, 1024)] = 2
    eos_token_id: Annotated[int, Bounds(0, 2**31 - 2)] | None = None
    vocab_size: Annotated[int, Bounds(2, 2**31 - 1)] | None = None
    # model
    train_model: Name = "transformer"
    depth: Depth = 16
    ar: Annotated[int, Bounds(1, 10_000)] | None = None
    ctx_len: Length | None = None
    swa_len: Length | None = None
    sparsity: Experts = 1
    top_k: Experts = 2
    share_expert: bool | None = None
    sqrt_gate: bool | None = None
    global_aux: bool | None = None
    aux_style: Literal["switch", "entropy", "switch_seq"] | None = None
    aux_gamma: Scale | None = None
    exact_aux: bool | None = None
    router_gate: Literal["selected", "all", "sigmoid"] | None = None
    router_z_loss: Scale | None = None
    bias_rate: Scale | None = None
    expert_routing: Literal["token_choice", "expert_choice"] | None = None
    expert_capacity: Annotated[float, Bounds(0, 10_000, "low")] | None = None
    expert_parallel: bool = False
    expert_backend: Name = "auto"
    norm_class: Name | None = None
    mlp: Literal["swiglu", "relu2", "oss_swiglu"] | None = None
    post_norm: bool | None = None
    decoupled_norm: bool | None = None
    skip_gain: bool | None = None
    skip: Literal["add", "none", "sum"] | None = None
    qk_norm: bool | None = None
    attn_gate: bool | None = None
    attn_norm: bool | None = None
    ffn_norm: bool | None = None
    bias: bool | None = None
    position: Literal["rope", "none"] | None = None
    rope_base: Annotated[float, Bounds(1, 1e15, "low")] | None = None
    yarn_scale: Annotated[float, Bounds(1, 10_000)] = 1.0
    tie_embeddings: bool | None = None
    varlen: bool | None = None
    doc_positions: Literal["restart", "continue"] | None = None
    attn_conv: bool | None = None
    share_per_layer: Annotated[int, Bounds(0, 2_000)] | None = None
    share_group: Depth | None = None
    mixer_options: dict[str, dict[str, Any]] | None = None
    # scaling
    train_name: Label = "scaling_mup_tie_rbase_prolong_varlen"
    parameterization: Name | None = None
    depth_scale: bool | None = None
    base_hps: BaseHyperparameters = field(default_factory=BaseHyperparameters)
    batch_rule: Literal["default", "sde", "sdew", "none"] = "default"
    param_count: Literal["exact", "analytic"] = "exact"
    count_embeddings: bool | None = None
    independent_weight_decay: bool | None = None
    weight_decay_rule: Literal["base", "power_lines"] = "base"
    cautious_weight_decay: bool = False
    ortho_init: bool = False
    diag_init: bool = False
    maxfan_init: bool = False
    head_init_std: Scale | None = 0.02
    head_start: Literal["fixed", "flat"] = "fixed"
    # optimization
    optimizer: Name | None = None
    optimizer_args: dict[str, Any] | None = None
    max_tokens: Budget | None = None
    total_bsz: Batch | None = None
    micro_bsz: Annotated[int, Bounds(1, 1_000_000)] = 2
    bramp_ratio: Annotated[int, Bounds(1, 10_000)] | None = None
    schedule: ScheduleName | None = None
    decay: Literal["linear", "cosine", "1-sqrt"] | None = None
    decay_fraction: Annotated[float, Bounds(0, 1, "low")] = 2 / 7
    decay_tokens: Budget | None = None
    decay_at: Annotated[Words, Ends()] = field(default_factory=list)
    lower_peaks: bool = False
    grad_clip: Annotated[float, Bounds(0, 1e9)] = 1.0
    skip_spikes: Annotated[float, Bounds(0, 1000, "low")] | None = None
    max_skips: Steps = 10
    label_smoothing: Annotated[float, Bounds(0, 1, "high")] | None = None
    ema: Annotated[TokenCounts, Each(Bounds(1, 1e16))] = field(default_factory=list)
    midtrain: bool | None = None
    validation: bool | None = None
    layer_configurator: bool | None = None
    seed: Annotated[int, Bounds(0, 2**32 - 1)] = 3407
    plugins: Words = field(default_factory=list)
    # hardware
    fsdp2: bool = False
    precision: Literal["bf16", "fp32", "bf16-mixed", "32"] | None = None
    residual_precision: Literal["fp32", "bf16"] = "fp32"
    fp8: bool = False
    fp4: bool = False
    compile: bool | None = None
    act_ckpt: bool | Literal["off", "full", "selective"] = False
    offloading: bool = False
    fsdp_save_mem: bool = False
    use_flce: bool | None = None
    attention: Name = "auto"
    kernels: Literal["auto", "plain", "reference"] = "auto"
    collective_timeout: Annotated[float, Bounds(1, 1e6)] = 600.0
    deterministic: bool = False
    # run folder and checkpoints
    out_dir: Path | None = None
    resume: bool | Path = False
    init_from: Path | None = None
    fork_from: Path | None = None
    load_dir: Path | None = None
    save_step: Steps | None = None
    keep_last: Steps = 2
    keep_every: StepsOrNever = 0
    keep_best: bool = False
    async_save: bool = True
    # logging and validation
    log_step: Steps = 10
    eval_step: Steps = 1000
    eval_sequences: Steps = 200
    num_extrp: Annotated[int, Bounds(1, 1024)] | None = None
    loggers: Annotated[Words, Choices(("csv", "tensorboard", "wandb", "mlflow"))] = field(default_factory=list)
    wandb_project: Name = "discrete-llm"
    wandb_entity: Name | None = None
    tracker_name: Name | None = None
    tracker_group: Name | None = None
    tracker_tags: Words | None = None
    use_mlflow: bool = False
    logging_multiprocessing: bool = True
    health_step: StepsOrNever = 0
    profile_steps: StepsOrNever = 0
    stop_after: Steps | None = None
    dry_run: bool = False
