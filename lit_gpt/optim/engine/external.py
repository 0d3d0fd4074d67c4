"""Optimizers of other libraries, as a table: torch.optim, pytorch-optimizer, torchao.

`--optimizer NAME --optimizer_args.OPTION VALUE`. An entry says where the class is, what it is called with, its facts
and its Traits. Its options are the arguments of the class; learning rate and weight decay are the Plan's, and
so are betas and eps unless its facts or the command line give them. Torch's AdamW trains the roles that its facts
do not name. Decay is decoupled for all.

Not taken from a library, for reasons in docs/optimizers.md: AdEMAMix, LAMB, Adam-mini, APOLLO, RMNP, Signum and
Sophia-G.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from lit_gpt.config.arguments import UNKNOWN, Argument, arguments_of, check
from lit_gpt.errors import NotInstalled, UserError
from lit_gpt.ops.backends import missing, optional
from lit_gpt.optim.engine.libraries import Group, Traits, Wrapped
from lit_gpt.optim.engine.library_state_size import conda, factored, galore, momentum, preconditioned, quantised
from lit_gpt.optim.engine.trial import objection
from lit_gpt.scaling.base import HIDDEN, Plan
from lit_gpt.scaling.optimizer_facts import (
    Args,
    Constants,
    Memory,
    OptimizerFacts,
    UpdateRule,
    copies,
    everywhere,
    hidden,
    taking,
)

PO, TORCH, TORCHAO = "pytorch_optimizer", "torch.optim", "torchao.optim"
# Arguments that are no options: they are the Plan's or the wrapper's, or only say how a step is computed.
OURS = {"self", "params", "lr", "weight_decay", "kwargs", "maximize", "foreach", "fused", "capturable"}
OURS |= {"differentiable", "weight_decouple", "fixed_decay", "decoupled_weight_decay", "clip_lambda"}
# Types of options that a signature does not show.
HINTS = {"projection_type": Literal["std", "reverse_std", "right", "left", "full", "random"]}

ORDINARY = Traits()
ADAMS, NONE = taking(beta1=None, beta2=None, eps=None), taking()  # the constants that most read, or none


@dataclass(frozen=True)
class Entry:
    """One optimizer of a library.

    module, name: where its class is. about: what it is, with its paper.
    options: defaults that differ from the class's, and options that the signature of the class does not show.
    fixed: arguments that are no options, with their values.
    without: argument -> why it may only have its default.
    by_role: role -> further keys of its group.
    schedule: the only learning-rate schedule beside none that it allows; None for any.
    aliases: other names that people type.
    """

    module: str
    name: str
    about: str
    facts: OptimizerFacts
    traits: Traits = ORDINARY
    options: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    without: Mapping[str, str] = field(default_factory=dict)
    by_role: Callable[[str], dict[str, Any]] = lambda role: {}
    schedule: str | None = None
    aliases: tuple[str, ...] = ()

    def build(self, groups: list[Group], plan: Plan) -> Wrapped:
        """The optimizer over role groups.

        Raises NotInstalled without the library; UserError for unknown options, values that they or the class
        refuse, and a schedule or rates that it cannot follow.
        """
        cls = self._load(plan)
        arguments, scheduled = self._arguments(cls, plan)

        def make(inner: list[Group]) -> list[torch.optim.Optimizer]:
            chosen = [g | self.by_role(g["role"]) for g in inner if g["role"] in self.facts.rules]
            rest = [g for g in inner if g["role"] not in self.facts.rules]
            made: list[torch.optim.Optimizer] = [cls(chosen, weight_decay=0.0, **arguments)] if chosen else []
            return made + ([torch.optim.AdamW(rest, weight_decay=0.0)] if rest else [])

        adamw = {"betas": (plan.beta1, plan.beta2), "eps": plan.eps}
        planned = [group | (scheduled if group["role"] in self.facts.rules else adamw) for group in groups]
        try:
            return Wrapped(planned, make, self.facts.gathered, self.traits)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise UserError(f"--optimizer {plan.optimizer} cannot be used like this: {error}.") from error

    def try_out(self, plan: Plan) -> None:
        """Raise UserError for what `build` refuses, and for values with which steps fail."""
        if problem := objection(lambda groups: self.build(groups, plan), plan.roles):
            given = f" with --optimizer_args {dict(plan.optimizer_args)}" if plan.optimizer_args else ""
            raise UserError(
                f"--optimizer {plan.optimizer}{given} cannot be used: {problem}. Change its arguments, or "
                "--base_hps.beta1, beta2 or eps."
            )

    def _check_rates(self, plan: Plan) -> None:
        """Raise UserError for rates or betas by role, of which an optimizer of one rate would take the first."""
        roles = {name: role for name, role in plan.roles.items() if plan.counts.get(name)}
        if self.traits.one_rate and len({(role.lr, role.betas) for role in roles.values()}) > 1:
            rates = ", ".join(f"{name} {role.lr:g}" for name, role in roles.items())
            raise UserError(
                f"--optimizer {plan.optimizer} has one learning rate and the same betas for all weights, and in this "
                f"Plan roles have their own: {rates}. Give --parameterization sp or plain (and --base_hps."
                "weight_lr_scale 1, vector_lr_scale 1), or another optimizer."
            )

    def _load(self, plan: Plan) -> Any:
        self._check_rates(plan)
        if self.schedule and plan.schedule.name not in (self.schedule, "none"):
            raise UserError(
                f"--optimizer {plan.optimizer} averages weights instead of lowering the learning rate; the schedule "
                f"is {plan.schedule.name}. Give --schedule {self.schedule} (a warm-up may stay)."
            )
        if reason := missing(self.module):
            raise NotInstalled(
                f"--optimizer {plan.optimizer} comes from a library: {reason}. "
                "All of them: EXTRAS=dev,optim bash install.sh"
            )
        return getattr(optional(self.module), self.name)

    def _refuse_without(self, parameters: Mapping[str, Argument], plan: Plan) -> None:
        for name in self.without.keys() & parameters.keys() & plan.optimizer_args.keys():
            if (value := plan.optimizer_args[name]) != parameters[name].default:
                why = self.without[name]
                raise UserError(f"--optimizer_args.{name} {value} cannot be used by {plan.optimizer}: {why}. Drop it.")

    def _arguments(self, cls: Any, plan: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
        """(arguments of the class; the betas and eps that groups get from the Plan before every step).

        Raises UserError for --optimizer_args that the class does not take.
        """
        parameters, own = arguments_of(cls), self.facts.rule("matrix").constants({})
        values = {"beta1": plan.beta1, "beta2": plan.beta2, "eps": plan.eps}
        values |= {name: value for name, value in own.items() if value is not None}
        eps = values.pop("eps")
        given = (("betas", tuple(values.values())), ("eps", eps))
        ours = {name: value for name, value in given if name in parameters}
        ours |= self.options
        hints = HINTS | {name: option.hint for name, option in parameters.items()}
        options = parameters | {name: Argument(hints.get(name, UNKNOWN), value) for name, value in ours.items()}
        self._refuse_without(parameters, plan)
        withheld = OURS | self.fixed.keys()
        allowed = {name: option for name, option in options.items() if name not in withheld}
        check(f"optimizer {plan.optimizer}", "--optimizer_args", plan.optimizer_args, allowed)
        # What was typed, or is the optimizer's own, stays; other betas and eps follow the Plan, whose batch ramp and
        # schedule may change them from step to step.
        fixed = {"betas": own.get("beta1"), "eps": own.get("eps")}
        planned = {"betas": (plan.beta1, plan.beta2), "eps": plan.eps}
        scheduled = {
            name: planned[name]
            for name in ours.keys() & planned.keys()
            if fixed[name] is None and name not in plan.optimizer_args
        }
        coupled = {"weight_decouple": self.traits.own_decay} if "weight_decouple" in parameters else {}
        return {**coupled, **self.fixed, **ours, **plan.optimizer_args}, scheduled


def elementwise(name: str, memory: Memory, constants: Constants = ADAMS, **facts: Any) -> OptimizerFacts:
    """Facts of an optimizer that trains every role and whose step on a part of a tensor needs no other part."""
    return OptimizerFacts(everywhere(UpdateRule(name, memory, constants)), **facts)


def whole(name: str, memory: Memory, constants: Constants = ADAMS, **facts: Any) -> OptimizerFacts:
    """Facts of an optimizer that trains every role and must see whole tensors."""
    return elementwise(name, memory, constants, gathered=True, **facts)


def matrices(name: str, memory: Memory, constants: Constants = ADAMS, **facts: Any) -> OptimizerFacts:
    """Facts of an optimizer that trains matrices, experts and routers and must see them whole; AdamW trains others."""
    return OptimizerFacts(hidden(UpdateRule(name, memory, constants)), gathered=True, **facts)


def _torchao(name: str, about: str, facts: OptimizerFacts, *aliases: str) -> Entry:
    without = {"amsgrad": "the library cannot take the largest of quantised moments"}
    without |= {"bf16_stochastic_round": "weights are fp32 here, and it rounds bf16 weights only"}
    return Entry(TORCHAO, name, about, facts, without=without, aliases=aliases)


def _mars(kind: str, about: str, constants: Constants, *aliases: str, **facts: Any) -> Entry:
    # Vectors have the rates of their groups, so their factor on the learning rate is 1.
    fixed = {"mars_type": kind, "lr": 1.0, "lr_1d": 1.0, "weight_decay_1d": 0.0}
    name, memory = f"mars_{kind}", copies(3, "ams_bound")

    def of_vectors(args: Args) -> Mapping[str, float | None]:
        """AdamW with betas of the library trains them; with optimize_1d, what trains matrices, or Adam for Shampoo."""
        if args.get("optimize_1d"):
            return constants(args) if kind == "lion" else ADAMS(args)
        return taking(beta1=0.9, beta2=0.95, eps=None)({**args, "betas": args.get("betas_1d")})

    rules = everywhere(UpdateRule(name, memory, constants))
    rules |= dict.fromkeys(("vector", "scalar", "residual_scalar"), UpdateRule(name, memory, of_vectors))
    return Entry(PO, "MARS", about, OptimizerFacts(rules, gathered=True, **facts), fixed=fixed, aliases=aliases)


def _scion_norm(role: str) -> dict[str, Any]:
    """Norms and radii of the paper's language models (arXiv:2502.07529)."""
    if role in HIDDEN:
        return {"norm_type": 2, "scale": 50.0}
    return {"norm_type": 4, "scale": 3000.0} if role in ("embedding", "value_table", "head") else {}


def _clip_adopt(step: float) -> float:
    """ADOPT's clipping at t^(1/4); the library counts from 1 where the paper starts at 0."""
    return max(step - 1, 1) ** 0.25


BY_NORM: dict[str, Any] = {"fixed": {"norm_type": 1, "norm_kwargs": None, "scale": 1.0}, "by_role": _scion_norm}
# Where muP counts on Adam's entries of size 1 for tables and multiplies logits by 1 / n, Scion steps with signs over
# C = n, in both. With `constraint` a step starts from (1 - rate) W, which keeps W in the ball of the radius; a decay
# beside it would make that ball smaller.
SIGNS: dict[str, Any] = {"steps": "spectral", "table_growth": {"embedding": -1.0, "head": -1.0}}
SIGNS |= {"shrinking": "constraint"}
# MARS-Shampoo: V x n orthogonal times sqrt(V / n), so entries of n^-1/2 and a spectral norm that needs no multiplier.
SHAMPOO: dict[str, Any] = {"steps": "clip", "table_growth": {"embedding": -0.5, "head": -1.0}}
# SOAP's for convolutions of images. Merging the axes of a matrix makes a vector of it, and the library fails there.
_4D: dict[str, str] = dict.fromkeys(
    ("merge_dims", "data_format"), "it is made for kernels of four axes, which no model here has"
)
_CLIPPED = {"max_grad_norm": "each process would clip its own part of the gradients, and --grad_clip clips them all"}
RANK = 128  # the library's
LOW_RANK = {"rank": RANK, "update_proj_gap": 200, "scale": 0.25, "projection_type": "std"}
AVERAGED = Traits(own_decay=True, averages=True)
# What AdaFactor calls its second beta is the largest that 1 - t^-0.8 may become; the paper's has no such limit. This
# one, which the class takes as below 1, is reached after 1e11 steps. The Plan's 0.95 would be after 42.
NO_LIMIT = 1 - 1e-9

# eps of adabelief is on the variance too, which is far smaller than Adam's second moment; that of torch_muon is on the
# norm that Newton-Schulz divides by. Betas of adan are of the gradient, its differences, and squares; the third of came
# is of the confidence.
EXTERNAL: dict[str, Entry] = {
    "adabelief": Entry(PO, "AdaBelief", "Adam on the variance around the momentum (arXiv:2010.07468)",
                       elementwise("adabelief", copies(2, "ams_bound"),
                                   taking(beta1=None, beta2=None, eps=1e-16)), options={"rectify": True}),
    "adafactor": Entry(PO, "AdaFactor", "factored second moment (arXiv:1804.04235)",
                       whole("adafactor", factored(1), taking(beta1=None, beta2=NO_LIMIT)), Traits(planned_betas=1),
                       fixed={**dict.fromkeys(("scale_parameter", "relative_step", "warmup_init"), False),
                              "momentum_dtype": torch.float32, "eps2": 1e-3}),  # eps2 is of parameter scaling
    "adamp": Entry(PO, "AdamP", "Adam without radial steps (arXiv:2006.08217)", whole("adamp", copies(2)),
                   Traits(own_decay=True)),  # where a step loses its radial part, the decay is times wd_ratio
    "adamw4bit": _torchao("AdamW4bit", "AdamW with 4-bit state (arXiv:2309.01507)",
                          whole("adamw4bit", quantised(4, 128, 16)), "adam4bit"),
    "adamw8bit": _torchao("AdamW8bit", "AdamW with blockwise 8-bit state (arXiv:2110.02861)",
                          whole("adamw8bit", quantised(8, 256, 256)), "adam8bit"),
    "adamwfp8": _torchao("AdamWFp8", "AdamW with fp8 state", whole("adamwfp8", quantised(8, 256, 0)), "adamfp8"),
    "adan": Entry(PO, "Adan", "Nesterov momentum from gradient differences (arXiv:2208.06677)",
                  elementwise("adan", copies(4), taking(beta1=0.98, beta2=0.92, beta3=0.99, eps=None)),
                  without=_CLIPPED),
    "adopt": Entry(PO, "ADOPT", "Adam with the second moment of the step before (arXiv:2411.02853)",
                   elementwise("adopt", copies(2), taking(beta1=None, beta2=None, eps=1e-6)),
                   fixed={"clip_lambda": _clip_adopt}),
    "came": Entry(PO, "CAME", "Adafactor with confidence (arXiv:2307.02047)",
                  whole("came", factored(2), taking(beta1=None, beta2=None, beta3=0.9999))),
    "conda": Entry(PO, "Conda", "Adam in column bases of the momentum (arXiv:2509.24218)", matrices("conda", conda),
                   options={"scale": 0.25}),
    "galore": Entry(PO, "GaLore", "Adam on low-rank gradients (arXiv:2403.03507)", matrices("galore", galore(RANK)),
                    options=LOW_RANK, aliases=("galore_adamw",)),
    "laprop": Entry(PO, "LaProp", "momentum of normalised gradients (arXiv:2002.04839)",
                    elementwise("laprop", copies(2, "ams_bound", "centered"))),
    "lars": Entry(PO, "LARS", "layer-wise rates for SGD (arXiv:1708.03888)", whole("lars", momentum, NONE)),
    "mars_adamw": _mars("adamw", "AdamW on variance-reduced gradients (arXiv:2411.10438)", ADAMS, "mars"),
    "mars_lion": _mars("lion", "Lion on variance-reduced gradients (arXiv:2411.10438)", taking(beta1=None)),
    "mars_shampoo": _mars("shampoo", "Newton-Schulz on variance-reduced gradients (arXiv:2411.10438)",
                          taking(beta1=None, eps=None), **SHAMPOO),
    "nadam": Entry(TORCH, "NAdam", "Adam with Nesterov momentum (Dozat 2016)", elementwise("nadam", copies(2))),
    "novograd": Entry(PO, "NovoGrad", "one second moment per layer (arXiv:1905.11286)", whole("novograd", copies(1)),
                      aliases=("nvnovograd",)),
    "prodigy": Entry(PO, "Prodigy", "finds the learning rate; eta0 multiplies it (arXiv:2306.06101)",
                     whole("prodigy", copies(4), rate_decides=True), Traits(own_decay=True, rate="d", one_rate=True)),
    "radam": Entry(TORCH, "RAdam", "Adam with a rectified start (arXiv:1908.03265)", elementwise("radam", copies(2))),
    "schedulefree_adamw": Entry(PO, "ScheduleFreeAdamW", "averages instead of a decay (arXiv:2405.15682)",
                                elementwise("schedulefree_adamw", copies(2, "ams_bound")), AVERAGED,
                                schedule="constant", aliases=("sf_adamw",)),
    "schedulefree_sgd": Entry(PO, "ScheduleFreeSGD", "averages instead of a decay (arXiv:2405.15682)",
                              elementwise("schedulefree_sgd", copies(1), NONE), AVERAGED,
                              fixed={"eps": 1e-8}, schedule="constant", aliases=("sf_sgd",)),  # it reads no eps
    "scion": Entry(PO, "SCION", "steps of fixed size in the norm of each role (arXiv:2502.07529)",
                   whole("scion", copies(1), NONE, **SIGNS), **BY_NORM),
    "scion_light": Entry(PO, "SCIONLight", "Scion with its momentum in the gradients (arXiv:2502.07529)",
                         whole("scion_light", copies(1), NONE, **SIGNS), Traits(keeps_gradients=True), **BY_NORM),
    "sgd": Entry(TORCH, "SGD", "gradient descent with momentum", elementwise("sgd", momentum, NONE),
                 options={"momentum": 0.9}),
    "shampoo": Entry(PO, "Shampoo", "Kronecker-factored preconditioning (arXiv:1802.09568)",
                     matrices("shampoo", preconditioned(1), NONE), options={"preconditioning_compute_steps": 10},
                     without={"momentum": "the library averages gradients with steps, whose sizes are not alike"}),
    "signsgd": Entry(PO, "SignSGD", "the sign of the gradient (arXiv:1802.04434)",
                     elementwise("signsgd", copies(0), NONE), fixed={"momentum": 0.0}),
    "soap": Entry(PO, "SOAP", "Adam in Shampoo's eigenbases (arXiv:2409.11321)",
                  whole("soap", preconditioned(2, 10000)), without=_4D),
    "torch_muon": Entry(TORCH, "Muon", "torch's own Muon, to compare with",
                        matrices("torch_muon", copies(1), taking(eps=1e-7), steps="original",
                                 steps_option="adjust_lr_fn"),
                        aliases=("muon_pytorch",)),
}  # fmt: skip
