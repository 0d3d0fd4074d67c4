"""The only place that reads a name string: train_name tokens and model names.

train_name is split on "_" and matched token by token (longest match first) against one
table; a token sets typed RunConfig fields. Unknown tokens are labels and change nothing;
a near miss of a known token, or a token and a flag that disagree, is an error.
ArchScale looks for substrings instead, so that `muon` inside any label switches the optimizer
(departure D6 of docs/departures.md).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from lit_gpt.errors import UserError

# token -> the fields it sets. Tokens may span several underscores.
TOKENS: dict[str, dict[str, Any]] = {
    "mup": {"parameterization": "mupp"},
    "ori_mup": {"parameterization": "mup"},
    "super_mup": {"parameterization": "super_mup"},
    "muonh": {"optimizer": "muonh", "parameterization": "hyperp"},
    "muonball": {"optimizer": "muonball"},
    "muon": {"optimizer": "muon"},
    "hadam": {"optimizer": "hadam"},
    "dsca": {"depth_scale": True},
    "v2scale": {"independent_weight_decay": True, "count_embeddings": True},
    "rbase": {"rope_base": 640_000.0},
    "varlen": {"varlen": True},
    "ls": {"label_smoothing": 0.1},
    "bias": {"bias": True},
    "tie": {"tie_embeddings": True},
    "lc": {"layer_configurator": True},
    "postnorm_decouple": {"decoupled_norm": True},
    "skipgain": {"skip_gain": True},
    "qknorm": {"qk_norm": True},
    "anorm": {"attn_norm": True},
    "fnorm": {"ffn_norm": True},
    "nope": {"position": "none"},
    "ga": {"attn_gate": True},
    "noskip": {"skip": "none"},
    "noskip_sum": {"skip": "sum"},
    "midtrain": {"midtrain": True},
    "validation": {"validation": True},
    "wsd": {"schedule": "wsd"},
    "cosine": {"schedule": "cosine"},
}

# Pairs that mean something together which neither means alone.
COMBINATIONS: dict[frozenset[str], dict[str, Any]] = {
    frozenset({"wsd", "cosine"}): {"schedule": "wsd", "decay": "cosine"},
    frozenset({"mup", "muonh"}): {"optimizer": "muonh", "parameterization": "hyperp"},
}

# Words that ArchScale's own scripts put into names although nothing reads them: labels, and no misspelt tokens (D6).
LABELS = {"scaling", "prolong", "sgate", "shexp", "slr", "test", "mfu", "base", "norm", "scale", "adam", "time", "note"}
LABEL_WITH_NUMBER = re.compile(r"(bsz?|lr|wd|tok|gblaux|ctx|swa|seed|d|ar)[\d.].*", re.IGNORECASE)

MODEL_NAME = re.compile(  # of any text: what is no family is refused by name, and numbers have an end
    r"(?P<family>.*?)(?:_s(?P<sparsity>\d{1,9})_k(?P<top_k>\d{1,9}))?(?:_d(?P<depth>\d{1,9}))?", re.DOTALL
)


@dataclass(frozen=True)
class NameFields:
    """What a train_name means. fields: RunConfig field -> value. tokens, labels: its pieces.

    default: the name is the default of --train_name, or what flags leave of it.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    tokens: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    default: bool = False


def _edit_distance(a: str, b: str) -> int:
    """Levenshtein distance: insertions, deletions and substitutions of one character."""
    row = list(range(len(b) + 1))
    for i, ca in enumerate(a, 1):
        row, diagonal = [i] + row[1:], i - 1
        for j, cb in enumerate(b, 1):
            row[j], diagonal = min(row[j] + 1, row[j - 1] + 1, diagonal + (ca != cb)), row[j]
    return row[-1]


def _is_near(text: str, token: str) -> bool:
    """Whether a text is one edit away from a token; or two, if it is one word and the token is long or has its letters.

    Two edits lead from a short token to words that people use as labels.
    """
    generous = "_" not in text and (len(token) >= 7 or sorted(text.lower()) == sorted(token))
    return _edit_distance(text.lower(), token) <= (2 if generous else 1)


def _near_misses(train_name: str, labels: list[str]) -> dict[str, list[str]]:
    """Part of the name -> known tokens it nearly is; `qk_norm` and `noskip_sums` are parts too."""
    pieces = [p for p in train_name.split("_") if p]
    parts = [p for p in labels if len(p) >= 3 and p not in LABELS and not LABEL_WITH_NUMBER.fullmatch(p)]
    for n in (2, 3):
        windows = (pieces[i : i + n] for i in range(len(pieces) - n + 1))
        parts += ["_".join(w) for w in windows if not set(w).isdisjoint(labels)]
    known = [t for t in TOKENS if len(t) >= 3]
    near = {part: [t for t in known if _is_near(part, t)] for part in parts if part not in TOKENS}
    return {part: tokens for part, tokens in near.items() if tokens}


def _split(train_name: str) -> tuple[list[str], list[str]]:
    """(tokens, labels) of a train_name, longest token first at each position."""
    pieces, tokens, labels = [p for p in train_name.split("_") if p], [], []
    longest = max(t.count("_") for t in TOKENS) + 1
    i = 0
    while i < len(pieces):
        for n in range(min(longest, len(pieces) - i), 0, -1):
            candidate = "_".join(pieces[i : i + n])
            if candidate in TOKENS:
                tokens.append(candidate)
                break
        else:
            n = 1
            labels.append(pieces[i])
        i += n
    return tokens, labels


def read_train_name(train_name: str) -> NameFields:
    """Split a train_name into typed fields, tokens and labels.

    Raises UserError for a near miss of a known token and for two tokens that disagree.
    """
    tokens, labels = _split(train_name)
    for part, near in _near_misses(train_name, labels).items():
        raise UserError(
            f"{part!r} in --train_name {train_name!r} is not a token but is close to "
            f"{' and '.join(map(repr, near))}. Type the token exactly, or choose another label."
        )
    fields: dict[str, Any] = {}
    origin: dict[str, str] = {}
    combined = {k: v for pair, f in COMBINATIONS.items() if pair <= set(tokens) for k, v in f.items()}
    for token in tokens:
        for key, value in TOKENS[token].items():
            value = combined.get(key, value)
            if fields.get(key, value) != value:
                raise UserError(
                    f"The tokens {origin[key]!r} and {token!r} in --train_name {train_name!r} disagree on "
                    f"{key}: {fields[key]!r} or {value!r}. Keep one of them."
                )
            fields[key], origin[key] = value, token
    return NameFields({**fields, **combined}, tuple(tokens), tuple(labels))


def _setters(name: NameFields, key: str, value: Any) -> str:
    """The token, or the pair of tokens, that sets a field."""
    pairs = (sorted(pair) for pair, f in COMBINATIONS.items() if key in f and pair <= set(name.tokens))
    single = [t for t in name.tokens if TOKENS[t].get(key) == value]
    return " and ".join(map(repr, single[:1] or next(pairs)))


def merge(flags: dict[str, Any], name: NameFields, train_name: str) -> dict[str, Any]:
    """Flags the user gave (None = not given) joined with what the name says.

    Raises UserError when a token and a flag disagree.
    """
    merged = dict(flags)
    for key, value in name.fields.items():
        given = flags.get(key)
        if given is not None and given != value:
            culprits = _setters(name, key, value)
            raise UserError(
                f"--{key} {given} disagrees with the token {culprits} of --train_name {train_name!r}, "
                f"which sets {key} to {value}. Drop the flag or the token."
            )
        merged[key] = value
    return merged


def without_tokens(train_name: str, flags: dict[str, Any]) -> str:
    """The train_name less the tokens that a given flag (not None) contradicts."""
    tokens, _ = _split(train_name)
    dropped = {t for t in tokens if any(flags.get(k) not in (None, v) for k, v in TOKENS[t].items())}
    return "_".join(piece for piece in train_name.split("_") if piece not in dropped)


@dataclass(frozen=True)
class ModelName:
    """A model name taken apart: family, and where present depth, sparsity S and top-k."""

    family: str
    depth: int | None = None
    sparsity: int | None = None
    top_k: int | None = None


def read_model_name(name: str) -> ModelName:
    """`transformer`, `transformer_d16` or `transformer_gqa4_moe_s8_k4_d16` taken apart."""
    match = MODEL_NAME.fullmatch(name)
    assert match is not None
    numbers = {k: int(v) if v else None for k, v in match.groupdict().items() if k != "family"}
    return ModelName(match["family"], **numbers)


# The options that run_name puts into the folder's name, beside --train_name.
IN_RUN_NAME = ("train_model", "sparsity", "top_k", "depth", "ar", "ctx_len", "swa_len", "bramp_ratio")


def run_name(
    train_name: str,
    family: str,
    depth: int,
    context: int,
    *,
    moe: tuple[int, int] | None = None,
    ar: int | None = None,
    swa: int | None = None,
    ramp: int = 1,
) -> str:
    """The run folder's name, as ArchScale builds it."""
    parts = [train_name, family]
    parts += [f"s{moe[0]}_k{moe[1]}"] if moe else []
    parts += [f"d{depth}"]
    parts += [f"ar{ar}"] if ar is not None else []
    parts += [f"ctx{context}"]
    parts += [f"swa{swa}"] if swa is not None else []
    parts += [f"bramp{ramp}"] if ramp != 1 else []
    return "_".join(parts)
