"""Activations that wait on the host: the same gradients, and nothing of a chosen layer stays where it was."""

from __future__ import annotations

from functools import partial
from typing import Any

import moe_models
import pytest
import torch
from small_models import model_of, small_family, tokens
from torch import Tensor, nn

from lit_gpt.config.model import Experts
from lit_gpt.model import GPT
from lit_gpt.parallel import offload
from lit_gpt.parallel.expert_gradients import sum_in_one_pass
from lit_gpt.parallel.kept_casts import keep_casts
from lit_gpt.parallel.offload import chosen_layers, offload_activations
from lit_gpt.parallel.recompute import recompute_in_backward
from lit_gpt.scaling.base import Multipliers

CPU = torch.device("cpu")  # there both sides are host memory; the ways of tensors are the same, without streams
FAMILY = small_family("transformer")
EIGHT = FAMILY.replace(depth=8, layers=2 * FAMILY.layers)


@pytest.fixture(autouse=True)
def every_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "SMALLEST", 1)


def test_chosen_layers() -> None:
    assert chosen_layers(0, 8) == []
    assert chosen_layers(0.25, 16) == [0, 4, 8, 12]
    assert chosen_layers(0.5, 5) == [0, 2]
    assert chosen_layers(1, 4) == [0, 1, 2] and chosen_layers(1, 1) == [], "the last layer's are needed at once"


def gradients(model: nn.Module, twice: bool) -> list[Tensor]:
    """Of two micro-batches. twice: go through the second one's graph again, as selective checkpoints cannot."""
    loss = torch.zeros(())
    for i in range(2):
        x = tokens().roll(i)
        loss = model(x, x.roll(-1, 1)).loss
        loss.backward(retain_graph=twice)
    if twice:
        loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("recompute", ["off", "selective", "full"])
@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.filterwarnings("ignore:--act_offload saves nothing")  # where blocks are not compiled, and recompute
def test_gradients_are_the_same_to_the_bit(share: float, recompute: str) -> None:
    model = model_of(small_family("transformer"))
    twice = recompute == "off"
    expected = gradients(model, twice)
    for block in model.blocks:
        recompute_in_backward(block, recompute)  # type: ignore[arg-type]
    offload_activations(model.blocks, share, CPU)
    model.zero_grad()
    for one, other in zip(gradients(model, twice), expected):
        assert torch.equal(one, other)


def test_an_offload_of_no_tensor_is_said_once(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """A share of small layers was taken in silence, and no memory was saved."""
    x = tokens()
    for smallest in (1, 2**22):
        monkeypatch.setattr(offload, "SMALLEST", smallest)
        model = model_of(small_family("transformer"))
        offload_activations(model.blocks, 0.5, CPU)
        for _ in range(3):
            model(x, x.roll(-1, 1)).loss.backward()
        said = [str(w.message) for w in recwarn if "--act_offload saves nothing" in str(w.message)]
        assert len(said) == (smallest > 1)
    assert "no tensor of 4,194,304 bytes or more" in said[0]


def test_layers_leave_and_their_buffers_serve_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, made = model_of(small_family("transformer")), []
    to_host = offload._Copies.to_host

    def watched(self: offload._Copies, x: Tensor) -> Tensor:
        host = to_host(self, x)
        made.append(host.data_ptr())
        return host

    monkeypatch.setattr(offload._Copies, "to_host", watched)
    offload_activations(model.blocks, 0.5, CPU)
    x = tokens()
    for _ in range(3):
        model(x, x.roll(-1, 1)).loss.backward()
    each = len(made) // 3
    assert each > 10 and len(set(made[each:])) == len(set(made[:each])), "the second pass makes no buffers of its own"


def test_layers_come_back_before_they_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sent = model_of(EIGHT), []
    to_device, take = offload._Copies.to_device, offload._Item.take
    monkeypatch.setattr(
        offload._Copies, "to_device", lambda self, *given: sent.append("send") or to_device(self, *given)
    )
    monkeypatch.setattr(offload._Item, "take", lambda self: sent.append("take") or take(self))
    offload_activations(model.blocks, 0.25, CPU)

    def note(block: int, _: nn.Module, given: Any, found: Any) -> None:
        found[0].x.register_hook(lambda gradient: sent.append(block))

    for i, block in enumerate(model.blocks):
        block.register_forward_hook(partial(note, i))

    x = tokens()
    model(x, x.roll(-1, 1)).loss.backward()
    order = [event for event, before in zip(sent, [None, *sent]) if event != before]
    # Layer 4 is sent when the last block is done, layer 0 as soon as layer 4 is there.
    assert order == [7, "send", 6, 5, 4, "send", "take", 3, 2, 1, 0, "take"]


def test_what_left_is_let_go_before_it_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last layer that leaves would lie on the device twice."""
    model, leaving = model_of(EIGHT), []
    to_device = offload._Copies.to_device

    def watched(self: offload._Copies, *given: Any) -> Tensor:
        leaving.append(len(self.leaving))
        return to_device(self, *given)

    monkeypatch.setattr(offload._Copies, "to_device", watched)
    offload_activations(model.blocks, 0.25, CPU)
    x = tokens()
    model(x, x.roll(-1, 1)).loss.backward()
    assert leaving and not any(leaving)


def test_what_was_sent_and_is_not_wanted_arrives_before_its_memory_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a backward pass that ends at block 6; later kernels would have the memory into which a copy writes."""
    model, events = model_of(EIGHT), []
    send, arrive = offload._Layer.send, offload._Copies.arrive
    monkeypatch.setattr(offload._Layer, "send", lambda self: events.append("send") or send(self))
    monkeypatch.setattr(offload._Copies, "arrive", lambda self: events.append("arrive") or arrive(self))
    offload_activations(model.blocks, 0.25, CPU)
    x = tokens()
    torch.autograd.grad(model(x, x.roll(-1, 1)).loss, list(model.blocks[6].parameters()))
    model(x)  # the last forward pass's record of its layers is given up
    assert events[0] == "send" and set(events[1:]) == {"arrive"}


def test_kept_casts_of_experts_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are weights: a copy on the host would free nothing."""
    layers = moe_models.config(Experts(2, 4))
    model, left = GPT(layers, Multipliers(), compute_dtype=torch.bfloat16), []
    moe_models.fill(model)
    sum_in_one_pass(model, torch.bfloat16, compiled=False)
    keep_casts(model, torch.bfloat16, room=2**40)
    to_host = offload._Copies.to_host
    monkeypatch.setattr(offload._Copies, "to_host", lambda self, x: left.append(x.data_ptr()) or to_host(self, x))
    offload_activations(model.blocks, 1.0, CPU)
    x = torch.arange(moe_models.LENGTH)[None] % moe_models.VOCAB
    model(x, x.roll(-1, 1)).loss.backward()
    kept = {cast.data_ptr() for cast in model.blocks[0].ffn.kept}  # type: ignore[union-attr]
    assert len(kept) == 2 and left and not kept & set(left)


def test_without_gradients_nothing_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(small_family("transformer"))
    monkeypatch.setattr(offload._Copies, "to_host", lambda self, x: pytest.fail("a tensor has moved"))
    offload_activations(model.blocks, 1.0, CPU)
    with torch.no_grad():
        model(tokens())
