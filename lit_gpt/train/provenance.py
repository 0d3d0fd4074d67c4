"""What ran: command, machine, versions of packages, data, and the source down to changes that are in no commit."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lit_gpt.data.corpus import Corpus
from lit_gpt.utils.launcher import world_size

PACKAGE = re.compile(r"^(Name|Version): *(.+?) *$", re.MULTILINE)  # core metadata of Python packages, PEP 566
PATCH_LIMIT = 1 << 20  # bytes of a patch that are kept: more than a person's changes, less than data that slipped in


def provenance(data: Mapping[str, Corpus | None]) -> tuple[dict[str, Any], bytes]:
    """(the record of what ran, as JSON values; the patch that turns the commit it names into the source that ran).

    The patch is b"" where there is none. data: name -> corpus, whose fingerprints are recorded.
    """
    source, patch = _source()
    return {
        "command": [sys.executable, *sys.argv],
        "folder": os.getcwd(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "world_size": world_size(),
        "cpu_count": os.cpu_count(),
        "packages": _packages(),
        "data": {name: _fingerprints(corpus) for name, corpus in data.items() if corpus is not None},
        "git": source,
    }, patch


@functools.cache
def _packages() -> dict[str, str]:
    """Name -> version of every installed distribution.

    distribution.name and .version parse the readme below these lines, too, which takes ten times as long.
    """
    files = ((d.read_text("METADATA") or d.read_text("PKG-INFO") or "") for d in importlib.metadata.distributions())
    heads = (dict(PACKAGE.findall(text.partition("\n\n")[0])) for text in files)
    found = {head["Name"]: head["Version"] for head in heads if {"Name", "Version"} <= head.keys()}
    return {name: found[name] for name in sorted(found, key=str.lower)}


def _fingerprints(corpus: Corpus) -> dict[str, Any]:
    """Of a corpus (see data/corpus.py) and of each of its sources."""
    sources = {s.name: {"tokens": s.stream.num_tokens, "files": s.stream.fingerprint} for s in corpus.sources}
    return {"order": corpus.fingerprint, "content": corpus.content, "sources": sources}


def _source() -> tuple[dict[str, Any] | None, bytes]:
    """Commit, changed files and name of the patch; None outside a checkout of git."""
    here = Path(__file__).resolve().parent
    try:
        root = _git(here, "rev-parse", "--show-toplevel").decode().strip()
        commit, changed = (_git(root, *words).decode() for words in (["rev-parse", "HEAD"], ["diff", "HEAD", "--stat"]))
        patch, untracked = _patch(root)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None, b""
    source = {"commit": commit.strip(), "changed": changed.splitlines(), "untracked": untracked}
    kept = patch[:PATCH_LIMIT]
    if len(patch) > len(kept):
        kept += f"\n# Cut here: the patch has {len(patch):,} bytes.\n".encode()
    return source | {"patch": patch_name(kept), "patch_cut": len(patch) > PATCH_LIMIT}, kept


def patch_name(patch: bytes) -> str | None:
    """By what is in it, so that a run that goes on with other sources keeps each patch."""
    return f"patch-{hashlib.sha256(patch).hexdigest()[:12]}.diff" if patch else None


def _patch(root: str) -> tuple[bytes, list[str]]:
    """(the patch from the commit to the working tree, without binary files; the new Python files, which it adds)."""
    listed = _git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", "*.py").decode()
    untracked = [name for name in listed.split("\0") if name]
    patch = _git(root, "diff", "--no-ext-diff", "--no-color", "HEAD")
    for name in untracked:
        if len(patch) > PATCH_LIMIT:
            break
        patch += _git(
            root, "diff", "--no-ext-diff", "--no-color", "--no-index", "--", "/dev/null", name, may_differ=True
        )
    return patch, untracked


def _git(folder: Path | str, *words: str, may_differ: bool = False) -> bytes:
    """What git prints. may_differ: code 1 says that it found a difference."""
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, timeout=60)
    if done.returncode not in ((0, 1) if may_differ else (0,)):
        raise subprocess.CalledProcessError(done.returncode, done.args)
    return done.stdout
