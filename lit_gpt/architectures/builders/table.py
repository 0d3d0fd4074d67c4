"""The families that are one call of a builder, one row each; a family with code of its own is a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lit_gpt.architectures.builders.dense import dense
from lit_gpt.architectures.builders.experts import mixture
from lit_gpt.architectures.builders.hybrid import HEADS, UP, yoco
from lit_gpt.architectures.builders.published import published
from lit_gpt.architectures.builders.shape import Shape
from lit_gpt.config.model import Experts, ModelConfig


class Row:
    """A family's file as a row: what it is, and a builder with its options; it has a file's names.

    experts: every feed-forward network is a mixture of experts, where nothing else is said of these.
    """

    def __init__(
        self, about: str, builder: Callable[..., ModelConfig], *, experts: bool | Experts = False, **options: Any
    ):
        self.about, self.builder, self.EXPERTS, self.options = about, builder, experts, options

    def build(self, depth: int, shape: Shape) -> ModelConfig:
        """The family at a depth; see its builder."""
        model = self.builder(depth, shape, **self.options)
        return mixture(model, shape) if self.EXPERTS else model


TRANSFORMERS = {
    "transformer": Row("The baseline: GQA with depth/4 key-value heads, SwiGLU, RoPE, pre-norm.", dense, head_dim=None),
    "transformer_mha": Row("The baseline with as many key-value heads as query heads.",
                           dense, head_dim=None, kv_heads_per_layer=1),
    "transformer_gqa4": Row("The baseline with 4 key-value heads at every depth.", dense, head_dim=None, n_kv_head=4),
    "transformer_gqa4_moe": Row("transformer_gqa4 with mixtures of experts as its feed-forward networks.",
                                dense, experts=True, head_dim=None, n_kv_head=4),
    "transformer_gqa4_h2": Row("4 key-value heads and 2 * depth query heads: attention is twice as wide as the model.",
                               dense, heads_per_layer=2, n_kv_head=4),
    "transformer_gqa4_h2_moe": Row("transformer_gqa4_h2 with mixtures of experts as its feed-forward networks.",
                                   dense, experts=True, heads_per_layer=2, n_kv_head=4),
    "transformer_gqa4_w8": Row("4 key-value heads and a feed-forward network 32 times as wide as the model.",
                               dense, head_dim=None, n_kv_head=4, mlp_expand=32),
    "transformerga_gqa4": Row("Gated attention (a sigmoid per head and token) at aspect ratio 124, 4 key-value heads.",
                              dense, aspect_ratio=124, head_dim=None, n_kv_head=4, attn_gate=True),
    "transformersa": Row("The baseline with a learnable sink in every head's softmax.",
                         dense, head_dim=None, attn_sink=True),
    "sigmoid": Row("Sigmoid attention (arXiv:2409.04431) in every layer of the baseline.",
                   dense, head_dim=None, mixer="sigmoid_attention"),
    "fox": Row("Forgetting attention (FoX, arXiv:2503.02130) in every layer of the baseline, without positions.",
               dense, head_dim=None, mixer="fox", position="none"),
}  # fmt: skip

HYBRIDS = {
    "sambay": Row("SambaY (arXiv:2507.06607): Mamba and windows of 128; then GMUs and cross-attention on one cache.",
                  yoco),
    "sambay_gqa4_moe": Row("sambay with 4 key-value heads, and mixtures of experts as its feed-forward networks.",
                           yoco, experts=True, n_kv_head=4),
    "sambay2": Row("SambaY with Mamba-2.", yoco, recurrent="mamba2"),
    "sgdny": Row("SambaY with Gated DeltaNet (arXiv:2412.06464) in place of Mamba.",
                 yoco, aspect_ratio=126, recurrent="gdn"),
    "sambayda": Row("SambaY with differential attention (arXiv:2410.05258) in every attention layer.",
                    yoco, differential=True),
    "gdny": Row("mambay with Gated DeltaNet (arXiv:2412.06464).",
                yoco, aspect_ratio=120, recurrent="gdn", recurrent_every=1),
    "mambay": Row("SambaY with Mamba in place of its windows too.", yoco, aspect_ratio=120, recurrent_every=1),
    "mambay2": Row("mambay with Mamba-2.", yoco, aspect_ratio=120, recurrent="mamba2", recurrent_every=1),
    "sambayattn": Row("SambaY whose GMUs read the heads of its one full attention layer.",
                      yoco, aspect_ratio=126, memory=HEADS),
    "sambayattnall": Row("sambayattn with GMUs in place of all cross-attention.",
                         yoco, aspect_ratio=126, memory=HEADS, units_every=1),
    "sambaymlp": Row("SambaY whose GMUs read the feed-forward network of its one full attention layer.",
                     yoco, aspect_ratio=120, memory=UP),
    "sambayoco": Row("Samba and YOCO: Mamba and windows of 128, then cross-attention on one cache, without GMUs.",
                     yoco, aspect_ratio=126, memory=None),
    "sambayw": Row("SambaY whose second half sees half of the training context.", yoco, half_context=True),
    "sambaywdr": Row("sambayw with RoPE whose base follows what a layer sees.",
                     yoco, half_context=True, position="rope", adaptive_rope=True),
    "sambaywr": Row("sambayw with RoPE.", yoco, half_context=True, position="rope"),
    "sambaywsa": Row("sambayw with a learnable attention sink per head.", yoco, half_context=True, attn_sink=True),
    "swayoco": Row("YOCO (arXiv:2405.05254) with windows of 128 tokens in its first half, and RoPE.",
                   yoco, aspect_ratio=130, recurrent=None, memory=None, position="rope"),
}  # fmt: skip

# One recurrent mixer in every layer. The aspect ratio is, of all even ones, the one with which depth 8 is nearest in
# size to the transformer's depth 8 (121.6M without embeddings), so that their ladders compare.
RECURRENT = {
    mixer: Row(about, dense, mixer=mixer, position="none", aspect_ratio=ratio)
    for mixer, ratio, about in (
        ("mamba", 114, "Mamba (arXiv:2312.00752) in every layer."),
        ("mamba2", 112, "Mamba-2 (arXiv:2405.21060) in every layer."),
        ("gdn", 112, "Gated DeltaNet (arXiv:2412.06464) in every layer."),
        ("deltanet", 114, "DeltaNet (arXiv:2406.06484) in every layer."),
        ("gla", 122, "Gated linear attention (arXiv:2312.06635) in every layer."),
        ("retnet", 108, "RetNet (arXiv:2307.08621) in every layer."),
        ("kda", 120, "Kimi Delta Attention (arXiv:2510.26692) in every layer."),
    )
}

# The shapes of two optimizer benchmarks (docs/optimizer_benchmarks.md), and what each of the two has in common.
UNTIED: dict[str, Any] = {"block_size": 256, "vocab_size": 32000, "tie_embeddings": False, "norm_eps": 1e-6}
TIED: dict[str, Any] = {"block_size": 512, "vocab_size": 50257, "tie_embeddings": True, "norm_eps": 1e-5}
LLAMAS = {
    "llama_60m": Row("LLaMA 60M, at depth 8.", published, width=512, layers=8, heads=8, hidden=1376, **UNTIED),
    "llama_130m": Row("LLaMA 130M, at depth 12.", published, width=768, layers=12, heads=12, hidden=2048, **UNTIED),
    "llama_350m": Row("LLaMA 350M, at depth 24.", published, width=1024, layers=24, heads=16, hidden=2736, **UNTIED),
    "llama_1b": Row("LLaMA 1B, at depth 24.", published, width=2048, layers=24, heads=32, hidden=5461, **UNTIED),
    "llama_124m": Row("LLaMA 124M, at depth 12.", published, width=768, layers=12, heads=12, hidden=2048, **TIED),
    "llama_210m": Row("LLaMA 210M, at depth 24.", published, width=768, layers=24, heads=12, hidden=2048, **TIED),
    "llama_720m": Row("LLaMA 720M, at depth 12.", published, width=2048, layers=12, heads=16, hidden=5632, **TIED),
}  # fmt: skip

# 8 experts, each as wide as the network of llama_124m, of which a token uses 2. That benchmark takes means over the 12
# layers of 0.1 times a balance loss which is 2 where all is even, and of 0.01 times the z-loss; here losses of layers
# are summed, and the balance loss is 1 where all is even.
EIGHT = Experts(sparsity=4, top_k=2, aux_gamma=0.1 * 2 / 12, router_z_loss=0.01 / 12)
MIXTURES = {
    "llama_520m_moe": Row("LLaMA 124M with 8 experts in place of each feed-forward network, at depth 12.",
                          published, experts=EIGHT, width=768, layers=12, heads=12, hidden=2 * 2048, **TIED),
}  # fmt: skip

# The other model of that benchmark, with neither biases in its linear maps nor dropout, as it is there by default.
GPT2: dict[str, Any] = {"ffn": "gelu", "norm": "layernorm", "position": "learned", **TIED}
GPTS = {
    f"gpt_{size}": Row(f"GPT-2 in the shape of llama_{size}: learned positions, LayerNorm, GELU, at depth {layers}.",
                       published, width=width, layers=layers, heads=heads, hidden=4 * width, **GPT2)
    for size, width, layers, heads in (("124m", 768, 12, 12), ("210m", 768, 24, 12), ("720m", 2048, 12, 16))
}  # fmt: skip

# Stage 2 of the other benchmark: four mixers in one block. Its Gated DeltaNet has 6 heads at both widths, so that the
# narrow one is larger than its peers.
LONG: dict[str, Any] = UNTIED | {"block_size": 32768}
GDN = {"heads": 6, "key_dim": 256, "expand_v": 2.0, "negative_eigenvalues": False, "head_norm": True}
STAGE2 = {
    f"{name}_{size}": Row(f"{about} {size.upper()}, at depth {layers}.", published, width=width, layers=layers,
                          heads=width // 64, hidden=2816 * width // 1024, mixer=mixer,
                          position="rope" if mixer == "attention" else "none",
                          mixer_options={mixer: options} if options else {}, **LONG)
    for size, width in (("340m", 1024), ("1b", 2048))
    for name, about, mixer, layers, options in (
        ("transformer", "Transformer++", "attention", 24, {}),
        ("gla", "Gated linear attention", "gla", 24, {"heads": 4}),
        ("deltanet", "DeltaNet", "deltanet", 24, {"heads": width // 128, "expand_k": 1.0, "expand_v": 1.0}),
        ("gdn", "Gated DeltaNet", "gdn", 21, GDN),
    )
}  # fmt: skip

PUBLISHED = LLAMAS | MIXTURES | GPTS | STAGE2
TABLE = TRANSFORMERS | RECURRENT | HYBRIDS | PUBLISHED
