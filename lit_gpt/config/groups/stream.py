"""Options of what enters the first layer, goes past the layers, and becomes the logits.

The format of the docstrings is that of lit_gpt/config/help.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from lit_gpt.config.bounds import Bounds


@dataclass
class StreamOptions:
    """Stream: shortcuts for embeddings, and the ends of the model; docs/architectures.md says where they are from.

    value_embeddings: Give every other attention layer, the last one among them, a table of the vocabulary whose rows
        are added to its values. It needs attention with values of its own.
        Default: the family's, mostly false
    residual_scalars: Every layer reads r x + e x0, where x is the residual stream, x0 what entered the first layer, and
        r and e are two learnable numbers of the layer, which start at 1 and 0.1.
        Default: the family's, mostly false
    token_smear: Add a learnable part of the previous token's embedding to each embedding.
        Default: the family's, mostly false
    backout: Take b times the residual stream after half of the layers out of what the last norm reads, where b is a
        learnable number that starts at 0.2.
        Default: the family's, mostly false
    embedding_norm: Put a norm between the token table and the first layer.
        Default: the family's, mostly false
    zero_output: Start the last projections of mixers and feed-forward networks at zero.
        Default: the family's, mostly false
    logit_softcap: Keep logits between -c and c, as c tanh(z / c); 0 leaves them as they are.
        Default: the family's, mostly 0
        Example: --logit_softcap 15
    """

    value_embeddings: bool | None = None
    residual_scalars: bool | None = None
    token_smear: bool | None = None
    backout: bool | None = None
    embedding_norm: bool | None = None
    zero_output: bool | None = None
    logit_softcap: Annotated[float, Bounds(1, 1e6, or_zero=True)] | None = None
