"""The run folder: an archive of what was asked, what was planned, and what happened.

    config.yaml       resolved options            metrics.jsonl   every logged number
    plan.json         the Plan                    loss_curve.png  the curves
    model.json        the ModelConfig             summary.json    how it ended
    numerics.json     precisions                  checkpoints/    see lit_gpt/checkpoint
    environment.json  machine, packages, source,  tokenizer/      see lit_gpt/data/kept_tokenizer.py
                      data                        lease-000001    see lease.py
    patch-*.diff      changes in no commit        plugins/        see lit_gpt/plugins.py

A folder belongs to one Plan, one model and one order of data. A run that differs in any of them is refused with the
difference, whether it resumes or starts. It is this run's once plan.json, model.json and numerics.json are all there;
plan.json is written last. Before that, and while there is no checkpoint, a killed start left nothing that counts. A run
whose summary says that it has finished is done, also where its checkpoints are gone; release.py deletes what is left.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from glob import escape
from pathlib import Path
from typing import Any

import yaml

from lit_gpt.checkpoint import list_checkpoints
from lit_gpt.checkpoint.layout import step_of
from lit_gpt.config.names import IN_RUN_NAME
from lit_gpt.data.corpus import Corpus
from lit_gpt.data.kept_tokenizer import FILES, KeptTokenizer, describe_tokenizer, keep_tokenizer
from lit_gpt.data.kept_tokenizer import FOLDER as TOKENIZER
from lit_gpt.data.meta import NAME
from lit_gpt.errors import NotOwner, UserError
from lit_gpt.metrics.curve import CURVE_FILE
from lit_gpt.metrics.sinks import CSV_FILE
from lit_gpt.metrics.summary import METRICS_FILE, SUMMARY_FILE
from lit_gpt.plugins import FOLDER as PLUGINS
from lit_gpt.plugins import keep_plugins
from lit_gpt.preflight.resolved_run import ResolvedRun
from lit_gpt.train.folder_names import CONFIG, ENVIRONMENT, IDENTITY
from lit_gpt.train.identity import changed_options, described, identity, is_extension, what_differs
from lit_gpt.train.lease import Lease, owner_of, take_lease
from lit_gpt.train.provenance import provenance
from lit_gpt.train.samples import SAMPLES_FILE
from lit_gpt.utils.files import (
    kind_of,
    read_object,
    read_object_if_any,
    remove_leftovers,
    sync,
    told,
    write_bytes,
    write_text,
)

ARCHIVE = (*(f"{part}.json" for part in IDENTITY), CONFIG, ENVIRONMENT)
WRITTEN = (*ARCHIVE, "patch-*.diff", METRICS_FILE, CSV_FILE, SUMMARY_FILE, CURVE_FILE, SAMPLES_FILE)


def check_folder(resolved: ResolvedRun, checkpoint: dict[str, Any] | None, resumed: Path | None = None) -> list[Path]:
    """Check that the folder is this run's or nobody's, and the checkpoint (its meta) too; touches nothing.

    resumed: where that checkpoint is. Returns the checkpoints of the folder. Raises UserError with the difference when
    either is another run's, and when the folder holds this run with progress that starting over would lose.
    """
    folder = resolved.folder
    if checkpoint is not None:
        place = resumed.parent.parent if resumed else folder
        _same_run(
            {part: checkpoint[part] for part in IDENTITY}, resolved, "the checkpoint", place, checkpoint["tokens"]
        )
    blocking = next((p for p in (folder, *folder.parents) if p.exists() and not p.is_dir()), None)
    if blocking:
        raise UserError(f"The run folder {folder} cannot be made: {blocking} is a file. Choose another --out_dir.")
    if (old := _identity_of(folder)) is not None:
        _same_run(old, resolved, str(folder), folder, checkpoint["tokens"] if checkpoint else 0)
    present = list_checkpoints(folder / "checkpoints")
    if checkpoint is None and not present and (found := finished_summary(folder)):
        raise UserError(
            f"{folder} holds a run that has finished, after {found['tokens']:,} tokens, and none of its checkpoints "
            "(--keep_last 0, or they were removed), so it cannot go on. To train it again, remove the folder, or add a "
            "label to --train_name."
        )
    if checkpoint is None and present:
        if owner := owner_of(folder):  # whose folder is not to be removed
            raise UserError(
                f"{folder} already holds this run with checkpoints, and is in use by {owner}. Stop that process first "
                "and add --resume auto to continue it; for another run add a label to --train_name."
            )
        raise UserError(
            f"{folder} already holds this run with checkpoints. Add --resume auto to continue it, "
            "or remove the folder (or add a label to --train_name) to start again."
        )
    return present


def _identity_of(folder: Path) -> dict[str, Any] | None:
    """Whose folder it is; None where it is nobody's: a start was killed, or the power failed, before all was there."""
    try:
        parts = {part: read_object(folder / f"{part}.json") for part in IDENTITY}
    except UserError:
        return None
    return parts if all(parts.values()) else None


def _same_run(old: dict[str, Any], resolved: ResolvedRun, where: str, folder: Path, tokens: int) -> None:
    """Raise UserError unless `old`, of a run in `folder` with `tokens` tokens behind it, is this run's identity.

    It may have another budget where what was trained is the same under both.
    """
    if is_extension(old, resolved, tokens):
        return
    differing = what_differs(old, resolved, folder / CONFIG)
    if len(differing) == 1 and differing[0].startswith("--max_tokens:") and resolved.plan.tokens < tokens:
        raise UserError(
            f"{where} has trained on {tokens:,} tokens already. Give a larger --max_tokens, or the old one."
        )
    if differing:
        listed = "\n".join(f"  {line}" for line in differing)
        if any(line.startswith("numerics.plugins") for line in differing):
            listed += f"\nThe plugins as they were then are in {folder / PLUGINS}."
        typed = any(line.startswith("--") for line in differing)
        old_ones = "options" if typed else "options, data and version of this code"
        raise UserError(
            f"This is not the run that {where} holds. What differs (there -> here):\n{listed}\n"
            f"Use the old {old_ones} to continue it. To go on from it under the new ones, as a run of its own, add "
            f"--fork_from {folder} and a label to --train_name (--init_from takes the weights alone); for a new run "
            "add the label, or another --out_dir."
        )


def lock_folder(
    resolved: ResolvedRun, checkpoint: dict[str, Any] | None, resumed: Path | None, present: list[Path]
) -> Lease:
    """Become the owner of the folder, which is made where it is not there. Only the main process calls this.

    checkpoint, resumed: what the run goes on from. present: what check_folder returned. Raises NotOwner while another
    process trains in the folder, and when one did since `check_folder`.
    """
    folder = resolved.folder
    if checkpoint and (before := checkpoint["plan"]["tokens"]) != resolved.plan.tokens:
        print(
            f"note: the budget was {before:,} tokens and is {resolved.plan.tokens:,} now; the {checkpoint['tokens']:,} "
            "that were trained are the same under both",
            file=sys.stderr,
        )
    if resolved.run.resume == "auto" and not present and (note := new_run_note(resolved)):
        print(note, file=sys.stderr)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise kind_of(error)(f"The run folder {folder} cannot be made ({error}). Choose another --out_dir.") from error
    lease = take_lease(folder)
    try:
        if list_checkpoints(folder / "checkpoints") != present:
            raise NotOwner(f"Another process trained in {folder} while this one started. Type the same command again.")
        check_folder(resolved, checkpoint, resumed)
        remove_leftovers(folder, WRITTEN)
        if (folder / PLUGINS).is_dir():
            remove_leftovers(folder / PLUGINS, ("*.py",))
        if (folder / TOKENIZER).is_dir():
            remove_leftovers(folder / TOKENIZER, (*FILES, NAME))
    except BaseException:
        lease.undo()
        raise
    return lease


def finished_summary(folder: Path) -> dict[str, Any]:
    """The summary of a run that says that it has finished; {} of any other."""
    found = read_object_if_any(folder / SUMMARY_FILE)
    return found if found.get("finished") and type(found.get("tokens")) is int else {}


def finished_without_checkpoint(resolved: ResolvedRun) -> int | None:
    """The tokens of this run where it has finished and its last checkpoint is gone, so that there is nothing to do.

    None where another run or budget is asked for, of which check_folder says what is wrong; and where a person removed
    the last checkpoint of a run that keeps it, to go back to an earlier one.
    """
    folder = resolved.folder
    try:
        found, old = finished_summary(folder), _identity_of(folder)
    except UserError:  # a damaged summary: check_folder says so where there is no checkpoint to go on from
        return None
    if not found or found["tokens"] < resolved.plan.tokens:  # of a smaller budget, with which it had finished before
        return None
    if old is None or what_differs(old, resolved, folder / CONFIG):
        return None
    steps = [step_of(path) for path in list_checkpoints(folder / "checkpoints")]
    kept, _ = changed_options(folder / CONFIG, resolved.run).get("keep_last", (resolved.run.keep_last, None))
    return None if found.get("step") in steps or (steps and kept) else found["tokens"]


def sync_log(folder: Path) -> None:
    """Have all that was logged on the disk: before a checkpoint counts, and before a finished run deletes its own."""
    for path in (folder / SUMMARY_FILE, folder / METRICS_FILE, folder / SAMPLES_FILE, folder):
        if path.exists():
            sync(path)


def has_ended(folder: Path, tokens: int) -> bool:
    """Whether a run whose last checkpoint is published said how it ended too, as far as it logged anything.

    tokens: its budget. The summary of a smaller one, with which it had finished before, does not count.
    """
    try:
        found = read_object(folder / SUMMARY_FILE)
        return bool(found["finished"]) and found["tokens"] == tokens
    except (UserError, KeyError):
        return not (folder / METRICS_FILE).is_file()


def new_run_note(resolved: ResolvedRun) -> str | None:
    """What to say of a run that --resume auto starts, where another one of its --train_name lies beside it."""
    found = {}
    for path in sorted(resolved.folder.parent.glob(f"{escape(resolved.run.train_name)}_*/{CONFIG}")):
        changes = changed_options(path, resolved.run)
        named = {name: values for name, values in changes.items() if name in IN_RUN_NAME}
        if path.parent != resolved.folder and "train_name" not in changes and named:
            found[path.parent] = described(named)
    if not found:
        return None
    nearest = min(found, key=lambda folder: len(found[folder]))
    return (
        f"note: --resume auto starts a new run, {resolved.folder}. To continue {nearest} instead, type its options "
        f"(there -> here): {', '.join(found[nearest])}"
    )


def write_archive(resolved: ResolvedRun, data: Mapping[str, Corpus | None] | None = None) -> KeptTokenizer | None:
    """Write the archive's fixed part; the tokenizer that it keeps. Only the owner calls this.

    data: name -> corpus, for their fingerprints. Raises NotWritten where something cannot be written.
    """
    folder, run = resolved.folder, resolved.run
    folder.mkdir(parents=True, exist_ok=True)
    record, patch = provenance(data or {})
    if record["git"] and record["git"]["patch_cut"]:
        print(
            "note: what no commit of this checkout has, new .py files included, is more than 1 MiB, so "
            f"{record['git']['patch']} is cut; training goes on",
            file=sys.stderr,
        )
    with told(folder):
        if _identity_of(folder) is None:
            (folder / "plan.json").unlink(missing_ok=True)  # of a start that was killed; it must not meet our parts
        write_text(folder / CONFIG, yaml.safe_dump(dataclasses.asdict(run), sort_keys=False))
        if patch:
            write_bytes(folder / record["git"]["patch"], patch)
        write_text(folder / ENVIRONMENT, json.dumps(record, indent=2) + "\n")
        tokenizer = describe_tokenizer(run.train_data_dir, run.data_mixture, run.eos_token_id)
        if tokenizer and not tokenizer.present:
            print(
                f"note: the data says that its tokenizer is {FILES[0]} in {tokenizer.source}, which is not there, so "
                "bits per byte are not known, and what reads or writes text with the model will ask for --tokenizer",
                file=sys.stderr,
            )
        kept = keep_tokenizer(tokenizer, folder) if tokenizer else None
        keep_plugins(folder)
        identifying = {**identity(resolved), "plan": resolved.plan.to_dict()}
        for part in reversed(IDENTITY):
            write_text(folder / f"{part}.json", json.dumps(identifying[part], indent=2) + "\n")
    return kept
