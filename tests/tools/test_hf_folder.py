"""What travels with a model: its tokenizer, the ids of its special tokens, its dtype; and the modes of files."""

from __future__ import annotations

import json
import os
import resource
import subprocess

import pytest
import tokenizers
import torch
from llama_models import model_of, small
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from lit_gpt.checkpoint import load_exported
from lit_gpt.config.cli import parse
from lit_gpt.data.kept_tokenizer import KeptTokenizer
from lit_gpt.data.prepare.run import prepare as prepare_data
from lit_gpt.data.tokenizer import train_bpe
from lit_gpt.errors import NotWritten, UserError
from lit_gpt.evals.trained_model import load_meta, load_model
from lit_gpt.preflight.resolved_run import resolve_run
from lit_gpt.scaling.base import Multipliers
from lit_gpt.tools import _hf_folder, convert, generate
from lit_gpt.tools._hf import write_hf
from lit_gpt.train.loop import run_training
from lit_gpt.utils.files import replacing, write_text

TEXT = "Za\u017c\u00f3\u0142\u0107, \u4f60\u597d!  Two  spaces\n\tand a tab.\U0001f600 it's <s> 12345"
LINE = "--train_model transformer --depth 2 --ar 16 --ctx_len 32 --micro_bsz 2 --total_bsz 64 --max_tokens 64"
LINE += " --base_hps.b0 64 --base_hps.warmup_tokens 0 --num_workers 0"


def trained(tmp_path, name: str, *options: str):
    """One step on tmp_path/data; the run folder."""
    line = [*LINE.split(), *options, "--train_name", name, "--train_data_dir", str(tmp_path / "data")]
    resolved = resolve_run(parse([*line, "--out_dir", str(tmp_path / "out")]), 1)
    assert run_training(resolved) == 0
    return resolved.folder


def bpe_with_ends(path) -> None:
    """A byte-level BPE with <s>, </s> and <pad>, which puts <s> in front of texts as Llama's does."""
    train_bpe(iter([TEXT * 3, "the cat sat on the mat. " * 50]), 300, path)
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens(["<s>", "</s>", "<pad>"])
    start = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[start])
    tokenizer.save(str(path))


@pytest.fixture(scope="module", params=["bytes", "json", "json with bos"])
def case(request, tmp_path_factory):
    """(kind, run folder) of a model on data of each kind of tokenizer."""
    tmp_path = tmp_path_factory.mktemp("case")
    (tmp_path / "text").mkdir()
    for i in range(20):
        (tmp_path / "text" / f"{i}.txt").write_text(f"Document {i} says: the cat sat on the mat. " * 5)
    spec = "bytes"
    if request.param != "bytes":
        (tmp_path / "mine").mkdir()
        spec = str(tmp_path / "mine" / "tokenizer.json")
        bpe_with_ends(tmp_path / "mine" / "tokenizer.json")
    prepare_data(
        str(tmp_path / "text"), str(tmp_path / "data"), tokenizer=spec, bos="bos" in request.param, num_workers=1,
        progress=False,
    )  # fmt: skip
    if spec != "bytes":
        (tmp_path / "data" / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<pad>"}))
    return request.param, trained(tmp_path, "run")


def test_the_tokenizer_travels(case, tmp_path):
    """eos_token_id was null and no tokenizer was written; AutoTokenizer now encodes texts as the data was encoded."""
    kind, run = case
    assert convert.main([str(run), str(tmp_path / "hf"), "--to", "hf"]) == 0
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf", local_files_only=True)
    ours, bos_id = generate.tokenizer_of(run, None, load_meta(run))
    text = TEXT.replace("<s>", "")  # theirs reads special tokens in a text, ours does not
    assert theirs(text).input_ids == ([] if bos_id is None else [bos_id]) + ours.encode(text)
    assert theirs.decode(ours.encode(text)) == text
    assert (bos_id is not None) == (kind == "json with bos")
    config = AutoConfig.from_pretrained(tmp_path / "hf", local_files_only=True)
    generation = GenerationConfig.from_pretrained(tmp_path / "hf", local_files_only=True)
    assert ours.eos_id is not None
    assert config.eos_token_id == generation.eos_token_id == theirs.eos_token_id == ours.eos_id
    assert config.bos_token_id == generation.bos_token_id == bos_id
    assert config.pad_token_id == generation.pad_token_id == (None if kind == "bytes" else theirs.pad_token_id)
    assert (theirs.pad_token == "<pad>") == (kind != "bytes")


def test_the_tokenizer_comes_back(case, tmp_path):
    """A Hugging Face folder made into one file generates with its own tokenizer and BOS, from any folder."""
    _, run = case
    convert.main([str(run), str(tmp_path / "hf"), "--to", "hf"])
    convert.main([str(tmp_path / "hf"), str(tmp_path / "back.safetensors")])
    tokenizers_of = [
        generate.tokenizer_of(path, None, load_meta(path)) for path in (run, tmp_path / "back.safetensors")
    ]
    (first, first_bos), (second, second_bos) = tokenizers_of
    assert (first.encode(TEXT), first.eos_id, first_bos) == (second.encode(TEXT), second.eos_id, second_bos)


def test_without_a_tokenizer_a_note_says_so(case, tmp_path, capsys):
    """The ids are null then, and --tokenizer gives them; one of another model is refused."""
    _, run = case
    weights, meta = load_exported(convert.to_file(run, tmp_path / "model.pth"))
    bare = tmp_path / "bare.pth"
    torch.save({"model": weights, "meta": meta | {"tokenizer": None}}, bare)
    convert.main([str(bare), str(tmp_path / "hf"), "--to", "hf"])
    assert "no tokenizer" in capsys.readouterr().err
    assert json.loads((tmp_path / "hf" / "config.json").read_text()).get("eos_token_id") is None
    convert.main([str(bare), str(tmp_path / "given"), "--to", "hf", "--tokenizer", "bytes"])
    assert json.loads((tmp_path / "given" / "config.json").read_text())["eos_token_id"] == 256
    train_bpe(iter(["abc"]), 400, tmp_path / "tokenizer.json")
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.add_tokens([f"word{i}" for i in range(400)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="has ids up to"):
        convert.to_hf(bare, tmp_path / "large", tokenizer=str(tmp_path / "tokenizer.json"))
    assert not (tmp_path / "large").exists()


@pytest.mark.parametrize("name, dtype", [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_the_dtype_is_what_was_asked_for(case, name, dtype, tmp_path):
    """torch_dtype said float32 always, and no other could be asked for."""
    _, run = case
    convert.main([str(run), str(tmp_path / "hf"), "--to", "hf", "--dtype", name])
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == str(dtype).removeprefix("torch.")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", local_files_only=True, dtype="auto")
    assert {p.dtype for p in model.parameters()} == {dtype}
    convert.main([str(run), str(tmp_path / "model.safetensors"), "--dtype", name])
    weights, _ = load_exported(tmp_path / "model.safetensors")
    expected, _ = load_exported(convert.to_file(run, tmp_path / "full.pth"))
    assert all(torch.equal(t, expected[n].to(dtype)) for n, t in weights.items())
    assert load_model(tmp_path / "model.safetensors")[0].wte.weight.dtype == torch.float32


def test_a_number_too_large_for_the_dtype_is_an_error(tmp_path):
    """float16 ends at 65504: an infinite weight would be written in silence."""
    weights = model_of(small()).state_dict()
    weights["norm.weight"] = weights["norm.weight"] + 1e5
    with pytest.raises(UserError, match=r"norm.weight has values up to 1e\+05, but torch.float16 holds"):
        write_hf(weights, small(), Multipliers(), tmp_path / "hf", dtype=torch.float16)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_files_get_the_modes_of_the_umask(case, mask, tmp_path):
    """safetensors makes files that only their owner may read (0600), so a group could not load a shared model."""
    _, run = case
    before = os.umask(mask)
    try:
        convert.main([str(run), str(tmp_path / "hf"), "--to", "hf"])
        convert.main([str(run), str(tmp_path / "a.safetensors")])
        convert.main([str(run), str(tmp_path / "a.pth")])
        write_text(tmp_path / "a.txt", "text")
    finally:
        os.umask(before)
    modes = {p.name: p.stat().st_mode & 0o777 for p in tmp_path.rglob("*")}
    assert len(modes) > 8
    assert modes.pop("hf") == 0o777 & ~mask
    assert modes == dict.fromkeys(modes, 0o666 & ~mask)


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    """And no temporary name."""
    path = tmp_path / "a"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("new")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_to(tmp_path):
    """A traceback, where a full disk already was a sentence."""
    (tmp_path / "file").touch()
    config = small()
    with pytest.raises(NotWritten, match=r"file/below could not be written \(.*Not a directory"):
        write_hf(model_of(config).state_dict(), config, Multipliers(), tmp_path / "file" / "below")


@pytest.mark.parametrize("room", [0, 100, 1000, 8000])
def test_a_full_disk_is_one_sentence_whatever_is_written_then(room, tmp_path):
    """It was a traceback of tokenizers, which has an exception of its own, where the tokenizer met it."""
    config, before = small(vocab_size=257), resource.getrlimit(resource.RLIMIT_FSIZE)
    weights, kept = model_of(config).state_dict(), KeptTokenizer("bytes", "bytes", "", 256)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(NotWritten, match="hf could not be written"):
            write_hf(weights, config, Multipliers(), tmp_path / "hf", kept)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_two_processes_that_write_one_folder_take_nothing_from_each_other(tmp_path, monkeypatch):
    """Both wrote to .tmp-hf, which the second one emptied, and the first one could publish what that had begun."""
    config, inner = small(), _hf_folder.save_file
    weights = model_of(config).state_dict()

    def second(*given, **more):
        monkeypatch.setattr(_hf_folder, "save_file", inner)
        monkeypatch.setattr(os, "getpid", lambda: os.getppid())  # a process that runs
        write_hf(weights, config, Multipliers(), tmp_path / "hf")
        inner(*given, **more)

    monkeypatch.setattr(_hf_folder, "save_file", second)
    with pytest.raises(NotWritten, match="hf could not be written"):
        write_hf(weights, config, Multipliers(), tmp_path / "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    assert {"config.json", "generation_config.json", "model.safetensors"} == {
        p.name for p in (tmp_path / "hf").iterdir()
    }


def test_what_a_killed_process_left_goes_and_what_a_person_has_stays(tmp_path):
    config, gone = small(), subprocess.Popen(["true"])
    gone.wait()
    for name in (f".hf.{gone.pid}.tmp", ".tmp-hf", f".hf.{os.getppid()}.tmp", f".other.{gone.pid}.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    write_hf(model_of(config).state_dict(), config, Multipliers(), tmp_path / "hf")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"hf", ".tmp-hf", f".hf.{os.getppid()}.tmp", f".other.{gone.pid}.tmp"}
