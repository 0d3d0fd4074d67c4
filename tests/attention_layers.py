"""Small models around one kind of mixer, and what every kind has to do in caches and with documents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lit_gpt.config.model import LayerSpec, ModelConfig
from lit_gpt.evals.decoding import Decoder
from lit_gpt.model import GPT
from lit_gpt.nn.mixers import build_mixer
from lit_gpt.scaling.base import Multipliers

VOCAB, LENGTH = 31, 13
MULTIPLIERS = Multipliers(attention=0.3)
DOCUMENTS = ((5, 8), (3, 9, 1))  # lengths in each of two rows


def layer_config(mixer: str, window: int | None = None, layers: tuple[LayerSpec, ...] = (), **fields: Any):
    """Two layers of the mixer, or the layers given, at width 24 with 4 heads of 6 and 2 key-value heads."""
    sizes = {"n_embd": 24, "n_head": 4, "head_dim": 6, "n_kv_head": 2, "intermediate_size": 20}
    layers = layers or (LayerSpec(mixer, window=window), LayerSpec(mixer))
    config = {**sizes, "vocab_size": VOCAB, "block_size": LENGTH, **fields}
    return ModelConfig(mixer, len(layers), layers=layers, **config)


def randomise(module: nn.Module) -> None:
    """Every parameter away from its neutral value."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            noise = torch.randn(p.shape, generator=g, dtype=torch.float64)
            p.copy_(1 + 0.3 * noise if p.ndim == 1 else noise * p[0].numel() ** -0.5)


def mixer_of(config: ModelConfig, layer: int, multipliers: Multipliers = Multipliers()):  # noqa: B008 (frozen)
    """One mixer alone, in float64."""
    module = build_mixer(config, layer, multipliers).double()
    randomise(module)
    return module


def model_of(config: ModelConfig) -> GPT:
    """A whole model in float64."""
    model = GPT(config, MULTIPLIERS, compute_dtype=torch.float64, residual_dtype=torch.float64).double()
    randomise(model)
    return model


def tokens(rows: int = 2, length: int = LENGTH) -> Tensor:
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(1))


def close(a: Tensor, b: Tensor) -> None:
    # Rotary tables are fp32, whose positions differ between packed, padded and plain rows.
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def check_caches(config: ModelConfig) -> None:
    """Prefill in pieces and steps give the full forward; so do padded rows, and the last position alone."""
    model, x = model_of(config), tokens()
    full, decoder, seen = model(x).logits, Decoder(model, 2, LENGTH), []
    for piece in x.split([4, 3, 1, 1, 2, 2], dim=1):
        seen.append(decoder(piece))
    close(torch.cat(seen, dim=1), full)

    close(Decoder(model, 2, LENGTH)(x, last_only=True), full[:, -1:])

    pads = 2
    padded, ids = torch.cat([x.roll(1)[:, :pads], x], dim=1), torch.ones(2, pads + LENGTH, dtype=torch.long)
    padded[1, :-LENGTH], ids[0, :pads] = x[1, 0], 0  # the second row is as long as padding allows
    padded[1], ids[1] = torch.cat([x[1], x[1, :pads]]), 1
    decoder, steps = Decoder(model, 2, pads + LENGTH), []
    steps.append(decoder(padded[:, :-4], ids[:, :-4]))
    steps += [decoder(piece) for piece in padded[:, -4:].split([1, 1, 2], dim=1)]
    ours = torch.cat(steps, dim=1)
    close(ours[0, pads:], full[0])
    close(ours[1], model(padded[1:]).logits[0])


def check_documents(config: ModelConfig) -> None:
    """Packed documents give what they give alone, and the same gradients."""
    model, x = model_of(config), tokens()
    ids = torch.stack([torch.repeat_interleave(torch.tensor(row)) for row in DOCUMENTS])
    weights = torch.randn(2, LENGTH, VOCAB, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    packed = model(x, doc_ids_BT=ids).logits
    (packed * weights).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    alone = torch.stack(
        [torch.cat([model(d[None]).logits[0] for d in row.split(list(sizes))]) for row, sizes in zip(x, DOCUMENTS)]
    )
    (alone * weights).sum().backward()
    close(packed, alone)
    for name, p in model.named_parameters():
        close(gradients[name], p.grad)
