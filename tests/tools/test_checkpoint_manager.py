"""The checkpoint manager on real run folders, with damaged and with users' own folders among them."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
from script_module import tool
from tiny_run import folder_of, make_corpus

from lit_gpt.checkpoint import (
    Checkpointer,
    damage,
    find_checkpoint,
    list_checkpoints,
    load_exported,
    load_full,
    read_meta,
)
from lit_gpt.parallel import start_runtime
from lit_gpt.tools import checkpoints, inspect
from lit_gpt.tools._checkpoint_folder import human
from lit_gpt.train import lease, reporter

OPTIONS: dict[str, Any] = {"depth": 1, "save_step": 2, "eval_step": 2, "eval_sequences": 4, "keep_last": 9}
LOSS = "metric/val_loss@1x"


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LIGHTNING_ARTIFACTS_DIR"):
            patch.delenv(name, raising=False)
        patch.setattr(reporter, "draw_loss_curve", lambda *_: None)
        patch.setattr(lease, "RENEW_EVERY", 0.05)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"), documents=20)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory) -> Path:
    """Eight steps, with checkpoints of 2, 4, 6 and 8, all of them validated."""
    out = tmp_path_factory.mktemp("out")
    assert tiny_run.run(data, out, val_data_dir=data, **OPTIONS) == 0
    return folder_of(out)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "out" / trained.name))


def options(run: Path, **changed: Any) -> None:
    """Change lines of the run's config.yaml."""
    config = run / "config.yaml"
    lines = [line for line in config.read_text().splitlines() if line.partition(":")[0] not in changed]
    config.write_text("\n".join([*lines, *(f"{name}: {json.dumps(value)}" for name, value in changed.items())]) + "\n")


def step(n: int) -> str:
    return f"step-{n:06d}"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.fixture
def manage(capsys) -> Callable[..., str]:
    """What the manager prints, its exit code being 0; or the sentence of an error, its code being 2."""

    def say(*words: object, code: int = 0) -> str:
        capsys.readouterr()
        assert tool(checkpoints.main, *words) == code, capsys.readouterr()
        out, err = capsys.readouterr()
        if code == 0:
            return out
        (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert not out
        return line

    return say


def rows(listing: str) -> dict[str, str]:
    """Name -> its line, of what is between the header and the total."""
    lines = listing.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("name "))
    found = {line.split()[0]: line for line in lines[start + 1 :] if line and not line.startswith("total: ")}
    return found


def everything(folder: Path) -> dict[str, Any]:
    """Names and contents, without leases."""
    paths = (path for path in sorted(folder.rglob("*")) if not path.name.startswith("lease-"))
    return {
        str(p.relative_to(folder)): os.readlink(p) if p.is_symlink() else p.read_bytes() if p.is_file() else None
        for p in paths
    }


def with_strangers(run: Path) -> list[str]:
    """What people and killed runs leave beside checkpoints; their names."""
    folder = run / "checkpoints"
    shutil.copytree(folder / step(4), folder / f"{step(4)}-backup")
    (folder / "notes").mkdir()
    (folder / "notes" / "thesis.txt").write_text("mine")
    (folder / "README").write_text("mine")
    (folder / "best").symlink_to(step(8))
    (folder / "lost").symlink_to("nowhere")
    (folder / step(12)).write_text("a file in the way")
    (folder / "odd\x1b[31m").touch()
    (folder / ".tmp-step-000010").mkdir()
    (folder / ".tmp-step-000010" / "__0_0.distcp").write_bytes(bytes(3000))
    return [f"{step(4)}-backup", "notes", "README", "best", "lost", step(12), "odd\x1b[31m", ".tmp-step-000010"]


def test_the_list(run: Path, manage) -> None:
    """Its numbers are those of the files that the run wrote."""
    options(run, keep_last=1, keep_every=4, keep_best=True)
    out = run.parent
    losses, trained = tiny_run.rows(out, LOSS), tiny_run.rows(out)
    best = min(losses, key=losses.__getitem__)
    listing = manage(run)
    assert listing == manage("list", run) == manage(run / "checkpoints")
    found = rows(listing)
    assert list(found) == [step(n) for n in (2, 4, 6, 8)], "the oldest first"
    for n in (2, 4, 6, 8):
        line = found[step(n)]
        size = sum(path.stat().st_size for path in (run / "checkpoints" / step(n)).iterdir())
        assert f"  {n * 512:,}  " in line and f"  {losses[n]:.4f}  " in line and f"  {trained[n]:.4f}  " in line
        assert f"  {human(size)}  " in line and "  whole  " in line
        assert ("a multiple of 4 steps" in line) == (n % 4 == 0) and ("the newest" in line) == (n == 8)
        assert ("the best validation loss" in line) == (n == best)
        assert line.endswith("nothing: the next save deletes it") == (n not in (4, 8, best))
    (alone,) = rows(manage(run / "checkpoints" / step(4))).values()
    assert alone.split() == found[step(4)].split()
    assert "total: 4 checkpoints, " in listing and "other" not in listing.splitlines()[-1]


@pytest.mark.parametrize("asked", [{"keep_last": 1}, {"keep_last": 2, "keep_every": 6}, {"keep_best": True}], ids=str)
def test_a_save_deletes_what_the_list_says(asked: dict[str, Any], run: Path, manage) -> None:
    options(run, **{"keep_last": 1, **asked})
    folder = run / "checkpoints"
    meta = json.loads((folder / step(2) / "meta.json").read_text())
    (folder / step(2) / "meta.json").write_text(json.dumps({**meta, "kept": "the first decay ends here"}))
    flip(folder / step(4) / "meta.json")
    with_strangers(run)
    found = rows(manage(run))
    assert "the first decay ends here" in found[step(2)]
    saver = Checkpointer(folder, start_runtime(), **{"keep_last": 1, **asked})
    before = {path.name for path in folder.iterdir()}
    saver._retain()
    gone = before - {path.name for path in folder.iterdir()}
    assert gone == {name for name, line in found.items() if line.endswith("nothing: the next save deletes it")}
    assert step(2) not in gone and step(8) not in gone


def test_what_is_no_checkpoint_of_the_run(run: Path, manage) -> None:
    """Each is shown for what it is; nothing is changed by looking."""
    strangers, folder = with_strangers(run), run / "checkpoints"
    (folder / step(2) / "COMPLETE").unlink()
    cut(folder / step(4) / "__0_0.distcp")
    shutil.move(folder / step(6), run / "moved")
    (folder / step(6)).symlink_to(run / "moved")
    before = everything(run)
    listing = manage(run)
    assert everything(run) == before and "\x1b" not in listing
    found = rows(listing)
    assert len(found) == 4 + len(strangers)
    says = {
        step(2): "damaged  no run counts or deletes it; damaged: it has no file COMPLETE",
        step(4): "damaged  one of the newest 9; damaged: its file __0_0.distcp is cut: ",
        step(6): "  -  ",
        step(8): "whole    " + " " * 6 + "one of the newest 9",
        f"{step(4)}-backup": "a person's own: no run touches it",
        "notes": "no checkpoint  a person's own: no run touches it",
        "README": "no checkpoint  a person's own",
        "best": "whole a person's own: no run touches it",
        "lost": "no checkpoint",
        step(12): "no checkpoint  a person's own",
        "odd?[31m": "no checkpoint",
        ".tmp-step-000010": "unfinished     nothing: the next start of the run deletes it",
    }
    for name, words in says.items():
        assert " ".join(words.split()) in " ".join(found[name].split()), found[name]
    assert found[step(6)].endswith("a link, which a person made") and " whole " in found[step(6)]
    assert "total: 4 checkpoints, " in listing and "; 8 others, " in listing
    for path in (folder / f"{step(4)}-backup", folder / "best"):
        assert path.name in rows(manage(path))


def test_a_pipe_and_other_metas(run: Path, manage) -> None:
    """It would be read for ever. No save deletes what it cannot read, and a person can."""
    meta = run / "checkpoints" / step(4) / "meta.json"
    meta.unlink()
    os.mkfifo(meta)
    (run / "checkpoints" / step(6) / "meta.json").write_text("[" * 100_000)
    found = rows(manage(run))
    for n in (4, 6):
        assert "its meta.json cannot be read; damaged: " in found[step(n)]
    for words in (("verify", run), ("copy", run, 4, run.parent / "to")):
        assert "step-000004" in manage(*words, code=2) or words[0] == "verify"
    assert f"deleted {step(4)}" in manage("delete", run, 4)
    (run / "metrics.jsonl").unlink()
    os.mkfifo(run / "metrics.jsonl")
    (run / "config.yaml").unlink()
    assert list(rows(manage(run))) == [step(2), step(6), step(8)]


def test_verify_is_that_of_inspect(run: Path, manage, capsys) -> None:
    said = manage("verify", run)
    assert tool(inspect.main, "checkpoint", run, "--verify") == 0
    assert capsys.readouterr().out == said
    assert manage("verify", run / "checkpoints" / step(4)).split() == [step(4), "whole"]
    flip(run / "checkpoints" / step(4) / "__0_0.distcp")
    assert " whole " in rows(manage(run))[step(4)], "the list takes a moment, and reads no tensors"
    for place in (run, run / "checkpoints" / step(4)):
        manage("verify", place, code=2)
    assert manage("verify", run / "checkpoints" / step(8)).split() == [step(8), "whole"]


def test_delete(run: Path, manage) -> None:
    strangers, folder = with_strangers(run), run / "checkpoints"
    size = sum(path.stat().st_size for n in (2, 4) for path in (folder / step(n)).iterdir())
    before = everything(run)
    assert manage("delete", run, 4, "000002", 4) == f"deleted {step(4)}, {step(2)}: {human(size)} freed\n"
    assert everything(run) == {k: v for k, v in before.items() if not k.startswith(tuple(
        f"checkpoints/{step(n)}" for n in (2, 4))) or "backup" in k}  # fmt: skip
    assert manage("delete", folder / step(6)) and manage("delete", folder, ".tmp-step-000010")
    assert {path.name for path in folder.iterdir()} == {step(8), *strangers} - {".tmp-step-000010"}
    assert find_checkpoint(run, True) == folder / step(8)


def test_what_delete_refuses(run: Path, manage) -> None:
    """Before anything is deleted, and whatever else is named with it."""
    with_strangers(run)
    before = everything(run)
    refused = {
        "8": "is the newest whole checkpoint, from which the run would go on. Name other steps, or add --force",
        step(8): "is the newest whole checkpoint",
        "12": "has no checkpoint '12'; its steps are: 2, 4, 6, 8",
        "9" * 5000: "has no checkpoint",
        "-1": "unrecognized",
        "../summary.json": "has no checkpoint",
        "notes": "notes is no checkpoint of the run but a person's own",
        "best": "best is no checkpoint of the run",
        step(12): "is no checkpoint of the run but a person's own",
        f"{step(4)}-backup": "is no checkpoint of the run but a person's own",
        "": "has no checkpoint ''",
    }
    for word, why in refused.items():
        for words in ([word], ["2", word]):
            if word == "-1":
                assert tool(checkpoints.main, "delete", run, *words) == 2
            else:
                assert why in manage("delete", run, *words, code=2)
            assert everything(run) == before
    assert "Give the numbers of their steps" in manage("delete", run, code=2)
    manage("delete", run, 8, 6, 4, "--force")
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == [step(2)]
    assert "newest whole" in manage("delete", run / "checkpoints" / step(2), code=2)


def test_the_newest_whole_one_is_not_always_the_newest(run: Path, manage) -> None:
    """A bit of the newest is flipped, which no length shows: the one before is what a resume would take."""
    flip(run / "checkpoints" / step(8) / "__0_0.distcp")
    assert f"{step(6)} is the newest whole checkpoint" in manage("delete", run, 6, code=2)
    manage("delete", run, 8)
    assert find_checkpoint(run, True) == run / "checkpoints" / step(6)


def test_a_link_is_deleted_and_not_what_it_leads_to(run: Path, manage) -> None:
    shutil.move(run / "checkpoints" / step(4), run / "moved")
    (run / "checkpoints" / step(4)).symlink_to(run / "moved")
    assert manage("delete", run, 4) == f"deleted {step(4)}: 0 bytes freed\n"
    assert damage(run / "moved") is None and not (run / "checkpoints" / step(4)).is_symlink()


def test_a_folder_in_use(run: Path, manage) -> None:
    """Only what the owner cannot need goes, and only with --force; the owner notices nothing."""
    folder = run / "checkpoints"
    (folder / ".tmp-step-000010").mkdir()
    owner = lease.take_lease(run)
    try:
        assert f"in use by process {os.getpid()} on " in manage(run).splitlines()[0]
        assert "unless process" in rows(manage(run))[".tmp-step-000010"]
        before = everything(run)
        assert "Stop that process first, or add --force" in manage("delete", run, 2, code=2)
        assert "Stop that process first." in manage("delete", run, 2, 8, "--force", code=2)
        assert "Stop it first." in manage("delete", run, 2, ".tmp-step-000010", "--force", code=2)
        assert "would not expect another checkpoint" in manage("copy", run, 2, run, code=2)
        assert everything(run) == before
        assert f"deleted {step(2)}" in manage("delete", run, 2, "--force")
        owner.check()
    finally:
        owner.close()
    assert "in use" not in manage(run) and f"deleted {step(4)}" in manage("delete", run, 4)


def test_a_run_goes_on_after_a_delete(data: Path, run: Path, manage) -> None:
    """The lease that the deletion took was given back."""
    manage("delete", run, 8, 6, "--force")
    assert tiny_run.run(data, run.parent, val_data_dir=data, resume="auto", **OPTIONS) == 0
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == [step(n) for n in (2, 4, 6, 8)]


def test_a_copy_is_resumed_and_started_from(data: Path, trained: Path, tmp_path: Path, manage) -> None:
    """To the same weights as those of the run that was not interrupted."""
    to = tmp_path / "backup"
    assert f"to {to / 'checkpoints' / step(4)}: " in manage("copy", trained, 4, to)
    assert manage("copy", trained / "checkpoints" / step(6), to / "checkpoints").endswith(", and checked\n")
    manage("delete", to, 6, "--force")
    assert tiny_run.run(data, tmp_path / "on", val_data_dir=data, resume=to, **OPTIONS) == 0
    found, _ = load_full(folder_of(tmp_path / "on") / "checkpoints" / step(8))
    expected, _ = load_full(trained / "checkpoints" / step(8))
    assert found.keys() == expected.keys() and all(found[name].equal(expected[name]) for name in found)
    assert tiny_run.run(data, tmp_path / "new", init_from=to, **OPTIONS) == 0
    assert "is there already" in manage("copy", trained, 4, to, code=2)
    assert "has no checkpoint '5'" in manage("copy", trained, 5, to, code=2)
    assert "Which checkpoints" in manage("copy", trained, to, code=2)


def test_average(run: Path, tmp_path: Path, manage) -> None:
    """The last three, summed in float64; what was validated was not the mean."""
    (run / "checkpoints" / step(2) / "COMPLETE").write_text("")
    output = tmp_path / "mean.pth"
    assert manage("average", run, "--last", 3, "--output", output).endswith("the mean of 3 checkpoints\n")
    parts = [load_full(run / "checkpoints" / step(n))[0] for n in (4, 6, 8)]
    found, meta = load_exported(output)
    for name, tensor in found.items():
        mean = np.mean([part[name].numpy().astype(np.float64) for part in parts], axis=0)
        assert np.array_equal(tensor.numpy(), mean.astype(np.float32)), name
    assert [part["step"] for part in meta["averaged"]] == [4, 6, 8]
    assert not {"validation", "kept"} & meta.keys() and "validation" in read_meta(run / "checkpoints" / step(8))
    for last in (1, 0, -3, 4, 10**30):
        assert "has 3 checkpoints" in manage("average", run, "--last", last, "--output", tmp_path / "b.pth", code=2)
    words = ("average", run / "checkpoints" / step(8), "--last", 2, "--output", tmp_path / "b.pth")
    assert "is one checkpoint" in manage(*words, code=2)
    assert "suffix" in manage("average", run, "--last", 2, "--output", tmp_path / "b", code=2)
    flip(run / "checkpoints" / step(6) / "__0_0.distcp")
    assert f"is whole ({step(6)}: its file" in manage(
        "average", run, "--last", 2, "--output", tmp_path / "b.pth", code=2
    )
    assert {path.name for path in tmp_path.iterdir()} == {"out", "mean.pth"}


def test_what_is_no_run(run: Path, tmp_path: Path, manage) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for place in ("file", "empty", "pipe", "missing"):
        for words in ((), ("verify",), ("delete",), ("copy",), ("average",)):
            more = {"delete": [2], "copy": [2, tmp_path / "to"], "average": ["--last", 2, "--output", "a.pth"]}
            said = manage(*words, tmp_path / place, *more.get("".join(words), []), code=2)
            assert "Give a run folder, its checkpoints folder, or one step-* folder." in said
    for words in ([], ["delete"], ["nonsense", "a", "b"], ["list", ""], ["list", "s3://bucket/run"]):
        assert tool(checkpoints.main, *words) == 2
    assert "no checkpoint" not in manage(run)


def test_a_folder_of_copies_without_a_run(run: Path, tmp_path: Path, manage) -> None:
    """Nobody's save deletes there, so nothing is said of what is kept; and no lease is left."""
    shutil.copytree(run / "checkpoints", tmp_path / "copies")
    found = rows(manage(tmp_path / "copies"))
    assert len(found) == 4 and all("no run counts or deletes it" in line for line in found.values())
    assert f"deleted {step(2)}" in manage("delete", tmp_path / "copies", 2)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "copies"}


@contextmanager
def without_rights() -> Iterator[None]:
    """As a user for whom permissions count, which they do not for root."""
    if os.geteuid():
        yield
        return
    try:
        os.seteuid(65534)
    except OSError:
        pytest.skip("the user cannot be changed here")
    try:
        yield
    finally:
        os.seteuid(0)


def test_what_may_not_be_read(run: Path, manage) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        moved = Path(shutil.copytree(run, Path(folder, "run")))
        locked = moved / "checkpoints" / step(4)
        locked.chmod(0)
        with without_rights():
            found = rows(manage(moved))
            assert "  ?  " in found[step(4)] and "damaged: " in found[step(4)] and "Permission" in found[step(4)]
            assert " whole " in found[step(6)]
            manage("delete", moved, 2, code=3)
            manage("copy", moved, 4, Path(folder, "to"), code=2)
        locked.chmod(0o755)
        (moved / "checkpoints").chmod(0)
        with without_rights():
            assert "Permission denied" in manage(moved, code=2)
        (moved / "checkpoints").chmod(0o755)
        assert all(damage(path) is None for path in list_checkpoints(moved / "checkpoints"))
