"""A prepared folder in lines for a terminal."""

from __future__ import annotations

from lit_gpt.data.left_out import sentences


def summary(meta: dict) -> str:
    """The counts of a prepared folder as a table, and what was left out."""
    lines = [f"{'split':<12}{'tokens':>18}{'documents':>14}{'bytes':>18}{'bytes/token':>13}{'shards':>8}"]
    for split, n in meta["splits"].items():
        ratio = n["bytes"] / n["tokens"]
        lines.append(
            f"{split:<12}{n['tokens']:>18,}{n['documents']:>14,}{n['bytes']:>18,}{ratio:>13.3f}{n['shards']:>8}"
        )
    if "validation" not in meta["splits"]:
        only = sum(n["documents"] for n in meta["splits"].values()) == 1
        lines.append(
            "the source is one document, so none went to validation; add documents, or give a --val_data_dir of its own"
            if only
            else "no document went to validation; to have some, use a --validation_fraction above 0 and a new --output"
        )
    lines.append(f"vocabulary {meta['vocab_size']}, EOS id {meta['eos_id']}")
    return "\n".join(lines + sentences(meta.get("left_out", {})))
