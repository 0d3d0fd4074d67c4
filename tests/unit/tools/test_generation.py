"""Generation against the plainest loop there is, and sampling against its distribution."""

from __future__ import annotations

import io

import pytest
import torch

from lit_gpt.checkpoint import export
from lit_gpt.config.model import Experts, LayerSpec, ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.evals.generation import Sampling, generate, sample, stream
from lit_gpt.evals.load import load_model
from lit_gpt.model import GPT
from lit_gpt.tools import generate as tool

CHOICE = Experts(2, 2, routing="expert_choice", aux_gamma=0.0)
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
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
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


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_sampling_that_means_nothing_is_a_user_error(wrong):
    with pytest.raises(UserError):
        Sampling(**wrong)


def test_an_empty_prompt_is_a_user_error(model):
    with pytest.raises(UserError, match="Prompt 1 is empty"):
        generate(model, [[1], []], 5)


def test_every_form_loads_the_same_model(run_folder, tmp_path):
    newest = run_folder / "checkpoints" / "step-000004"
    forms = [run_folder, newest, export(newest, tmp_path / "m.pth"), export(newest, tmp_path / "m.safetensors")]
    x = torch.tensor([PROMPTS[1]])
    logits = []
    for form in forms:
        loaded, meta = load_model(form)
        assert (meta["step"], loaded.config.vocab_size, loaded.training) == (4, 257, False)
        assert loaded.multipliers.residual == pytest.approx(8**-0.5)
        with torch.no_grad():
            logits.append(loaded(x))
    assert all(torch.equal(logits[0], other) for other in logits)
    older, _ = load_model(run_folder / "checkpoints" / "step-000002")
    assert not torch.equal(older.wte.weight, loaded.wte.weight)


def test_a_path_without_a_model_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_model(tmp_path / "nothing")
    with pytest.raises(UserError, match="no complete checkpoint"):
        load_model(tmp_path)


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
    found = list(tool.pieces(model, tool.ByteTokenizer(), "x", 9, Sampling(), 0))
    assert found == ["a", "\u00e9", "\u20ac", "\ufffd"]


def test_a_foreign_tokenizer_is_a_user_error(run_folder, tmp_path):
    exported = export(run_folder / "checkpoints" / "step-000004", tmp_path / "m.pth")
    with pytest.raises(UserError, match="Give --tokenizer"):
        tool.main([str(exported), "--prompt", "x"])
