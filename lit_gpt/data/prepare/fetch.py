"""A public corpus from the Hub into a folder that pretrain.py takes: see plan_fetch().

While it works, the folder holds .part/raw with the files of one batch, and beside it what prepare() makes of them.
That then joins the shards and the meta.json of the folder, whose "fetched" says which files they are from. So a call
that was killed is continued, and a later one adds files.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from lit_gpt.data.codec import parquet_library
from lit_gpt.data.formats.packed import shard_name
from lit_gpt.data.left_out import LeftOut
from lit_gpt.data.meta import NAME, VERSION, read_meta, write_json
from lit_gpt.data.prepare.corpora import Public, public_corpus
from lit_gpt.data.prepare.hub import PARTIAL, Hub, HubFile, fetch_tokenizer
from lit_gpt.data.prepare.run import MADE, check_options, prepare
from lit_gpt.data.stream import fingerprint
from lit_gpt.data.tokenizer import TOKENIZER_FILES
from lit_gpt.errors import UserError

FRACTION = 0.005  # of the documents, for validation, where a corpus has no files of its own for it; as in prepare()
# Files are downloaded and prepared together up to this size: one of FineWeb's, which is cut for several processes, or
# several of C4's, which cannot be cut. So little lies on the disk at once, and all processes have work.
BATCH_BYTES = 2.5e9
TOKEN_BYTES = 4  # at most, in a shard
TEXT_BYTES = 9  # of a shard per token of a usual tokenizer, where the tokens are bytes or characters: 4.5, each of two


@dataclass(frozen=True)
class Batch:
    """Files that are prepared together. split: all of their documents; None: divided by hash."""

    files: tuple[HubFile, ...]
    split: str | None = None

    @property
    def size(self) -> int:
        """Bytes to download."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class Fetch:
    """What is still to be done for a folder. asked: what makes its content; options: of prepare().

    space: bytes that the disk needs at most.
    """

    corpus: Public
    hub: Hub
    folder: Path
    asked: dict[str, Any]
    options: dict[str, Any]
    batches: list[Batch]
    keep_raw: bool
    space: int

    def __str__(self) -> str:
        if not self.batches:
            return f"{self.folder} has all of these files already."
        count, size = sum(len(batch.files) for batch in self.batches), sum(batch.size for batch in self.batches)
        free = shutil.disk_usage(_existing(self.folder)).free
        return (
            f"{self.hub.repo}, revision {self.hub.revision[:7]}, licence: {self.corpus.licence}\n"
            f"{count} file{'s' * (count > 1)} of {self.asked['subset']}, {gb(size)} to download; about "
            f"{gb(self.space)} on the disk at most, {gb(free)} are free"
        )

    def run(self) -> dict:
        """Download, verify, prepare and join every batch. Returns the contents of meta.json. Raises UserError."""
        part = self.folder / ".part"
        for batch in self.batches:
            meta = self._meta()
            raw, out = part / "raw", part / fingerprint(*(file.path for file in batch.files))
            self._clear(part, {out}, {raw / file.path for file in batch.files})
            for file in batch.files:
                self.hub.download(file, raw)
            made = prepare(str(raw), str(out), **self._options(batch, meta))
            if self.keep_raw:  # before the batch counts, after which nobody looks for them
                for file in batch.files:
                    kept = self.folder / "raw" / file.path
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(raw / file.path, kept)
            self._join(batch, out, made, meta)
        if part.exists():  # also where a call was killed after its last batch
            shutil.rmtree(part)
        return self._meta()

    @staticmethod
    def _clear(part: Path, folders: set[Path], files: set[Path]) -> None:
        """Remove what calls with other --shards left: all but these folders, these files, and starts of them."""
        wanted = files | {path.with_name(path.name + PARTIAL) for path in files}
        for path in part.glob("*"):
            if path.name != "raw" and path not in folders:
                shutil.rmtree(path)
        for path in (part / "raw").rglob("*"):
            if path.is_file() and path not in wanted:
                path.unlink()

    def _meta(self) -> dict:
        """The folder's meta.json, made where there is none: it keeps calls with other options away."""
        meta = read_meta(self.folder)
        if meta is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            meta = {"version": VERSION, "fetched": {"asked": self.asked, "files": {}}}
            write_json(self.folder / NAME, meta)
        return meta

    def _options(self, batch: Batch, meta: dict) -> dict[str, Any]:
        """The options of prepare() for a batch: a tokenizer that is made is made from the first one's text."""
        options = dict(self.options)
        if options["tokenizer"] in ("char", "train") and "splits" in meta:
            options["tokenizer"] = str(self.folder)
        return options | ({"validation_fraction": 0.0} if batch.split else {})

    def _join(self, batch: Batch, out: Path, made: dict, meta: dict) -> None:
        """Move the batch's shards behind those of the folder. Killed anywhere, the next call does the rest."""
        splits = {batch.split or split: counts for split, counts in made["splits"].items()}
        for name in TOKENIZER_FILES:
            if (out / name).is_file():
                ours = (self.folder / name).read_bytes() if (self.folder / name).is_file() else None
                if name == "tokenizer.json" and ours not in (None, (out / name).read_bytes()):
                    raise UserError(
                        f"The tokenizer {self.asked['tokenizer']!r} is no longer the one in {self.folder}. Give that "
                        "folder as --tokenizer, with another --output."
                    )
                shutil.copyfile(out / name, self.folder / name)
        for (split, counts), name in zip(splits.items(), made["splits"]):
            before = meta.get("splits", {}).get(split, {}).get("shards", 0)
            for i in range(counts["shards"]):
                if (out / shard_name(name, i)).exists():
                    os.replace(out / shard_name(name, i), self.folder / shard_name(split, before + i))
        write_json(self.folder / NAME, joined(meta, made, splits, batch.files, self.folder.name))


def joined(meta: dict, made: dict, splits: dict, files: Iterable[HubFile], name: str) -> dict:
    """The meta.json of a folder after the shards of some files have joined it.

    meta: as it was. made: prepare()'s for these files. splits: its counts. name: of the tokenizer.
    """
    sources = meta["fetched"]["files"] | {f.path: f.checksum for f in files}
    fetched = {**meta["fetched"], "files": dict(sorted(sources.items()))}
    left = LeftOut()
    for counts in (meta.get("left_out", {}), made["left_out"]):
        left.merge(counts)
    total = {split: dict(counts) for split, counts in meta.get("splits", {}).items()}
    for split, counts in splits.items():
        before = total.get(split, {})
        total[split] = {key: before.get(key, 0) + n for key, n in counts.items()}
    kind = made["tokenizer"]["kind"]
    return {
        **made,
        "tokenizer": {"kind": kind, "name": name if kind == "json" else kind},
        "splits": dict(sorted(total.items())),
        "left_out": left.counts,
        "identity": fingerprint(sorted(fetched["asked"].items()), *fetched["files"].items()),
        "fetched": fetched,
    }


def plan_fetch(
    name: str,
    shards: int = 1,
    output: str | None = None,
    tokenizer: str = "gpt2",
    subset: str | None = None,
    revision: str | None = None,
    validation_fraction: float | None = None,
    keep_raw: bool = False,
    vocab_size: int = 32000,
    shard_tokens: int = 2049 * 8192,
    num_workers: int | None = None,
    bos: bool = False,
    eos_token: str | None = None,
    parse_special: bool = False,
    train_bytes: int = 64 * 2**20,
    source_tokenizer: str | None = None,
) -> Fetch:
    """What it takes to have the first files of a public corpus in a folder, as shards of tokens.

    Files are verified by the checksums that the Hub lists. The same call goes on where it was stopped, and one with
    more shards adds files to the folder. Nothing but a tokenizer is downloaded before run() is called.

    Args:
        name: of the corpus, such as fineweb_edu; --list shows all.
        shards: how many of its training files to take, the first ones by name.
        output: folder for the tokens; by default data/NAME.
        tokenizer: "bytes", "char", "train" (from the first files), the path of a tokenizer.json or its folder, or a
            name on the Hub such as gpt2, from where it is downloaded.
        subset: folder of the repository to take files from; --list shows the usual one and others.
        revision: commit, tag or branch of the repository; by default a fixed commit.
        validation_fraction: share of documents that become validation; by default the first of the corpus's own
            validation files, or 0.005 where it has none.
        keep_raw: keep the downloaded files, in OUTPUT/raw.
        vocab_size: of the BPE that "train" makes.
        shard_tokens: tokens per shard that is written.
        num_workers: processes that tokenise; all cores by default.
        bos: put BOS before every document.
        eos_token: the token that ends a document, when the tokenizer's usual one is not wanted.
        parse_special: let "<|endoftext|>" inside a text become the special token.
        train_bytes: characters of text that the BPE is trained on.
        source_tokenizer: tokenizer that token ids (prolong) were made with: Llama-3's, a path or a name on the Hub.

    Raises UserError for everything that cannot be used, and when the Hub cannot be reached.
    """
    corpus = public_corpus(name)
    if shards < 1:
        raise UserError(f"--shards {shards} must be at least 1: how many files of the corpus to take.")
    if corpus.recipe == "prolong" and source_tokenizer is None:
        raise UserError(f"{name} holds Llama-3's token ids: give --source_tokenizer, a path or a name of Llama-3's.")
    options = {"vocab_size": vocab_size, "shard_tokens": shard_tokens, "train_bytes": train_bytes, "bos": bos}
    options |= {"tokenizer": tokenizer, "eos_token": eos_token, "parse_special": parse_special}
    fraction = FRACTION if validation_fraction is None else validation_fraction
    hub = Hub(corpus.repo, revision or corpus.revision)
    if not re.fullmatch(r"[0-9a-f]{40}", hub.revision):
        hub = Hub(corpus.repo, hub.commit())
    asked = {"corpus": name, "repo": hub.repo, "revision": hub.revision, "subset": subset or corpus.subset, **options}
    asked |= {"validation_fraction": validation_fraction, "source_tokenizer": source_tokenizer}
    folder = Path(output or f"data/{name}").expanduser()
    done, batches = _done(folder, asked), []
    own = corpus.validation if validation_fraction is None else ""
    if len(_named(done, corpus.files)) < shards or (own and not _named(done, own)):
        hub.commit()  # where there is no network this says so at once, and the calls below after 25 seconds
        for spec in {tokenizer, source_tokenizer or "bytes"} - set(MADE):
            fetch_tokenizer(spec)
        check_options(num_workers=num_workers, validation_fraction=fraction, **options)
        batches = _batches(hub.files(asked["subset"]), corpus, own, shards, done)
    options |= {"source_tokenizer": source_tokenizer, "validation_fraction": fraction, "num_workers": num_workers}
    options |= {"text_key": corpus.text_key, "recipe": corpus.recipe}
    space = _space(batches, corpus, tokenizer, keep_raw)
    if (free := shutil.disk_usage(_existing(folder)).free) < space:
        raise UserError(
            f"{folder} needs about {gb(space)}, and {gb(free)} are free there. Type fewer --shards, or an --output "
            "on another disk."
        )
    return Fetch(corpus, hub, folder, asked, options, batches, keep_raw, space)


def _done(folder: Path, asked: dict[str, Any]) -> dict[str, str]:
    """{path: checksum} of the files that the folder's shards are from. Raises UserError when it holds other data."""
    meta = read_meta(folder)
    fetched = (meta or {}).get("fetched")
    if fetched is None:
        if meta is not None or any(folder.glob("*.bin")):
            raise UserError(f"{str(folder)!r} holds other data already. Choose an empty folder for --output.")
        return {}
    changed = [key for key in asked if fetched["asked"].get(key) != asked[key]]
    if changed:
        was = ", ".join(f"{key} {fetched['asked'].get(key)}" for key in changed)
        now = ", ".join(f"{key} {asked[key]}" for key in changed)
        raise UserError(f"{str(folder)!r} was fetched with {was}; asked for is {now}. Choose another --output.")
    return fetched["files"]


def _named(paths: Iterable[str], pattern: str) -> list[str]:
    """The paths whose last part has that shape; none for the pattern ""."""
    return [path for path in paths if fnmatch(os.path.basename(path), pattern)]


def _batches(listed: list[HubFile], corpus: Public, own: str, shards: int, done: dict[str, str]) -> list[Batch]:
    """The files that are not done. own: pattern of validation files to take one of, where there are some."""
    files = {file.path: file for file in listed}
    train, validation = _named(files, corpus.files), _named(files, own)[:1]
    if not train:
        raise UserError(f"{corpus.repo} has no files {corpus.files} there. Type another --subset; --list shows some.")
    if shards > len(train):
        raise UserError(
            f"{corpus.repo} has {len(train)} files {corpus.files} there. Type --shards {len(train)} or less."
        )
    if train[0].endswith(".parquet"):
        parquet_library()
    todo: list[Batch] = []
    for file in (files[path] for path in train[:shards] if path not in done):
        split = "train" if validation else None
        if todo and todo[-1].size + file.size <= BATCH_BYTES:
            todo[-1] = Batch((*todo[-1].files, file), split)
        else:
            todo.append(Batch((file,), split))
    first = 0 if _named(done, corpus.files) else 1  # a tokenizer that is made needs training text
    todo[first:first] = [Batch((files[path],), "validation") for path in validation if path not in done]
    return todo


def _space(batches: list[Batch], corpus: Public, tokenizer: str, keep_raw: bool) -> int:
    """Bytes that the disk needs at most: downloaded files, and the tokens of all of them."""
    if not batches:
        return 0
    per_token = TEXT_BYTES if tokenizer in ("bytes", "char") else TOKEN_BYTES
    sizes = [batch.size for batch in batches]
    return int((sum(sizes) if keep_raw else max(sizes)) + sum(sizes) * corpus.tokens / corpus.gigabytes * per_token)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that there is."""
    return next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())


def gb(size: float) -> str:
    """Bytes in words, such as 2.2 GB, as the Hub shows sizes."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"
