"""Windowed layers keep their window and no more, and cached decoding is the full forward all the same."""

from __future__ import annotations

import pytest
import torch
from small_models import HEADS, VOCAB, model_of, options_of, small, tokens
from torch import Tensor

from lit_gpt.architectures import build
from lit_gpt.config.model import LayerSpec, ModelConfig
from lit_gpt.evals.decoding import Decoder
from lit_gpt.nn import cache as cache_file
from lit_gpt.nn.cache import History, select_rows, tensors
from lit_gpt.ops.masks import in_reach

WINDOW = 5
SPARE = 16  # more than any window here, as it is in use; fewer, so that rows of a few dozen tokens fill buffers
LONG = 2 * SPARE + 40  # more than a buffer of a window and SPARE positions holds, twice
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.fixture(autouse=True)
def fewer_spare_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_file, "SPARE", SPARE)


def windowed(mixer: str, reader: int | None = None, **fields) -> ModelConfig:
    """A window, and a later layer that reads the keys under one of its own (0: under none); then another window."""
    cross = "differential_cross_attention" if mixer.startswith("differential") else "cross_attention"
    layers = [LayerSpec(mixer, window=WINDOW), LayerSpec(mixer, window=2 * WINDOW + 1)]
    if reader is not None:
        layers.insert(1, LayerSpec(cross, window=reader or None, shares=0))
    sizes = {"n_embd": 32, "intermediate_size": 48, "vocab_size": VOCAB, "block_size": LONG, **HEADS}
    return ModelConfig(mixer, len(layers), layers=tuple(layers), **{**sizes, **fields})


def family(name: str) -> ModelConfig:
    """A family whose windows are of 5 tokens, and of half the context where it has those; see small_models."""
    config = build(name, 8, aspect_ratio=4, block_size=2 * WINDOW + 2, window=WINDOW)
    return config.replace(vocab_size=VOCAB, mixer_options=options_of(config), **HEADS)


MODELS = {
    "swayoco": lambda: family("swayoco"),
    "sambay": lambda: family("sambay"),
    "sambayw": lambda: family("sambayw"),
    "sambaywsa": lambda: family("sambaywsa"),
    "sambayda": lambda: family("sambayda"),
    "transformerls": lambda: family("transformerls"),
    "attention": lambda: windowed("attention", attn_conv=True, qk_norm=True),
    "window of 1": lambda: windowed("attention").replace(layers=(LayerSpec(window=1), LayerSpec(window=2))),
    "sigmoid": lambda: windowed("sigmoid_attention"),
    "fox": lambda: windowed("fox", position="none"),
    "fox, read farther": lambda: windowed("fox", 3 * WINDOW, position="none"),
    "read nearer": lambda: windowed("attention", WINDOW - 2),
    "read farther": lambda: windowed("attention", 3 * WINDOW),
    "read by all": lambda: windowed("attention", 0),
    "differential, read farther": lambda: windowed("differential_attention", 3 * WINDOW),
}
# One call, steps; calls of a few tokens, shorter and longer than a window; more than a buffer holds, in the middle too.
CUTS = {
    "prompt": [LONG - 4, 1, 1, 2],
    "pieces": [3, 1, 13, 13, 4, 1, 2, 31, 4],
    "steps": [2, *[1] * (LONG - 2)],
    "short": [3, 1, 2, 1],
}


def decoded(decoder: Decoder, x: Tensor, cuts: list[int], doc_ids: Tensor | None = None) -> Tensor:
    pieces = x[:, : sum(cuts)].split(cuts, dim=1)
    first = decoder(pieces[0], None if doc_ids is None else doc_ids[:, : cuts[0]])
    return torch.cat([first, *(decoder(piece) for piece in pieces[1:])], dim=1)


def close(a: Tensor, b: Tensor) -> None:
    bound = TOLERANCE[b.dtype]
    torch.testing.assert_close(a, b, rtol=bound, atol=bound * max(1.0, float(b.abs().max())))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_decoding_is_the_full_forward(name: str, cuts: str, dtype: torch.dtype) -> None:
    model, x = model_of(MODELS[name](), dtype=dtype), tokens(2, sum(CUTS[cuts]))
    close(decoded(Decoder(model, 2, x.shape[1]), x, CUTS[cuts]), model(x).logits)


@pytest.mark.parametrize("prompt", [4, 20, LONG])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_padded_and_selected_rows_continue_as_each_does_alone(name: str, prompt: int) -> None:
    """Rows of two lengths, then other continuations of some of them in calls of several tokens, as in scoring."""
    model, pads, more = model_of(MODELS[name]()), (0, 2), [1, 3, 1, SPARE, 2]
    x, index = tokens(2, prompt), torch.tensor([1, 0, 1])
    doc_ids = torch.stack([(torch.arange(prompt) >= pad).int() for pad in pads])
    decoder = Decoder(model, 2, prompt + sum(more))
    last = decoder(x, doc_ids, last_only=True)
    decoder.select(index)
    rest = tokens(3, sum(more))
    found = torch.cat([last[index], decoded(decoder, rest, more)], dim=1)
    for row, i in enumerate(index.tolist()):
        alone = model(torch.cat([x[i, pads[i] :], rest[row]])[None]).logits[0]
        close(found[row], alone[-found.shape[1] :])


@pytest.mark.parametrize("name", ["transformerls", "samba", "swayoco", "sambay", "sambaywdr"])
@torch.no_grad()
def test_what_windowed_layers_keep_does_not_grow_with_the_prompt(name: str) -> None:
    model = model_of(small(name) if name == "samba" else family(name))
    sizes = []
    for prompt in (LONG, 2 * LONG):
        decoder = Decoder(model, 1, prompt + 1)
        decoder(tokens(1, prompt), last_only=True)
        decoder(tokens(1, 1))
        sizes.append(
            [0 if c is None else sum(t.untyped_storage().nbytes() for t in tensors(c)) for c in decoder.caches]
        )
    for spec, short, long in zip(model.config.layers, *sizes):
        keys = 2 * HEADS["n_kv_head"] * HEADS["head_dim"] * 8
        if spec.mixer == "attention" and spec.window is None:
            assert (short, long) == (keys * (LONG + 1), keys * (2 * LONG + 1))
        elif spec.window is not None and spec.mixer == "attention":
            assert short == long == keys * (spec.window - 1 + SPARE)
        else:
            assert short == long


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_more_room_than_was_said(name: str) -> None:
    """Windows that are longer than the first room become their whole length."""
    model, cuts = model_of(MODELS[name]()), [3, 1, 8, 1, SPARE, 7]
    x, decoder, found = tokens(2, sum(cuts)), Decoder(model, 2, 3), []
    for piece in x.split(cuts, dim=1):
        decoder.extend(0 if not found else piece.shape[1])
        found.append(decoder(piece))
    close(torch.cat(found, dim=1), model(x).logits)


def test_a_window_that_is_longer_than_the_row_takes_no_more_than_the_row() -> None:
    cpu = torch.device("cpu")
    assert History(1, 9, 99, (2,), cpu, torch.float32).buffer.shape == (1, 9, 2)


def test_the_last_positions_in_order() -> None:
    """Against slices of all positions, for calls of any lengths."""
    x = torch.arange(4 * LONG)[None]
    for keep in (0, 1, 4, SPARE + 3, None):
        history, end = History(1, 4 * LONG, keep, (), x.device, x.dtype), 0
        for count in (1, 2, SPARE, 1, SPARE + 1, 3, LONG, *[1] * LONG):
            seen = history.append(x[:, end : end + count])
            first = 0 if keep is None else max(0, end - keep)
            assert torch.equal(seen, x[:, first : end + count])
            end += count
    with pytest.raises(AssertionError, match="room for"):
        history.append(x)


def test_keys_in_reach() -> None:
    """Of the queries: one sees its window, several as many more, and nobody more than there are."""
    found = [in_reach(*given) for given in ((1, 9, None), (1, 9, 4), (3, 9, 4), (9, 9, 4), (7, 9, 4))]
    assert found == [9, 4, 6, 9, 9]


def test_a_cache_may_be_a_dictionary() -> None:
    """As docs/adding.md has it; of tensors, objects and other dictionaries."""
    history = History(2, 3, None, (), torch.device("cpu"), torch.float32)
    cache = {"state": torch.arange(2), "more": {"last": torch.arange(2) + 5}, "keys": history, "count": 3}
    assert len(tensors(cache)) == 3
    select_rows(cache, torch.tensor([1, 1, 0]))
    assert cache["state"].tolist() == [1, 1, 0] and cache["more"]["last"].tolist() == [6, 6, 5]
    assert history.buffer.shape == (3, 3) and cache["count"] == 3
