"""The model on torch's meta device: every shape is there and no number, so that any size is counted in a moment."""

from __future__ import annotations

from typing import cast

import torch

from lit_gpt.config.model import ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.metrics.counting import flops_per_token, palm_flops_per_token, param_counts
from lit_gpt.model import GPT
from lit_gpt.nn.block import Block
from lit_gpt.scaling.plan import Counted


def meta_model(
    config: ModelConfig,
    precision: str | None = "fp32",
    residual_precision: str = "fp32",
    table_precision: str = "fp32",
) -> GPT:
    """The model without memory, in the dtypes that these options mean on a GPU, where no --precision is bf16.

    Raises UserError for a model with a tensor that no computer can number.
    """
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    stream = torch.float32 if residual_precision == "fp32" else dtype
    tables = None if table_precision == "fp32" else torch.bfloat16
    try:
        with torch.device("meta"):
            return GPT(config, compute_dtype=dtype, residual_dtype=stream, table_dtype=tables)
    except (RuntimeError, TypeError) as error:  # what torch makes of a size beyond 64 bits
        if "overflow" not in str(error).lower():
            raise
        sizes = f"width {config.n_embd:,}, hidden width {config.intermediate_size:,}, vocabulary {config.vocab_size:,}"
        raise UserError(
            f"{config.family} at depth {config.depth} is too large to be described: {sizes}. Lower --depth, --ar, "
            "--sparsity or the sizes in --mixer_options."
        ) from error


def count(model: GPT) -> Counted:
    """Exact parameter counts, and FLOPs per token at the model's own context.

    Raises UserError for a mixer of a plugin that does not know zero_output.
    """
    _check_outputs(model)
    length = model.config.block_size
    flops, by_palm = flops_per_token(model, length), palm_flops_per_token(model, length)
    return Counted(model.config, param_counts(model), flops, by_palm)


def _check_outputs(model: GPT) -> None:
    for spec, at in zip(model.config.layers, model.block_of):
        parameters = cast(Block, model.blocks[at]).mixer.parameters()
        if model.config.zero_output and all(getattr(p, "role", None) != "output" for p in parameters):
            raise UserError(
                f"The mixer {spec.mixer} has no last projection that could start at zero, so --zero_output true cannot "
                "act. Drop it, or make that projection with last_linear of lit_gpt/nn/linear.py."
            )
