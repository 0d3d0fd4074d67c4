"""Generation against the plainest loop there is, and sampling against its distribution."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from lit_gpt.checkpoint import load_full, write_exported
from lit_gpt.config.model import Experts, LayerSpec, ModelConfig
from lit_gpt.data.kept_tokenizer import KeptTokenizer, describe_tokenizer, keep_tokenizer, read_kept
from lit_gpt.data.meta import write_json
from lit_gpt.data.tokenizer import ByteTokenizer, train_bpe
from lit_gpt.errors import UserError
from lit_gpt.evals.generation import Sampling, generate, sample, stream
from lit_gpt.evals.trained_model import load_model
from lit_gpt.model import GPT
from lit_gpt.tools import generate as tool

CHOICE = Experts(2, 2, routing="expert_choice", aux_gamma=0.0)
META = {"version": 1, "tokenizer": {"kind": "json", "name": "mine"}, "eos_id": 0, "bos_id": 7, "vocab_size": 260}
PROMPTS = [[68, 111, 99], [116, 104, 101, 32, 99], [1, 2, 3], [9]]


@pytest.fixture(scope="module")
def model(run_folder):
    """Windowed and full attention, muP multipliers, tied; branches so large that context matters."""
    model, _ = load_model(run_folder)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2 and p is not model.wte.weight:
                p.copy_(torch.randn(p.shape, generator=generator))
    return model


@torch.no_grad()
def naive(model, prompt: list[int], count: int) -> list[int]:
    """Greedy decoding by a full forward pass per token."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def test_cached_greedy_is_the_argmax_of_full_passes(model):
    expected = [naive(model, p, 20) for p in PROMPTS]
    assert all(len(set(tokens)) > 10 for tokens in expected), "a model that repeats itself tests nothing"
    assert generate(model, PROMPTS, 20) == expected
    assert generate(model, PROMPTS, 20, batch_size=1) == expected


def test_a_stop_token_ends_its_row_only(model):
    full = generate(model, PROMPTS, 12)
    stop = full[0][4]
    expected = [t[: t.index(stop)] if stop in t else t for t in full]
    assert generate(model, PROMPTS, 12, stop=stop) == expected
    rows = torch.stack(list(stream(model, torch.tensor(PROMPTS[:1]), 12, stop=stop)), dim=1)
    assert rows.shape[1] == full[0].index(stop) + 1, "nothing is computed after the last row has ended"


def test_experts_that_choose_tokens_need_whole_rows():
    config = ModelConfig("test", 1, 32, 1, 32, 1, 64, (LayerSpec(experts=True),), experts=CHOICE, vocab_size=64)
    with pytest.raises(UserError, match="cannot generate"):
        generate(GPT(config), PROMPTS, 2)


def test_draws_depend_on_the_seed_not_on_the_batch(model):
    sampling = Sampling(temperature=1.5)
    together = generate(model, PROMPTS, 10, sampling, seed=3)
    alone = [generate(model, [p], 10, sampling, seed=3 + i)[0] for i, p in enumerate(PROMPTS)]
    assert together == alone
    assert together != generate(model, PROMPTS, 10, sampling, seed=9)


def test_top_k_of_one_is_greedy(model):
    assert generate(model, PROMPTS, 8, Sampling(5.0, top_k=1)) == generate(model, PROMPTS, 8)


@pytest.mark.parametrize(
    "sampling, expected",
    [
        (Sampling(1.0), [0.1, 0.4, 0.2, 0.3]),
        (Sampling(0.5), [1 / 30, 16 / 30, 4 / 30, 9 / 30]),
        (Sampling(1.0, top_k=2), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(1.0, top_p=0.65), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(1.0, top_p=0.75), [0, 4 / 9, 2 / 9, 3 / 9]),
        (Sampling(1.0, top_k=3, top_p=0.8), [0, 4 / 9, 2 / 9, 3 / 9]),
        (Sampling(1.0, top_k=3, top_p=0.75), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(1.0, top_p=1.0), [0.1, 0.4, 0.2, 0.3]),
    ],
)
def test_sampled_tokens_have_their_probabilities(sampling, expected):
    """Over an even grid of the uniform number the shares are exact; worked out by hand."""
    count = 9_000
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log().expand(count, -1)
    tokens = sample(logits, (torch.arange(count) + 0.5) / count, sampling)
    shares = torch.bincount(tokens, minlength=4) / count
    torch.testing.assert_close(shares, torch.tensor(expected), rtol=0, atol=3e-4)


def test_the_largest_uniform_number_draws_a_token_that_is_allowed():
    logits = torch.tensor([[2.0, 1.0, 0.0] + [-100.0] * 50])
    almost_one = torch.tensor([1 - 2**-24])
    assert sample(logits, almost_one, Sampling(1.0, top_k=2)).item() == 1


@pytest.mark.parametrize("temperature", [1e-45, 1e-320, 1e-38, 1e-10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_very_low_temperature_is_greedy(temperature, dtype):
    """Logits over 1e-45 are infinite, and softmax of those is NaN: the draw ended in an IndexError."""
    logits = torch.tensor([[3.0, 9.0, 8.999, -4.0], [1e4, -1e4, 0.0, 9.9e3]], dtype=dtype)
    for uniform in (0.0, 0.5, 1 - 2**-24):
        drawn = sample(logits, torch.full((2,), uniform), Sampling(temperature, top_k=3, top_p=0.9))
        assert drawn.tolist() == [1, 0]


def test_the_whole_vocabulary_may_be_asked_for(model):
    """top_k above the vocabulary and top_p 1 leave every token, as no limit does."""
    free = generate(model, PROMPTS, 8, Sampling(1.0), seed=1)
    assert generate(model, PROMPTS, 8, Sampling(1.0, top_k=10**9, top_p=1.0), seed=1) == free


def test_no_new_tokens_are_none(model, run_folder, capsys):
    """--max_new_tokens 0 was an error, and generate(..., 0) a crash of torch.stack."""
    assert generate(model, PROMPTS, 0) == [[] for _ in PROMPTS]
    assert generate(model, [], 5) == []
    assert tool.main([str(run_folder), "--prompt", "x", "--max_new_tokens", "0"]) == 0
    assert capsys.readouterr().out == "\n"
    with pytest.raises(UserError, match="give 0 or more"):
        tool.main([str(run_folder), "--prompt", "x", "--max_new_tokens", "-1"])


def test_a_prompt_longer_than_the_context_is_continued_and_noted(model, run_folder, capsys):
    """RoPE has no end, so it works, but the model has never been trained there: say so."""
    long = [i * 7 % 251 for i in range(40)]
    assert generate(model, [long], 6) == [naive(model, long, 6)]
    tool.main([str(run_folder), "--prompt", "x" * 40, "--max_new_tokens", "2"])
    assert "40 + 2 tokens are more than the 32 of the training context" in capsys.readouterr().err


def test_a_repeated_prompt_gets_draws_of_its_own(run_folder, capsys, monkeypatch):
    """Every line of stdin used the same seed, unlike generate(), so a prompt given again gave the same text again."""
    monkeypatch.setattr("sys.stdin", io.StringIO("the cat\nthe cat\n"))
    assert tool.main([str(run_folder), "--max_new_tokens", "20", "--temperature", "2", "--seed", "5"]) == 0
    model, _ = load_model(run_folder)
    drawn = generate(model, [list(b"the cat")] * 2, 20, Sampling(2.0), seed=5, stop=256)
    assert drawn[0] != drawn[1]
    assert capsys.readouterr().out == "".join(bytes(t).decode(errors="replace") + "\n" for t in drawn)


@torch.no_grad()
def test_logits_that_are_no_numbers_are_an_error(run_folder):
    """The argmax of NaN is a token like any other: text of a diverged model came out as if nothing was wrong."""
    model, _ = load_model(run_folder)
    model.norm.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="not numbers"):
        generate(model, PROMPTS, 2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.5},
    ],
)
def test_sampling_that_means_nothing_is_a_user_error(wrong):
    with pytest.raises(UserError):
        Sampling(**wrong)


def test_an_empty_prompt_is_a_user_error(model):
    with pytest.raises(UserError, match="Prompt 1 is empty"):
        generate(model, [[1], []], 5)


def test_every_form_loads_the_same_model(run_folder, tmp_path):
    newest = run_folder / "checkpoints" / "step-000004"
    exported = [write_exported(*load_full(newest), tmp_path / f"m.{suffix}") for suffix in ("pth", "safetensors")]
    forms = [run_folder, newest, *exported]
    x = torch.tensor([PROMPTS[1]])
    logits = []
    for form in forms:
        loaded, meta = load_model(form)
        assert (meta["step"], loaded.config.vocab_size, loaded.training) == (4, 257, False)
        assert loaded.multipliers.residual == pytest.approx(8**-0.5)
        with torch.no_grad():
            logits.append(loaded(x).logits)
    assert all(torch.equal(logits[0], other) for other in logits)
    older, _ = load_model(run_folder / "checkpoints" / "step-000002")
    assert not torch.equal(older.wte.weight, loaded.wte.weight)


def test_a_path_without_a_model_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_model(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"no complete checkpoint\. Give"):
        load_model(tmp_path)


def test_the_folder_above_a_run_leads_to_it(run_folder):
    """Somebody who gave --out_dir gives it here, too."""
    with pytest.raises(UserError, match=f"Did you mean {run_folder}"):
        load_model(run_folder.parent)


def test_the_command_continues_a_prompt(run_folder, capsys):
    line = [str(run_folder), "--prompt", "Document ", "--max_new_tokens", "12", "--temperature", "0"]
    assert tool.main(line) == 0
    model, _ = load_model(run_folder)
    expected = bytes(generate(model, [list(b"Document ")], 12, stop=256)[0]).decode(errors="replace")
    assert capsys.readouterr().out == expected + "\n"


def test_the_command_reads_prompts_from_stdin(run_folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("the cat\n\nsat\n"))
    path = str(run_folder / "checkpoints" / "step-000002")
    assert tool.main([path, "--max_new_tokens", "1", "--tokenizer", "bytes", "--top_k", "1"]) == 0
    model, _ = load_model(run_folder / "checkpoints" / "step-000002")
    tokens = generate(model, [list(b"the cat"), list(b"sat")], 1, stop=256)
    assert capsys.readouterr().out == "".join(bytes(t).decode(errors="replace") + "\n" for t in tokens)


def test_characters_wait_for_all_their_bytes(monkeypatch):
    """A stream of UTF-8 bytes is cut into whole characters; what never ends shows in the end."""
    text = "a\u00e9\u20ac".encode() + b"\xe2"
    monkeypatch.setattr(tool, "stream", lambda *a, **k: iter(torch.tensor(list(text))[:, None]))
    model = type("M", (), {"config": type("C", (), {"vocab_size": 257}), "head_weight": lambda self: torch.zeros(1)})()
    found = list(tool.pieces(model, ByteTokenizer(), [120], 9, Sampling(), 0))
    assert found == ["a", "\u00e9", "\u20ac", "\ufffd"]


def test_a_model_without_a_tokenizer_is_a_user_error(run_folder, tmp_path):
    weights, meta = load_full(run_folder / "checkpoints" / "step-000004")
    gone = {"kind": "json", "name": "mine", "source": str(tmp_path / "gone")}
    for tokenizer, words in ((None, "Give --tokenizer bytes"), (gone, "no longer at .*gone. Give --tokenizer")):
        path = write_exported(weights, meta | {"tokenizer": tokenizer}, tmp_path / "m.pth")
        with pytest.raises(UserError, match=words):
            tool.main([str(path), "--prompt", "x"])


@pytest.fixture
def old_run(run_folder, tmp_path):
    """The run as older versions left it: data named relative to the folder that it was started in, nothing kept."""
    project = tmp_path / "project"
    folder = project / "out" / run_folder.name
    shutil.copytree(run_folder, folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    shutil.copytree(config["train_data_dir"], project / "data")
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"train_data_dir": "data", "out_dir": "out"}))
    shutil.rmtree(folder / "tokenizer")
    for meta in folder.glob("checkpoints/*/meta.json"):
        meta.write_text(json.dumps({k: v for k, v in json.loads(meta.read_text()).items() if k != "tokenizer"}))
        (meta.parent / "SHA256SUMS").unlink()
        (meta.parent / "COMPLETE").write_text(str(meta.stat().st_mtime_ns))
    return folder


@pytest.mark.parametrize("here", ["elsewhere", "project", "project/out"])
def test_old_runs_find_their_tokenizer_from_any_directory(here, old_run, tmp_path, monkeypatch):
    """--train_data_dir data was looked for in the working directory of generate, not in that of the run."""
    (tmp_path / here).mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / here)
    for path in (old_run, old_run / "checkpoints" / "step-000004"):
        path = Path(os.path.relpath(path))
        assert tool.main([str(path), "--prompt", "the", "--max_new_tokens", "2"]) == 0


def test_a_run_keeps_its_tokenizer(run_folder, tmp_path, monkeypatch):
    """Moved away from its data, and as an exported file on its own, a model still generates."""
    monkeypatch.chdir(tmp_path)
    moved = shutil.copytree(run_folder, tmp_path / "moved")
    config = yaml.safe_load((moved / "config.yaml").read_text())
    (moved / "config.yaml").write_text(yaml.safe_dump(config | {"train_data_dir": "gone"}))
    exported = write_exported(*load_full(run_folder / "checkpoints" / "step-000004"), tmp_path / "m.safetensors")
    for path in (moved, exported):
        assert tool.main([str(path), "--prompt", "the", "--max_new_tokens", "2"]) == 0


def test_a_kept_tokenizer_is_a_copy_of_the_data_s(tmp_path):
    """Its files byte for byte, whole or as the first source of a mixture; a run without one keeps nothing."""
    root = tmp_path / "root"
    (root / "web" / "train").mkdir(parents=True)
    train_bpe(iter(["the cat sat"]), 260, root / "web" / "tokenizer.json")
    write_json(root / "web" / "meta.json", META)
    (root / "web" / "train" / "train_0.bin").write_bytes(b"")
    (root / "mix.json").write_text(json.dumps({"web/train": 1.0}))
    kept = describe_tokenizer(str(root), str(root / "mix.json"))
    assert kept == KeptTokenizer("json", "mine", str(root / "web"), 0, 7)
    copy = keep_tokenizer(kept, tmp_path / "run")
    assert copy == read_kept(Path(copy.source)) == KeptTokenizer("json", "mine", copy.source, 0, 7)
    assert (Path(copy.source) / "tokenizer.json").read_bytes() == (root / "web" / "tokenizer.json").read_bytes()
    assert describe_tokenizer(str(root), str(root / "mix.json"), eos_id=9).eos_id == 9
    (root / "web" / "train" / "train_0.bin").unlink()
    assert describe_tokenizer(str(root)).kind == "bytes", "a folder without shards is plain text, read as bytes"
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "train.bin").write_bytes(b"00")
    assert describe_tokenizer(str(tmp_path / "bare")) is None


def test_bos_stands_before_the_prompt_where_it_stood_in_the_data(run_folder, tmp_path, capsys):
    """Prompts were encoded bare, though every document of the data had begun with BOS; an empty prompt is one now."""
    weights, meta = load_full(run_folder / "checkpoints" / "step-000004")
    kept = meta["tokenizer"]
    assert kept["bos_id"] is None
    with pytest.raises(UserError, match="prompt is empty"):
        tool.main([str(run_folder), "--prompt", ""])
    path = write_exported(weights, meta | {"tokenizer": kept | {"bos_id": 1}}, tmp_path / "m.pth")
    model, _ = load_model(path)
    for text in ("the cat", ""):
        for more in ([], ["--tokenizer", "bytes"]):
            assert tool.main([str(path), "--prompt", text, "--max_new_tokens", "9", "--temperature", "0", *more]) == 0
            expected = generate(model, [[1, *text.encode()]], 9, stop=256)[0]
            assert capsys.readouterr().out == bytes(expected).decode(errors="replace") + "\n"


def test_a_prompt_that_is_no_text_is_a_user_error(run_folder):
    """The shell passes bytes that are not UTF-8 as lone surrogates."""
    with pytest.raises(UserError, match="not UTF-8"):
        tool.main([str(run_folder), "--prompt", "a\udcff"])
