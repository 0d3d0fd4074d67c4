"""The 869 model names of ArchScale."""

from __future__ import annotations

DEPTHS = (8, 12, 16, 20, 24)
AT_EVERY_DEPTH = (
    *("transformer", "transformersa", "transformer_mha", "transformer_gqa4", "transformer_gqa4_h2"),
    *("transformer_gqa4_h2_skipw", "transformer_gqa4_w8", "transformerga_gqa4", "transformerls", "samba", "sambay"),
    *("sambayda", "sambayoco", "swayoco", "sambayw", "sambaywr", "sambaywdr", "sambaywsa"),
)
AT_DEPTH_16 = ("mambay", "mambay2", "gdny", "sgdny", "sambay2", "sambayattn", "sambayattnall", "sambaymlp")
POWERS = (1, 2, 4, 8, 16, 32, 64)
MIXTURES = {  # family -> values of S and of k
    "transformer_gqa4_h2_moe": (POWERS, POWERS),
    "transformer_gqa4_h2_skipw_moe": (POWERS, POWERS),
    "transformer_gqa4_moe": (POWERS, POWERS[:4]),
    "sambay_gqa4_moe": (POWERS, POWERS[:4]),
}
PURE = ("mamba", "mamba2", "gdn", "deltanet", "gla", "retnet", "kda")  # of ours: one mixer throughout


def names() -> list[str]:
    """Every model name of ArchScale's registry."""
    dense = [f"{family}_d{d}" for family in AT_EVERY_DEPTH for d in DEPTHS]
    single = [*(f"{family}_d16" for family in AT_DEPTH_16), "phi4miniflash_d32"]
    grid = [
        f"{f}_s{s}_k{k}_d{d}" for f, (all_s, all_k) in MIXTURES.items() for s in all_s for k in all_k for d in DEPTHS
    ]
    return [*dense, *single, *grid]
