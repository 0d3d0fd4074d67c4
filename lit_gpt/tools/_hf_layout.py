"""What an entry of lit_gpt/tools/hf says of its class of transformers: its config.json, and where each tensor is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from lit_gpt.config.model import LayerSpec

Weights = dict[str, torch.Tensor]

# config.json's name -> ours. The sizes have no default that anyone means.
SIZES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "depth",
    "num_attention_heads": "n_head",
    "intermediate_size": "intermediate_size",
    "vocab_size": "vocab_size",
}
# config.json's name -> (ours, the class's default); entries change the defaults that are others in their class.
OPTIONS: Mapping[str, tuple[str, Any]] = {
    "num_key_value_heads": ("n_kv_head", None),
    "head_dim": ("head_dim", None),
    "max_position_embeddings": ("block_size", 2048),
    "rms_norm_eps": ("norm_eps", 1e-6),
    "tie_word_embeddings": ("tie_embeddings", False),
}
# Values that say what every one of these classes does.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "is_encoder_decoder": (False,),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
}
# Keys that leave the logits as they are.
HARMLESS = frozenset({
    "_name_or_path",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "use_cache",
    "initializer_range",
    "attention_dropout",
    "pretraining_tp",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "return_dict",
    "output_attentions",
    "output_hidden_states",
    "chunk_size_feed_forward",
    "id2label",
    "label2id",
    "problem_type",
})  # fmt: skip
# What the values that are read must be.
KINDS: Mapping[str, str] = {
    "num_key_value_heads": "a whole number",
    "head_dim": "a whole number",
    "max_position_embeddings": "a whole number",
    "rms_norm_eps": "a number",
    "rope_theta": "a number",
    "rope_scaling": "an object",
    "rope_parameters": "an object",
    "tie_word_embeddings": "true or false",
}


class Place(NamedTuple):
    """Our tensor, times `factor`, is theirs.

    split: our tensor -> theirs, in the order of the names; join is its inverse. By default several of theirs lie in
    ours one after another, along dimension 0. Several of ours are what split is called with, after the factor, and
    what join gives.
    """

    ours: str | tuple[str, ...]
    theirs: tuple[str, ...]
    factor: float = 1.0
    split: Callable[..., Sequence[torch.Tensor]] | None = None
    join: Callable[[list[torch.Tensor]], torch.Tensor | Sequence[torch.Tensor]] | None = None

    def names(self) -> tuple[str, ...]:
        """Of ours."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours


class Constant(NamedTuple):
    """A tensor that one side alone has; models in which it has another value cannot be expressed.

    why: a clause that says why. ours: it is a tensor of ours, which their class lacks.
    """

    name: str
    shape: tuple[int, ...]
    why: str
    value: float = 0.0
    ours: bool = False


@dataclass(frozen=True)
class Layout:
    """One class: what of ModelConfig it expresses, and what of its config.json we express.

    What is in no table must be neutral, which is our default or their absence, so that an option added later, here or
    there, is refused until someone says what becomes of it.

    model_type, name: config.json's model_type, which is the entry's file name, and the class.
    sizes, options: keys of config.json that are fields of ModelConfig, see SIZES and OPTIONS.
    fixed: field of ModelConfig -> its value in every model of the class, where that is not our default.
    expressed: further fields of ModelConfig that describe, understand and refusals see to.
    layer: every layer, but for the fields in layer_fields, which describe, understand and refusals see to.
    rotary: the layers have rotary positions of one base, with or without YaRN. theta: its default in config.json.
    unrotated: some of them may have none; that too describe and understand see to.
    neutral: key of config.json -> the values that change nothing. harmless: keys of which every value does not.
    read: further keys of config.json, which understand sees to.
    kinds: key -> what its value must be, see check_kinds.
    folded: multipliers that go into weights. idle: multipliers that act on what models of the class do not have.
    last: why it is written only where it was named or no other class fits, "" where nothing speaks against it.
    """

    model_type: str
    name: str
    sizes: Mapping[str, str] = field(default_factory=lambda: SIZES)
    options: Mapping[str, tuple[str, Any]] = field(default_factory=lambda: OPTIONS)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    expressed: frozenset[str] = frozenset()
    layer: LayerSpec = field(default_factory=LayerSpec)
    layer_fields: frozenset[str] = frozenset()
    rotary: bool = True
    theta: float = 10_000.0
    unrotated: bool = False
    neutral: Mapping[str, tuple[Any, ...]] = field(default_factory=lambda: NEUTRAL)
    harmless: frozenset[str] = HARMLESS
    read: frozenset[str] = frozenset()
    kinds: Mapping[str, str] = field(default_factory=lambda: KINDS)
    folded: frozenset[str] = frozenset({"logit", "residual", "attention"})
    idle: frozenset[str] = frozenset({"router"})
    last: str = ""
