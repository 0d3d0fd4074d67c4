"""configs/baseline.yaml step by step, against the model and the optimizer written out once more in float64.

Nothing of the package is used on that side but the initial weights: every rate, beta, curve and constant stands here as
nanochat's settings and the recipe's page say it.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_gpt.config.cli import parse
from lit_gpt.data.corpus import Batch
from lit_gpt.optim.engine.groups import set_hyperparameters
from lit_gpt.parallel import start_runtime
from lit_gpt.preflight.resolved_run import resolve_run
from lit_gpt.scaling.plan import step_values
from lit_gpt.train.build import build_model, build_optimizer
from lit_gpt.train.step import train_step

RECIPE = Path(__file__).parents[2] / "configs/baseline.yaml"
DEPTH, WIDTH, HEAD, VOCAB, LENGTH, ROWS = 3, 96, 128, 128, 16, 4
BATCH, STEPS, WARM_UP = LENGTH * ROWS, 8, 3
WINDOW = 5  # tokens that all layers but the last see; the recipe's is 512
TIMES = 1.4  # the recipe's rates over nanochat's
SHARE = 8 / DEPTH  # of what it is at depth 8: every branch, and the steps of scalars
WORDS = f"--depth {DEPTH} --ar 32 --ctx_len {LENGTH} --vocab_size {VOCAB} --micro_bsz {ROWS} --total_bsz {BATCH}"
WORDS += f" --max_tokens {BATCH * STEPS} --base_hps.b0 {16 * BATCH} --base_hps.warmup_tokens {BATCH * WARM_UP}"
WORDS += f" --swa_len {WINDOW} --precision fp32 --residual_precision fp32 --logits_precision fp32 --dry_run true"
EXPRESS = [  # arXiv:2505.16932, with the safety factor of 1.01
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
]
PUBLISHED = math.sqrt(768 / 512)  # the rates are nanochat's at width 768, which follow the root
ADAM = {  # first letters of a name -> rate at width 512 and the recipe's batch, betas, its power of the width
    "wte": (0.3 * PUBLISHED, 0.8, 0.995, -0.5),
    "head": (0.008 * PUBLISHED, 0.8, 0.96, -0.75),
    "table": (0.15 * PUBLISHED, 0.8, 0.995, -0.5),
    "gate": (0.02, 0.8, 0.95, 0),
    "scale": (0.02 * SHARE, 0.8, 0.95, 0),
    "backout": (0.02 * SHARE, 0.8, 0.95, 0),
    "first": (0.02 * SHARE, 0.8, 0.95, 0),
    "stream": (0.005 * SHARE, 0.8, 0.95, 0),
}
Weights = dict[str, Tensor]


def rms(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def rotated(x: Tensor) -> Tensor:
    """(B, T, D), pairs half a head apart."""
    angles = torch.arange(LENGTH)[:, None] * 10_000.0 ** (-torch.arange(0, HEAD, 2, dtype=torch.float64) / HEAD)
    a, b = x.chunk(2, -1)
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)


def naive_loss(w: Weights, tokens: Tensor, targets: Tensor) -> Tensor:
    x = rms(w["wte.weight"][tokens])
    before = F.pad(x, (0, 0, 1, 0))[:, :-1]
    first = middle = x = x + w["smear.scale"] * torch.sigmoid(x[..., :24] @ w["smear.gate"].T) * before
    for i in range(DEPTH):
        b = f"blocks.{i}."
        middle = x if i == DEPTH // 2 else middle
        x = w[f"{b}scalars.stream"] * x + w[f"{b}scalars.first"] * first
        h = rms(x)
        q, k, v = (h @ w[f"{b}mixer.{name}.weight"].T for name in "qkv")
        if (DEPTH - 1 - i) % 2 == 0:
            gate = 2 * torch.sigmoid(h[..., :32] @ w[f"{b}mixer.value_embedding.gate"].T)
            v = v + gate * w[f"{b}mixer.value_embedding.table"][tokens]
        scores = rotated(1.2 * rms(q)) @ rotated(1.2 * rms(k)).mT / math.sqrt(HEAD)
        seen = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril().triu(-LENGTH if i == DEPTH - 1 else 1 - WINDOW)
        x = x + SHARE * scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v @ w[f"{b}mixer.out.weight"].T
        x = x + SHARE * (rms(x) @ w[f"{b}ffn.up.weight"].T).clamp(min=0).square() @ w[f"{b}ffn.down.weight"].T
    logits = 15 * torch.tanh(rms(x - w["backout"] * middle) @ w["head.weight"].T / 15)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def orthogonal(g: Tensor) -> Tensor:
    x = g / (1.01 * g.norm()).clamp(min=1e-7)
    for a, b, c in EXPRESS:
        a, b, c = a / 1.01, b / 1.01**3, c / 1.01**5
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class Naive:
    """NorMuon for matrices, AdamW for the rest, in float64."""

    def __init__(self, weights: Weights) -> None:
        self.w, self.state = weights, {name: [torch.zeros_like(p), torch.zeros_like(p)] for name, p in weights.items()}

    def step(self, n: int, grads: Weights) -> None:
        t, root = n + 0.5, TIMES * math.sqrt(1 / 16)  # the middle of the step; rates are meant for 16 batches in one
        past = (t - WARM_UP) / (STEPS - WARM_UP) - 0.35  # the last 65 percent decay to a twentieth
        rate = t / WARM_UP if t < WARM_UP else 1 - 0.95 * max(past, 0) / 0.65
        mu = 0.85 + 0.12 * min(t / 400, 1)
        mu = mu if t < WARM_UP else min(mu, 0.90 + 0.07 * rate)
        decay = 0.2 * (1 + math.cos(math.pi * t / STEPS)) / 2
        for name, p in self.w.items():
            kind = next((kind for part in reversed(name.split(".")) for kind in ADAM if part == kind), None)
            if kind is None:
                self.matrix(name, p, grads[name], 0.02 * root * rate, decay, mu)
                continue
            lr, beta1, beta2, power = ADAM[kind]
            m, v = self.state[name]
            m.lerp_(grads[name], 1 - beta1)
            v.lerp_(grads[name].square(), 1 - beta2)
            width = (WIDTH / 512) ** power
            mean, square = m / (1 - beta1 ** (n + 1)), v / (1 - beta2 ** (n + 1))
            p -= lr * width * root * rate * mean / (square.sqrt() + 1e-8)

    def matrix(self, name: str, p: Tensor, g: Tensor, lr: float, decay: float, mu: float) -> None:
        m, v = self.state[name]
        m.mul_(mu).add_(g)
        d = orthogonal(g + mu * m)
        v.lerp_(d.square().mean(1, keepdim=True).expand_as(v), 0.05)
        d = d / (v.sqrt() + 1e-8)
        rows, columns = p.shape
        p -= lr * decay * p * (p * d >= 0)
        p -= lr * math.sqrt(rows / columns) * math.sqrt(min(rows, columns)) * d / d.norm().clamp(min=1e-8)


def test_the_recipe_is_what_it_says() -> None:
    resolved = resolve_run(parse(["--config", str(RECIPE), *WORDS.split()]), ranks=1)
    runtime, plan = start_runtime(precision="fp32"), resolved.plan
    model = build_model(resolved, runtime)
    optimizer = build_optimizer(model, plan)
    weights = {name: p.detach().double() for name, p in model.named_parameters()}
    naive, draw = Naive(weights), torch.Generator().manual_seed(0)
    assert weights["wte.weight"].std().isclose(torch.tensor(0.8).double(), rtol=0.03)
    assert weights["head.weight"].std().isclose(torch.tensor(0.001).double(), rtol=0.03)
    for n in range(STEPS):
        stream = torch.randint(VOCAB, (ROWS, LENGTH + 1), generator=draw).cumsum(1) % VOCAB
        tokens, targets = stream[:, :-1].contiguous(), stream[:, 1:].contiguous()
        set_hyperparameters(optimizer, step_values(plan, n * BATCH, BATCH))
        batches = [Batch(tokens.numpy(), targets.numpy(), n * ROWS)]
        result = train_step(model, optimizer, batches, 1, BATCH, runtime, grad_clip=plan.grad_clip)
        for p in weights.values():
            p.requires_grad_(True)
        loss = naive_loss(weights, tokens, targets)
        grads = dict(zip(weights, torch.autograd.grad(loss, list(weights.values()))))
        for p in weights.values():
            p.requires_grad_(False)
        torch.testing.assert_close(result.loss.double(), loss.detach(), rtol=1e-5, atol=0)
        naive.step(n, grads)
    for name, p in model.named_parameters():
        away = (p.double() - weights[name]).norm() / weights[name].norm()
        assert away < 1e-3, f"{name} is off by {away:.2g} of its norm"
