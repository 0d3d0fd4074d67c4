"""prepare(): text in, packed shards, tokenizer and meta.json out."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from lit_gpt.data.documents import DELAY, Search
from lit_gpt.data.formats import packed
from lit_gpt.data.kinds import Piece
from lit_gpt.data.left_out import LeftOut, sentences
from lit_gpt.data.meta import NAME, VERSION, read_meta, write_json
from lit_gpt.data.prepare.alone import alone
from lit_gpt.data.prepare.publish import Publisher
from lit_gpt.data.prepare.recipes import ReadOptions
from lit_gpt.data.prepare.sources import Found, Stamp, content, find, make_splitter, sample, stamp, texts
from lit_gpt.data.prepare.units import Unit, make_units
from lit_gpt.data.prepare.worker import (
    Job,
    check_tokenizer,
    encode_unit,
    load_job_tokenizer,
    run_in_worker,
    start_worker,
)
from lit_gpt.data.stream import fingerprint
from lit_gpt.data.tokenizer import TOKENIZER_FILES, ByteTokenizer, find_tokenizer, load_tokenizer, make_char, train_bpe
from lit_gpt.errors import UserError, did_you_mean
from lit_gpt.utils.files import read_object

MADE = ("bytes", "char", "train")  # tokenizers that are no file
# One process reads and writes 100 MB of bytes in the second in which another one starts; a BPE takes 20 times as long.
BYTES_PER_WORKER = 1 << 26
DIED = (
    "A worker process died, most likely killed for lack of memory. Run the same command again with a smaller "
    "--num_workers; finished work is kept."
)
NOT_STARTED = (
    "No worker process could start; what each of them says stands above. They import the script that was started, so "
    'it must be a file, not Python\'s standard input, and call prepare() below `if __name__ == "__main__":`, as '
    "scripts/prepare_text.py does. --num_workers 1 needs no worker."
)
READERS = 4  # threads that look for edited files: a disk far away answers several at once, and sums need no lock


def prepare(
    source: str | list[str],
    output: str,
    tokenizer: str = "bytes",
    vocab_size: int = 32000,
    validation_fraction: float = 0.005,
    shard_tokens: int = 2049 * 8192,
    num_workers: int | None = None,
    recipe: str = "folder",
    text_key: str | None = None,
    include: str | list[str] | None = None,
    exclude: str | list[str] | None = None,
    bos: bool = False,
    eos_token: str | None = None,
    parse_special: bool = False,
    train_bytes: int = 64 * 2**20,
    source_tokenizer: str | None = None,
    strict: bool = False,
    progress: bool = True,
) -> dict:
    """Tokenise documents into packed shards `<output>/<split>_<counter>.bin`.

    Every document is followed by EOS; nothing is dropped in silence and nothing is padded (departure D69). The bytes
    written do not depend on the number of workers. Killed at any moment, the same call goes on where it was and
    ends with the same bytes. Files are read by what they hold, compressed or not. What cannot be used is
    left out, undecodable bytes become U+FFFD, and both are counted in the summary and in meta.json.

    Args:
        source: folder or file, or several (also --input_dir): text, JSON records or parquet.
        output: folder for the shards, meta.json and the tokenizer (also --output_dir).
        tokenizer: "bytes", "char" (every character of the source), "train" (a BPE), the path of a tokenizer.json
            or its folder, or a name in the local Hugging Face cache.
        vocab_size: size of the vocabulary that "train" makes.
        validation_fraction: share of documents, chosen by the hash of their path, that go to "validation"; above 0
            each split gets at least one.
        shard_tokens: tokens per shard; the last shard of a split is smaller.
        num_workers: number of processes; default: one per core, for bytes at most one per 64 MiB.
        recipe: how the source is laid out: folder, slimpajama or prolong.
        text_key: field of a record that holds its text; "a.b" is the field b of the field a; default: text, content,
            and other usual names.
        include: file name pattern or several, such as "*.py"; default: files with the suffix of a known format.
        exclude: file name pattern or several to leave out; default: none.
        bos: put BOS before every document.
        eos_token: the token that ends a document; default: the tokenizer's.
        parse_special: let "<|endoftext|>" inside a text become the special token.
        train_bytes: characters of text that the BPE is trained on.
        source_tokenizer: tokenizer that made a source of token ids (prolong); default: none.
        strict: stop at the first record or file that cannot be used, and name its line; changes no byte.
        progress: show a progress bar.

    Returns the contents of meta.json. Raises UserError for everything that cannot be used.
    """
    _check_words(source=source, output=output, text_key=text_key)
    check_options(
        tokenizer,
        vocab_size=vocab_size,
        validation_fraction=validation_fraction,
        shard_tokens=shard_tokens,
        num_workers=num_workers,
        train_bytes=train_bytes,
        bos=bos,
        eos_token=eos_token,
        parse_special=parse_special,
    )
    makers = {
        "char": lambda path: make_char(texts(_shown(found, "char", progress), recipe, options), path),
        "train": lambda path: train_bpe(sample(found, recipe, options, train_bytes), vocab_size, path, progress),
    }
    folder = Path(output).expanduser()
    parts = folder / ".parts"
    left, options = LeftOut(strict), ReadOptions(text_key, source_tokenizer, strict)
    found = find(_listed(source), recipe, Search(_listed(include), _listed(exclude), text_key, left, progress))
    units, stamps = make_units(found), [stamp(piece) for _, piece in found]
    asked = {"tokenizer": _content(tokenizer), "vocab_size": vocab_size, "train_bytes": train_bytes, "recipe": recipe}
    asked |= {"fraction": validation_fraction, "shard_tokens": shard_tokens, "parse_special": parse_special}
    asked |= {"source_tokenizer": source_tokenizer, "eos_token": eos_token, "text_key": text_key, "bos": bos}
    identity = fingerprint(sorted(asked.items()), *((u.split, _layout(u)) for u in units), *_contents(found, progress))
    if (finished := _finished(folder, identity)) is not None:
        return finished
    splitter = make_splitter(found, recipe, options, validation_fraction)
    parts.mkdir(parents=True, exist_ok=True)
    with alone(folder, parts):
        if (finished := _finished(folder, identity)) is not None:  # by a process that has ended since
            return finished
        spec = _make_tokenizer(folder, tokenizer, eos_token, makers.get(tokenizer))
        job = _with_dtype(Job(parts, recipe, options, splitter, spec, parse_special, "", bos))
        with ThreadPoolExecutor(1) as thread:  # writing is half of the work on bytes
            publisher = Publisher(job, folder, shard_tokens, identity, thread)
            _run(job, units, publisher, num_workers, progress)
            totals, shards = publisher.counts, publisher.close()
        _check_unchanged(found, stamps, folder)
        left.merge(publisher.left.counts)
        left_out = left.placed({piece.key: piece for _, piece in found})
        if not totals:
            _discard(folder)
            raise UserError(f"No document in the source has text: {'; '.join(sentences(left_out))}.")
        meta = _meta(job, totals, shards, identity) | {"left_out": left_out}
        write_json(folder / NAME, meta)
        shutil.rmtree(parts, ignore_errors=True)  # another process may see that it is finished, and do it
        return meta


def _check_unchanged(found: Found, stamps: list[Stamp], folder: Path) -> None:
    """Raise UserError where a file was written to while it was read: the tokens may be of neither version of it."""
    changed = [piece for (_, piece), before in zip(found, stamps) if stamp(piece) not in (before, None)]
    if changed:
        _discard(folder)
        raise UserError(
            f"{changed[0].path} changed while the source was read, so nothing was kept. Type the same command again "
            "when nothing writes to the source any more."
        )


def _discard(folder: Path) -> None:
    """Remove what a preparation that cannot be used has written."""
    shutil.rmtree(folder / ".parts")
    for path in (*(folder / name for name in TOKENIZER_FILES), *folder.glob("*.bin")):
        path.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def _with_dtype(job: Job) -> Job:
    return replace(job, dtype=packed.dtype_for(load_job_tokenizer(job).vocab_size).str)


def _meta(job: Job, totals: dict[str, dict[str, int]], shards: dict[str, int], identity: str) -> dict:
    tokenizer = load_job_tokenizer(job)
    return {
        "version": VERSION,
        "format": "packed",
        "tokenizer": {"kind": "bytes" if job.tokenizer == "bytes" else "json", "name": tokenizer.name},
        "vocab_size": tokenizer.vocab_size,
        "eos_id": tokenizer.eos_id,
        "bos_id": tokenizer.bos_id if job.bos else None,
        "dtype": job.dtype,
        "splits": {split: {**totals[split], "shards": shards[split]} for split in sorted(totals)},
        "identity": identity,
    }


def check_options(
    tokenizer: str,
    *,
    vocab_size: int,
    validation_fraction: float,
    shard_tokens: int,
    num_workers: int | None,
    train_bytes: int,
    bos: bool,
    eos_token: str | None,
    parse_special: bool,
) -> None:
    """Raise UserError for options of prepare() that cannot be used, whatever the source is."""
    _check_numbers(validation_fraction, shard_tokens, vocab_size, num_workers, train_bytes)
    _check_words(tokenizer=tokenizer)
    if tokenizer not in MADE[1:]:
        known = Path(tokenizer).exists() or find_tokenizer(tokenizer)
        if not known and tokenizer not in MADE and (meant := did_you_mean(tokenizer, MADE)):
            raise UserError(f"No tokenizer is called {tokenizer!r}.{meant}")
        check_tokenizer(load_tokenizer(tokenizer, eos_token, parse_special), bos)
    elif bos:
        raise UserError(f"--bos was given, but the tokenizer {tokenizer!r} has no BOS token.")


def _check_numbers(
    validation_fraction: float, shard_tokens: int, vocab_size: int, num_workers: int | None, train_bytes: int
) -> None:
    if not 0 <= validation_fraction < 1:
        raise UserError(f"--validation_fraction {validation_fraction} is not in [0, 1); try 0.005.")
    if shard_tokens < 1:
        raise UserError(f"--shard_tokens {shard_tokens} must be at least 1; try {2049 * 8192}.")
    if vocab_size < 257:
        raise UserError(f"--vocab_size {vocab_size} is less than 257, the 256 bytes and EOS; try 32000.")
    if num_workers is not None and num_workers < 0:
        raise UserError(f"--num_workers {num_workers} must be at least 0; leave it out to use all cores.")
    if train_bytes < 1:
        raise UserError(f"--train_bytes {train_bytes} must be at least 1; try {64 * 2**20}.")


def _check_words(**given: str | list[str] | None) -> None:
    for name, value in given.items():
        if not all(word.strip() for word in _listed(value)):
            raise UserError(f"--{name} was given without a value. Type it, or drop the option.")


def _listed(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


def _content(tokenizer: str) -> str:
    """The spec, or the hash of the file it names, so that a tokenizer may be moved but not changed."""
    path = None if tokenizer in MADE else find_tokenizer(tokenizer)
    return fingerprint(path.read_bytes().hex()) if path else tokenizer


def _shown(found: Found, what: str, progress: bool) -> tqdm[Piece]:
    """The pieces, with a bar where going through them takes long."""
    pieces = [piece for _, piece in found]
    return tqdm(pieces, desc=what, unit=" files", delay=DELAY, disable=not progress)


def _contents(found: Found, progress: bool) -> list[str]:
    """What the files hold, so that files edited since, of the same size, are not taken for those of a finished run."""
    bar = _shown(found, "compare", progress)

    def read(piece: Piece) -> str:
        bar.update()
        return content(piece)

    stripes = [found[i::READERS] for i in range(READERS)]
    try:
        with bar, ThreadPoolExecutor(READERS) as pool:
            return [c for some in pool.map(lambda some: [read(piece) for _, piece in some], stripes) for c in some]
    except OSError as e:
        raise UserError(f"Cannot read {e.filename}: {e.strerror}.") from e


def _layout(unit: Unit) -> list[tuple]:
    return [(p.key, p.size, p.start, p.end, p.kind) for p in unit.pieces]


def _finished(folder: Path, identity: str) -> dict | None:
    """The meta.json of an identical preparation that is complete, after which nothing unfinished is left.

    Raises UserError when the folder holds anything that the same call would not have written.
    """
    meta, journal = read_meta(folder), folder / ".parts/journal.json"
    if meta is not None and meta.get("identity") == identity:
        shutil.rmtree(folder / ".parts", ignore_errors=True)
        return meta
    resumable = journal.exists() and read_object(journal).get("identity") == identity
    if meta is not None or (journal.exists() and not resumable):
        raise UserError(
            f"{str(folder)!r} holds data prepared from other files or with other settings, or by another version of "
            "this program. Repeat that call, choose another --output, or delete the folder."
        )
    if not resumable and any(folder.glob("*.bin")):
        raise UserError(f"{str(folder)!r} already holds .bin files. Choose an empty folder for --output.")
    return None


def _make_tokenizer(folder: Path, spec: str, eos_token: str | None, make: Callable[[Path], None] | None) -> str:
    """Put the tokenizer into the output folder; the spec that workers load. make: writes a new one."""
    if spec == "bytes":
        return spec
    made = folder / ".parts/made.json"
    if make and not made.exists():
        make(made.with_suffix(".tmp"))
        os.replace(made.with_suffix(".tmp"), made)
    tokenizer = load_tokenizer(str(made) if make else spec, eos_token)
    if isinstance(
        tokenizer, ByteTokenizer
    ):  # the folder of a run or of data made with "bytes"; there is no file to copy
        return "bytes"
    tokenizer.save(folder)
    return str(folder)


def _run(job: Job, units: list[Unit], publisher: Publisher, num_workers: int | None, progress: bool) -> None:
    """Encode what is not encoded yet, publishing as it goes."""
    begun, left = units[: publisher.units], units[publisher.units :]
    todo = [unit for unit in left if not job.done(unit.index).exists()]  # workers of a run that was killed did others
    workers = min(num_workers or _usual_workers(job, todo), len(todo))
    encoded = _encode_here(job, left, publisher) if workers <= 1 else _encode_apart(job, left, publisher, workers)
    with tqdm(total=sum(u.size for u in units), unit="B", unit_scale=True, desc="prepare", disable=not progress) as bar:
        bar.update(sum(u.size for u in begun))
        for unit in encoded:
            bar.update(unit.size)


def _usual_workers(job: Job, units: list[Unit]) -> int:
    """How many processes are worth their start."""
    cores = os.cpu_count() or 1
    return min(cores, sum(u.size for u in units) // BYTES_PER_WORKER) if job.tokenizer == "bytes" else cores


def _encode_here(job: Job, units: list[Unit], publisher: Publisher) -> Iterator[Unit]:
    """Encode in this process, straight into the shards. Yields units as they are finished."""
    tokenizer = load_job_tokenizer(job)
    for unit in units:
        if job.done(unit.index).exists():
            publisher.add(unit.index)
        else:
            publisher.commit(encode_unit(job, tokenizer, unit, publisher.of_split))
        yield unit


def _encode_apart(job: Job, units: list[Unit], publisher: Publisher, num_workers: int) -> Iterator[Unit]:
    """Encode in processes, into parts, in any order. Yields units as they are finished."""
    todo = []
    for unit in units:
        if job.done(unit.index).exists():
            publisher.add(unit.index)
            yield unit
        else:
            todo.append(unit)
    context = multiprocessing.get_context("spawn")  # forking a process with threads may deadlock
    begun = context.Event()
    pool = ProcessPoolExecutor(num_workers, context, start_worker, (job, begun))
    try:
        futures = {pool.submit(run_in_worker, unit): unit for unit in todo}
        for future in as_completed(futures):
            future.result()
            publisher.add(futures[future].index)
            yield futures[future]
    except BrokenProcessPool as e:
        raise UserError(DIED if begun.is_set() else NOT_STARTED) from e
    finally:
        pool.shutdown(cancel_futures=True)
