"""Every argument of every optimizer, with values that a person may try: each works, or is refused before a run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_optimizers import plan_for
from test_external import skip_if_missing
from torch import nn

from lit_gpt import optim
from lit_gpt.errors import UserError
from lit_gpt.ops.backends import missing
from lit_gpt.optim import EXTERNAL, OPTIMIZERS, check_arguments
from lit_gpt.optim.engine.groups import parameter_groups
from lit_gpt.roles import role
from lit_gpt.scaling.base import Schedule

BETAS = [[0.5, 0.9], [0.5, 0.9, 0.99], [0, 0.9], [0, 0.9, 0.99]]
SWITCH, FACTOR, COUNT, SHARE, SMALL = [True, False], [0.3, 2.5, 0], [3, 7, 1], [0.5, 0, None], [1e-12, 1e-3, 0]
PROJECTIONS = ["std", "reverse_std", "right", "left", "full", "random"]
VALUES: dict[str, list[Any]] = {
    **dict.fromkeys(
        ("ams_bound", "amsgrad", "bf16_stochastic_round", "bias_correction", "cautious", "centered"), SWITCH
    ),
    **dict.fromkeys(("constraint", "correct_bias", "degenerated_to_sgd", "grad_averaging", "merge_dims"), SWITCH),
    **dict.fromkeys(("nesterov", "normalize_gradient", "optimize_1d", "precondition_1d", "rectify"), SWITCH),
    **dict.fromkeys(("safeguard_warmup", "split_heads", "split_maps"), SWITCH),
    **dict.fromkeys(("alpha", "clip_threshold", "d0", "d_coef", "decoupling_c", "delta", "gamma", "growth"), FACTOR),
    **dict.fromkeys(("max_grad_norm", "momentum_decay", "r", "rho", "scale", "trust_coefficient"), FACTOR),
    **dict.fromkeys(("weight_lr_power", "warmup_steps", "wd_ratio", "matrix_eps", "dampening"), FACTOR),
    **dict.fromkeys(("beta", "beta3", "momentum", "normuon_beta2", "shampoo_beta"), SHARE),
    **dict.fromkeys(("eps", "eps1", "eps2"), SMALL),
    "state": ["fp32", "int8", "int4"],
    **dict.fromkeys(("block_size", "gap", "max_precondition_dim", "n_sma_threshold", "ns_steps", "period"), COUNT),
    **dict.fromkeys(("precondition_frequency", "preconditioning_compute_steps", "rank"), COUNT),
    **dict.fromkeys(("alpha_warmup", "beta3_warmup", "steps_before_using_centered", "update_proj_gap"), COUNT),
    **dict.fromkeys(("betas", "betas_1d"), BETAS),
    "adjust": ["spectral", "clip", "rms", "none"],
    "adjust_lr_fn": [None, "original", "match_rms_adamw"],
    "data_format": ["channels_first", "channels_last"],
    "decay_rate": [-1, -0.5, 0, 0.5],
    "growth_rate": [0.5, 1, 2.5],
    "ns": ["muon", "tuned", "polar_express"],
    "ns_backend": ["auto", "torch"],
    "ns_coefficients": [[2, -1.5, 0.5], [1, 1, 1]],
    "normuon_of": ["rows", "longer"],
    "ns_dtype": ["auto", "bf16", "fp16", "fp32"],
    "projection_type": PROJECTIONS,
    "scale_type": ["channel", "tensor"],
}
LIBRARIES = (*EXTERNAL, "apollo", "apollo_mini")  # these are tried out by the check itself
# What used to be accepted and then crashed in a step, or trained to NaN.
REFUSED = [
    ("soap", {"merge_dims": True}, "made for kernels of four axes"),
    ("soap", {"data_format": "channels_last"}, "made for kernels of four axes"),
    ("soap", {"shampoo_beta": 1}, "numbers from 0 to below 1"),  # no gradient would ever reach its bases
    ("adamw8bit", {"amsgrad": True}, "quantised moments"),
    ("adamw4bit", {"amsgrad": True}, "quantised moments"),
    ("adamwfp8", {"bf16_stochastic_round": True}, "weights are fp32"),
    ("adabelief", {"n_sma_threshold": 2}, "a step ends with ValueError: math domain error"),
    ("adan", {"max_grad_norm": 1.0}, "--grad_clip clips them all"),  # two processes trained another model than one
    ("adafactor", {"eps2": 1e-2}, "no option 'eps2'"),  # no step depended on it
    ("schedulefree_sgd", {"eps": 1e-2}, "no option 'eps'"),
    ("shampoo", {"momentum": 0.5}, "averages gradients with steps"),
    ("adafactor", {"decay_rate": 0.5}, "must be a number up to 0"),
    ("ademamix", {"beta3": 1.0}, "it must be a number above 0 and below 1"),
    ("ademamix", {"alpha_warmup": -1}, "it must be a whole number from 0 to 1,000,000,000 or null"),
    ("signum", {"momentum": 1.0}, "it must be a number of at least 0 and below 1"),
    ("prodigy", {"d0": 0}, "a step ends with ZeroDivisionError"),
    ("torch_muon", {"ns_coefficients": [1, 1, 1]}, "weights are not finite"),
]
SHAPES = {
    "table": ("embedding", (11, 8)),
    "head": ("head", (13, 8)),
    "wide": ("matrix", (6, 14)),
    "tall": ("matrix", (17, 8)),
    "experts": ("expert", (3, 6, 4)),
    "router": ("router", (5, 8)),
    "gain": ("vector", (8,)),
    "scale": ("vector", ()),
    "kernel": ("conv", (6, 1, 4)),
}


@pytest.fixture(autouse=True)
def eager() -> Iterator[None]:
    """torchao compiles its step."""
    with torch.compiler.set_stance("force_eager"):
        yield


class Little(nn.Module):
    """A weight of every role and of several shapes; `wide` has two heads."""

    def __init__(self) -> None:
        super().__init__()
        for i, (name, (kind, shape)) in enumerate(SHAPES.items()):
            p = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(i)))
            fill = 1.0 if kind == "vector" else None
            self.register_parameter(name, role(p, kind, fill, heads=2 if name == "wide" else 1))  # type: ignore[arg-type]


def planned(name: str, arguments: dict[str, Any]) -> Any:
    return plan_for(name, optimizer_args=arguments, steps=20, schedule=Schedule("constant", 0, 1))


def trouble(name: str, arguments: dict[str, Any]) -> str:
    """What goes wrong in thirteen steps with arguments that no check refused."""
    model, plan = Little(), planned(name, arguments)
    optimizer: Any = optim.build(parameter_groups(model, plan), plan)
    for step in range(13):
        for i, p in enumerate(model.parameters()):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * step + i))
        try:
            optimizer.step()
        except Exception as error:
            return f"{type(error).__name__} in step {step}: {error}"
    return "" if all(torch.isfinite(p).all() for p in model.parameters()) else "weights are not finite"


def refused(name: str, arguments: dict[str, Any]) -> str:
    """What is said of arguments before a run, "" for those that may be."""
    try:
        check_arguments(planned(name, arguments))
    except UserError as error:
        return str(error)
    return ""


def options(name: str) -> list[str]:
    """Those that the message for an unknown one lists."""
    listed = refused(name, {"no_such": 1}).split(" It has ")[1].rstrip(".")
    return [] if listed == "none" else listed.split(", ")


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_every_argument(name: str) -> None:
    """soap's merge_dims ended a run with the library's traceback; each value works now, or is refused in the Plan.

    The check is a run of each value by itself where the optimizer is a library's; another with all of them follows.
    """
    skip_if_missing(name)
    accepted = {option: [v for v in VALUES[option] if not refused(name, {option: v})] for option in options(name)}
    assert all(accepted.values()), "every value of an option is refused"
    singly = [{option: v} for option, values in accepted.items() for v in values]
    together = [{option: values[i] for option, values in accepted.items()} for i in (0, -1)]
    together = [arguments for arguments in together if not refused(name, arguments)]
    wrong = {str(a): trouble(name, a) for a in ([] if name in LIBRARIES else singly) + together}
    assert not {arguments: problem for arguments, problem in wrong.items() if problem}


@pytest.mark.parametrize(("name", "arguments", "says"), REFUSED)
def test_refused_before_a_run(name: str, arguments: dict[str, Any], says: str) -> None:
    skip_if_missing(name)
    assert says in refused(name, arguments)


def test_defaults_may_be_typed() -> None:
    """Published configurations spell out merge_dims false."""
    skip_if_missing("soap")
    assert not refused("soap", {"merge_dims": False, "data_format": "channels_first"})


def test_betas_of_the_plan_are_tried_too() -> None:
    """mars_adamw divides by 1 - beta1."""
    skip_if_missing("mars_adamw")
    with pytest.raises(UserError, match=r"--optimizer mars_adamw cannot be used like this: beta1"):
        check_arguments(plan_for("mars_adamw", steps=20, beta1=1.0))


def test_the_documentation_lists_them() -> None:
    """docs/optimizers.md, in the last column but one."""
    text = (Path(__file__).parents[2] / "docs/optimizers.md").read_text(encoding="utf-8")
    for name in (name for name, entry in EXTERNAL.items() if not missing(entry.module)):
        (row,) = re.findall(rf"^\| `{name}` \|.*$", text, re.MULTILINE)
        assert re.findall(r"`(\w+)`", row.split("|")[6]) == sorted(options(name)), name


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        *(("sf-adamw", "schedulefree_adamw"), ("sf-sgd", "schedulefree_sgd"), ("sophiag", "sophia")),
        *(("d-muon", "dmuon"), ("muon-pytorch", "torch_muon"), ("mars", "mars_adamw"), ("scion-light", "scion_light")),
        *(("adam8bit", "adamw8bit"), ("Adam-mini", "adam_mini"), ("MARS-Shampoo", "mars_shampoo"), ("SOAP", "soap")),
        *(("ScheduleFreeAdamW", "schedulefree_adamw"), ("NvNovoGrad", "novograd"), ("APOLLO-Mini", "apollo_mini")),
    ],
)
def test_names_of_the_published_benchmarks(typed: str, meant: str) -> None:
    """They were unknown, though the optimizers are here."""
    assert OPTIMIZERS.resolve(typed) == meant


def test_aliases_mean_one_entry() -> None:
    """Every name is its own, and a hint is given for names that nearly are one."""
    assert all(OPTIMIZERS.resolve(name) == name for name in OPTIMIZERS.names())
    with pytest.raises(UserError, match=r"Unknown optimizer 'SF-Adamm'\. Did you mean 'sf_adamw'"):
        OPTIMIZERS.resolve("SF-Adamm")
    with pytest.raises(UserError, match="There is no optimizer 'GaLore-8bit'"):
        OPTIMIZERS.resolve("GaLore-8bit")
