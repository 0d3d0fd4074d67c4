"""Files of a data set on the Hugging Face Hub: listed, downloaded from where the last call stopped, and verified."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_gpt.data.tokenizer import TOKENIZER_FILES, find_tokenizer
from lit_gpt.errors import NotInstalled, NotWritten, UserError
from lit_gpt.utils.files import NO_ROOM

TIMEOUT = 10  # seconds until a server that says nothing counts as out of reach
PARTIAL = ".partial"  # behind the name of a file that is not complete
CLIENTS = (
    "requests",
    "httpx",
    "httpx2",
    "httpcore",
    "httpcore2",
)  # of huggingface_hub, which lets their errors through


@dataclass(frozen=True)
class HubFile:
    """A file of a repository. checksum: its SHA-256, or for a file that git itself holds, the SHA-1 of the git blob."""

    path: str
    size: int
    checksum: str

    def checksum_of(self, path: Path) -> str:
        """The checksum, of the same kind, of a file on this machine."""
        if len(self.checksum) == 40:
            digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
        else:
            digest = hashlib.sha256()
        with open(path, "rb") as f:
            while data := f.read(1 << 20):
                digest.update(data)
        return digest.hexdigest()


class Hub:
    """One revision of a dataset repository. HF_ENDPOINT and HF_TOKEN (or `hf auth login`) are honoured."""

    def __init__(self, repo: str, revision: str):
        self.repo, self.revision, self.api = repo, revision, _library().HfApi()

    def commit(self) -> str:
        """The commit that the revision names."""
        with self._explained("the revision"):
            return self.api.dataset_info(self.repo, revision=self.revision, expand=["sha"], timeout=TIMEOUT).sha

    def files(self, folder: str) -> list[HubFile]:
        """Every file below a folder, by name. Raises UserError for all that can go wrong on the way."""
        with self._explained(f"folder {folder!r}"):
            entries = self.api.list_repo_tree(
                self.repo, folder, recursive=True, revision=self.revision, repo_type="dataset"
            )
            found = [e for e in entries if hasattr(e, "blob_id")]  # the others are folders
        files = [HubFile(e.path, e.size, e.lfs.sha256 if e.lfs else e.blob_id) for e in found]
        return sorted(files, key=lambda f: f.path)

    def download(self, file: HubFile, folder: Path) -> Path:
        """The file below `folder`, verified; what is there already of it is kept when it is good.

        Raises UserError when it cannot be had, NotWritten when it cannot be stored.
        """
        path = folder / file.path
        for _ in range(2):  # a damaged file, or a damaged start of one, is thrown away and fetched once more
            if not path.is_file():
                self._complete(file, path)
            if file.checksum_of(path) == file.checksum:
                return path
            path.unlink()
        raise UserError(
            f"{self.repo}/{file.path} came twice with another checksum than {self.api.endpoint} lists, so what is sent "
            "is damaged on its way. Try another network, or another HF_ENDPOINT; what is finished is kept."
        )

    def _complete(self, file: HubFile, path: Path) -> None:
        """Fetch what is missing behind the end of what came before, and give it its name.

        The library's own functions begin a file again when the process was killed (as of huggingface_hub 2.4), and
        not every version goes on by itself when a connection is cut.
        """
        partial = path.with_name(path.name + PARTIAL)
        with self._explained(file.path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if partial.exists() and partial.stat().st_size > file.size:
                partial.unlink()
            while not self._more(file, partial):
                pass
            os.replace(partial, path)

    def _more(self, file: HubFile, partial: Path) -> bool:
        """Fetch to the end: True; or something of it: False. Raises the library's error when nothing more came."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        where = {"repo_type": "dataset", "revision": self.revision, "endpoint": self.api.endpoint}
        with open(partial, "ab") as f:
            start = f.tell()
            try:
                http_get(
                    hf_hub_url(self.repo, file.path, **where),
                    f,
                    resume_size=start,
                    headers=build_hf_headers(),
                    expected_size=file.size,
                    displayed_filename=os.path.basename(file.path),
                )
            except Exception:
                if f.tell() <= start:
                    raise
                return False
        return True

    def _explained(self, what: str) -> AbstractContextManager[None]:
        return explained(self.repo, what, self.revision, f"{self.api.endpoint}/datasets/{self.repo}")


@contextmanager
def explained(repo: str, what: str, revision: str, page: str) -> Iterator[None]:
    """Turn what the library raises, while it gets something of a repository, into a UserError.

    page: the repository's address.
    """
    errors = _library().errors
    try:
        yield
    except errors.GatedRepoError as e:
        raise UserError(
            f"{repo} is gated: accept its terms at {page}, then type `hf auth login`, or set HF_TOKEN to a token of "
            "that account."
        ) from e
    except errors.RepositoryNotFoundError as e:
        raise UserError(
            f"There is nothing at {page}, or not for you. If it is private or gated, type `hf auth login`, or set "
            "HF_TOKEN."
        ) from e
    except errors.RevisionNotFoundError as e:
        raise UserError(f"{repo} has no revision {revision!r}. Type --revision main for the newest one.") from e
    except errors.LocalEntryNotFoundError as e:  # an EntryNotFoundError, too
        raise _unreachable(what, page, e) from e
    except errors.EntryNotFoundError as e:
        raise UserError(f"{repo} has no {what} in revision {revision}. Look at {page}/tree/{revision}.") from e
    except errors.HfHubHTTPError as e:
        raise UserError(f"{page} refuses {what}: {_first_line(e)}. Try again later; what has come is kept.") from e
    except OSError as e:
        if e.errno and (e.filename or e.errno in NO_ROOM):
            raise NotWritten(
                f"{what} cannot be stored ({e.strerror}). Make room or permit it; the rest is kept."
            ) from e
        raise _unreachable(what, page, e) from e
    except Exception as e:
        if type(e).__module__.split(".")[0] not in CLIENTS:
            raise
        raise _unreachable(what, page, e) from e


def _unreachable(what: str, page: str, error: Exception) -> UserError:
    return UserError(
        f"Cannot get {what} from {page} ({type(error).__name__}: {_first_line(error)}). Type the same command where "
        "there is a network, or set HF_ENDPOINT to a mirror; what has come is kept."
    )


def fetch_tokenizer(spec: str) -> None:
    """Put a tokenizer that is named as on the Hub, such as gpt2, into the local Hugging Face cache.

    Does nothing where one of that name is found already. Raises UserError when it cannot be had.
    """
    if find_tokenizer(spec) or Path(spec).expanduser().exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", spec):
        return
    library = _library()
    api = library.HfApi()
    with explained(spec, "tokenizer.json", "main", f"{api.endpoint}/{spec}"):
        api.hf_hub_download(spec, TOKENIZER_FILES[0])
        with suppress(library.errors.EntryNotFoundError):
            api.hf_hub_download(spec, TOKENIZER_FILES[1])


def _library() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors

        return huggingface_hub
    except ImportError as e:
        raise NotInstalled("Downloading needs the package huggingface_hub: pip install 'scalelab[data]'.") from e


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".") or "no reason given"
