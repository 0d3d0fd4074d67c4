"""What every process of a torchrun would say, said once: by the first of a host, and the others stay quiet.

Most errors come before the processes are connected, and some come to one process alone. So they meet in the folder that
torchrun makes on each host for each attempt: whoever makes a file named after the sentence says it. The name tells the
exit code, too, since the others may look before a file is written.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from lit_gpt.utils.launcher import world_size

PREFIX = "said-"


def first_to_say(text: str, code: int) -> bool:
    """Whether no other process of this torchrun has said the same on this host; True without torchrun.

    code: of the process, which ends after it; see `code_said`.
    """
    if (place := _place()) is None:
        return True
    name = f"{PREFIX}{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:32]}-{code}"
    try:
        (place / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:  # no room, or the folder is gone: better twice than never
        return True
    return True


def code_said() -> int | None:
    """The exit code of a process of this torchrun that has said on this host why it ends; None where none has."""
    if (place := _place()) is None:
        return None
    try:
        return next((int(file.name.rpartition("-")[2]) for file in place.glob(f"{PREFIX}*")), None)
    except OSError:
        return None


def _place() -> Path | None:
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # <folder of the attempt>/<local rank>/error.json
    return Path(file).parents[1] if file and world_size() > 1 else None
