"""The command line: every option of pretrain.py, its default, and its help text.

`None` means "from the train_name token or the family, else the default named in the
help"; names.py and train/setup.py turn this into resolved values once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

ScheduleName = Literal["linear", "cosine", "wsd", "constant"]


@dataclass
class BaseHyperparameters:
    """Hyper-parameters tuned once at the base depth; a scaling rule transfers them.

    Args:
        d0: base depth.
        ar0: aspect ratio of the base model; default that of the run (--ar), so that a run at the base depth is at
            the base. Give it to study the width at one depth.
        eta0: peak learning rate at the base depth, batch and token budget.
        b0: base batch in tokens.
        t0: base token budget at depth d0.
        hd0: base head dimension.
        w_init_scale: multiplier on the initial weights of every linear map and expert.
        n0_mult: accepted for old command lines; nothing reads it.
        weight_decay: decoupled weight decay; default 0.1, or 4e-5 with independent weight decay; 0
            with muonh and muonball.
        eps: epsilon of AdamW.
        min_lr_mult: final learning rate as a fraction of the peak.
        warmup_tokens: length of the linear warm-up in tokens; default 1e9, or 0 with the Muon family.
        beta1: first Adam beta.
        beta2: second Adam beta.
        muon_beta: momentum of the Muon family.
        weight_lr_scale: extra learning-rate factor of matrices.
    """

    d0: int = 8
    ar0: int | None = None
    eta0: float = 6e-4
    b0: float = 2**21
    t0: float = 9.5e9
    hd0: int = 128
    w_init_scale: float = 1.0
    n0_mult: float = 237568
    weight_decay: float | None = None
    eps: float = 1e-8
    min_lr_mult: float = 0.0
    warmup_tokens: float | None = None
    beta1: float = 0.9
    beta2: float = 0.95
    muon_beta: float = 0.95
    weight_lr_scale: float = 1.0


@dataclass
class RunConfig:
    """Train a language model: a family, a depth, a scaling rule, a folder of tokens.

    Args:
        train_data_dir: folder (or az://, gs://, s3:// root) of packed .bin shards, nanoGPT, llm.c
            or Megatron files, or plain text.
        val_data_dir: the same for validation; leave it out to skip validation.
        data_mixture: JSON file, {path prefix relative to train_data_dir: weight}.
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
        expert_backend: mixture of experts: grouped matrix product; auto picks (torch, quack, padded, reference).
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
        param_count: what the token budget counts: exact from the model, or the reference's formula.
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
        max_tokens: token budget; default: the Chinchilla-like budget of the plan, t0 * N / N(d0).
        total_bsz: global batch in tokens; default base_hps.b0.
        micro_bsz: sequences per device and forward pass.
        bramp_ratio: grow the batch from total_bsz to this multiple over the first 5 percent of the tokens.
        schedule: learning-rate schedule (tokens wsd, cosine); default linear.
        decay: shape of the final decay of wsd; default linear, with token cosine too: cosine.
        decay_fraction: fraction of the run after warm-up that wsd decays over.
        grad_clip: largest global gradient norm; 0 switches clipping off.
        label_smoothing: smoothing of the training targets; token ls is 0.1.
        midtrain: continue at full learning rate: no warm-up, YaRN active (token midtrain).
        validation: only validate the weights of init_from, then stop (token validation).
        layer_configurator: per-layer token router (token lc); not in this version.
        seed: seed of the initial weights and of the order of the data.
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
        kernels: reference keeps library kernels out of every operation but attention; auto picks.
        deterministic: deterministic kernels, slower; resume is then bit-exact on a GPU too.
        out_dir: root of the run folders; default $LIGHTNING_ARTIFACTS_DIR, else out.
        resume: true continues the newest checkpoint or fails, auto continues or starts, a path continues that one.
        init_from: checkpoint whose weights start this run; everything else starts from zero.
        load_dir: old name of init_from.
        save_step: steps between checkpoints.
        keep_last: newest checkpoints that are kept.
        keep_every: checkpoints at multiples of this many steps are kept for good; 0 keeps none but the newest.
        async_save: write checkpoints while training goes on.
        log_step: steps between log lines.
        eval_step: steps between validations.
        eval_sequences: sequences per validation.
        num_extrp: validate at 1x to this many times the context.
        loggers: any of csv, tensorboard, wandb, mlflow; metrics.jsonl is always written.
        wandb_project: project of the wandb logger.
        use_mlflow: old name of --loggers [mlflow].
        logging_multiprocessing: accepted for old command lines; metrics never block the loop here.
        health_step: steps between activation statistics (RMS and outliers of every branch); 0 is never.
        profile_steps: profile this many steps, from the sixth on, into <run folder>/profile; 0 is off.
        stop_after: end cleanly, with a checkpoint, after this many steps of this run; for schedulers with short slots.
        dry_run: print the Plan and the model, touch nothing, read no data.
    """

    # data
    train_data_dir: str = "data/redpajama_sample"
    val_data_dir: str | None = None
    data_mixture: str | None = None
    num_workers: int = 2
    eos_token_id: int | None = None
    vocab_size: int | None = None
    # model
    train_model: str = "transformer"
    depth: int = 16
    ar: int | None = None
    ctx_len: int | None = None
    swa_len: int | None = None
    sparsity: int = 1
    top_k: int = 2
    share_expert: bool | None = None
    sqrt_gate: bool | None = None
    global_aux: bool | None = None
    aux_style: Literal["switch", "entropy", "switch_seq"] | None = None
    aux_gamma: float | None = None
    exact_aux: bool | None = None
    router_gate: Literal["selected", "all", "sigmoid"] | None = None
    router_z_loss: float | None = None
    bias_rate: float | None = None
    expert_routing: Literal["token_choice", "expert_choice"] | None = None
    expert_capacity: float | None = None
    expert_parallel: bool = False
    expert_backend: str = "auto"
    norm_class: str | None = None
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
    rope_base: float | None = None
    yarn_scale: float = 1.0
    tie_embeddings: bool | None = None
    varlen: bool | None = None
    doc_positions: Literal["restart", "continue"] | None = None
    attn_conv: bool | None = None
    share_per_layer: int | None = None
    share_group: int | None = None
    mixer_options: dict[str, dict[str, Any]] | None = None
    # scaling
    train_name: str = "scaling_mup_tie_rbase_prolong_varlen"
    parameterization: str | None = None
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
    head_init_std: float | None = 0.02
    head_start: Literal["fixed", "flat"] = "fixed"
    # optimization
    optimizer: str | None = None
    optimizer_args: dict[str, Any] | None = None
    max_tokens: float | None = None
    total_bsz: float | None = None
    micro_bsz: int = 2
    bramp_ratio: int | None = None
    schedule: ScheduleName | None = None
    decay: Literal["linear", "cosine", "1-sqrt"] | None = None
    decay_fraction: float = 2 / 7
    grad_clip: float = 1.0
    label_smoothing: float | None = None
    midtrain: bool | None = None
    validation: bool | None = None
    layer_configurator: bool | None = None
    seed: int = 3407
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
    attention: str = "auto"
    kernels: Literal["auto", "reference"] = "auto"
    deterministic: bool = False
    # run folder and checkpoints
    out_dir: str | None = None
    resume: bool | str = False
    init_from: str | None = None
    load_dir: str | None = None
    save_step: int | None = None
    keep_last: int = 2
    keep_every: int = 0
    async_save: bool = True
    # logging and validation
    log_step: int = 10
    eval_step: int = 1000
    eval_sequences: int = 200
    num_extrp: int | None = None
    loggers: list[Literal["csv", "tensorboard", "wandb", "mlflow"]] = field(default_factory=list)
    wandb_project: str = "discrete-llm"
    use_mlflow: bool = False
    logging_multiprocessing: bool = True
    health_step: int = 0
    profile_steps: int = 0
    stop_after: int | None = None
    dry_run: bool = False
