"""One owner of a run folder at a time, also where hosts share the file system.

    <run>/lease-000003   host and process of the owner, the third that the folder had

The owner renews its lease every RENEW_EVERY seconds, from a thread. Another process may take the folder over
when the lease was given back, when the owner is a process of this machine that runs no more, or when the lease
did not change in all of STALE_AFTER seconds of looking at it. So two hosts' clocks are never compared.

Taking over is the creation of the file with the next number, which the file system grants to one process alone
(O_EXCL, which NFS 3 and later keep; flock is not kept everywhere). Only then is the old file removed. Renewing
never creates a file, so an owner that was suspended meanwhile finds its file gone: `check` before every write
says so. Numbers only grow, since the last lease stays in the folder, marked as given back.
"""

from __future__ import annotations

import errno
import json
import os
import random
import re
import secrets
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from lit_gpt.errors import NotOwner, UserError
from lit_gpt.utils.files import regular, told

RENEW_EVERY = 5.0  # seconds: a small write that no file server notices
# Seconds without a renewal after which an owner counts as dead. That is twelve renewals, because the thread that renews
# may be held up by a slow file server, or by native code that keeps Python's lock.
STALE_AFTER = 60.0
NAME = re.compile(r"lease-(\d{6,})")
SIZE = 512  # bytes of the file, always: a renewal needs no space on a full disk


class Lease:
    """The right to write to a run folder; `take_lease` makes one.

    check: before every write. close: at the end, after the last one.
    """

    def __init__(self, path: Path, record: dict[str, Any]):
        self.folder, self.path, self.record = path.parent, path, record
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise NotOwner when the folder is gone, or is another process's by now."""
        if self._held():
            return
        if not self.folder.is_dir():
            raise NotOwner(
                f"The run folder {self.folder} is gone: it was removed or renamed while the run was training. "
                "Nothing more can be saved. Put it back and continue with --resume auto, or start again."
            )
        owners = [described for described in map(_describe, map(_read, _leases(self.folder))) if described]
        raise NotOwner(
            f"This process, {os.getpid()} on {self.record['host']}, no longer owns {self.folder}: its lease was taken "
            f"over by {owners[-1] if owners else 'another process, or removed'}. That happens when a process is "
            f"suspended for more than {STALE_AFTER:g} s. It ends without writing anything more."
        )

    def close(self) -> None:
        """Stop renewing, and mark the lease as given back."""
        self._closing.set()
        self._thread.join()
        self._write(released=True)

    def undo(self) -> None:
        """Give back a folder that nothing was written to; it goes when nothing else is in it."""
        self.close()
        if os.listdir(self.folder) == [self.path.name]:
            self.path.unlink()
            self.folder.rmdir()

    def _held(self) -> bool:
        """Whether the file is still there and ours. An error of the disk says nothing about that."""
        try:
            return self.path.read_bytes().startswith(_start(self.record))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            return error.errno != errno.ESTALE  # NFS: removed by another host

    def _renew(self) -> None:
        while not self._closing.wait(RENEW_EVERY) and self._held():
            self.record["renewals"] += 1
            self._write()

    def _write(self, released: bool = False) -> None:
        """Into the file where it is ours, in place; a disk that fails for a while does not end the run."""
        if not self._held():
            return
        self.record |= {"renewed": _now(), "released": released}
        try:
            handle = os.open(self.path, os.O_WRONLY)
            try:
                os.pwrite(handle, _text(self.record), 0)
            finally:
                os.close(handle)
        except OSError:
            pass


def take_lease(folder: Path) -> Lease:
    """Become the owner of an existing folder.

    Waits up to STALE_AFTER seconds where the owner before may be dead. Raises NotOwner when it lives, with its host and
    process, and NotWritten when the folder cannot be written.
    """
    while True:
        before = _leases(folder)
        for path in before:
            _require_gone(path)
        number = max((_number(path) for path in before), default=0) + 1
        path, record = folder / f"lease-{number:06d}", _record()
        with told(folder):
            try:
                handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                continue  # another process was faster: look at it
            try:
                os.write(handle, _text(record))
                os.fsync(handle)
            except OSError:
                path.unlink(missing_ok=True)
                raise
            finally:
                os.close(handle)
        if set(_leases(folder)) - {*before, path}:  # somebody whom nobody has judged
            path.unlink(missing_ok=True)
            time.sleep(random.random() * RENEW_EVERY / 10)
            continue
        for old in before:
            if not old.is_dir():  # else a person's; only its number counts
                old.unlink(missing_ok=True)
        return Lease(path, record)


def owner_of(folder: Path) -> str:
    """Who trains in a run folder, in words, or "". One look, so another host's process may be dead meanwhile."""
    texts = [text for text in map(_read, _leases(folder)) if not _free(text)]
    return (_describe(texts[-1]) or "another process") if texts else ""


def _require_gone(path: Path) -> None:
    """Return once this lease cannot be used any more; raise NotOwner as soon as it is renewed."""
    first = _read(path)
    if _free(first):
        return
    owner, poll = _describe(first) or "another process", RENEW_EVERY / 5
    print(
        f"{path.parent} was last used by {owner}; looking for up to {STALE_AFTER:g} s whether that still runs",
        file=sys.stderr,
    )
    # Looks are counted, and not seconds: a machine that was paused looks once and not for a minute.
    for _ in range(round(STALE_AFTER / poll)):
        time.sleep(poll)
        now = _read(path)
        if _free(now):
            return
        if now != first:
            raise NotOwner(
                f"The run folder {path.parent} is in use by {_describe(now) or owner}. Stop that process first; for "
                "another run add a label to --train_name."
            )


def _free(text: bytes | None) -> bool:
    """Whether a lease was given back, removed, or left by a process of this machine that is gone."""
    record = _parse(text)
    if text is None or record.get("released"):
        return True
    here = _machine()
    return here is not None and record.get("machine") == here and not _runs(record["pid"], record["started"])


def _runs(pid: int, started: str) -> bool:
    """Whether that very process still runs; its number may be another's by now."""
    if (found := _start_time(pid)) is not None:
        return found == started
    try:
        os.kill(pid, 0)
    except PermissionError:  # another user's process, which /proc may hide (hidepid)
        return True
    except OSError:
        pass
    return False  # gone, or ended and not yet waited for


def _leases(folder: Path) -> list[Path]:
    """The lease files of a run folder by number, the newest last."""
    found = [folder / name for name in os.listdir(folder) if NAME.fullmatch(name)]
    return sorted(found, key=_number)


def _number(path: Path) -> int:
    return int(path.name.partition("-")[2])


def _read(path: Path) -> bytes | None:
    """The file as its server has it (opening asks); None where there is none."""
    try:
        return regular(path).read_bytes()
    except (UserError, OSError):
        return None


def _parse(text: bytes | None) -> dict[str, Any]:
    """The record, empty where it is not whole, as between the creation of the file and the first write."""
    try:
        record = json.loads(text or b"")
        return record if {"token", "host", "pid", "started", "renewed"} <= record.keys() else {}
    except (ValueError, AttributeError, RecursionError):
        return {}


def _describe(text: bytes | None) -> str:
    record = _parse(text)
    return f"process {record['pid']} on {record['host']} (last renewed {record['renewed']})" if record else ""


def _record() -> dict[str, Any]:
    pid = os.getpid()
    owner = {"host": socket.gethostname(), "pid": pid, "started": _start_time(pid), "machine": _machine()}
    return {"token": secrets.token_hex(8), **owner, "renewed": _now(), "renewals": 0, "released": False}


def _start(record: dict[str, Any]) -> bytes:
    """How the file of this owner begins."""
    return json.dumps({"token": record["token"]})[:-1].encode()


def _text(record: dict[str, Any]) -> bytes:
    return (json.dumps(record).ljust(SIZE - 1) + "\n").encode()


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %Z")


def _machine() -> str | None:
    """Of this boot, and of this container where process ids are its own; None without /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _start_time(pid: int) -> str | None:
    """When a process started, in ticks since the boot (field 22 of proc(5)'s stat); None once it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
