"""Mixtures of experts in classes of transformers: token choice, softmax gates, and no limit to an expert's tokens.

Files hold each expert's matrices by themselves. transformers 4 has them so in memory, and 5, which joins them there,
takes them apart when it saves, unless it is told not to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from lit_gpt.config.model import Experts, LayerSpec, ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.scaling.base import Multipliers
from lit_gpt.tools._hf_layout import Place, Weights

# Keys of config.json that act in training only.
TRAINING = frozenset({"router_aux_loss_coef", "output_router_logits", "router_jitter_noise"})
# Which of the layers have experts, in Qwen's classes.
SPARSE_KEYS = frozenset({"decoder_sparse_step", "mlp_only_layers"})
NAMES = ("gate_proj", "up_proj", "down_proj")  # an expert's matrices
KINDS = {"decoder_sparse_step": "a whole number", "mlp_only_layers": "a list"} | dict.fromkeys(
    ("num_local_experts", "num_experts", "num_experts_per_tok", "moe_intermediate_size"), "a whole number"
)


def experts_of(config: ModelConfig) -> Experts:
    """The model's experts, where it was checked that it has some."""
    assert config.experts is not None
    return config.experts


def expert_width(config: ModelConfig) -> int:
    """Hidden width of one expert."""
    return config.intermediate_size // experts_of(config).top_k


def expert_places(
    config: ModelConfig,
    multipliers: Multipliers,
    mine: str,
    theirs: str,
    names: tuple[str, str, str] = NAMES,
) -> list[Place]:
    """The router and all routed experts. names: of an expert's gate, up and down projection."""
    each = [f"{theirs}.experts.{i}" for i in range(experts_of(config).routed)]
    up = tuple(f"{expert}.{name}.weight" for expert in each for name in names[:2])
    down = tuple(f"{expert}.{names[2]}.weight" for expert in each)
    return [
        Place(f"{mine}.router.weight", (f"{theirs}.gate.weight",), multipliers.router),
        Place(f"{mine}.up", up, split=_halves, join=_from_halves),
        Place(f"{mine}.down", down, multipliers.residual, split=torch.unbind, join=torch.stack),
    ]


def _halves(up_EHD: torch.Tensor) -> Sequence[torch.Tensor]:
    """Gate and up projection of each expert in turn; in ours they are the halves of its H rows."""
    return up_EHD.unflatten(1, (2, -1)).flatten(0, 1).unbind()


def _from_halves(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(parts).unflatten(0, (-1, 2)).flatten(1, 2)


def apart(weights: Weights, module: str = "mlp", names: tuple[str, str, str] = NAMES) -> Weights:
    """The experts one by one, in files that hold them joined (save_original_format=False of transformers 5).

    module, names: as expert_places has them. A tensor of another shape stays what it is.
    """
    out: Weights = {}
    for name, tensor in weights.items():
        layer, _, rest = name.partition(".mlp.")
        even = tensor.ndim == 3 and tensor.shape[1] % 2 == 0
        if rest == "experts.gate_up_proj" and even:
            for i, part in enumerate(_halves(tensor)):
                out[f"{layer}.{module}.experts.{i // 2}.{names[i % 2]}.weight"] = part
        elif rest == "experts.down_proj" and tensor.ndim == 3:
            out |= {f"{layer}.{module}.experts.{i}.{names[2]}.weight": part for i, part in enumerate(tensor)}
        else:
            out[f"{layer}.{module}.{rest}" if rest == "gate.weight" else name] = tensor
    return out


def expert_reasons(config: ModelConfig, gates: tuple[str, ...], shared: tuple[bool, ...] = (False,)) -> list[str]:
    """Reasons against a class whose routers have one of these gates, with a shared expert where that is in `shared`."""
    e = config.experts
    if e is None:
        return ["a model without experts"]
    found = {
        f"routing {e.routing}": e.routing != "token_choice",
        f"capacity {e.capacity}": e.capacity is not None,
        f"gate {e.gate}": e.gate not in gates,
        "the square root of the gates (sqrt_gate)": e.sqrt_gate,
        f"a bias that experts are selected by (bias_rate {e.bias_rate:g})": e.bias_rate != 0,
        f"shared {e.shared}": e.shared not in shared,
    }
    return [reason for reason, true in found.items() if true]


def dense_layers(config: ModelConfig) -> list[int]:
    """The layers without experts."""
    return [i for i, spec in enumerate(config.layers) if not spec.experts]


def sparse_layers(layer: LayerSpec, depth: int, values: Mapping[str, Any]) -> tuple[LayerSpec, ...]:
    """Layers with and without experts, as Qwen's classes say it."""
    step, dense = values.get("decoder_sparse_step") or 1, values.get("mlp_only_layers") or []
    return tuple(replace(layer, experts=i not in dense and (i + 1) % step == 0) for i in range(depth))


def read_experts(count: int, used: int, width: int, gate: Any, shared: bool = False) -> dict[str, Any]:
    """Fields of ModelConfig for `count` routed experts of that width, of which a token uses `used`.

    Raises UserError where there are not S k experts in all, as ours have; see Experts.
    """
    top_k = used + shared
    if (count + shared) % top_k:
        more = " and a shared one" if shared else ""
        raise UserError(
            f"config.json asks for {count} experts of which {used} are used{more}, which cannot be expressed: here the "
            f"number of all experts is a multiple of the {top_k} that a token uses."
        )
    experts = Experts(sparsity=(count + shared) // top_k, top_k=top_k, shared=shared, gate=gate)
    return {"experts": experts, "intermediate_size": width * top_k}


def qwen_keys(config: ModelConfig) -> dict[str, Any]:
    """Of Qwen's classes, whose intermediate_size is that of the layers without experts."""
    e = experts_of(config)
    return {
        "num_experts": e.routed,
        "num_experts_per_tok": e.active,
        "moe_intermediate_size": expert_width(config),
        "norm_topk_prob": e.gate == "selected",
        "decoder_sparse_step": 1,
        "mlp_only_layers": dense_layers(config),
    }


def read_qwen(values: Mapping[str, Any], count: int, used: int, width: int, shared: bool = False) -> dict[str, Any]:
    """Fields of ModelConfig from the keys of Qwen's classes, whose defaults are count, used and width.

    Raises UserError where layers without experts have another width than all experts that a token uses together.
    """
    # transformers 5 saves the first and reads both.
    count = values.get("num_local_experts") or values.get("num_experts") or count
    used, width = values.get("num_experts_per_tok") or used, values.get("moe_intermediate_size") or width
    found = read_experts(count, used, width, "selected" if values.get("norm_topk_prob") else "all", shared)
    dense, own = values["intermediate_size"], found["intermediate_size"]
    specs = sparse_layers(LayerSpec(), values["num_hidden_layers"], values)
    if dense != own and not all(spec.experts for spec in specs):
        raise UserError(
            f"config.json asks for layers without experts of width {dense}, which cannot be expressed: here they are "
            f"as wide as the experts that a token uses together, {own}."
        )
    return found
