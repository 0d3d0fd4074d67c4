"""Public corpora that scripts/fetch.py knows: one row each."""

from __future__ import annotations

from dataclasses import dataclass

from lit_gpt.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Public:
    """Where a corpus is on the Hugging Face Hub, and how its files are read.

    repo, revision: the dataset repository, and the commit that is taken when none is asked for.
    subset: the folder that is taken when none is asked for; others: more of them, in words.
    files: name pattern of the training files below the folder; validation: of its own held-out files, "" for none.
    text_key: the field of a record that holds its text. recipe: of prepare(), "prolong" for MDS shards of token ids.
    number, gigabytes, tokens: training files in the subset, their size together, and their billions of tokens by
    the authors' count; for people and for estimates of disk space only.
    licence: in a word, as the repository states it.
    """

    repo: str
    revision: str
    subset: str
    files: str
    number: int
    gigabytes: float
    tokens: float
    licence: str
    validation: str = ""
    text_key: str = "text"
    recipe: str = "folder"
    others: str = ""


# Repositories, files and commits are as public code and stored pages of the Hub gave them in 2026; no row has been
# downloaded with this program. ProLong's row counts the whole repository, because the size of its folders is not known.
CORPORA = {
    "fineweb_edu": Public(
        repo="HuggingFaceFW/fineweb-edu",
        revision="87f09149ef4734204d70ed1d046ddc9ca3f2b8f9",
        subset="sample/10BT",
        others="sample/100BT, sample/350BT, data/CC-MAIN-2024-10, ...",
        files="*.parquet",
        number=14,
        gigabytes=28.5,
        tokens=10,
        licence="ODC-By",
    ),
    "fineweb": Public(
        repo="HuggingFaceFW/fineweb",
        revision="9bb295ddab0e05d785b879661af7260fed5140fc",
        subset="sample/10BT",
        others="sample/100BT, sample/350BT, data/CC-MAIN-2024-10, ...",
        files="*.parquet",
        number=15,
        gigabytes=30.6,
        tokens=10,
        licence="ODC-By",
    ),
    "c4": Public(
        repo="allenai/c4",
        revision="1588ec454efa1a09f29cd18ddd04fe05fc8653a2",
        subset="en",
        others="realnewslike, en.noblocklist, ...",
        files="c4-train.*.json.gz",
        validation="c4-validation.*.json.gz",
        number=1024,
        gigabytes=305,
        tokens=156,
        licence="ODC-By",
    ),
    # The authors' own repository, cerebras/SlimPajama-627B, answers "not found" since early 2026. This is a copy.
    "slimpajama": Public(
        repo="gmongaras/SlimPajama-627B_Reupload",
        revision="c34c22dbb10ae6b264a2f357a909d1a537141b36",
        subset="data",
        files="train-*.parquet",
        validation="validation-*.parquet",
        number=250,
        gigabytes=1510,
        tokens=627,
        licence="Apache-2.0",
    ),
    "slimpajama_6b": Public(
        repo="DKYoon/SlimPajama-6B",
        revision="b5f90f419b7489cdba26fdbc8c022fcb5562f968",
        subset="data",
        files="train-*.parquet",
        validation="validation-*.parquet",
        number=48,
        gigabytes=13.9,
        tokens=6,
        licence="not stated",
    ),
    "prolong": Public(
        repo="princeton-nlp/prolong-data-64K",
        revision="1447128c751f0fbc7d2082b2a113a938426a9bba",
        subset="book-65536",
        others="textbooks, thestackv1_concat_by_repo-65536, fineweb-edu, fineweb-2023-50, stackexchange, dolmawiki, "
        "tuluv2, arxiv, openwebmath",
        files="*.mds",
        number=3600,
        gigabytes=125,
        tokens=31,
        licence="not stated",
        recipe="prolong",
    ),
}


def public_corpus(name: str) -> Public:
    """The row of a name. Raises UserError with the names that there are."""
    if name not in CORPORA:
        raise UserError(
            f"There is no public corpus {name!r} in the table.{did_you_mean(name, CORPORA)} Type one of: "
            f"{', '.join(CORPORA)}."
        )
    return CORPORA[name]


def listing() -> str:
    """The table in lines for a terminal."""
    lines = []
    for name, row in CORPORA.items():
        field = "Llama-3 token ids (MDS)" if row.recipe == "prolong" else f"text in the field {row.text_key!r}"
        held_out = row.validation or "a share of the documents (--validation_fraction)"
        lines += [
            f"{name:<15}{row.repo}, revision {row.revision[:7]}, licence: {row.licence}",
            f"{'':<15}{row.subset}/{row.files}: {field}",
            f"{'':<15}about {row.number:,} files, {row.gigabytes:,g} GB, {row.tokens:g}B tokens",
            f"{'':<15}validation: {held_out}",
            *([f"{'':<15}other --subset: {row.others}"] if row.others else []),
        ]
    return "\n".join(lines)
