"""--val_data_dir names one folder or several."""

from __future__ import annotations

import os

import pytest

from lit_gpt.config.validation_sets import validation_sets
from lit_gpt.errors import UserError

PLAIN = ("data/mine", "data/lang=en", "./lang=en", "s3://bucket/split=val", "a,b", "/x/a=b,c=d", "a\\b=c")
REFUSED = {
    "web=a,web=b": "two sets are called 'web'",
    "web=": "the set 'web' has no folder",
    "web=a,code=": "the set 'code' has no folder",
    "web=a,b": "'b' has no name",
    "web=a,": "'' has no name",
    "my set=a": "'my set' cannot name a set",
    "=a": "'' cannot name a set",
    "web.en=a": "'web.en' cannot name a set",
    "ema_1B=a": "'ema_1B' cannot name a set",
    "x_ema_1B=a": "'x_ema_1B' cannot name a set",
}


@pytest.mark.parametrize("folder", PLAIN)
def test_a_plain_folder_stays_as_it_is(folder: str) -> None:
    assert validation_sets(folder) == {"": folder}


def test_sets_in_the_order_typed() -> None:
    home = os.path.expanduser("~")
    found = validation_sets("web=data/web,code_2-x=~/code,far=s3://b/k=v")
    assert list(found.items()) == [("web", "data/web"), ("code_2-x", f"{home}/code"), ("far", "s3://b/k=v")]
    assert validation_sets(None) == {}


@pytest.mark.parametrize("given", REFUSED)
def test_what_is_refused(given: str) -> None:
    with pytest.raises(UserError) as raised:
        validation_sets(given)
    assert REFUSED[given] in str(raised.value) and str(raised.value).startswith(f"--val_data_dir {given}: ")


def test_a_folder_whose_name_reads_as_a_set(tmp_path, monkeypatch) -> None:
    """It was taken for the folder after the sign, or said to be missing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "web=x").mkdir()
    with pytest.raises(UserError, match=r"a folder has this name. Type ./web=x for it, or web=./x for a set 'web'"):
        validation_sets("web=x")
    assert validation_sets("./web=x") == {"": "./web=x"} and validation_sets("web=./x") == {"web": "./x"}
