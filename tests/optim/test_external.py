"""Every optimizer beyond the Muon family: it trains, rests, resumes and shards; those written here against others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_optimizers import DECAY, LR, QUICK, Bag, build, gradients, plan_for
from spawn import run_distributed
from test_sharded import shard, sharded_bag
from tiny_model import ONE_LAYER, batch, build_model, full, train_step
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from lit_gpt import optim
from lit_gpt.checkpoint import Checkpointer, load_checkpoint
from lit_gpt.checkpoint.layout import step_folder
from lit_gpt.errors import UserError
from lit_gpt.ops.backends import missing
from lit_gpt.optim import EXTERNAL, OPTIMIZERS
from lit_gpt.optim.engine.groups import parameter_groups, set_hyperparameters
from lit_gpt.optim.engine.protocol import evaluated_weights
from lit_gpt.parallel import Runtime, start_runtime
from lit_gpt.roles import ROLES
from lit_gpt.scaling.base import Init, RolePlan, Schedule
from lit_gpt.scaling.plan import step_values

WRITTEN_HERE = ("adam_mini", "ademamix", "apollo", "apollo_mini", "dmuon", "lamb", "rmnp", "signum", "sophia")
NAMES = sorted([*EXTERNAL, *WRITTEN_HERE])
# Learning rates for the tiny model where 0.01 is far off.
RATES = {"sgd": 0.3, "schedulefree_sgd": 1.0, "prodigy": 1.0, "lars": 30.0, "novograd": 0.1, "signsgd": 3e-3}
RATES |= {"apollo_mini": 3e-3, "scion": 1e-3, "scion_light": 1e-3, "mars_shampoo": 0.05, "conda": 0.03}


@pytest.fixture(autouse=True)
def eager() -> Iterator[None]:
    """torchao compiles its step; what it computes is tested here, not the compiler."""
    with torch.compiler.set_stance("force_eager"):
        yield


def skip_if_missing(name: str) -> None:
    if name in EXTERNAL and (reason := missing(EXTERNAL[name].module)):
        pytest.skip(reason)


def tiny(name: str, runtime: Runtime) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = build_model(runtime, config=ONE_LAYER)
    facts = OPTIMIZERS.facts(name)
    roles = {r: RolePlan(RATES.get(name, 0.01), 0.01, Init(), facts.rule(r).name) for r in ROLES}
    plan = plan_for(name, roles, optimizer_args=QUICK.get(name, {}), steps=20)
    return model, optim.build(parameter_groups(model, plan), plan)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {key: p.detach().clone() for key, p in model.named_parameters()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Names of tensors that are not the same to the bit."""
    return [key for key in a if not torch.equal(a[key], b[key])]


def evaluate(model: nn.Module, optimizer: torch.optim.Optimizer, runtime: Runtime) -> float:
    """Loss on the training batch, with the weights that are evaluated."""
    tokens, targets, valid = batch(0, runtime)
    with evaluated_weights(model, optimizer), torch.no_grad():
        return model(tokens, targets).loss.item() / valid


@pytest.mark.parametrize("name", NAMES)
def test_trains_saves_and_goes_on(name: str, tmp_path: Path) -> None:
    """Twenty steps lower the loss. Saving moves nothing; loading gives what was saved, and the same run."""
    skip_if_missing(name)
    runtime = start_runtime()
    model, optimizer = tiny(name, runtime)
    first = evaluate(model, optimizer, runtime)
    writes = {key: p._version for key, p in model.named_parameters()}
    for _ in range(8):
        train_step(model, optimizer, runtime, 0)
    assert all(p._version >= writes[key] + 8 for key, p in model.named_parameters()), "what is cached of weights is old"
    before = weights(model)
    saver = Checkpointer(tmp_path, runtime, keep_last=1, async_save=False)
    with evaluated_weights(model, optimizer):
        saver.save(8, model, optimizer, {"tokens": 0})
        saved = weights(model)
    optimizer.state_dict()
    assert not equal(before, weights(model)), "saving moves nothing"
    again, loaded = tiny(name, runtime)
    load_checkpoint(step_folder(tmp_path, 8), again, loaded, runtime)
    with evaluated_weights(again, loaded):
        assert not equal(saved, weights(again)), "the weights that were saved"
    assert not equal(before, weights(again)), "the weights that are trained"
    for _ in range(4):
        for m, o in ((model, optimizer), (again, loaded)):
            train_step(m, o, runtime, 0)
    assert not equal(weights(model), weights(again))
    for _ in range(8):
        train_step(model, optimizer, runtime, 0)
    assert evaluate(model, optimizer, runtime) < first - 0.05


@pytest.mark.parametrize("name", NAMES)
def test_nothing_moves_without_a_rate_or_a_gradient(name: str) -> None:
    skip_if_missing(name)
    for silent in ("lr", "gradient"):
        bag = Bag()
        optimizer = build(bag, name, plan_for(name, optimizer_args=QUICK.get(name, {}), steps=20))
        start = weights(bag)
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.0
            group["lr"] = 0.0 if silent == "lr" else LR
        for step in range(4):
            for key, g in gradients(step).items():
                bag.get_parameter(key).grad = g * (silent == "lr")
            optimizer.step()
        assert not equal(start, weights(bag)), silent


def train_bag(name: str, mesh: DeviceMesh | None) -> Bag:
    """Three steps with decay; Sophia's with a curvature."""
    bag = sharded_bag(mesh)
    plan = plan_for(name, optimizer_args=QUICK.get(name, {}), steps=20)
    optimizer: Any = build(bag, name, plan)
    for step in range(3):
        for key, g in gradients(step).items():
            p = bag.get_parameter(key)
            p.grad = shard(g, mesh) if isinstance(p, DTensor) else g
        if name == "sophia":
            optimizer.update_curvature(5)
        optimizer.step()
    return bag


def sharding_differences(names: list[str]) -> list[str]:
    """Where the gathered weights are not those of one process; the ranks take turns in computing these."""
    runtime, found = start_runtime(), []
    with torch.compiler.set_stance("force_eager"):
        for i, name in enumerate(names):
            gathered = {key: full(p) for key, p in train_bag(name, runtime.mesh).named_parameters()}
            if i % runtime.world_size != runtime.rank:
                continue
            for key, p in train_bag(name, None).named_parameters():
                if not torch.allclose(gathered[key], p, rtol=2e-6, atol=2e-6):
                    found.append(f"{name}: {key}")
    return found


def resumed_on_shards(names: list[str], folder: str) -> list[str]:
    """Names of optimizers that do not go on from a sharded checkpoint as if nothing had happened."""
    runtime, wrong = start_runtime(), []
    for name in names:
        model, optimizer = tiny(name, runtime)
        for step in range(3):
            train_step(model, optimizer, runtime, step)
        saver = Checkpointer(Path(folder, name), runtime, keep_last=1, async_save=False)
        with evaluated_weights(model, optimizer):
            saver.save(3, model, optimizer, {"tokens": 0})
        saver.close()
        again, loaded = tiny(name, runtime)
        load_checkpoint(step_folder(Path(folder, name), 3), again, loaded, runtime)
        for m, o in ((model, optimizer), (again, loaded)):
            for step in range(3, 6):
                train_step(m, o, runtime, step)
        same = {key: full(p) for key, p in model.named_parameters()}
        wrong += [f"{name}: {key}" for key, p in again.named_parameters() if not torch.equal(full(p), same[key])]
    return wrong


def on_shards(names: list[str], folder: str) -> tuple[list[str], list[str]]:
    saved = ["schedulefree_adamw", "scion_light", "prodigy", "galore", "sophia", "apollo"]
    return sharding_differences(names), resumed_on_shards(saved, folder)


@pytest.mark.slow
def test_sharded_is_whole_and_resumes(tmp_path: Path) -> None:
    """Shapes such as 94 x 256, 17 x 8 and 3 x 5 over two processes. Muon's products in bf16 differ: test_sharded.py.

    Saved are local shards, gathered tensors, averages, momentum in gradients, and projections.
    """
    names = [n for n in NAMES if n != "dmuon" and not (n in EXTERNAL and missing(EXTERNAL[n].module))]
    assert run_distributed(on_shards, 2, names, str(tmp_path)) == [([], [])] * 2


def run_alone(keys: list[str], optimizer: torch.optim.Optimizer, bag: Bag) -> None:
    for step in range(6):
        for key in keys:
            bag.get_parameter(key).grad = gradients(step)[key].clone()
        optimizer.step()


@pytest.mark.parametrize("name", ["adabelief", "adan", "came", "nadam", "radam", "signsgd", "soap", "mars_lion"])
def test_the_wrapper_changes_nothing(name: str) -> None:
    """Without decay, the weights of the library's own class over the same arguments."""
    plan = plan_for(name, steps=20)
    bag, other = Bag(), Bag()
    optimizer: Any = build(bag, name, plan)
    keys = [key for key in dict(bag.named_parameters()) if key != "experts"]
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    entry = EXTERNAL[name]
    arguments, _ = entry._arguments(type(optimizer.inner[0]), plan)
    arguments |= {"lr": LR, "weight_decay": 0.0}
    theirs = type(optimizer.inner[0])([other.get_parameter(key) for key in keys if key != "scale"], **arguments)
    if "lr_1d_factor" in theirs.param_groups[0]:
        theirs.param_groups[0]["lr_1d_factor"] = 1.0
    run_alone(list(dict(bag.named_parameters())), optimizer, bag)
    run_alone(keys, theirs, other)
    assert not equal({k: bag.get_parameter(k) for k in keys if k != "scale"}, dict(other.named_parameters()))


def test_sophia_is_the_librarys_with_this_curvature() -> None:
    """pytorch-optimizer's Sophia takes curvatures from outside; with p = 1 and these it is Sophia-G."""
    po = pytest.importorskip("pytorch_optimizer")
    bag, other = Bag(), Bag()
    optimizer: Any = build(bag, "sophia", rho=0.04)
    theirs = po.SophiaH(other.parameters(), LR, (0.9, 0.95), DECAY, p=1.0, update_period=10**6, eps=1e-15)
    for step in range(6):
        for key, g in gradients(step).items():
            bag.get_parameter(key).grad = g.clone()
            other.get_parameter(key).grad = g.clone()
        optimizer.step()
        h = [optimizer.state[bag.get_parameter(key)]["curvature"] * 0.04 for key, _ in other.named_parameters()]
        theirs.param_groups[0]["betas"] = (0.9, 0.0)  # the curvature comes averaged
        theirs.step(hessian=h)
        for key, g in gradients(100 + step).items():
            bag.get_parameter(key).grad = g * 0.3
        optimizer.update_curvature(7)
    for key, p in bag.named_parameters():
        torch.testing.assert_close(p, other.get_parameter(key), rtol=1e-5, atol=1e-5)


def test_adam_mini_shares_a_moment_in_a_head() -> None:
    """`wide` as queries of two heads has two second moments."""
    bag = Bag()
    bag.wide.heads, bag.wide.scores = 2, True  # type: ignore[attr-defined]
    optimizer = build(bag, "adam_mini")
    run_alone(list(dict(bag.named_parameters())), optimizer, bag)
    moments = optimizer.state[bag.wide]["row_square"].view(2, 47)
    assert torch.equal(moments, moments[:, :1].expand(2, 47)) and not torch.equal(moments[0], moments[1])


@pytest.mark.parametrize(("kind", "growth"), [("channel", 0.0), ("tensor", 1.01)])
def test_apollo_of_full_rank(kind: str, growth: float) -> None:
    """Adam's direction in the projected space, norms by channel or tensor, applied to the gradient itself."""
    bag, start = Bag(), Bag()
    optimizer: Any = build(bag, "apollo", rank=17, gap=3, scale_type=kind, growth=growth, scale=4.0)
    run_alone(list(dict(bag.named_parameters())), optimizer, bag)
    inner = optimizer.inner[0]
    (q,) = optimizer.pieces[bag.tall3]
    w, m, v, before = start.tall3.detach().T.double(), 0.0, 0.0, 0.0
    for t in range(1, 7):
        g = gradients(t - 1)["tall3"].T.double()
        low = inner._projection(g.float(), {**inner.state[q], "step": t - 1}).double() @ g
        m, v = 0.9 * m + 0.1 * low, 0.95 * v + 0.05 * low**2
        d = m / (1 - 0.9**t) / ((v / (1 - 0.95**t)).sqrt() + 1e-8)
        s = d.norm(dim=0) / low.norm(dim=0) if kind == "channel" else d.norm() / low.norm()
        u = 2.0 * g * s
        if growth and before and u.norm() > growth * before:
            u = u * growth * before / u.norm()
        before = u.norm()
        w = w * (1 - LR * DECAY) - LR * u
    torch.testing.assert_close(bag.tall3.double(), w.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("adan", {"optimizer_args": {"max_grad_nrm": 1}}, "Did you mean 'max_grad_norm'"),
        ("signsgd", {"optimizer_args": {"momentum": 0.5}}, "The optimizer signsgd has no option 'momentum'"),
        ("adopt", {"optimizer_args": {"weight_decay": 0.5}}, "The optimizer adopt has no option 'weight_decay'"),
        (
            "apollo",
            {"optimizer_args": {"rank": 0}},
            "rank of the optimizer apollo is 0; it must be a whole number from 1 on",
        ),
        (
            "conda",
            {"optimizer_args": {"betas": [2.0, 0.9]}},
            r"conda is \[2.0, 0.9\]; it must be numbers",
        ),
        ("galore", {"optimizer_args": {"rank": "abc"}}, "rank .*abc.* a whole number. The default is 128"),
        ("galore", {"optimizer_args": {"projection_type": "foo"}}, "foo.* one of std, reverse_std"),
        ("conda", {"optimizer_args": {"scale": "x"}}, "scale .*x.* a number. The default is 0.25"),
        ("shampoo", {"optimizer_args": {"preconditioning_compute_steps": -1}}, "a whole number from 1 on"),
        ("adan", {"optimizer_args": {"betas": [0.9, 0.9]}}, "must be 3 numbers"),
        ("soap", {"optimizer_args": {"shampoo_beta": "x"}}, "must be a number or null"),
        ("torch_muon", {"optimizer_args": {"adjust_lr_fn": "loud"}}, "cannot be used like this"),
        ("sgd", {"optimizer_args": {"nesterov": 1}}, "must be true or false"),
    ],
)
def test_refusals(name: str, changes: dict[str, Any], says: str) -> None:
    skip_if_missing(name)
    with pytest.raises(UserError, match=says):
        build(Bag(), name, plan_for(name, **changes))


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("soap", {"shampoo_beta": None}),
        ("adafactor", {"decay_rate": -1}),
        ("ademamix", {"alpha": 2, "beta3": 0.9999, "alpha_warmup": 0, "beta3_warmup": None}),
        ("torch_muon", {"adjust_lr_fn": "match_rms_adamw", "ns_coefficients": [2, -1.5, 0.5]}),
        ("apollo", {"growth": 0}),
        ("schedulefree_sgd", {"warmup_steps": 0}),
        ("scion", {"momentum": 1}),
    ],
)
def test_values_that_may_be(name: str, args: dict[str, Any]) -> None:
    skip_if_missing(name)
    schedule = {"schedule": Schedule("constant", 0, 1)}
    build(Bag(), name, plan_for(name, optimizer_args=args, **schedule))


@pytest.mark.parametrize(
    ("name", "args", "betas", "eps"),
    [
        ("adabelief", {}, (0.8, 0.7), 1e-16),
        ("adafactor", {}, (0.8, 1 - 1e-9), None),
        ("adafactor", {"betas": [0.5, 0.6]}, (0.5, 0.6), None),
        ("adopt", {}, (0.8, 0.7), 1e-6),
        ("adopt", {"eps": 1e-4}, (0.8, 0.7), 1e-4),
        ("adan", {}, (0.98, 0.92, 0.99), 1e-3),
        ("adan", {"betas": [0.1, 0.2, 0.3]}, (0.1, 0.2, 0.3), 1e-3),
        ("came", {}, (0.8, 0.7, 0.9999), None),
        ("laprop", {}, (0.8, 0.7), 1e-3),
        ("torch_muon", {}, None, 1e-7),
    ],
)
def test_whose_betas_and_eps(name: str, args: dict[str, Any], betas: Any, eps: Any) -> None:
    """After a step too, which takes over those of the groups (test_plan_is_true.py: the table says the same)."""
    skip_if_missing(name)
    plan = plan_for(name, optimizer_args=args, beta1=0.8, beta2=0.7, eps=1e-3)
    bag = Bag()
    optimizer: Any = build(bag, name, plan)
    run_alone(list(dict(bag.named_parameters())), optimizer, bag)
    for group in optimizer.inner[0].param_groups:
        assert betas is None or tuple(group["betas"]) == betas
        assert eps is None or group["eps"] == eps


@pytest.mark.parametrize("name", ["apollo", "apollo_mini", "conda", "galore", "shampoo", "torch_muon"])
def test_adamw_trains_what_is_no_matrix(name: str) -> None:
    """As the Plan says, and no other optimizer of a library leaves roles to it."""
    skip_if_missing(name)
    optimizer: Any = build(Bag(), name)
    trained = {group["role"]: type(inner).__name__ for group, inner, _ in optimizer.pairs}
    for role in trained:
        hidden = role in ("matrix", "expert", "router")
        assert (OPTIMIZERS.facts(name).rule(role).name == "adamw") == (trained[role] == "AdamW") == (not hidden), role


@pytest.mark.parametrize("name, args", [("torch_muon", {}), ("shampoo", {}), ("conda", {"betas": [0.5, 0.6]})])
def test_that_adamw_has_betas_and_eps_of_its_role(name: str, args: dict[str, Any]) -> None:
    """It had the first ones of the Plan for the whole run, where the optimizer beside it reads no betas of the Plan."""
    skip_if_missing(name)
    bag, other = Bag(), Bag()
    plan = plan_for(name, optimizer_args=args)
    roles = plan.roles | {"embedding": replace(plan.roles["embedding"], betas=(0.8, 0.995), eps_factor=1e3)}
    plan = replace(plan, roles=roles, beta1=0.7, eps=1e-4)
    optimizer = build(bag, name, plan)
    tables = {"params": [other.table], "betas": (0.8, 0.995), "eps": 0.1}
    theirs = torch.optim.AdamW([tables, {"params": [other.head]}], LR, (0.7, 0.95), 1e-4, DECAY)
    for step in range(3):
        set_hyperparameters(optimizer, step_values(plan, 0, 1))
        for key, g in gradients(step).items():
            bag.get_parameter(key).grad, other.get_parameter(key).grad = g.clone(), g.clone()
        optimizer.step()
        theirs.step()
    for key in ("table", "head"):
        torch.testing.assert_close(bag.get_parameter(key), other.get_parameter(key), rtol=1e-6, atol=1e-6)


def test_schedule_free_wants_a_constant_rate() -> None:
    plan = plan_for("schedulefree_adamw")
    object.__setattr__(plan, "schedule", plan.schedule.__class__("cosine", 0, 1))
    with pytest.raises(UserError, match="--schedule constant"):
        build(Bag(), "schedulefree_adamw", plan)


def test_names_are_suggested() -> None:
    with pytest.raises(UserError, match=r"Did you mean 'soap'"):
        OPTIMIZERS.load("soapp")
    assert set(NAMES) < set(OPTIMIZERS.names()) and "engine" not in OPTIMIZERS
    for name, says in {"adam": "adamw with", "kron": "soap", "psgd": "soap"}.items():
        with pytest.raises(UserError, match=f"There is no optimizer '{name}'.*{says}"):
            OPTIMIZERS.resolve(name)
