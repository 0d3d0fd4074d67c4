"""--val_data_dir: one folder, or several with names, web=data/web,code=data/code."""

from __future__ import annotations

import os
import re

from lit_gpt.errors import UserError

# What stands before the first "=" of a value with names. A path with folders in it, such as data/lang=en, has none.
NAMED = re.compile(r"[^/\\]*=")
NAME = re.compile(r"[A-Za-z0-9_-]+")
# metric/val_loss_ema_1B@1x is the loss of an average of the weights, and of no set.
OF_AVERAGES = re.compile(r"(^|_)ema_")


def validation_sets(given: str | None) -> dict[str, str]:
    """Name -> folder, in the order typed; a folder without a name has the name "". {} for None.

    Raises UserError for a name that is none or is there twice, for an empty path, and for a folder that is called so.
    """
    if not given or not NAMED.match(given):
        return {"": given} if given else {}
    if os.path.isdir(given):
        name, _, folder = given.partition("=")
        raise UserError(
            f"--val_data_dir {given}: a folder has this name. Type ./{given} for it, or {name}=./{folder} for a set "
            f"{name!r} in {folder!r}."
        )
    sets: dict[str, str] = {}
    for part in given.split(","):
        name, equals, folder = part.partition("=")
        if not equals:
            raise UserError(f"--val_data_dir {given}: {part!r} has no name; type name=path for every set.")
        if not NAME.fullmatch(name) or OF_AVERAGES.search(name):
            raise UserError(
                f"--val_data_dir {given}: {name!r} cannot name a set; use letters, digits, - and _, and no ema_, which "
                "names averages of the weights. A folder with = in its own name is typed as ./NAME."
            )
        if name in sets:
            raise UserError(f"--val_data_dir {given}: two sets are called {name!r}; give each a name of its own.")
        if not folder:
            raise UserError(f"--val_data_dir {given}: the set {name!r} has no folder; type {name}=path.")
        sets[name] = os.path.expanduser(folder)
    return sets
