"""LLaMA shapes of the two optimizer benchmarks: multi-head attention, SwiGLU, RoPE, RMSNorm, pre-norm.

| family | width | layers | heads | feed-forward | context | embeddings | vocabulary | norm eps |
|---|---|---|---|---|---|---|---|---|
| llama_60m | 512 | 8 | 8 | 1376 | 256 | untied | 32000 | 1e-6 |
| llama_130m | 768 | 12 | 12 | 2048 | 256 | untied | 32000 | 1e-6 |
| llama_350m | 1024 | 24 | 16 | 2736 | 256 | untied | 32000 | 1e-6 |
| llama_1b | 2048 | 24 | 32 | 5461 | 256 | untied | 32000 | 1e-6 |
| llama_124m | 768 | 12 | 12 | 2048 | 512 | tied | 50257 | 1e-5 |
| llama_210m | 768 | 24 | 12 | 2048 | 512 | tied | 50257 | 1e-5 |
| llama_720m | 2048 | 12 | 16 | 5632 | 512 | tied | 50257 | 1e-5 |

At another depth the width is in proportion to it (with --ar: what that says), heads keep their dimension,
and the feed-forward width follows as a multiple of 16.
"""

from __future__ import annotations

from lit_gpt.architectures._dense import dense
from lit_gpt.architectures._shape import Shape
from lit_gpt.config.model import ModelConfig

SIZES = {  # family -> width, layers, heads, feed-forward width
    "llama_60m": (512, 8, 8, 1376),
    "llama_130m": (768, 12, 12, 2048),
    "llama_350m": (1024, 24, 16, 2736),
    "llama_1b": (2048, 24, 32, 5461),
    "llama_124m": (768, 12, 12, 2048),
    "llama_210m": (768, 24, 12, 2048),
    "llama_720m": (2048, 12, 16, 5632),
}
TIED = ("llama_124m", "llama_210m", "llama_720m")


def llama(family: str, depth: int, shape: Shape) -> ModelConfig:
    """A family of the table at a depth; its own is the one in the table."""
    width, layers, heads, hidden = SIZES[family]
    head_dim = width // heads
    model = dense(
        family,
        depth,
        shape,
        head_dim=head_dim,
        n_kv_head=depth,  # n_head and this follow from the width below
        block_size=512 if family in TIED else 256,
        vocab_size=50257 if family in TIED else 32000,
        tie_embeddings=family in TIED,
        norm_eps=1e-5 if family in TIED else 1e-6,
    )
    n = width if depth == layers else max(round(width * depth / layers / head_dim), 1) * head_dim
    n = n if shape.aspect_ratio is None else shape.aspect_ratio * depth
    inner = hidden if n == width else -(-hidden * n // (16 * width)) * 16
    count = max(n // head_dim, 1)
    return model.replace(n_embd=n, n_head=count, n_kv_head=count, intermediate_size=inner)
