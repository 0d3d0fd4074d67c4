"""Processes, devices, sharding and gradients. `fabric` holds all knowledge of Fabric."""

from lit_gpt.parallel.fabric import Runtime, resolved_precision, shard_group, start_runtime
from lit_gpt.parallel.gradients import (
    GradNorms,
    clip_each_,
    finish_gradients,
    grad_norms,
    gradient_sync,
    scale_gradients_,
)
from lit_gpt.parallel.parallelize import parallelize_model

__all__ = [
    "GradNorms",
    "Runtime",
    "clip_each_",
    "finish_gradients",
    "grad_norms",
    "gradient_sync",
    "parallelize_model",
    "resolved_precision",
    "scale_gradients_",
    "shard_group",
    "start_runtime",
]
