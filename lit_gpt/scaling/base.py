"""The Plan: everything that decides how a run trains, as numbers a person can check.

    RunConfig + ModelConfig + BaseHyperparameters + rule -> Plan

Training executes the Plan and derives nothing else. It is frozen, serialisable, printed
by --dry_run, written to the run folder and into every checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from lit_gpt.config.groups.kinds import ClipType, DecayShape, ScheduleName
from lit_gpt.config.readers import EXPERTS, HEADS
from lit_gpt.config.run import BaseHyperparameters

__all__ = [
    "BaseHyperparameters",
    "Decay",
    "Fork",
    "Init",
    "MomentumCurve",
    "Multipliers",
    "Phase",
    "Plan",
    "RolePlan",
    "Schedule",
    "Situation",
    "Steps",
    "Transfer",
]

MomentumSchedule = Literal["constant", "rise_and_fall"]
DecaySchedule = Literal["constant", "cosine"]
InitKind = Literal["normal", "fan_in_uniform", "orthogonal", "identity", "fan_max_normal", "zeros"]
LEARNED_ROLES: tuple[str, ...] = (
    "embedding", "head", "matrix", "expert", "router", "vector", "conv",
    "value_table", "output", "gate", "scalar", "residual_scalar",
)  # fmt: skip
# The linear maps between hidden vectors, what muP calls matrix-like: both their dimensions grow with the width, except
# for the rows of a router, which are its experts.
HIDDEN = ("matrix", "output", "expert", "router")
# Of a fixed size at any width. Decay would pull a residual_scalar from 1 to 0, and the others are a few numbers.
UNDECAYED: tuple[str, ...] = ("gate", "scalar", "residual_scalar")


@dataclass(frozen=True)
class Init:
    """Distribution of a role's initial weights.

    kind: normal N(0, std); fan_in_uniform U(-1/sqrt(fan_in), 1/sqrt(fan_in)) (Kaiming with
    a = sqrt(5)); fan_max_normal N(0, 1/sqrt(max(fan_in, fan_out))); orthogonal; identity
    (ones on the main diagonal); zeros. gain multiplies the result.
    """

    kind: InitKind = "normal"
    std: float = 0.02
    gain: float = 1.0


@dataclass(frozen=True)
class Multipliers:
    """Constants inside the forward pass.

    logit: on the final hidden state before the head. residual: on every branch before it
    is added. attention: softmax scale, None for 1/sqrt(head_dim). router: on router logits.
    """

    logit: float = 1.0
    residual: float = 1.0
    attention: float | None = field(default=None, metadata=HEADS)
    router: float = field(default=1.0, metadata=EXPERTS)


@dataclass(frozen=True)
class RolePlan:
    """What one role gets: peak learning rate, decoupled weight decay, initial distribution.

    update_rule: how its parameters are updated, see optimizer_facts.py. eps_factor: on the eps of Adam-like rules.
    betas: of Adam-like rules, where they are not the Plan's.
    """

    lr: float
    weight_decay: float
    init: Init
    update_rule: str = "adamw"
    eps_factor: float = 1.0
    betas: tuple[float, float] | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RolePlan:
        """Rebuild from plain values, as `dataclasses.asdict` makes them; see `renamed`."""
        betas = values.get("betas")
        own = {"init": Init(**values["init"]), "betas": tuple(betas) if betas else None}
        return cls(**{**renamed(values), **own})


@dataclass(frozen=True)
class MomentumCurve:
    """Momentum of the Muon family over a run: from `start` to the Plan's over `rise_tokens`, and to `end` at the end.

    It falls as the learning rate does, and is at `end` where that is 0. A young average holds gradients of weights that
    are soon far away, and an old one smooths what a small rate smooths already.
    """

    start: float
    rise_tokens: float
    end: float


@dataclass(frozen=True)
class Decay:
    """One decay of a WSD schedule: the rate is `peak` until `start` tokens, then falls to peak * final at `end`.

    peak: as a fraction of the run's peak rate.
    """

    start: int
    end: int
    peak: float = 1.0


@dataclass(frozen=True)
class Schedule:
    """Learning rate as a fraction of its peak, over tokens; see scaling/schedule.py.

    decay: in the first of its spellings. decays: those of wsd_s, or the one of wsd whose length was given in tokens;
    then decay_fraction says nothing.
    constant_end: tokens at the end of cos_inf at the final fraction.
    """

    name: ScheduleName
    warmup_tokens: float
    total_tokens: float
    final: float = 0.0
    decay: DecayShape = "linear"
    decay_fraction: float = 2 / 7
    decays: tuple[Decay, ...] = ()
    constant_end: int = 0

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Schedule:
        """Rebuild from plain values; earlier versions wrote no decays."""
        return cls(**{**values, "decays": tuple(Decay(**decay) for decay in values.get("decays", ()))})


@dataclass(frozen=True)
class Fork:
    """Where a run starts that goes on from a checkpoint of another one (--fork_from).

    path: that checkpoint. identity: the SHA-256 that seals it. step, tokens: how far it had come.
    fresh: role -> why the optimizer's state of its parameters starts anew; that of the others is kept.
    data: what becomes of the place in the data, in words. samples: how many of the samples in this run's order were
    seen before, 0 where that is another order than the other run's. offsets: source -> windows of it that were seen
    before the first sample of this order.
    parents: "path, after n tokens" of the forks that the other run came from, the first first.
    """

    path: str
    identity: str
    step: int
    tokens: int
    fresh: dict[str, str] = field(default_factory=dict)
    data: str = ""
    samples: int = 0
    offsets: dict[str, int] = field(default_factory=dict)
    parents: tuple[str, ...] = ()

    def order_start(self, context: int) -> int:
        """After how many tokens the order of samples begins that this run reads; 0 for that of a first run.

        And where `samples` were of a shorter context: whether the order is the same is asked before that is known.
        """
        return max(self.tokens - self.samples * context, 0)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Fork:
        """Rebuild from plain values. Raises ValueError for other types, and for negative counts."""
        fork = cls(**{**values, "parents": tuple(values["parents"])})
        texts = [fork.path, fork.identity, fork.data, *fork.parents, *fork.fresh, *fork.fresh.values(), *fork.offsets]
        counts = [fork.step, fork.tokens, fork.samples, *fork.offsets.values()]
        if not all(isinstance(t, str) for t in texts) or not all(type(n) is int and 0 <= n < 1 << 63 for n in counts):
            raise ValueError(f"the fork {str(values)[:200]} is none")
        return fork


@dataclass(frozen=True)
class Steps:
    """What a scaling rule may know of an optimizer's steps; made by OptimizerFacts.steps_with.

    growth: role -> power of the width with which the effect of a step grows, see optimizer_facts.GROWTH.
    like_adam: their entries have Adam's size. fits_hyperp: rates may do without a factor for the width.
    typed: the options that chose the optimizer, for messages.
    """

    growth: Mapping[str, float]
    like_adam: bool
    fits_hyperp: bool
    typed: str


@dataclass(frozen=True)
class Situation:
    """All that a scaling rule may look at: this model, the base model, and the optimizer's steps.

    width, base_width: n_embd of this model and of the base model. tokens, base_tokens: their token budgets.
    tied: whether one table serves as input and output. steps: see Steps.
    head_init_std, head_start: the options of these names; a std of None starts the head at zero.
    embedding_init_std: the option; None is the rule's own.
    init_std: of linear maps where the rule says nothing else.
    """

    depth: int
    base_depth: int
    width: int
    base_width: int
    head_dim: int
    base_head_dim: int
    tokens: float
    base_tokens: float
    tied: bool
    steps: Steps
    head_init_std: float | None = 0.02
    head_start: Literal["fixed", "flat"] = "fixed"
    embedding_init_std: float | None = None
    init_std: float = 0.02


@dataclass(frozen=True)
class Transfer:
    """What a rule answers: factors on the (batch-adjusted) base values, per role.

    lr, weight_decay: role -> factor; eps too, 1 where not named. The optimizer multiplies weight_decay by its rate.
    independent_decay: role -> factor on the share that a step of independent weight decay takes, which no rate
    multiplies; None where it is that of weight_decay. init: role -> distribution before w_init_scale.
    betas: role -> Adam's, of roles where they are not the base's.
    momentum_schedule, decay_schedule: what the options --momentum_schedule and --weight_decay_schedule are where they
    are not given.
    warmup: "fixed" tokens, or "proportional" to the token budget. scheduled_betas: Adam's
    betas follow the learning-rate schedule (super_mup).
    """

    lr: dict[str, float]
    weight_decay: dict[str, float]
    init: dict[str, Init]
    multipliers: Multipliers
    warmup: Literal["fixed", "proportional"] = "fixed"
    scheduled_betas: bool = False
    eps: dict[str, float] = field(default_factory=dict)
    independent_decay: dict[str, float] | None = None
    betas: dict[str, tuple[float, float]] = field(default_factory=dict)
    momentum_schedule: MomentumSchedule = "constant"
    decay_schedule: DecaySchedule = "constant"


class Phase(TypedDict):
    """Source -> weight from so many tokens of the run on, up to the next phase; see data/mixture.py."""

    from_tokens: int
    weights: dict[str, float]


@dataclass(frozen=True)
class Plan:
    """The numbers of one run.

    tokens: training budget. batch_tokens: global batch (the first one under ramp-up).
    steps: optimizer steps (before ramp-up shortens them). counts: parameters by kind.
    model_flops_per_token: forward and backward, attention included. base_batch_tokens and
    base_beta2: what the batch rule starts from, for ramp-up. momentum: of the Muon family.
    momentum_curve: how it changes, None for not at all.
    cautious_weight_decay: decay only what the update shrinks too (arXiv:2510.12402).
    decay_schedule: of all weight decays over the budget: "cosine" takes them to zero by half a cosine.
    fork: where it goes on from another run; then tokens and steps count those of that run too.
    curriculum: the phases of a data mixture, empty where it is the same throughout or there is none.
    ema: half-lives in tokens of the averages of the weights, smallest first.
    seed: of the weights. data_seed: of the order of the data.
    grad_clip_type: what grad_clip limits, see parallel/gradients.py.
    memory: bytes on one GPU by what they are for, empty where nobody asked. They depend on the machines of the
    day and not on the run, so two Plans that differ in them are equal.
    """

    family: str
    depth: int
    rule: str
    batch_rule: str
    optimizer: str
    tokens: int
    batch_tokens: int
    context: int
    steps: int
    batch_ramp: int
    schedule: Schedule
    roles: dict[str, RolePlan]
    multipliers: Multipliers
    beta1: float
    beta2: float
    eps: float
    scheduled_betas: bool
    independent_weight_decay: bool
    grad_clip: float
    label_smoothing: float
    seed: int
    data_seed: int
    counts: dict[str, int]
    model_flops_per_token: float
    base_batch_tokens: float
    base_beta2: float
    momentum: float = 0.95
    cautious_weight_decay: bool = False
    momentum_curve: MomentumCurve | None = None
    decay_schedule: DecaySchedule = "constant"
    optimizer_args: dict[str, Any] = field(default_factory=dict)
    fork: Fork | None = None
    curriculum: list[Phase] = field(default_factory=list)
    ema: list[int] = field(default_factory=list)
    grad_clip_type: ClipType = "global"
    memory: dict[str, int] = field(default_factory=dict, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it, with lists for tuples; the inverse of from_dict."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Plan:
        """Rebuild from to_dict's values (as found in a run folder or checkpoint)."""
        rebuilt = {
            "schedule": Schedule.from_dict(values["schedule"]),
            "roles": {name: RolePlan.from_dict(r) for name, r in values["roles"].items()},
            "multipliers": Multipliers(**values["multipliers"]),
            "momentum_curve": MomentumCurve(**curve) if (curve := values.get("momentum_curve")) else None,
            "fork": Fork.from_dict(values["fork"]) if values.get("fork") else None,
        }
        of_data = values.get("data_seed", values["seed"])  # earlier runs had one seed for both
        return cls(**{**values, "data_seed": of_data, **rebuilt})


def renamed(role: dict[str, Any]) -> dict[str, Any]:
    """A stored RolePlan under today's field names: early runs wrote the update rule as `method`."""
    return {"update_rule" if key == "method" else key: value for key, value in role.items()}
