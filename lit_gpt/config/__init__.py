"""What a person says about a run, and what a model is; no torch.

    from lit_gpt.config import BaseHyperparameters, Config, RunConfig

Config is ModelConfig by the name that it has in ArchScale and litgpt. docs/from_python.md shows what to do with it.
"""

from lit_gpt.config.model import ModelConfig as Config
from lit_gpt.config.run import BaseHyperparameters, RunConfig

__all__ = ["BaseHyperparameters", "Config", "RunConfig"]
