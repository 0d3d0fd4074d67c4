"""scripts/prepare_text.py as people type it."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from prepared_texts import contents, texts, write_folder

from lit_gpt.config.command import exit_code
from lit_gpt.data import documents
from lit_gpt.data.prepare import prepare, run
from lit_gpt.errors import EXIT_NOT_WRITTEN

ROOT = Path(__file__).parents[2]
SCRIPT = runpy.run_path(str(ROOT / "scripts/prepare_text.py"))


def test_command_line(tmp_path):
    source = write_folder(tmp_path / "src", texts(10))
    (tmp_path / "src/notes.log").write_text("not this one")
    command = [sys.executable, str(ROOT / "scripts/prepare_text.py"), "--source", source, "--num_workers", "2"]
    command += ["--include", "*.txt", "--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "EOS id 256" in done.stdout
    splits = json.loads((tmp_path / "out/meta.json").read_text())["splits"]
    assert sum(n["documents"] for n in splits.values()) == 10
    bad = subprocess.run([*command, "--recipe", "x"], capture_output=True, text=True)
    assert bad.returncode == 2 and bad.stderr.startswith("error: Unknown recipe") and "Traceback" not in bad.stderr


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--input_dir a --output_dir=b", "--source a --output=b"),
        ("--source a b --output c", '--source ["a", "b"] --output c'),
        ("--source a --output c --input_dir b", '--output c --source ["a", "b"]'),
        ("--source=a --source=[b].txt", '--source ["a", "[b].txt"]'),
        ('--source ["a","b"] --include *.py *.md', '--source ["a","b"] --include ["*.py", "*.md"]'),
        ("--source a --strict --output b", "--source a --strict true --output b"),
        ("--source a --output b --bos", "--source a --output b --bos true"),
        ("--help", "--help"),
    ],
)
def test_aliases_and_several_values(typed, meant):
    """Two folders after --source were an error, and of two --source only the last was read."""
    assert " ".join(SCRIPT["arguments"](typed.split())).replace("=", " ") == meant.replace("=", " ")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("--sorce {src} --output {out}", "unrecognized arguments: --sorce {src}. Did you mean '--source'"),
        ("--source {src}", "these options are needed: --output."),
        ("--source --output {out}", "--source needs a value"),
        ("--source {src} --output {out} --shard_tokens 1.5", "--shard_tokens cannot be '1.5'; give a whole number."),
        ("--source {src} --output {out} --strict maybe", "--strict cannot be 'maybe'; give true or false."),
        ("--source {src} --output {src}/000.txt", "000.txt is a file. Give another --output."),
        ("--source {src} --output {src}/000.txt/new", "000.txt is a file. Give another --output."),
        ("--source {src} --output {out}/" + "a" * 300, "File name too long"),
        ("--source " + "a" * 300 + " --output {out}", "File name too long"),
    ],
)
def test_a_bad_command_line_is_one_sentence(tmp_path, capsys, typed, message):
    """These were a page of usage, or a traceback."""
    names = {"src": write_folder(tmp_path / "src", texts(3)), "out": str(tmp_path / "out")}
    assert exit_code(SCRIPT["main"], [word.format(**names) for word in typed.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message.format(**names) in error


def test_a_full_disk_is_one_sentence_and_the_same_command_goes_on(tmp_path):
    """It was a traceback of NumPy's."""
    source = write_folder(tmp_path / "src", ["some words " * 3000])
    words = ["--source", source, "--output", str(tmp_path / "out"), "--num_workers", "1", "--progress", "false"]
    start = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2); "
    start += "sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", start]
    script = str(ROOT / "scripts/prepare_text.py")
    full = subprocess.run([*command, "20000", script, *words], capture_output=True, text=True)
    assert full.returncode == EXIT_NOT_WRITTEN and full.stderr.startswith("error: ") and full.stderr.count("\n") == 1
    assert f"error: {tmp_path / 'out'}: File too large. Make room" in full.stderr
    assert not list((tmp_path / "out").glob("*.bin"))
    assert subprocess.run([*command, "1000000", script, *words], capture_output=True).returncode == 0
    assert prepare(source, str(tmp_path / "whole"), num_workers=1, progress=False)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_the_end_says_where_the_shards_are_and_what_trains_on_them(tmp_path, capsys):
    """It ended with a table; a vocabulary smaller than the one that was asked for was not mentioned."""
    out, words = tmp_path / "my data", ["--num_workers", "1", "--progress", "false", "--tokenizer", "train"]
    words = ["--source", write_folder(tmp_path / "src", texts(10)), "--output", str(out), *words]
    assert exit_code(SCRIPT["main"], words) == 0
    shown = capsys.readouterr().out
    assert f"written to {out}; train on it" in shown and "smaller than --vocab_size 32000" in shown
    assert f"python pretrain.py --train_data_dir '{out}' --val_data_dir '{out}' --config configs/laptop.yaml" in shown


def test_command_line_with_aliases_and_a_summary_of_what_was_left_out(tmp_path, capsys):
    def call(*words):
        code = exit_code(SCRIPT["main"], ["--num_workers", "1", "--progress", "false", *words])
        return code, *capsys.readouterr()

    sources = [write_folder(tmp_path / name, texts(3)) for name in ("one", "two")]
    (tmp_path / "two/x.csv").write_text("1,2")
    (tmp_path / "two/a.jsonl").write_bytes(b'{"text": "caf\xe9"}\n{"text": null}\n')
    code, out, _ = call("--input_dir", *sources, "--output_dir", str(tmp_path / "out"))
    assert code == 0
    assert "1 file left out: suffix .csv, which only --include takes (x.csv)" in out
    assert "1 record left out: its field text is null (two/a.jsonl, line 2)" in out
    assert "1 undecodable byte became U+FFFD: not UTF-8 (two/a.jsonl, line 1)" in out
    (tmp_path / "void").mkdir()
    (tmp_path / "void/a.txt").write_text("")
    code, out, error = call("--source", str(tmp_path / "void"), "--output", str(tmp_path / "no"))
    assert code == 2 and error.count("\n") == 1 and "empty (a.txt)" in error
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("tokenizer", ["char", "train"])
def test_everything_that_may_take_long_has_a_bar(tmp_path, capsys, monkeypatch, tokenizer):
    """To look at many files, to compare them and to make a tokenizer went on for minutes without a sign."""
    source = write_folder(tmp_path / "src", texts(10))
    for module in (documents, run):
        monkeypatch.setattr(module, "DELAY", 0)
    prepare(source, str(tmp_path / "out"), tokenizer, vocab_size=300, num_workers=1)
    shown = capsys.readouterr().err
    steps = ["find", "compare", *["char"] * (tokenizer == "char"), "prepare"]
    assert [word for word in ("find", "compare", "char", "prepare") if f"{word}: " in shown] == steps
    assert re.search(r"compare: 100%.* 10/10", shown)
    prepare(source, str(tmp_path / "quiet"), tokenizer, vocab_size=300, num_workers=1, progress=False)
    assert not capsys.readouterr().err
