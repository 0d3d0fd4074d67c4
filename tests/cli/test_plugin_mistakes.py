"""What people get wrong in files of their own is one sentence: each of these trained in silence, or was a traceback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_optimizers import Bag, plan_for
from small_optimizers import build as build_optimizer
from torch import Tensor, nn

from lit_gpt.architectures import build
from lit_gpt.config.model import LayerSpec, ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.metrics.counting import flops_per_token
from lit_gpt.metrics.summary import METRICS_FILE
from lit_gpt.model import GPT
from lit_gpt.nn.linear import Linear
from lit_gpt.nn.mixers import MIXERS
from lit_gpt.optim import OPTIMIZERS, check_arguments
from lit_gpt.parallel import start_runtime
from lit_gpt.plugins import load_plugins
from lit_gpt.roles import role
from lit_gpt.scaling.base import LEARNED_ROLES, Init, Multipliers, Transfer
from lit_gpt.scaling.optimizer_facts import OptimizerFacts, UpdateRule, copies, everywhere, taking
from lit_gpt.scaling.transfer_check import checked
from lit_gpt.train.reporter import Reporter
from lit_gpt.train.step import train_step


@pytest.fixture(autouse=True)
def _none_left() -> Iterator[None]:
    yield
    load_plugins([])


def load(folder: Path, **files: str) -> None:
    for name, code in files.items():
        (folder / f"{name}.py").write_text(code)
    load_plugins([str(folder / f"{name}.py") for name in files])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("return dense(depth, shape, mixers='a')", r"my_net\.py, line 4, fails: TypeError: .* argument 'mixers'\.$"),
        ("raise ValueError('depth must be 3')", r"my_net\.py, line 4, fails: ValueError: depth must be 3\.$"),
        ("raise UserError('Give --depth 3.')", r"^Give --depth 3\.$"),
    ],
)
def test_a_family_that_fails(tmp_path: Path, line: str, says: str) -> None:
    imports = "from lit_gpt.architectures.builders.dense import dense\nfrom lit_gpt.errors import UserError\n"
    load(tmp_path, my_net=f"{imports}def build(depth, shape):\n    {line}\n")
    with pytest.raises(UserError, match=says):
        build("my_net", 2)


def test_files_beside_and_plugins_of_another_kind(tmp_path: Path) -> None:
    load(tmp_path, my_mixer="def build(config, layer_index, multipliers): ...\n")
    with pytest.raises(UserError, match=r"family 'my_mixer'. The plugin of that name is of another kind: mixer"):
        build("my_mixer", 2)
    with pytest.raises(UserError, match=r"No module named 'my_mixer'. A plugin cannot import files beside it"):
        load(tmp_path, my_net="import my_mixer\n")


class Own(nn.Module):
    """A mixer; what its forward returns, and its FLOPs, are chosen."""

    def __init__(self, n: int, returns: str, flops: float):
        super().__init__()
        self.a, self.b, self.returns, self.count = Linear(n, n), Linear(n, n), returns, flops

    def forward(self, x_BTD: Tensor, *_: Any) -> Any:
        y = self.a(x_BTD) + (0 if self.returns == "unused" else self.b(x_BTD))
        return {"tensor": y, "shorter": (y[:, 1:], None)}.get(self.returns, (y, None))

    def flops(self, context_length: int) -> float:
        return self.count

    def new_cache(self, *_: Any) -> None: ...


def model(monkeypatch: pytest.MonkeyPatch, returns: str = "", flops: float = 1.0) -> GPT:
    entry = SimpleNamespace(build=lambda config, layer_index, multipliers: Own(config.n_embd, returns, flops))
    monkeypatch.setitem(MIXERS.plugins, "own", entry)
    sizes: dict[str, Any] = {
        "n_embd": 8,
        "n_head": 2,
        "head_dim": 4,
        "n_kv_head": 2,
        "intermediate_size": 16,
        "vocab_size": 31,
    }
    built = GPT(ModelConfig("x", 1, layers=(LayerSpec("own", ffn=None),), **sizes))
    for p in built.parameters():
        nn.init.normal_(p)
    return built


@pytest.mark.parametrize(
    ("returns", "says"),
    [
        ("tensor", r"Own returned a Tensor; return the output and what it shares"),  # of two rows, it was a pair
        ("shorter", r"Own made \(2, 4, 8\) of \(2, 5, 8\); its output must have the shape of its input"),
    ],
)
def test_what_a_mixer_returns(monkeypatch: pytest.MonkeyPatch, returns: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        model(monkeypatch, returns)(torch.zeros(2, 5, dtype=torch.long))


def test_what_a_mixer_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="flops of the mixer 'own' gives nan; return the FLOPs"):
        flops_per_token(model(monkeypatch, flops=float("nan")), 4)
    monkeypatch.delattr(Own, "new_cache")
    with pytest.raises(UserError, match="build of the mixer 'own' returned Own without new_cache; return a torch"):
        model(monkeypatch)
    nothing = SimpleNamespace(build=lambda config, layer_index, multipliers: None)
    monkeypatch.setitem(MIXERS.plugins, "nothing", nothing)
    config = build("transformer", 1).replace(layers=(LayerSpec("nothing"),))
    with pytest.raises(UserError, match="build of the mixer 'nothing' returned NoneType; return a torch"):
        GPT(config)
    with pytest.raises(UserError, match=r"Unknown mixer 'gone'.* If it is your own, name its file in --plugins, too"):
        GPT(config.replace(layers=(LayerSpec("gone"),)))


def test_a_parameter_that_forward_does_not_use(monkeypatch: pytest.MonkeyPatch) -> None:
    net, tokens = model(monkeypatch, "unused"), torch.zeros(2, 5, dtype=torch.long).numpy()
    batch = SimpleNamespace(tokens=tokens, targets=tokens)
    still = torch.optim.SGD(net.parameters(), lr=0.0)
    with pytest.raises(UserError, match=r"No gradient reaches blocks\.0\.mixer\.b\.weight: forward does not use"):
        train_step(net, still, [batch], 1, 10, start_runtime(), grad_clip=0.0)


@pytest.mark.parametrize(
    ("name", "fill", "says"),
    [
        ("vektor", 1.0, "There is no role 'vektor'. Did you mean 'vector'?"),
        ("vector", None, r'Give it: role\(parameter, "vector", 1\.0\)'),
        ("conv", 1.0, "others none. Leave it out"),
        ("matrix", None, r"shape \(3,\) cannot have the role 'matrix', which is for tensors of 2 dimensions"),
    ],
)
def test_roles(name: Any, fill: float | None, says: str) -> None:
    with pytest.raises(UserError, match=says):
        role(nn.Parameter(torch.empty(3)), name, fill)


ONES = dict.fromkeys(LEARNED_ROLES, 1.0)
BASE = Transfer(lr=ONES, weight_decay=ONES, init={}, multipliers=Multipliers())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lr": ONES | {"matrx": 1.0}}, "lr names 'matrx', which is no role. Did you mean 'matrix'?"),
        ({"lr": {"matrix": 1.0}}, "lr has nothing for embedding, head, expert, "),
        ({"lr": ONES | {"head": float("nan")}}, "lr of head is nan; it must be a finite number of at least 0"),
        ({"weight_decay": ONES | {"head": -1.0}}, "weight_decay of head is -1.0; it must be a finite"),
        ({"init": {"matrix": "normal"}}, "init of matrix is 'normal'; it must be an Init whose kind is one of normal,"),
        ({"init": {"matrix": Init("gauss")}}, "it must be an Init whose kind is one of normal,"),  # type: ignore[arg-type]
        ({"multipliers": Multipliers(logit=float("inf"))}, "multiplier logit is inf; it must be a finite number"),
    ],
)
def test_rules(changes: dict[str, Any], says: str) -> None:
    assert checked("mine", BASE) is BASE
    with pytest.raises(UserError, match=says):
        checked("mine", replace(BASE, **changes))


def test_facts() -> None:
    with pytest.raises(UserError, match=r"name the role 'matrx'. Did you mean 'matrix'?"):
        OptimizerFacts({"matrx": UpdateRule("x")})
    with pytest.raises(UserError, match="have steps 'fast'; they must be one of spectral,"):
        OptimizerFacts({}, steps="fast")


@pytest.mark.parametrize(
    ("constants", "what"),
    [
        (taking(epsilon=1e-6), "epsilon=1e-06"),  # was shown, and the Plan's eps was not
        (taking(beta3=None), "beta3=None"),
        (taking(betas=(0.9, 0.8)), r"betas=\(0.9, 0.8\)"),  # type: ignore[arg-type]
        (taking(eps="1e-6"), "eps='1e-6'"),  # type: ignore[arg-type]
        (True, "constants=True"),  # holds_norm, which was the third field once
    ],
)
def test_constants(constants: Any, what: str) -> None:
    with pytest.raises(UserError, match=f"The update rule 'own' cannot read {what}. Say which of beta1, beta2, ..."):
        UpdateRule("own", copies(1), constants)


def optimizer(groups: list[dict[str, Any]], floor: float) -> torch.optim.Optimizer | None:
    """What a person's build may return; `floor` chooses the mistake."""
    made = torch.optim.SGD(groups[1:] if floor == 2 else groups, lr=0.1)
    for p in made.param_groups[-1]["params"] if floor == 3 else []:
        made.state[p]["m"] = torch.zeros_like(p)
    return None if floor == 1 else made


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"flor": 1.0}, "The optimizer own has no option 'flor' .* Did you mean 'floor'?"),  # was not read, in silence
        ({"floor": "x"}, 'The option floor of the optimizer own is "x"; it must be a number.'),
        ({"floor": 1}, "build of the optimizer 'own' returned NoneType; return a torch.optim.Optimizer"),
        ({"floor": 2}, "left out parameters of the role embedding; it must train all groups"),
        ({"floor": 3}, "keeps nothing yet for the role embedding, and its FACTS say that it will"),
    ],
)
def test_optimizers(monkeypatch: pytest.MonkeyPatch, args: dict[str, Any], says: str) -> None:
    facts = OptimizerFacts(everywhere(UpdateRule("own", copies(1))))
    entry = SimpleNamespace(FACTS=facts, build=lambda groups, plan, *, floor=0.0: optimizer(groups, floor))
    monkeypatch.setitem(OPTIMIZERS.plugins, "own", entry)
    with pytest.raises(UserError, match=says):
        build_optimizer(Bag(), "own", **args)
    if isinstance(args.get("floor"), int):
        check_arguments(plan_for("own", optimizer_args=args))  # what is typed is right
    else:
        with pytest.raises(UserError, match=says):
            check_arguments(plan_for("own", optimizer_args=args))


def test_a_curve_without_a_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run whose every loss was NaN ended with the exit code of bad input, and its own message was lost."""
    (tmp_path / METRICS_FILE).write_text(json.dumps({"step": 1, "metric/train_loss": float("nan")}) + "\n")
    reporter = SimpleNamespace(folder=tmp_path, _logged=lambda: True, _bytes_per_token=lambda: None)
    Reporter._draw(reporter)  # type: ignore[arg-type]
    assert "note: loss_curve.png is not drawn: Run " in capsys.readouterr().err
