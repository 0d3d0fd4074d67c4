"""Dropout against its formula, with masks that a few lines of whole numbers compute, and what they depend on."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from small_models import MULTIPLIERS, VOCAB, model_of, optioned, tokens
from torch import nn

from lit_gpt.nn.block import Stream
from lit_gpt.nn.context import Context
from lit_gpt.nn.dropout import drop, fold, layer_keys, mix, row_keys

P = 0.3
M32 = 2**32


def mixed(x: int) -> int:
    """hash-prospector's [16 21f0aaad 15 d35a2d97 15]."""
    x = (x ^ x >> 16) * 0x21F0AAAD % M32
    x = (x ^ x >> 15) * 0xD35A2D97 % M32
    return x ^ x >> 15


def folded(key: int, number: int) -> int:
    return mixed(((key ^ number) + 0x9E3779B9) % M32)


def kept(seed: int, step: int, sample: int, layer: int, branch: int, shape: tuple[int, int], p: float) -> np.ndarray:
    """1 / (1 - p) where an entry of (T, D) is kept, else 0."""
    pair = []
    for key in (1, 2):
        for number in (seed, step, sample):
            key = folded(folded(key, number % M32), number // M32)
        pair.append(folded(key, layer))
    entries = range(shape[0] * shape[1])
    bits = [mixed((mixed((2 * i + branch) ^ pair[0]) + pair[1]) % M32) for i in entries]
    return (np.array(bits) >= p * M32).reshape(shape) / (1 - p)


def test_masks_are_those_of_whole_numbers() -> None:
    where = {"seed": 2**40 + 7, "step": 123_456, "first": 2**33 + 5}
    keys = layer_keys(row_keys(**where, rows=3), 4)
    x = torch.ones(3, 5, 7, dtype=torch.float64)
    for layer, row, branch in ((0, 0, 0), (3, 2, 1)):
        got = drop(x, keys[layer], branch, P)[row]
        expected = kept(where["seed"], where["step"], where["first"] + row, layer, branch, (5, 7), P)
        np.testing.assert_allclose(got.numpy(), expected)


def test_words_stay_words() -> None:
    """The largest ones too: no product overflows, and no bit is lost."""
    words = [0, 1, M32 - 1, 0x9E3779B9, 12345]
    assert mix(torch.tensor(words)).tolist() == [mixed(x) for x in words]
    assert fold(torch.tensor(words), 9).tolist() == [folded(x, 9) for x in words]


def test_masks_differ_and_keep_their_share() -> None:
    """In each of seed, step, sample, layer and branch alone; shares and agreement are those of independent coins."""
    length, width = 64, 256
    x, masks = torch.ones(1, length, width), []
    for seed, step, sample, layer, branch in ((0,) * 5, *np.eye(5, dtype=int).tolist()):
        key = layer_keys(row_keys(seed, step, sample, 1), 2)[layer]
        masks.append(drop(x, key, branch, P)[0] > 0)
    spread = (P * (1 - P) / (length * width)) ** 0.5  # the standard deviation of a mean of independent coins
    for mask in masks:
        assert abs(mask.float().mean().item() - (1 - P)) < 6 * spread
        neighbours = (mask[:, 1:] == mask[:, :-1]).float().mean(), (mask[1:] == mask[:-1]).float().mean()
        assert max(abs(n.item() - (P**2 + (1 - P) ** 2)) for n in neighbours) < 0.03
    for a, b in combinations(masks, 2):
        assert abs((a == b).float().mean().item() - (P**2 + (1 - P) ** 2)) < 0.03


class Mix(nn.Module):
    def forward(self, x, context, shared, cache):
        return torch.sin(x).cumsum(1), None


@pytest.mark.parametrize("name", ["qk_norm", "parallel", "reordered"])
def test_what_each_branch_adds_is_dropped(name: str) -> None:
    block = model_of(optioned(name).replace(dropout=P)).blocks[0]
    block.mixer, block.ffn = Mix(), nn.Tanh()
    x, m = torch.randn(2, 5, 32, dtype=torch.float64), MULTIPLIERS.residual
    context = Context(dropout=layer_keys(row_keys(3, 4, 10, 2), 2)[1])
    masks = [torch.tensor(np.stack([kept(3, 4, 10 + r, 1, b, (5, 32), P) for r in (0, 1)])) for b in (0, 1)]

    def norm(x, which):
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * getattr(block, which).weight

    def sin(x):
        return torch.sin(x).cumsum(1)

    if name == "parallel":
        s = norm(x, "norm1")
        expected = x + m * (masks[0] * sin(s) + masks[1] * torch.tanh(s))
    elif name == "reordered":
        y = x + m * masks[0] * norm(sin(x), "norm1")
        expected = y + m * masks[1] * norm(torch.tanh(y), "norm2")
    else:
        y = x + m * masks[0] * sin(norm(x, "norm1"))
        expected = y + m * masks[1] * torch.tanh(norm(y, "norm2"))
    torch.testing.assert_close(block(Stream(x), context)[0].x, expected)


def test_embedding_is_dropped_and_evaluation_is_not() -> None:
    model, x = model_of(optioned("gate").replace(dropout=P)), tokens()
    keys = row_keys(0, 1, 0, len(x))
    seen = []
    model.blocks[0].register_forward_pre_hook(lambda block, args: seen.append(args[0].x))
    dropped, whole = (model(x, dropout_BW=k).logits for k in (keys, None))
    shape = (x.shape[1], model.config.n_embd)
    masks = torch.tensor(np.stack([kept(0, 1, r, model.config.depth, 0, shape, P) for r in range(len(x))]))
    torch.testing.assert_close(seen[0], seen[1] * masks)
    plain = model_of(optioned("gate"))
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(whole, plain(x).logits)
    assert not torch.allclose(dropped, whole)


def test_masks_follow_their_sample_through_any_split() -> None:
    """Rows of one batch, and each alone with its own key, under full recomputation or not."""
    model, x = model_of(optioned("gate").replace(dropout=P)), tokens() % VOCAB
    keys = row_keys(5, 6, 7, len(x))
    whole = model(x, x, dropout_BW=keys).loss
    parts = [model(x[i : i + 1], x[i : i + 1], dropout_BW=keys[i : i + 1]).loss for i in range(len(x))]
    torch.testing.assert_close(whole, torch.stack(parts).sum())


def test_layers_that_share_a_block_have_masks_of_their_own() -> None:
    model, seen = model_of(replace(optioned("shared_block"), dropout=P)), []
    model.blocks[0].register_forward_pre_hook(lambda block, args: seen.append(args[1].dropout))
    model(tokens(), dropout_BW=row_keys(0, 1, 0, len(tokens())))
    assert len(seen) == 2 and not torch.equal(*seen)
