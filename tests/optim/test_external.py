"""Every optimizer that is not native: it trains, rests, resumes and shards; refusals; those written here against others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small import DECAY, LR, Bag, build, gradients, plan_for
from spawn import run_distributed
from test_sharded import shard, sharded_bag
from tiny_model import batch, build_model, full, train_step
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from lit_gpt.checkpoint import Checkpointer, load_checkpoint
from lit_gpt.checkpoint.layout import step_folder
from lit_gpt.errors import UserError
from lit_gpt.ops.backends import missing
from lit_gpt.optim import EXTERNAL, OPTIMIZERS
from lit_gpt.optim._batches import local
from lit_gpt.optim.groups import parameter_groups
from lit_gpt.optim.protocol import evaluated_weights
from lit_gpt.parallel import Runtime, launch
from lit_gpt.roles import ROLES
from lit_gpt.scaling.base import Init, RolePlan
from lit_gpt.scaling.methods import method_of

WRITTEN_HERE = ("adam_mini", "apollo", "apollo_mini", "dmuon", "lamb", "rmnp", "sophia")
NAMES = sorted([*EXTERNAL, *WRITTEN_HERE])
QUANTISED = [name for name, entry in EXTERNAL.items() if entry.module == "torchao.optim"]
# Learning rates for the tiny model where 0.01 is far off, and settings that act within a few steps.
RATES = {"sgd": 0.3, "schedulefree_sgd": 1.0, "prodigy": 1.0, "lars": 30.0, "novograd": 0.1, "signsgd": 3e-3}
RATES |= {"apollo_mini": 3e-3, "scion": 0.05, "scion_light": 0.05, "mars_shampoo": 0.05, "conda": 0.03}
ARGS: dict[str, dict[str, Any]] = {
    "apollo": {"rank": 4, "gap": 3},
    "conda": {"update_proj_gap": 3},
    "galore": {"rank": 4, "update_proj_gap": 3},
    "prodigy": {"d0": 1e-3},
    "shampoo": {"preconditioning_compute_steps": 3},
    "soap": {"precondition_frequency": 3},
}


@pytest.fixture(autouse=True)
def eager() -> Iterator[None]:
    """torchao compiles its step; what it computes is tested here, not the compiler."""
    with torch.compiler.set_stance("force_eager"):
        yield


def skip_if_missing(name: str) -> None:
    if name in EXTERNAL and (reason := missing(EXTERNAL[name].module)):
        pytest.skip(reason)


def tiny(name: str, runtime: Runtime) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = build_model(runtime)
    roles = {r: RolePlan(RATES.get(name, 0.01), 0.01, Init(), method_of(name, r)) for r in ROLES}
    plan = plan_for(name, roles, optimizer_args=ARGS.get(name, {}), steps=20)
    return model, OPTIMIZERS.load(name).build(parameter_groups(model, plan), plan)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {key: p.detach().clone() for key, p in model.named_parameters()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Names of tensors that are not the same to the bit."""
    return [key for key in a if not torch.equal(a[key], b[key])]


def evaluate(model: nn.Module, optimizer: torch.optim.Optimizer, runtime: Runtime) -> float:
    """Loss on the training batch, with the weights that are evaluated."""
    tokens, targets, valid = batch(0, runtime)
    with evaluated_weights(model, optimizer), torch.no_grad():
        return model(tokens, targets).item() / valid


@pytest.mark.parametrize("name", NAMES)
def test_trains_saves_and_goes_on(name: str, tmp_path: Path) -> None:
    """Twenty steps lower the loss. Saving changes nothing; loading gives the weights that were saved, and the same run."""
    skip_if_missing(name)
    runtime = launch()
    model, optimizer = tiny(name, runtime)
    first = evaluate(model, optimizer, runtime)
    for _ in range(8):
        train_step(model, optimizer, runtime, 0)
    before = weights(model)
    saver = Checkpointer(tmp_path, runtime, keep_last=1, async_save=False)
    with evaluated_weights(model, optimizer):
        saver.save(8, model, optimizer, {})
        saved = weights(model)
    optimizer.state_dict()
    assert not equal(before, weights(model)), "saving moves nothing"
    again, loaded = tiny(name, runtime)
    load_checkpoint(step_folder(tmp_path, 8), again, loaded, runtime)
    with evaluated_weights(again, loaded):
        assert not equal(saved, weights(again)), "the weights that were saved"
    assert not equal(before, weights(again)), "the weights that are trained"
    for _ in range(12):
        for m, o in ((model, optimizer), (again, loaded)):
            train_step(m, o, runtime, 0)
    assert not equal(weights(model), weights(again))
    assert evaluate(model, optimizer, runtime) < first - 0.05
