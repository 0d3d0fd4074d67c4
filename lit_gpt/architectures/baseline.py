"""A strong open baseline: the transformer with what speed runs of small language models have found to help.

Value embeddings in every other layer, r x + e x0 in front of each layer, the previous token's embedding in each
embedding, the middle of the model taken out of its end, relu2 networks of width 4 n, norms without gains, one of them
behind the embedding, QK-norm times 1.2, projections that start at zero, and logits within 15. The ideas are those of
modded-nanogpt and nanochat; docs/architectures.md has an option for each, which any family takes.

With --swa_len layers have windows in nanochat's pattern, three with a window and one without; the last one has none.
"""

from __future__ import annotations

from lit_gpt.architectures.builders.dense import dense
from lit_gpt.architectures.builders.shape import Shape
from lit_gpt.config.model import LayerSpec, ModelConfig, Starts

ASPECT_RATIO, HEAD_DIM, CONTEXT = 64, 128, 2048  # nanochat's: width 512 and 4 heads at depth 8
PERIOD = 4  # one layer of so many has no window
FIRST = 0.8  # e of all layers together: nanochat's 0.1 at depth 8, and as much of x0 at any other depth


def build(depth: int, shape: Shape) -> ModelConfig:
    """The family at a depth; heads keep their size, and there are as many as fill the width."""
    width = depth * (shape.aspect_ratio or ASPECT_RATIO)
    heads = -(-width // HEAD_DIM)
    last = depth - 1
    layers = (
        LayerSpec(
            ffn="relu2",
            window=None if i % PERIOD == PERIOD - 1 or i == last else shape.window,
            value_embedding=(last - i) % 2 == 0,
        )
        for i in range(depth)
    )
    return dense(
        depth,
        shape,
        aspect_ratio=ASPECT_RATIO,
        n_head=heads,
        n_kv_head=heads,
        head_dim=HEAD_DIM,
        block_size=CONTEXT,
        layers=tuple(layers),
        ffn_multiple=4.0,
        qk_norm=True,
        qk_norm_scale=1.2,
        norm_gain=False,
        embedding_norm=True,
        residual_scalars=True,
        starts=Starts(first=(FIRST / depth, FIRST / depth)),
        token_smear=True,
        backout=True,
        zero_output=True,
        logit_softcap=15.0,
    )
