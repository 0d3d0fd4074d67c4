"""A prefill that computes the last position only where it may, and rows padded on the left."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_models import LENGTH, VARIED, model_of, optioned, small, tokens

from lit_gpt.evals.decoding import Decoder
from lit_gpt.model import GPT
from lit_gpt.ops.ssd import CHUNK

PADDED = (0, 5)  # tokens of padding in each of the two rows


def prefilled(model: GPT, x: torch.Tensor, doc_ids: torch.Tensor | None, last_only: bool) -> list[torch.Tensor]:
    """Logits after a prompt and after each of three more tokens."""
    decoder = Decoder(model, len(x), LENGTH)
    prompt, *rest = [x[:, :-3], *x[:, -3:].split(1, dim=1)]
    ids = None if doc_ids is None else doc_ids[:, :-3]
    first = decoder(prompt, ids, last_only=last_only)[:, -1:]
    return [first, *(decoder(piece, last_only=last_only) for piece in rest)]


@pytest.mark.parametrize("family", VARIED)
@torch.no_grad()
def test_prompts_of_two_lengths_continue_as_each_does_alone(family: str) -> None:
    model, x = model_of(small(family)), tokens()
    doc_ids = torch.stack([(torch.arange(LENGTH) >= pad).int() for pad in PADDED])
    found = torch.cat(prefilled(model, x, doc_ids, last_only=True), dim=1)
    for i, pad in enumerate(PADDED):
        alone = model(x[i : i + 1, pad:]).logits[:, -4:]
        torch.testing.assert_close(found[i : i + 1], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["mamba2", "sambay2", "sambay", "gdn", "gla_1b", "retnet", "kda", "deltanet_1b"])
@torch.no_grad()
def test_padded_prompts_of_several_chunks(family: str) -> None:
    """Mamba-2's state after a padded prompt of more than 64 tokens was lost on a CPU."""
    length, more, pads = 2 * CHUNK + 9, 3, (0, 70)
    model = model_of(small(family).replace(block_size=length))
    x, decoder = tokens(2, length), Decoder(model, 2, length)
    ids = torch.stack([(torch.arange(length - more) >= pad).int() for pad in pads])
    found = torch.cat([decoder(x[:, :-more], ids, last_only=True), decoder(x[:, -more:])], dim=1)
    for i, pad in enumerate(pads):
        alone = model(x[i : i + 1, pad:]).logits[:, -more - 1 :]
        torch.testing.assert_close(found[i : i + 1], alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_padding_does_not_move_learned_positions() -> None:
    """Also where training counted through the documents of a row."""
    model, x = model_of(optioned("learned").replace(varlen=True, doc_positions="continue")), tokens()
    doc_ids = torch.stack([(torch.arange(LENGTH) >= pad).int() for pad in PADDED])
    found = torch.cat(prefilled(model, x, doc_ids, last_only=True), dim=1)
    torch.testing.assert_close(found[1:], model(x[1:, PADDED[1] :]).logits[:, -4:], rtol=1e-5, atol=1e-5)


STREAM = {
    "residual_scalars": True,
    "token_smear": True,
    "backout": True,
    "embedding_norm": True,
    "norm_gain": False,
    "zero_output": True,
    "qk_norm": True,
    "qk_norm_scale": 1.2,
    "logit_softcap": 5.0,
}


@pytest.mark.parametrize("family", ["transformerls", "sambay", "sambayda", "gdny", "swayoco", "fox"])
@pytest.mark.parametrize("last_only", [True, False])
@torch.no_grad()
def test_what_passes_by_the_layers_is_the_same_in_cached_decoding(family: str, last_only: bool) -> None:
    """Value embeddings wherever there are values, and the options of the stream, where layers see the end alone."""
    config = small(family)
    own = [spec.mixer in ("attention", "differential_attention", "fox") for spec in config.layers]
    layers = tuple(replace(spec, value_embedding=has) for spec, has in zip(config.layers, own))
    assert any(own)
    model, x = model_of(config.replace(layers=layers, **STREAM)), tokens()
    doc_ids = torch.stack([(torch.arange(LENGTH) >= pad).int() for pad in PADDED])
    found = torch.cat(prefilled(model, x, doc_ids, last_only), dim=1)
    for i, pad in enumerate(PADDED):
        alone = model(x[i : i + 1, pad:]).logits[:, -4:]
        torch.testing.assert_close(found[i : i + 1], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["transformer", "swayoco", "transformer_gqa4_moe"])
@torch.no_grad()
def test_parallel_blocks(family: str) -> None:
    """Also where a prefill computes the last position of a layer alone."""
    model, x = model_of(small(family).replace(parallel_block=True)), tokens()
    found = torch.cat(prefilled(model, x, None, last_only=True), dim=1)
    torch.testing.assert_close(found, model(x).logits[:, -4:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "family, skipped", [("sambay", 2), ("swayoco", 2), ("sambayattn", 2), ("sambaymlp", 2), ("gdny", 2), ("samba", 0)]
)
@torch.no_grad()
def test_yoco_computes_its_second_half_for_the_last_position(family: str, skipped: int) -> None:
    """d / 2 - 2 layers at the end, and no others; counted by what each layer is given. What attends before them
    makes keys and values for all positions, and its feed-forward network sees the last one.
    """
    model, x = model_of(small(family)), tokens()
    seen: list[int] = []
    for block in model.blocks:
        block.norm1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    outputs: list[int] = []
    for block in model.blocks:
        block.norm2.register_forward_pre_hook(lambda _, inputs: outputs.append(inputs[0].shape[1]))
    Decoder(model, 2, LENGTH).hidden(x, last_only=True)
    assert seen == [LENGTH] * (8 - skipped) + [1] * skipped
    assert outputs == [LENGTH] * (7 - skipped) + [1] * (1 + skipped)
    seen.clear()
    Decoder(model, 2, LENGTH).hidden(x)
    assert seen == [LENGTH] * 8
