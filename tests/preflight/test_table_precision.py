"""--table_precision bf16: what the model reads, what it costs, and where it is refused."""

from __future__ import annotations

from inspect import signature
from typing import Any

import pytest
import torch
from small_models import VOCAB, optioned

from lit_gpt.config.cli import parse
from lit_gpt.errors import UserError
from lit_gpt.model import GPT
from lit_gpt.preflight.resolved_run import ResolvedRun, resolve_run
from lit_gpt.roles import TABLES, roles_of
from lit_gpt.scaling.base import Multipliers

RUN = "--train_model baseline --depth 2 --ar 32 --vocab_size 640 --max_tokens 1e9 --optimizer normuon --dry_run true"
RUN += " --table_precision bf16 --base_hps.warmup_tokens 0 --precision fp32 --train_name x"


def resolved(more: str = "", ranks: int = 1) -> ResolvedRun:
    return resolve_run(parse(f"{RUN} {more}".split()), ranks)


@torch.no_grad()
@pytest.mark.parametrize("beta2, moves", [(0.995, True), (0.999, False)])
def test_averages_that_move_in_bf16(beta2: float, moves: bool) -> None:
    """Torch's own kernel: after gradients that became ten times smaller, the second moment should be a hundredth."""
    p = torch.nn.Parameter(torch.zeros(64, 64, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW([p], 0.0, (0.9, beta2), fused=True)
    draw = torch.Generator().manual_seed(0)
    for scale in (1.0, 0.1):
        for _ in range(round(5 / (1 - beta2))):
            p.grad = (scale * torch.randn(64, 64, generator=draw)).bfloat16()
            optimizer.step()
    assert (optimizer.state[p]["exp_avg_sq"].float().mean().item() < 0.05) == moves


@torch.no_grad()
def test_the_model_is_that_of_rounded_tables() -> None:
    config = optioned("baseline")
    rounded, stored = GPT(config), GPT(config, table_dtype=torch.bfloat16)
    draw = torch.Generator().manual_seed(0)
    for p in rounded.parameters():
        p.normal_(0, 0.3, generator=draw)
        if p.role in TABLES:  # type: ignore[attr-defined]
            p.copy_(p.bfloat16())
    stored.load_state_dict(rounded.state_dict())
    tables = {name for name, p in stored.named_parameters() if p.dtype == torch.bfloat16}
    assert tables == {name for name, role in roles_of(stored).items() if role in TABLES} and len(tables) > 1
    tokens = torch.randint(VOCAB, (2, 8), generator=draw)
    assert torch.equal(rounded(tokens).logits, stored(tokens).logits)


def test_another_model_is_like_it_in_every_option() -> None:
    half = dict.fromkeys(("compute_dtype", "residual_dtype", "table_dtype"), torch.bfloat16)
    options: dict[str, Any] = {**half, **dict.fromkeys(("attention_backend", "kernels", "expert_backend"), "plain")}
    options |= {"loss_backend": "plain", "loss_chunk": 8, "rounded_logits": True}
    assert {"self", "config", "multipliers", *options} == set(signature(GPT.__init__).parameters)
    model = GPT(optioned("baseline"), Multipliers(logit=2.0), **options)
    facts, others = ({k: v for k, v in vars(m).items() if k[0] != "_"} for m in (model, model.another()))
    assert facts == others
    dtypes, other_dtypes = ([p.dtype for p in m.parameters()] for m in (model, model.another()))
    assert dtypes == other_dtypes and len(set(dtypes)) == 2, "tables and all else"


def test_the_slowest_average_that_moves_is_allowed() -> None:
    assert resolved("--parameterization sp --base_hps.beta2 0.995").plan.beta2 == 0.995


def test_betas_that_tables_do_not_have_are_not_asked() -> None:
    """hadam trains tables with betas 0.8 and 0.95, and the Plan's are those of its matrices."""
    assert resolved("--parameterization sp --optimizer hadam --base_hps.beta2 0.999").plan.beta2 == 0.999


def test_it_halves_the_tables_and_their_state() -> None:
    found, full = resolved().plan, resolved("--table_precision fp32").plan
    tables = sum(found.counts[role] for role in TABLES)
    assert full.memory["weights"] - found.memory["weights"] == 2 * tables
    assert full.memory["optimizer"] - found.memory["optimizer"] == pytest.approx(4 * tables, abs=64)


@pytest.mark.parametrize(
    "more, ranks, why",
    [
        ("", 2, "one process"),
        ("--tie_embeddings true", 1, "--tie_embeddings"),
        ("--ema 1M", 1, "--ema"),
        ("--parameterization sp --base_hps.beta2 0.999", 1, "a beta of 0.999 would stand still"),
        ("--optimizer lion", 1, "--optimizer lion uses another"),
        ("--parameterization sp --cautious_weight_decay true", 1, "--optimizer normuon uses another"),
    ],
)
def test_where_it_cannot_be_it_is_refused(more: str, ranks: int, why: str) -> None:
    with pytest.raises(UserError, match=f"--table_precision bf16 is not possible: .*{why}"):
        resolved(more, ranks)
