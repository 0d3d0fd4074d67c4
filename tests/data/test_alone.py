"""Several processes that prepare one folder."""

from __future__ import annotations

import json

import pytest
from prepared_texts import contents, texts, write_folder

from lit_gpt.data.prepare import prepare, run
from lit_gpt.errors import UserError


def test_two_processes_that_prepare_one_folder(tmp_path, monkeypatch):
    """As srun starts them: both wrote into the same shards, and the first that ended removed what the other was at."""
    source, said = write_folder(tmp_path / "src", texts(10)), []
    read = run.encode_unit

    def beside_another(*given):
        with pytest.raises(UserError, match=r"/out' is being prepared by another process. Wait for its end") as told:
            prepare(source, str(tmp_path / "out"), num_workers=1, progress=False)
        said.append(told)
        return read(*given)

    monkeypatch.setattr(run, "encode_unit", beside_another)
    prepare(source, str(tmp_path / "out"), num_workers=1, progress=False)
    assert said
    monkeypatch.setattr(run, "encode_unit", read)
    prepare(source, str(tmp_path / "alone"), num_workers=1, progress=False)
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


def test_a_preparation_that_another_process_finished_meanwhile(tmp_path, monkeypatch):
    """Between the first look at the folder and the lock."""
    source = write_folder(tmp_path / "src", texts(10))
    made = run.make_splitter

    def after_another(*given):
        monkeypatch.setattr(run, "make_splitter", made)
        prepare(source, str(tmp_path / "out"), num_workers=1, progress=False)
        return made(*given)

    monkeypatch.setattr(run, "make_splitter", after_another)
    meta = prepare(source, str(tmp_path / "out"), num_workers=1, progress=False)
    assert meta == json.loads((tmp_path / "out/meta.json").read_text()) and not (tmp_path / "out/.parts").exists()
