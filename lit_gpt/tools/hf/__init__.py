"""Classes of transformers: one file each. The file name is config.json's model_type.

A file has

- `LAYOUT`, see lit_gpt.tools._hf_layout.Layout;
- `places(config, multipliers) -> list[Place]`: every tensor of the model, once;

and where the Layout does not say all:

- `constants(config) -> list[Constant]`: tensors that one side alone has;
- `unpacked(weights) -> Weights`: from the tensors of a file to those of the places, where one of theirs is several of
  ours, or a file may have them under other names; `packed(weights) -> Weights`: the way back, to those of the file;
- `refusals(config, multipliers) -> list[str]`: what of a model the class cannot express, as nouns;
- `describe(config) -> dict`: more keys of config.json;
- `understand(fields, values) -> ModelConfig`: from the fields that the Layout reads, and all of config.json.
  lit_gpt.tools._hf_config.understood makes the ModelConfig. It raises UserError for what we cannot express.
"""

from __future__ import annotations

from lit_gpt.registry import Registry

MODEL_TYPES = Registry("lit_gpt.tools.hf", "Hugging Face model type", "places(config, multipliers)")
