"""The facts of an optimizer that a Plan is made of.

Every optimizer states them in its own file, as `FACTS` (those of libraries in their rows), and whoever builds a Plan
hands them to it. No name of an optimizer decides anything here or in the scaling rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, NamedTuple

from lit_gpt.errors import UserError, did_you_mean
from lit_gpt.scaling.base import HIDDEN, LEARNED_ROLES, RolePlan, Steps

Shape = tuple[int, ...]
Args = Mapping[str, Any]  # what was given as --optimizer_args

# How the effect of a step grows with the width n while the learning rate stays the same: powers of n, for (matrices and
# experts, routers). muP's rates undo this growth.
#
# A step should change outputs of size 1 by a constant amount. For that its spectral norm, as an R x C map, has to be
# proportional to sqrt(R / C) (arXiv:2310.17813): constant for matrices, whose sides grow together, and n^-1/2 for
# routers, whose R is fixed. All singular values of an orthogonal matrix are 1, so the spectral norm of an orthogonal
# step is its factor. Rows of fixed length, and entries of fixed size (Adam), line up with the n inputs instead
# (arXiv:2203.03466), and their effect grows as sqrt(n) and n.
#
# Measured as tools/coord_check.py does, over widths 64 to 512 under muP: with factors 1, n^-1/2 and 1/n on the rate of
# matrices, the stream of rmnp changes as n^0.9, n^-0.1 and n^-0.6 (16 steps), and that of dmuon, with the other rates
# near 0, as n^0.4, n^-0.1 and n^-0.6 (2 steps).
GROWTH: dict[str, tuple[float, float]] = {
    "spectral": (0, 0),  # orthogonal times sqrt(R / C)
    "clip": (0, 0.5),  # times max(1, sqrt(R / C)), for routers 1
    "original": (0, 0.5),  # the same under torch's name
    "none": (0, 0.5),
    "rms": (0.5, 1),  # times 0.2 sqrt(max(R, C)): entries as large as AdamW's, which do not line up
    "match_rms_adamw": (0.5, 1),
    "rows": (0.5, 0.5),  # rows of length max(1, sqrt(R / C))
    "adam": (1, 1),
}


class Kept(NamedTuple):
    """How many fp32 numbers an optimizer keeps for one parameter between steps, but for single ones like step counts.

    with_rows: in tensors that have the parameter's rows, and are divided among processes as these are.
    whole: in tensors that every process has whole.
    """

    with_rows: float
    whole: float = 0.0


Memory = Callable[[Shape, Args], Kept]


def copies(count: float, *options: str) -> Memory:
    """`count` tensors of the parameter's shape, and one more for each of these options that is on."""
    return lambda shape, args: Kept((count + sum(bool(args.get(name)) for name in options)) * prod(shape))


# Adam's constants that an update rule reads, from --optimizer_args: beta1, beta2, ... and eps, a number of its own or
# None for the Plan's.
Constants = Callable[[Args], Mapping[str, float | None]]


def taking(**constants: float | None) -> Constants:
    """These constants, which the options `betas` and `eps` overrule; values that are no numbers are refused later."""

    def given(args: Args) -> Mapping[str, float | None]:
        betas = args.get("betas")
        typed = {f"beta{i}": value for i, value in enumerate(betas if isinstance(betas, (list, tuple)) else (), 1)}
        numbers = {key: v for key, v in {**typed, "eps": args.get("eps")}.items() if isinstance(v, (int, float))}
        return {name: numbers.get(name, own) for name, own in constants.items()}

    return given


def adams(args: Args) -> Mapping[str, float | None]:
    """All of the Plan, whatever the options say: those are of the optimizer beside which AdamW trains some roles."""
    return {"beta1": None, "beta2": None, "eps": None}


@dataclass(frozen=True)
class UpdateRule:
    """How the weights of a role are updated.

    name: what the Plan shows, and the key of the optimizer's `rules`. memory: what is kept for a parameter between
    steps, from its shape and --optimizer_args; None where nobody can tell. constants: what it reads of Adam's, which
    the Plan shows; own numbers are where the Plan's would be wrong, because they multiply other things than Adam's do,
    or because a paper says that they matter. gives_way: its own betas are Adam's, so those that a scaling rule has for
    a role take their place. holds_norm: a step leaves the norm of the weights as it is, so there is nothing to decay.
    keeps_start: that norm is the one they started with, so zero stays zero.
    """

    name: str
    memory: Memory | None = None
    constants: Constants = adams
    gives_way: bool = False
    holds_norm: bool = False
    keeps_start: bool = False

    def __post_init__(self) -> None:
        """Raise UserError for constants that are not Adam's, which a Plan would show and no step would read."""
        own = self.constants({}) if callable(self.constants) else {"constants": self.constants}
        if wrong := [f"{name}={value!r}" for name, value in own.items() if not _is_constant(name, value)]:
            raise UserError(
                f"The update rule {self.name!r} cannot read {', '.join(wrong)}. Say which of beta1, beta2, ... and eps "
                "it reads, as in taking(beta1=None, eps=1e-6): a number of its own, or None for the Plan's beta1, "
                "beta2 or eps."
            )


def _is_constant(name: str, value: Any) -> bool:
    if value is None:
        return name in ("beta1", "beta2", "eps")
    return isinstance(value, (int, float)) and (name == "eps" or (name[:4] == "beta" and name[4:].isdigit()))


ADAMW = UpdateRule("adamw", copies(2))  # the moments of the gradient and of its square


def hidden(rule: UpdateRule) -> dict[str, UpdateRule]:
    """Role -> the same update rule, for matrices, outputs, experts and routers."""
    return dict.fromkeys(HIDDEN, rule)


def everywhere(rule: UpdateRule) -> dict[str, UpdateRule]:
    """Role -> the same update rule, for every role that is trained."""
    return dict.fromkeys(LEARNED_ROLES, rule)


@dataclass(frozen=True)
class OptimizerFacts:
    """All that a Plan and its memory estimate ask of an optimizer.

    rules: role -> update rule; AdamW trains the roles that are not named.
    steps: how long a step on matrices is, a key of GROWTH. steps_option: which of --optimizer_args says so, too.
    table_growth: as GROWTH for embedding and head, whose steps under Adam do not grow.
    fits_hyperp: whether rates without a factor for the width are right, so that HyperP may be used.
    plan_momentum: its momentum is the Plan's (--base_hps.muon_beta).
    cautious_decay: it knows --cautious_weight_decay.
    default_decay: in place of the Plan's default, if not None.
    rate_decides: its decay follows another rate than the Plan's (LAMB's trust ratio, Prodigy's d), so it has none that
    is independent of the rate.
    shrinking: which of --optimizer_args, where it is true, has a step shrink all weights, so that none decay.
    gathered: every process steps whole parameters, and keeps them and their state whole.
    run_length: which of --optimizer_args are the steps of the whole run where they are not given.
    """

    rules: Mapping[str, UpdateRule]
    steps: str = "adam"
    steps_option: str | None = None
    table_growth: Mapping[str, float] = field(default_factory=dict)
    fits_hyperp: bool = False
    plan_momentum: bool = False
    cautious_decay: bool = False
    default_decay: float | None = None
    rate_decides: bool = False
    shrinking: str | None = None
    gathered: bool = False
    run_length: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise UserError for roles and steps that there are not: a rule for such a role would act on nothing."""
        for role in (*self.rules, *self.table_growth):
            if role not in LEARNED_ROLES:
                hint = did_you_mean(role, LEARNED_ROLES)
                raise UserError(
                    f"OptimizerFacts name the role {role!r}.{hint} The roles are {', '.join(LEARNED_ROLES)}."
                )
        if self.steps not in GROWTH:
            raise UserError(f"OptimizerFacts have steps {self.steps!r}; they must be one of {', '.join(GROWTH)}.")

    def rule(self, role: str) -> UpdateRule:
        """The update rule that trains a role."""
        return self.rules.get(role, ADAMW)

    def steps_with(self, name: str, args: Args) -> Steps:
        """What a scaling rule may know of the steps. name: of the optimizer, for messages. args: --optimizer_args."""
        given = args.get(self.steps_option) if self.steps_option else None
        kind = given if isinstance(given, str) and given in GROWTH else self.steps
        matrix, router = GROWTH[kind]
        of_matrices = {"matrix": matrix, "output": matrix, "expert": matrix, "router": router}
        growth = {**dict.fromkeys(LEARNED_ROLES, 0.0), **of_matrices, **self.table_growth}
        growth["value_table"] = growth["embedding"]  # its rows are read one at a time, too, and grow with the width
        options = "".join(f" --optimizer_args.{key} {value}" for key, value in args.items())
        return Steps(growth, kind == "adam", self.fits_hyperp, f"--optimizer {name}{options}")

    def decays(self, role: str, args: Args) -> bool:
        """Whether weight decay may act on a role: not where a step holds the norm, or shrinks the weights by itself."""
        return not self.rule(role).holds_norm and not (self.shrinking and args.get(self.shrinking))

    def constants(self, name: str, role: RolePlan, args: Args) -> Mapping[str, float | None]:
        """What trains a role reads of Adam's constants, by name: a number of its own, or None for the Plan's."""
        rule = self.rule(name)
        own = rule.constants(args)
        return {**own, "beta1": None, "beta2": None} if role.betas and rule.gives_way else own

    def acting(self, name: str, role: RolePlan, args: Args) -> RolePlan:
        """What a Plan has for a role, without betas and a factor on eps that what trains this role does not read."""
        own = self.constants(name, role, args)
        betas, eps = None in (own.get("beta1", 0.0), own.get("beta2", 0.0)), own.get("eps", 0.0) is None
        return replace(role, betas=role.betas if betas else None, eps_factor=role.eps_factor if eps else 1.0)
