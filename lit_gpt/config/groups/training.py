"""Options of training: batch and length, the scaling rule, and the optimizer.

The format of the docstrings is that of lit_gpt/config/help.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from lit_gpt.config.bounds import Bounds, Each, Ends
from lit_gpt.config.groups.kinds import (
    Batch,
    Beta,
    Budget,
    ClipType,
    DecayShape,
    Depth,
    Epsilon,
    Name,
    Scale,
    ScheduleName,
    Share,
    Steps,
)
from lit_gpt.config.words import TokenCounts, Tokens, Words


@dataclass
class BatchOptions:
    """Batch, length and schedule: how much is trained, and how the learning rate changes on the way.

    max_tokens: Tokens to train on.
        Default: the token budget base_hps.t0, times the size of this model over that of the base model
        Example: --max_tokens 10B
    total_bsz: Tokens in one optimizer step, of all processes together.
        Default: base_hps.b0, which is 2097152, and less for budgets below 2.1e9: a thousandth of them
        Example: --total_bsz 512k
    micro_bsz: Sequences that a device takes at once. More are faster, until the memory is full; the batch remains
        --total_bsz, rounded to whole micro-batches of all devices.
    schedule: How the learning rate falls after the warm-up (--base_hps.warmup_tokens). cos_inf is a cosine that ends
        --cos_inf_tokens before the run does; none is one rate throughout, without a warm-up.
        Default: linear; wsd with --decay_tokens, and wsd_s with --decay_at
    cos_inf_tokens: With cos_inf: tokens at the end of the run at the final rate, base_hps.min_lr_mult times the peak.
        Default: none, which only the other schedules can be without
        Example: --schedule cos_inf --cos_inf_tokens 1B --base_hps.min_lr_mult 0.1
    decay: Shape of the decays of wsd and wsd_s; lit_gpt/scaling/schedule.py has the formulas. sqrt is 1-sqrt.
        Default: linear
    decay_fraction: Part of the tokens after the warm-up in which wsd, or each decay of wsd_s, decays.
    decay_tokens: Length of each decay of wsd and wsd_s in tokens, in place of --decay_fraction. A fork without
        --max_tokens trains for just as long.
        Default: what --decay_fraction says
        Example: --decay_tokens 1B
    decay_at: Where the decays of wsd_s end, in tokens or in multiples of the default of --max_tokens. A validation and
        a checkpoint follow each decay, and then the learning rate is at its peak again.
        Default: no decays of wsd_s
        Example: --decay_at 0.5x,1x,2x,4x or --decay_at 5B,10B
    lower_peaks: With --decay_at: divide the peak of each period by the square root of its end over the first end.
    bramp_ratio: Let the batch grow from --total_bsz to this many times it, in the first 5 percent of the tokens.
        Default: 1, so that it does not grow
    midtrain: Go on with trained weights: no warm-up, and --yarn_scale acts.
        Default: false
    """

    max_tokens: Budget | None = None
    total_bsz: Batch | None = None
    micro_bsz: Annotated[int, Bounds(1, 1_000_000)] = 2
    schedule: ScheduleName | None = None
    cos_inf_tokens: Budget | None = None
    decay: DecayShape | None = None
    decay_fraction: Annotated[float, Bounds(0, 1, "low")] = 2 / 7
    decay_tokens: Budget | None = None
    decay_at: Annotated[Words, Ends()] = field(default_factory=list)
    lower_peaks: bool = False
    bramp_ratio: Annotated[int, Bounds(1, 10_000)] | None = None
    midtrain: bool | None = None


@dataclass
class BaseHyperparameters:
    """Base hyper-parameters: tuned once on a small base model; the scaling rule carries them to this one.

    eta0: Peak learning rate of the base model.
    warmup_tokens: Tokens in which the learning rate rises from zero to its peak.
        Default: 1e9, less (10.5 percent) for budgets below 9.5e9; 0 with Muon and its relatives
        Example: --base_hps.warmup_tokens 100M
    weight_decay: Weight decay: each step shrinks a weight by learning rate times this.
        Default: 0.1; 4e-5 with --independent_weight_decay true; 0 with muonh and muonball

    min_lr_mult: Final learning rate, as a fraction of the peak.
    d0: Depth of the base model.
    ar0: Aspect ratio of the base model.
        Default: that of the run (--ar); give it to study the width at one depth
    b0: Batch of the base model in tokens.
    t0: Tokens that the base model was trained on.
    hd0: Size of an attention head of the base model.
    w_init_scale: Multiply the initial weights of every linear map and expert by this.
    weight_lr_scale: Multiply the learning rate of matrices by this.
    vector_lr_scale: Multiply the learning rate of vectors, such as gains and biases, by this.
    beta1: First beta of Adam: how slowly the mean of the gradients forgets.
    beta2: Second beta of Adam: how slowly the mean of the squared gradients forgets.
    eps: Epsilon of Adam, which is added to the root of the mean of the squared gradients.
    muon_beta: Momentum of Muon and its relatives.
    """

    d0: Depth = 8
    ar0: Annotated[int, Bounds(1, 10_000)] | None = None
    eta0: Annotated[float, Bounds(0, 1000, "low")] = 6e-4
    b0: Batch = 2**21
    t0: Budget = 9.5e9
    hd0: Annotated[int, Bounds(1, 65_536)] = 128
    w_init_scale: Annotated[float, Bounds(1e-6, 1e6)] = 1.0  # at 0 matrices have no gradient
    n0_mult: Scale = 237568  # see ArchScaleOptions
    weight_decay: Scale | None = None
    eps: Epsilon = 1e-8
    min_lr_mult: Annotated[float, Bounds(0, 1)] = 0.0
    warmup_tokens: Annotated[Tokens, Bounds(0, 1e16)] | None = None
    beta1: Beta = 0.9
    beta2: Beta = 0.95
    muon_beta: Beta = 0.95
    weight_lr_scale: Scale = 1.0
    vector_lr_scale: Scale = 1.0


@dataclass
class ScalingOptions:
    """Scaling rule: how rates and initial weights follow from the size of the model.

    parameterization: Scaling rule: sp (nothing is carried over), mup, mupp (muP++), hyperp, or another one.
        docs/optimizers.md compares them, and the error for an unknown name lists all.
        Default: sp

    batch_rule: How rates follow the batch: default multiplies them by sqrt(batch / base batch), none leaves them; for
        sde and sdew see lit_gpt/scaling/batch_rules.py.
    depth_scale: Multiply every branch by 1 / sqrt(2 x depth), whatever the rule.
        Default: what the rule says
    param_count: What the token budget counts: the parameters of the model, or ArchScale's formula for them.
    count_embeddings: Count the embeddings in the token budget, too.
        Default: false
    embedding_init_std: Standard deviation of the initial token table.
        Default: 1e-4, or 0.02 where the table is the output head too; 0.02 under plain
        Example: --embedding_init_std 0.8
    head_init_std: Standard deviation of the initial output head, where it is not tied; null starts it at zero. Under sp
        and plain the head starts as --init_std says.
    head_start: With flat, the head starts the smaller the wider the model is, so that the first logits do not grow. It
        is for rules that do not multiply logits, such as sp and hyperp; those that do, such as mup, refuse it.
    init_std: Standard deviation of the initial weights where the rule draws them from N(0, 0.02): linear maps, experts
        and a tied table under sp, every table too under plain.
        Default: 0.02
    ortho_init: Start matrices as orthogonal ones.
    diag_init: Start matrices as identity matrices.
    maxfan_init: Start matrices from a normal distribution of standard deviation 1 / sqrt(the longer side).
    """

    parameterization: Name | None = None
    batch_rule: Literal["default", "sde", "sdew", "none"] = "default"
    depth_scale: bool | None = None
    param_count: Literal["exact", "analytic"] = "exact"
    count_embeddings: bool | None = None
    embedding_init_std: Scale | None = None
    head_init_std: Scale | None = 0.02
    head_start: Literal["fixed", "flat"] = "fixed"
    init_std: Annotated[float, Bounds(0, 1000, "low")] | None = None
    ortho_init: bool = False
    diag_init: bool = False
    maxfan_init: bool = False
    base_hps: BaseHyperparameters = field(default_factory=BaseHyperparameters)


@dataclass
class OptimizerOptions:
    """Optimizer: how a gradient becomes an update.

    optimizer: adamw, muon, muonh, muonball, normuon, lion, hadam, or one of some forty others (docs/optimizers.md).
        Default: adamw
    grad_clip: Largest norm of all gradients together; a longer one is shortened to it. 0 switches this off.
    grad_clip_type: What --grad_clip limits: the norm of all gradients together (global), the norm of each tensor's
        (local), or every entry by itself (elementwise).
    optimizer_args: Further arguments of that optimizer, each by its name.
        Default: none
        Example: --optimizer muon --optimizer_args.ns_steps 6, or --optimizer_args '{"ns_steps": 6}'
    weight_decay_rule: Weight decay of the base model (base_hps.weight_decay), or the one that Power Lines computes from
        batch and budget.
    independent_weight_decay: A step shrinks weights by weight decay times schedule, whatever the learning rate is.
        Default: false
    cautious_weight_decay: Shrink only those weights that the update shrinks, too.
    weight_decay_schedule: How weight decay changes over the budget: constant, or cosine, which takes it to zero.
        Default: the rule's, which is constant but under baseline
    momentum_schedule: How the momentum of Muon and its relatives changes: constant, or rise_and_fall, from 0.85 to
        --base_hps.muon_beta over 400 steps, and towards 0.9 as the learning rate decays.
        Default: the rule's, which is constant but under baseline
    label_smoothing: Part of the target's probability that is spread over all other tokens.
        Default: 0
    ema: Keep moving averages of the weights with these half-lives. They are validated and saved beside the weights,
        which train as without them.
        Default: none
        Example: --ema 100M,1B
    skip_spikes: Do not take a step whose loss or gradient norm is more than this many standard deviations above the
        mean of the last 128 steps.
        Default: off; only steps with infinite or undefined gradients are skipped
        Example: --skip_spikes 6
    max_skips: End the run, with a checkpoint, when this many steps in a row were skipped.
    """

    optimizer: Name | None = None
    grad_clip: Annotated[float, Bounds(0, 1e9)] = 1.0
    grad_clip_type: ClipType = "global"
    optimizer_args: dict[str, Any] | None = None
    weight_decay_rule: Literal["base", "power_lines"] = "base"
    independent_weight_decay: bool | None = None
    cautious_weight_decay: bool = False
    weight_decay_schedule: Literal["constant", "cosine"] | None = None
    momentum_schedule: Literal["constant", "rise_and_fall"] | None = None
    label_smoothing: Share | None = None
    ema: Annotated[TokenCounts, Each(Bounds(1, 1e16))] = field(default_factory=list)
    skip_spikes: Annotated[float, Bounds(0, 1000, "low")] | None = None
    max_skips: Steps = 10
