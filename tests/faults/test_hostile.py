"""Checkpoints and exports from strangers: nothing in them runs, in any tool, and none fills the memory."""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from hostile import resealed
from safetensors.torch import save_file
from small_run import Alone, Run, step
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from lit_gpt.checkpoint import find_checkpoint, load_exported, load_full, load_weights
from lit_gpt.checkpoint.layout import seal
from lit_gpt.errors import UserError
from lit_gpt.evals.trained_model import load_model
from lit_gpt.tools import average, convert, generate, inspect


class Payload:
    """Leaves a file where it was unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path):
    """A path that must not exist in the end; made by the payloads where nothing holds them back."""
    path = tmp_path / "ran"
    pickle.loads(pickle.dumps(Payload(path)))
    path.unlink()
    yield path
    assert not path.exists(), "code from a file was run"


@pytest.fixture
def run(tmp_path) -> Run:
    run = Run(tmp_path / "run")
    run.save(2)
    return run


def edit_index(path: Path, change) -> None:
    index = pickle.loads((path / ".metadata").read_bytes())
    change(index)
    (path / ".metadata").write_bytes(pickle.dumps(index))


def in_index(path: Path, mark: Path) -> None:
    (path / ".metadata").write_bytes(pickle.dumps(Payload(mark)))


def deep_in_index(path: Path, mark: Path) -> None:
    edit_index(path, lambda index: setattr(index, "planner_data", {"x": Payload(mark)}))


def in_a_data_file(path: Path, mark: Path) -> None:
    """The tensors' own place, overwritten by a pickle of the same name, longer than before."""
    blob = io.BytesIO()
    torch.save({"x": Payload(mark)}, blob)
    data = path / "__0_0.distcp"
    at, length = data.stat().st_size, len(blob.getvalue())
    data.write_bytes(data.read_bytes() + blob.getvalue())
    edit_index(path, lambda i: vars(next(iter(i.storage_data.values()))).update(offset=at, length=length))


def as_pickled_object(path: Path, mark: Path) -> None:
    """DCP loads entries that are no tensors with a pickle."""
    edit_index(path, lambda i: i.state_dict_metadata.update({"model.weight": BytesStorageMetadata()}))


def outside(path: Path, mark: Path) -> None:
    edit_index(path, lambda i: [vars(p).update(relative_path="../../x.distcp") for p in i.storage_data.values()])


def through_an_extension(path: Path, mark: Path) -> None:
    edit_index(path, lambda i: [vars(p).update(transform_descriptors=["stream.zstd"]) for p in i.storage_data.values()])


def larger_than_the_file(path: Path, mark: Path) -> None:
    """4 TB of zeros to be allocated before anything is read."""

    def grow(index):
        stored = index.state_dict_metadata["model.weight"]
        stored.size = stored.chunks[0].sizes = torch.Size([1 << 20, 1 << 20])

    edit_index(path, grow)


def of_parts_that_are_not_the_whole(path: Path, mark: Path) -> None:
    """The rest would be whatever lay in memory."""
    edit_index(path, lambda i: setattr(i.state_dict_metadata["model.weight"], "size", torch.Size([4, 3])))


def as_a_bomb(path: Path, mark: Path) -> None:
    """A zip file whose tensor unpacks to a thousand times its length."""
    blob = io.BytesIO()
    torch.save(torch.zeros(2, 3), blob)
    small = compressed(blob.getvalue())
    data = path / "__0_0.distcp"
    at = data.stat().st_size
    data.write_bytes(data.read_bytes() + small)
    edit_index(path, lambda i: vars(next(iter(i.storage_data.values()))).update(offset=at, length=len(small)))


def compressed(blob: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(blob)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry) + b"\0" * 1_000_000)
    return out.getvalue()


CHECKPOINTS = [
    in_index,
    deep_in_index,
    in_a_data_file,
    as_pickled_object,
    outside,
    through_an_extension,
    larger_than_the_file,
    of_parts_that_are_not_the_whole,
    as_a_bomb,
]


@pytest.mark.parametrize("early", [False, True], ids=["with sums", "without sums"])
@pytest.mark.parametrize("make", CHECKPOINTS, ids=lambda f: f.__name__)
def test_a_hostile_checkpoint_runs_nothing_and_is_one_sentence(make, early, run, mark):
    """A touch-file payload in .metadata ran through --resume, --init_from, convert and generate."""
    path = run.checkpoints / step(2)
    make(path, mark)
    resealed(path)
    if early:
        (path / "SHA256SUMS").unlink()
        (path / "COMPLETE").write_text("1700000000000000000")
    for use in (
        lambda: run.load("auto"),
        lambda: run.load(str(path)),
        lambda: load_weights(run.folder, run.model, Alone()),
        lambda: load_full(path),
        lambda: load_model(run.folder),
        lambda: convert.main([str(path), str(mark.parent / "out.safetensors")]),
        lambda: average.average([path, path]),
        lambda: generate.main([str(path), "--prompt", "x"]),
    ):
        with pytest.raises(UserError) as caught:
            use()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


def test_the_same_without_a_payload_loads(run):
    """So what is refused above is refused for what it holds."""
    resealed(run.checkpoints / step(2))
    assert run.load("auto") == 2


META = {"version": 1, "step": 1, "tokens": 2}


def export_pickle(path: Path, mark: Path) -> None:
    torch.save({"model": {"a": torch.ones(2)}, "meta": {**META, "x": Payload(mark)}}, path)


def export_old_pickle(path: Path, mark: Path) -> None:
    torch.save({"model": Payload(mark), "meta": META}, path, _use_new_zipfile_serialization=False)


def export_bare_pickle(path: Path, mark: Path) -> None:
    path.write_bytes(pickle.dumps({"model": Payload(mark), "meta": META}))


def export_bomb(path: Path, mark: Path) -> None:
    blob = io.BytesIO()
    torch.save({"model": {"a": torch.ones(2)}, "meta": META}, blob)
    path.write_bytes(compressed(blob.getvalue()))


def export_wide_view(path: Path, mark: Path) -> None:
    """Four bytes that claim to be 4 TB."""
    torch.save({"model": {"a": torch.ones(1).expand(1 << 40)}, "meta": META}, path)


def export_no_tensors(path: Path, mark: Path) -> None:
    torch.save({"model": {"a": 3}, "meta": META}, path)


def export_sparse(path: Path, mark: Path) -> None:
    torch.save({"model": {"a": torch.eye(3).to_sparse()}, "meta": META}, path)


@pytest.mark.parametrize(
    "make",
    [
        export_pickle,
        export_old_pickle,
        export_bare_pickle,
        export_bomb,
        export_wide_view,
        export_no_tensors,
        export_sparse,
    ],
    ids=lambda f: f.__name__,
)
def test_a_hostile_pth_runs_nothing_and_is_one_sentence(make, tmp_path, mark):
    path = tmp_path / "m.pth"
    make(path, mark)
    refused_everywhere(path)


def refused_everywhere(path: Path) -> None:
    for use in (
        lambda: load_exported(path),
        lambda: load_model(path),
        lambda: inspect.main(["checkpoint", str(path), "--verify"]),
        lambda: average.average([path, path]),
        lambda: generate.main([str(path), "--prompt", "x"]),
    ):
        with pytest.raises(UserError) as caught:
            use()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


@pytest.mark.parametrize(
    "meta",
    ["[" * 100_000, "{", "null", "3", json.dumps(["x"]), pickle.dumps(3, 0).decode()],
    ids=["deep", "cut", "null", "number", "list", "pickle"],
)
def test_a_hostile_safetensors_header_is_one_sentence(meta, tmp_path, mark):
    save_file({"a": torch.ones(2)}, tmp_path / "m.safetensors", metadata={"scalelab": meta})
    refused_everywhere(tmp_path / "m.safetensors")


def test_a_safetensors_file_with_a_pickle_for_a_header_runs_nothing(tmp_path, mark):
    payload = pickle.dumps(Payload(mark))
    (tmp_path / "m.safetensors").write_bytes(len(payload).to_bytes(8, "little") + payload)
    refused_everywhere(tmp_path / "m.safetensors")


@pytest.mark.parametrize("text", ["[" * 100_000, "{}", "[]", "3", ""], ids=["deep", "none", "list", "number", "empty"])
def test_a_hostile_meta_is_one_sentence(text, run):
    path = run.checkpoints / step(2)
    (path / "meta.json").write_text(text)
    resealed(path)
    for use in (lambda: run.load(str(path)), lambda: inspect.main(["checkpoint", str(path)])):
        with pytest.raises(UserError) as caught:
            use()
        assert "\n" not in str(caught.value)


def test_sums_of_files_elsewhere_are_not_asked_for(run):
    """Names with ../ in SHA256SUMS lead nowhere: only files that the checkpoint consists of are opened."""
    path = resealed(run.checkpoints / step(2))
    text = (path / "SHA256SUMS").read_text() + f"{'0' * 64}  ../../../secret\n"
    (path / "SHA256SUMS").write_text(text)
    (path / "COMPLETE").write_text(seal(7, text))
    opened = []
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
    assert find_checkpoint(run.folder, True) == path
    assert not any("secret" in name for name in opened)


@pytest.mark.parametrize("name", ["__0_0.distcp", "meta.json", "SHA256SUMS", "COMPLETE", ".metadata"])
@pytest.mark.parametrize("kind", ["pipe", "device", "huge"])
def test_a_pipe_or_a_device_in_place_of_a_file_does_not_hang(kind, name, run):
    """A meta.json, sums or index that is a pipe hung for good, and /dev/zero filled the memory."""
    path = run.checkpoints / step(2) / name
    path.unlink()
    if kind == "huge":
        path.touch()
        os.truncate(path, 1 << 33)  # takes no room on the disk
    else:
        os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    if kind == "huge" and name in ("__0_0.distcp", ".metadata"):
        return  # read in pieces
    for use in (run.load, lambda: inspect.main(["checkpoint", str(run.checkpoints), "--verify"])):
        with pytest.raises(UserError) as caught:
            use()
        assert "\n" not in str(caught.value).removeprefix("Not every checkpoint").partition("\n")[0]
