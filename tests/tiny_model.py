"""The real model at a size for many processes, with the shapes that are hard to shard:
51 and 34 rows and 17 columns, a gate of 2 rows (fewer than ranks), vectors of every kind.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from lit_gpt.config.model import LayerSpec, ModelConfig
from lit_gpt.init import init_parameters
from lit_gpt.model import GPT
from lit_gpt.optim.engine.role_optimizer import FusedAdamW, RoleOptimizer
from lit_gpt.parallel import Runtime, finish_gradients, parallelize_model
from lit_gpt.roles import ROLES
from lit_gpt.scaling.base import Init, Multipliers, RolePlan

VOCAB, LENGTH = 51, 12
CONFIG = ModelConfig(
    family="tiny",
    depth=3,
    n_embd=20,
    n_head=2,
    head_dim=6,
    n_kv_head=1,
    intermediate_size=17,
    layers=(LayerSpec(), LayerSpec(window=5), LayerSpec()),
    vocab_size=VOCAB,
    padding_multiple=17,
    block_size=LENGTH,
    norm="layernorm",
    qk_norm=True,
    attn_gate=True,
    attn_sink=True,
    attn_bias=True,
)
ONE_LAYER = CONFIG.replace(depth=1, layers=CONFIG.layers[:1])  # every role, less work
ROLE_PLANS = {name: RolePlan(lr=1e-2, weight_decay=0.1, init=Init("normal", std=0.1)) for name in ROLES}


def build_model(
    runtime: Runtime,
    compute_dtype: torch.dtype = torch.float32,
    tied: bool = False,
    config: ModelConfig = CONFIG,
    master: torch.dtype = torch.float32,
    on_host: bool = False,
    **options: Any,
) -> nn.Module:
    """master: dtype of the weights and of the residual stream. on_host: one start for every kind of device."""
    config = config.replace(tie_embeddings=tied)

    def build() -> GPT:
        multipliers = Multipliers(logit=0.5, residual=0.7)
        return GPT(config, multipliers, compute_dtype=compute_dtype, residual_dtype=master).to(master)

    initialise = partial(init_parameters, roles=ROLE_PLANS, seed=7)
    if on_host:
        initialise(drawn := build())
        initialise = partial(copy_into, source=drawn)
    return parallelize_model(runtime, build, initialise, compute_dtype=compute_dtype, **options)


@torch.no_grad()
def copy_into(model: nn.Module, source: nn.Module) -> None:
    """The weights of a module that is not sharded into one that may be."""
    for name, p in model.named_parameters():
        whole = source.get_parameter(name)
        if isinstance(p, DTensor):
            whole = distribute_tensor(whole, p.device_mesh, p.placements, src_data_rank=None).to_local()
            p.to_local().copy_(whole)
        else:
            p.copy_(whole)


def build_adamw(model: nn.Module, kind: str = "foreach", eps: float = 1e-5) -> torch.optim.Optimizer:
    """foreach: torch's, state at the first step. fused: ours, state at once."""
    by_role = {r: [p for p in model.parameters() if p.role == r] for r in ROLES}
    keys: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1, "update_rule": "adamw"}
    groups = [{"params": params, **keys} for params in by_role.values() if params]
    if kind == "fused":
        constants: Any = SimpleNamespace(beta1=0.9, beta2=0.95, eps=eps, momentum=0.95)
        return RoleOptimizer(groups, {"adamw": lambda params: FusedAdamW()}, constants)
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=eps, foreach=True)


def batch(step: int, runtime: Runtime, sequences: int = 8) -> tuple[torch.Tensor, torch.Tensor, int]:
    """This rank's slice of a global batch, and its targets of all ranks; some rows have few targets."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, VOCAB, (sequences, LENGTH), generator=generator)
    targets = tokens.roll(-1, 1)
    targets[0, 2:] = -100
    mine = slice(runtime.rank * sequences // runtime.world_size, (runtime.rank + 1) * sequences // runtime.world_size)
    return tokens[mine].to(runtime.device), targets[mine].to(runtime.device), int((targets != -100).sum())


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, runtime: Runtime, step: int) -> float:
    """One step in one micro-batch; the mean loss."""
    tokens, targets, valid = batch(step, runtime)
    loss = model(tokens, targets).loss
    (loss * runtime.world_size / valid).backward()
    finish_gradients(model, runtime)
    optimizer.step()
    optimizer.zero_grad()
    return runtime.sum(loss.detach()).item() / valid


def full(tensor: torch.Tensor) -> torch.Tensor:
    """A copy: on one rank full_tensor() is the parameter's own memory."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, torch.Tensor]:
    """Full tensors of the weights and of the optimizer's state."""
    values = {name: full(p) for name, p in model.named_parameters()}
    if optimizer is not None:
        for name, p in model.named_parameters():
            values |= {f"{name}.{key}": full(value) for key, value in optimizer.state[p].items()}
    return values


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Equal names, equal bits."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
