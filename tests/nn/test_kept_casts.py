"""Casts of experts' weights that are kept between steps, and gradients that are added up in one pass: the same training
to the last bit, with fewer casts.
"""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from moe_models import LENGTH, VOCAB, N, config, fill

from lit_gpt.config.cli import parse
from lit_gpt.config.model import Experts
from lit_gpt.model import GPT
from lit_gpt.nn.moe import MixtureOfExperts
from lit_gpt.ops import experts
from lit_gpt.parallel import expert_gradients, kept_casts
from lit_gpt.parallel.expert_gradients import sum_in_one_pass
from lit_gpt.parallel.kept_casts import experts_within, keep_casts
from lit_gpt.parallel.recompute import compile_blocks, recompute_in_backward
from lit_gpt.preflight.memory import EXPERT_CASTS, FILLED
from lit_gpt.preflight.resolved_run import resolve_run
from lit_gpt.scaling.base import Multipliers, Plan

S2K4 = Experts(2, 4, shared=True, aux_gamma=0.01)
ALL = 2**40


def made() -> GPT:
    model = GPT(config(S2K4), Multipliers(), compute_dtype=torch.bfloat16)
    fill(model)
    return model


def prepare(model: torch.nn.Module, room: int, compiled: bool = False) -> None:
    """As parallelize_model does."""
    sum_in_one_pass(model, torch.bfloat16, compiled)
    keep_casts(model, torch.bfloat16, room)


def twins(room: int = ALL) -> tuple[GPT, GPT]:
    """A model, and one with sinks that keeps the casts that fit into `room`."""
    kept = made()
    prepare(kept, room)
    return made(), kept


def losses(model: GPT, steps: int = 2, micro_batches: int = 2) -> list[float]:
    optimizer, found = torch.optim.AdamW(model.parameters(), lr=1e-2), []
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        for _ in range(micro_batches):
            tokens = torch.randint(0, VOCAB, (2, LENGTH), generator=generator)
            loss = model(tokens, tokens.roll(-1, 1)).loss
            loss.backward()
            found.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return found


def same(plain: GPT, kept: GPT) -> None:
    assert losses(plain) == losses(kept)
    for p, q in zip(plain.parameters(), kept.parameters()):
        assert torch.equal(p, q)


@pytest.fixture
def casts(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The mixtures whose weights were cast, in order."""
    seen, cast = [], kept_casts._cast
    monkeypatch.setattr(kept_casts, "_cast", lambda moe, *rest: (seen.append(moe), cast(moe, *rest)))
    return seen


@pytest.mark.parametrize("room", [0, ALL])
@pytest.mark.parametrize("recompute", ["off", "full", "selective"])
def test_training_is_the_same_to_the_last_bit_and_casts_once_in_a_step(
    recompute: Any, room: int, casts: list[Any]
) -> None:
    plain, kept = twins(room)
    for model in (plain, kept):
        for block in model.blocks:
            recompute_in_backward(block, recompute)
    same(plain, kept)
    mixtures: list[Any] = [block.ffn for block in kept.blocks]
    assert casts == (2 * mixtures if room else [])
    assert all(t.dtype == torch.bfloat16 and t.grad is None for moe in mixtures for t in (*moe.kept, *moe.sinks))


def test_gradients_arrive_as_backward_made_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16, and no copies of them. A sink has the memory of one number."""
    made_here, arrived, backward = [], [], experts._backward

    def watched(*arguments: Any) -> Any:
        gradients = backward(*arguments)
        made_here.extend((d.data_ptr(), d.dtype) for d in gradients[2:])
        return gradients

    def note(total: torch.Tensor, part: torch.Tensor) -> None:
        arrived.append((part.data_ptr(), part.dtype))
        total.copy_(part)

    monkeypatch.setattr(experts, "_backward", watched)
    monkeypatch.setattr(expert_gradients, "_copy", note)
    _, kept = twins(0)
    tokens = torch.arange(LENGTH)[None] % VOCAB
    kept(tokens, tokens).loss.backward()
    assert len(arrived) == 4 and sorted(arrived) == sorted(made_here, key=lambda found: found[0])
    assert {dtype for _, dtype in arrived} == {torch.bfloat16}
    assert all(sink.untyped_storage().nbytes() == 2 for block in kept.blocks for sink in block.ffn.sinks)  # type: ignore[union-attr]


@pytest.mark.parametrize("room", [0, ALL])
def test_frozen_weights_get_no_gradient(room: int) -> None:
    """Frozen before or after the trainer has prepared the model."""
    plain, kept = made(), made()
    for model in (plain, kept):
        model.blocks[0].ffn.up.requires_grad_(False)  # type: ignore[union-attr]
    prepare(kept, room)
    for model in (plain, kept):
        model.blocks[1].ffn.down.requires_grad_(False)  # type: ignore[union-attr]
    same(plain, kept)
    assert kept.blocks[0].ffn.up.grad is None is kept.blocks[1].ffn.down.grad  # type: ignore[union-attr]


@pytest.mark.parametrize("room", [0, ALL])
def test_evaluation_and_a_load_between_steps(room: int) -> None:
    """A run that is interrupted by both goes on as one that was not, also in another process's model."""
    plain, kept = twins(room)
    _, resumed = twins(room)
    tokens = torch.arange(LENGTH)[None] % VOCAB
    assert losses(plain, 1) == losses(kept, 1)
    with torch.no_grad():
        assert plain.eval()(tokens, tokens).loss == kept.eval()(tokens, tokens).loss
    for model in (plain, kept, resumed):
        model.load_state_dict(plain.state_dict())
        model.train()
    expected = losses(plain)
    assert losses(kept) == expected == losses(resumed)
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), resumed.parameters()))


def test_blocks_that_layers_share_have_autograd_add_up_their_gradients() -> None:
    plain, shared = (
        GPT(config(S2K4).replace(share_per_layer=1), Multipliers(), compute_dtype=torch.bfloat16) for _ in range(2)
    )
    fill(plain)
    fill(shared)
    prepare(shared, ALL)
    assert len(shared.block_of) > len(shared.blocks) and not shared.blocks[0].ffn.sinks  # type: ignore[union-attr]
    same(plain, shared)


class Alone(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([MixtureOfExperts(config(S2K4), 0, 1.0)])
        fill(self)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.blocks[0](x_BTD)[0]


@pytest.mark.parametrize("room", [0, ALL])
def test_a_compiled_block_takes_them_as_inputs(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    experts._compiled.cache_clear()
    compile = torch.compile
    options = {"backend": "aot_eager", "fullgraph": True}
    monkeypatch.setattr(torch, "compile", lambda f, dynamic=None, **_: compile(f, dynamic=dynamic, **options))
    plain, kept = Alone(), Alone()
    prepare(kept, room, compiled=True)
    compile_blocks(kept.blocks)
    x = torch.randn(2, LENGTH, N, generator=torch.Generator().manual_seed(0)).bfloat16()
    for model in (plain, kept):
        for scale in (1, 2, 3):
            model(scale * x).sum().backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(plain.parameters(), kept.parameters()))  # type: ignore[arg-type]
    experts._compiled.cache_clear()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("room", [0, ALL])
def test_compiled_on_a_gpu(room: int) -> None:
    """Two micro-batches and a step, twice."""
    models = Alone().cuda(), Alone().cuda()
    prepare(models[1], room, compiled=True)
    x = torch.randn(2, LENGTH, N, generator=torch.Generator().manual_seed(0)).cuda().bfloat16()
    for model in models:
        compile_blocks(model.blocks)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        for _ in range(2):
            optimizer.zero_grad()
            for scale in (1, 2):
                model(scale * x).float().square().sum().backward()
            optimizer.step()
    for p, q in zip(models[0].parameters(), models[1].parameters()):
        assert p.grad is not None and q.grad is not None
        assert (p.grad - q.grad).norm() < 1e-3 * p.grad.norm()


def test_loaded_weights_are_seen_and_evaluation_reads_the_weights() -> None:
    _, kept = twins()
    tokens = torch.arange(LENGTH)[None] % VOCAB
    before = kept(tokens, tokens).loss
    other = made()
    fill(other, seed=1)
    kept.load_state_dict(other.state_dict())
    assert before != kept(tokens, tokens).loss == other(tokens, tokens).loss
    with torch.no_grad():
        for model in (kept, other):
            model.blocks[0].ffn.down.mul_(2)  # type: ignore[union-attr]
    # No pass of the whole model has come since: decoding calls the blocks one by one.
    x = torch.randn(1, LENGTH, N).bfloat16()
    assert torch.equal(kept.eval().blocks[0].ffn(x)[0], other.eval().blocks[0].ffn(x)[0])  # type: ignore[operator]


def test_as_many_as_there_is_room_for() -> None:
    model = made()
    each = 2 * sum(p.numel() for _, p in model.blocks[0].ffn.named_parameters(recurse=False))  # type: ignore[union-attr]
    mixtures = [block.ffn for block in model.blocks]
    for room, count in ((-1, 0), (each - 1, 0), (each, 1), (2 * each, 2), (ALL, 2)):
        assert experts_within(model, torch.bfloat16, room) == (mixtures[:count], count * each)
    assert experts_within(model, torch.float32, ALL) == ([], 0)
    same(*twins(each))


def test_copies_train_by_themselves() -> None:
    """Their weights would get no gradients, and their casts would be those of the original's."""
    for again, room in ((copy.deepcopy, ALL), (lambda model: pickle.loads(pickle.dumps(model)), 0)):
        plain, kept = twins(room)
        assert losses(plain, 1) == losses(kept, 1)
        copied = again(kept)
        same(plain, copied)
        assert all(p.grad is None for p in kept.parameters())


def test_state_does_not_know_of_them() -> None:
    plain, kept = twins()
    losses(kept)
    assert plain.state_dict().keys() == kept.state_dict().keys()
    assert len(list(plain.parameters())) == len(list(kept.parameters())) and not list(kept.buffers())


def test_the_plan_keeps_what_fits_this_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one micro-batch in a step, or without a GPU, there is nothing to gain."""
    size = "--train_model transformer_gqa4_h2_moe --depth 8 --sparsity 4 --top_k 2 --ctx_len 512 --micro_bsz 8"
    line = f"{size} --train_name x --vocab_size 1000 --max_tokens 1e9 --base_hps.warmup_tokens 0 --dry_run true"

    def plan(batch: int) -> Plan:
        return resolve_run(parse(f"{line} --total_bsz {batch}".split()), 1).plan

    without = plan(8192)
    assert EXPERT_CASTS not in without.memory
    whole = 2 * without.counts["expert"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for share, micro_batches, kept in ((0.6, 2, 0.5), (1.01, 2, 1.0), (1.01, 1, 0.0)):
        gpu = SimpleNamespace(total_memory=(sum(without.memory.values()) + share * whole) / FILLED)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index, gpu=gpu: gpu)
        found = plan(micro_batches * 4096).memory
        assert found.get(EXPERT_CASTS, 0) == kept * whole
