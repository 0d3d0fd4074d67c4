"""Loads exported models where lit_gpt cannot be imported, and writes down what they compute; run as a script.

python remote_reader.py FOLDER: of every model FOLDER/NAME/model, FOLDER/NAME/theirs.pt.
"""

from __future__ import annotations

import copy
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

NEW, START = 12, 8  # tokens that are generated, and of the prompts
SMALL_ROOM = 3  # so that caches have to grow


class Absent(MetaPathFinder):
    """There is no such package."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname.split(".")[0] == "lit_gpt":
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


def load(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options)


def padded(tokens: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """The first tokens of each row, of these lengths, on the right; and the attention_mask."""
    mask = torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]
    rows = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    for row, given, length in zip(rows, tokens, lengths):
        row[max(lengths) - length :] = given[:length]
    return rows, mask.long()


def basics(model: Any, tokens: Tensor) -> dict[str, Any]:
    """Of every family."""
    new = model.generate(tokens[:, :START], max_new_tokens=NEW, do_sample=False)[:, START:]
    return {"logits": model(tokens).logits, "generated": new.tolist()}


def more(model: Any, tokens: Tensor, folder: Path) -> dict[str, Any]:
    """Of a few: padding, caches, beams, sampling, loss, saving."""
    found: dict[str, Any] = {}
    rows, mask = padded(tokens, [3, START])
    found["padded"] = model(rows, attention_mask=mask).logits
    found["padded_generated"] = model.generate(rows, attention_mask=mask, max_new_tokens=NEW, do_sample=False)[
        :, START:
    ]
    first = model(tokens[:, :5], use_cache=True, logits_to_keep=1)
    cache = first.cache if hasattr(first, "cache") else first.past_key_values
    other = copy.deepcopy(cache)
    pieces = [first.logits]
    pieces += [model(tokens[:, a:b], past_key_values=cache).logits for a, b in ((5, 6), (6, 13), (13, 24))]
    found["in_pieces"], found["length"] = torch.cat(pieces, dim=1), cache.get_seq_length()
    found["copied"] = model(tokens[:, 5:9], past_key_values=other).logits
    for name, options in {"beams": {"num_beams": 3}, "sampled": {"do_sample": True}}.items():
        for use_cache in (True, False):
            torch.manual_seed(0)
            given = {"do_sample": False, "max_new_tokens": NEW, "use_cache": use_cache} | options
            found[f"{name}_{use_cache}"] = model.generate(tokens[:, :START], **given).tolist()
    labels = tokens.clone()
    labels[0, :4] = -100
    found["loss"], found["labels"] = model(tokens, labels=labels).loss, labels
    found["tuple"] = [t.shape for t in model(tokens, labels=labels, return_dict=False)]
    model.save_pretrained(folder / "again")
    again = load(folder / "again")
    found["again"], found["again_names"] = again(tokens).logits, sorted(again.state_dict())
    found["half"] = load(folder, dtype=torch.bfloat16)(tokens).logits
    found["moved"] = load(folder).bfloat16()(tokens).logits
    made = AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(folder, trust_remote_code=True), trust_remote_code=True
    )
    found["untrained"] = made(tokens, labels=tokens).loss
    found["errors"] = list(errors(model, rows, mask, tokens))
    return found


def errors(model: Any, rows: Tensor, mask: Tensor, tokens: Tensor):
    """What is said of masks that are not of padding on the left."""
    hole = torch.ones_like(rows)
    hole[0, 3] = 0
    cases = [
        lambda: model(rows, attention_mask=hole),
        lambda: model(rows, attention_mask=mask.flip(1), use_cache=True),
        lambda: model(rows, attention_mask=mask[:, 1:]),
        lambda: model.generate(rows, assistant_model=model, max_new_tokens=2),
    ]
    for case in cases:
        try:
            case()
            yield "no error"
        except ValueError as error:
            yield str(error)


def main(root: Path) -> None:
    sys.meta_path.insert(0, Absent())
    torch.set_num_threads(1)
    for folder in sorted(root.iterdir()):
        tokens, kind = torch.load(folder / "tokens.pt"), (folder / "kind").read_text()
        model = load(folder / "model")
        sys.modules[type(model).__module__].ROOM = SMALL_ROOM  # type: ignore[attr-defined]
        with torch.no_grad():
            found = basics(model, tokens) if kind != "forward" else {"logits": model(tokens).logits}
            found |= more(model, tokens, folder / "model") if kind == "more" else {}
            if kind == "forward":
                try:
                    model.generate(tokens, max_new_tokens=2)
                except ValueError as error:
                    found["error"] = str(error)
        torch.save(found, folder / "theirs.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
