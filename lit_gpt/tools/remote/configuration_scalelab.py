"""What config.json says of a model: a ModelConfig and the multipliers of its forward pass, as they were trained."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from lit_gpt.config.model import ModelConfig
from lit_gpt.scaling.base import Multipliers


class ScaleLabConfig(PretrainedConfig):
    """model: the fields of ModelConfig. multipliers: those of Multipliers.

    What else it has are names under which other programs look for a size. None builds a config without a model, which
    transformers does to learn the defaults.
    """

    model_type = "scalelab"

    def __init__(
        self, model: dict[str, Any] | None = None, multipliers: dict[str, Any] | None = None, **others: Any
    ) -> None:
        self.model, self.multipliers = model, multipliers
        if model is not None:
            others |= _sizes(self.described()[0])
        super().__init__(**others)

    def described(self) -> tuple[ModelConfig, Multipliers]:
        """The model and its multipliers. Raises UserError for values that are no model."""
        return ModelConfig.from_dict(self.model or {}), Multipliers(**(self.multipliers or {}))


def _sizes(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.n_embd,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.block_size,
        "tie_word_embeddings": config.tie_embeddings,
    }
