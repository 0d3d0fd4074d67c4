"""Any torch.optim.Optimizer over role groups, on one process or on shards.

The inner optimizer has parameters of its own, which show it the weights in one of two ways:

| gathered | its parameters are | for |
|---|---|---|
| no | each rank's own shards, sharing their memory | elementwise rules |
| yes | whole tensors, gathered for a step; every rank does the same step and keeps its shard | the others |

So no rule is asked for DTensor support, and either way the result is that of one process. Gathering costs
what data parallelism costs: the optimizer state of the whole model on every rank. Experts are matrices
of their own there.

Learning rates, decays, betas and eps come from the role groups, before every step. Libraries create
their state in the first step; before a checkpoint is loaded, `create_state` has one made and thrown
away, so that there is a place for every value that the checkpoint has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from lit_gpt.optim.engine.matrix_batches import local
from lit_gpt.optim.engine.state_tree import Value, as_tensor, assign, values_of

Group = dict[str, Any]
WRITTEN = ("params", "lr", "weight_decay")  # keys of the inner groups that are written before every step


@dataclass(frozen=True)
class Traits:
    """What the wrapper and the training loop must know of a library's optimizer.

    own_decay: it decays the weights by itself; otherwise the wrapper does, decoupled, as AdamW.
    averages: it trains at one point and is evaluated at another, between which its train() and eval() switch.
    keeps_gradients: it stores its momentum in the gradients, which must then not be thrown away.
    rate: the key of its groups that it multiplies the learning rate by (Prodigy's d); None where there is none.
    planned_betas: how many of its betas, from the first on, follow the Plan.
    one_rate: it reads rate and betas of its first group alone, and takes them for all weights.
    """

    own_decay: bool = False
    averages: bool = False
    keeps_gradients: bool = False
    rate: str | None = None
    planned_betas: int = 2
    one_rate: bool = False


class Wrapped(torch.optim.Optimizer):
    """Inner optimizers over role groups.

    groups: with betas and eps where they follow the Plan. make: called once with the inner groups, returns the inner
    optimizers; each inner group has `role`, `lr` 1 and `weight_decay` 0, and goes to one of them. gathered: see above.
    """

    def __init__(
        self,
        groups: list[Group],
        make: Callable[[list[Group]], Sequence[torch.optim.Optimizer]],
        gathered: bool,
        traits: Traits,
    ):
        super().__init__(groups, {})
        self.gathered, self.traits = gathered, traits
        self.pieces = {p: _parameters(self._view(p, g)) for g in self.param_groups for p in g["params"]}
        fresh = [
            {"params": [q for p in g["params"] for q in self.pieces[p]], "role": g["role"], "lr": 1.0}
            for g in self.param_groups
        ]
        self.inner = list(make(fresh))
        by_role = {group["role"]: (inner, group) for inner in self.inner for group in inner.param_groups}
        self.pairs = [(g, *by_role[g["role"]]) for g in self.param_groups]
        self._training_weights: dict[Tensor, Tensor] = {}

    @property
    def averages(self) -> bool:
        """Whether the weights to evaluate are not those to train; see protocol.py."""
        return self.traits.averages

    def _view(self, tensor: Tensor, group: Group) -> list[Tensor]:
        """What the inner optimizer sees of a parameter or its gradient."""
        if self.gathered and isinstance(tensor, DTensor):
            seen = tensor.full_tensor().detach()
        else:
            seen = local(tensor).detach()
        if group["role"] == "expert" and self.gathered:
            return list(seen.unbind())
        return [seen.reshape(1) if seen.ndim == 0 else seen]

    def _parameters(self) -> Iterator[tuple[Group, Tensor]]:
        return ((group, p) for group in self.param_groups for p in group["params"])

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update from the gradients."""
        self.state.clear()  # what a checkpoint looked at
        for group, _, hidden in self.pairs:
            self._hand_over(group, hidden)
        gathered = self._show_weights()
        for group, p in self._parameters():
            assert p.grad is not None, "a parameter has no gradient"
            for q, g in zip(self.pieces[p], self._view(p.grad, group)):
                q.grad = q.grad.add_(g) if self.traits.keeps_gradients and q.grad is not None else g
        for inner in self.inner:
            inner.step()
        self._keep(gathered)

    def _hand_over(self, group: Group, hidden: Group) -> None:
        """Give an inner group the numbers of this step, and decay its weights where the optimizer does not do so."""
        if isinstance(hidden["lr"], Tensor):  # torchao's
            hidden["lr"].fill_(group["lr"])
        else:
            hidden["lr"] = group["lr"]
        if self.traits.own_decay:
            hidden["weight_decay"] = group["weight_decay"]
        elif group["lr"] * group["weight_decay"]:
            torch._foreach_mul_([local(p) for p in group["params"]], 1 - group["lr"] * group["weight_decay"])
        if "betas" in group and "betas" in hidden:
            planned = self.traits.planned_betas
            hidden["betas"] = (*group["betas"][:planned], *hidden["betas"][planned:])
        if "eps" in group and "eps" in hidden:
            hidden["eps"] = group["eps"]

    def _show_weights(self) -> list[tuple[DTensor, list[Tensor]]]:
        """Let the inner parameters show the weights as they are now.

        Returns the parameters whose weights had to be gathered, with these copies: `_keep` writes them back.
        """
        gathered = []
        for group, p in self._parameters():
            seen = self._view(p, group)
            for q, x in zip(self.pieces[p], seen):
                q.data = x
            if self.gathered and isinstance(p, DTensor):
                gathered.append((p, seen))
        return gathered

    def _keep(self, gathered: list[tuple[DTensor, list[Tensor]]]) -> None:
        """Take this rank's shards out of the gathered weights, and drop the gradients."""
        for p, seen in gathered:
            whole = (torch.stack(seen) if p.ndim == seen[0].ndim + 1 else seen[0]).view(p.shape)
            local(p).copy_(local(distribute_tensor(whole, p.device_mesh, p.placements, src_data_rank=None)))
        if not self.traits.keeps_gradients:
            for _, p in self._parameters():
                for q in self.pieces[p]:
                    q.grad = None

    def telemetry(self) -> dict[str, float]:
        """Numbers to log: the learning rate after the factor that the optimizer found itself."""
        if self.traits.rate is None:
            return {}
        group, _, hidden = self.pairs[0]
        found = float(hidden[self.traits.rate])
        return {"metric/optimizer_rate_factor": found, "metric/effective_learning_rate": found * group["lr"]}

    @torch.no_grad()
    def use_averages(self) -> None:
        """Put the weights to evaluate, save and export into the model; the others are kept bit by bit."""
        self._show_weights()
        self._training_weights = {q: q.detach().clone() for _, p in self._parameters() for q in self.pieces[p]}
        for inner in self.inner:
            inner.eval()  # type: ignore[attr-defined]

    @torch.no_grad()
    def use_training_weights(self) -> None:
        """Put the weights to train back into the model, bit by bit as they were before use_averages."""
        self._show_weights()
        for inner in self.inner:
            inner.train()  # type: ignore[attr-defined]
        for q, weights in self._training_weights.items():
            q.copy_(weights)
        self._training_weights = {}

    def expose_state(self) -> None:
        """Fill `state` for a checkpoint: parameter -> path -> tensor, sharing memory with the inner state."""
        self.state.clear()
        for p, path, place in self._state_tree():
            value = as_tensor(place[3])
            self.state[p][path] = value if self.gathered else _sharded(value, p)

    def adopt_state(self) -> None:
        """Take over what was loaded into `state`."""
        for p, path, place in self._state_tree():
            assign(place, self.state[p][path])
        self.state.clear()
        if self._training_weights:
            self.use_training_weights()

    @torch.no_grad()
    def create_state(self) -> None:
        """Have the inner optimizers make their state, in a step on copies of the weights."""
        for group, p in self._parameters():
            for q, x in zip(self.pieces[p], self._view(p, group)):
                q.data = x.clone()
                q.grad = torch.linspace(-1, 1, x.numel(), device=x.device, dtype=x.dtype).view(x.shape)
        for inner in self.inner:
            if not inner.state:
                inner.step()
        self._keep([])
        if self.averages:
            self.use_averages()
        self.expose_state()

    def _state_tree(self) -> Iterator[tuple[Tensor, str, Value]]:
        """All state, by parameter and path; that of a group goes with its first parameter."""
        for group, inner, hidden in self.pairs:
            numbers = {k: v for k, v in hidden.items() if k not in WRITTEN}
            for path, _, key, value in values_of(numbers):
                if "/" not in path:
                    yield group["params"][0], f"group/{path}", (path, hidden, key, value)
            for p in group["params"]:
                for i, q in enumerate(self.pieces[p]):
                    kept: dict[str, Any] = {"state": inner.state.get(q, {})}
                    if self.traits.keeps_gradients:
                        kept["gradient"] = [q.grad]
                    if q in self._training_weights:
                        kept["training_weights"] = [self._training_weights[q]]
                    for place in values_of(kept, str(i)):
                        yield p, place[0], place


def _parameters(tensors: Sequence[Tensor]) -> list[nn.Parameter]:
    return [nn.Parameter(t) for t in tensors]


def _sharded(value: Tensor, p: Tensor) -> Tensor:
    """State in the shape of a shard as a part of the whole, like the shard itself."""
    if not isinstance(p, DTensor) or value.shape != local(p).shape:
        return value
    return DTensor.from_local(value, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())
