"""Every native optimizer once more: plain, slow, one parameter at a time, in float64 numpy. Read this one first.

Written from the papers' pseudo-code; the tests hold the fast ones to it (tests/optim/test_native.py). Each function is
one step: `step(w, g, state, lr, decay)` takes weights, their gradient and what the steps before left in `state`, which
it changes, and returns the new weights. Matrices are (R, C), fan_out x fan_in; experts (E, R, C) are stepped one by
one; of vectors and kernels of convolutions only elementwise steps are defined.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lit_gpt.scaling.base import HIDDEN, LEARNED_ROLES

Array = np.ndarray
State = dict[str, Any]
Betas = tuple[float, float]
Triples = list[tuple[float, float, float]]

MU, BETAS, EPS = 0.95, (0.9, 0.95), 1e-8  # of the tests' Plans
# Coefficients (a, b, c) of x -> a x + b x^3 + c x^5, one triple per iteration, to the digits that were published.
TUNED: Triples = [  # leloykun.github.io/ponder/muon-opt-coeffs
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
]
POLAR_EXPRESS: Triples = [  # MuonBall's five (arXiv:2505.16932)
    (8.2051, -22.9019, 16.4607),
    (4.0664, -2.8612, 0.5184),
    (3.9096, -2.8234, 0.5250),
    (3.2856, -2.4153, 0.4853),
    (2.2779, -1.6198, 0.3985),
]


def newton_schulz(u: Array, triples: Triples = TUNED, margin: float = 1.0) -> Array:
    """U p(S) V^T for u = U S V^T: what Newton-Schulz does to the singular values, over margin times the norm."""
    left, s, right = np.linalg.svd(u, full_matrices=False)
    s = s / max(margin * np.linalg.norm(s), 1e-7)
    for a, b, c in triples:
        s = a * s + b * s**3 + c * s**5
    return (left * s) @ right


def nesterov(g: Array, state: State, mu: float = MU) -> Array:
    """mu M + G with M <- mu M + G: Nesterov momentum without dampening."""
    state["m"] = mu * state.get("m", 0.0) + g
    return mu * state["m"] + g


def muon(w: Array, g: Array, state: State, lr: float, decay: float, factor: str = "spectral") -> Array:
    """Muon (kellerjordan.github.io/posts/muon), with the factors of arXiv:2502.16982 and arXiv:2310.17813."""
    rows, columns = w.shape
    f = {
        "spectral": (rows / columns) ** 0.5,
        "clip": max(1.0, rows / columns) ** 0.5,
        "rms": 0.2 * max(rows, columns) ** 0.5,
        "none": 1.0,
    }[factor]
    return (1 - lr * decay) * w - lr * f * newton_schulz(nesterov(g, state))


def dmuon(w: Array, g: Array, state: State, lr: float, decay: float) -> Array:
    """D-Muon (arXiv:2502.16982)."""
    return muon(w, g, state, lr, decay, factor="rms")


def muonh(w: Array, g: Array, state: State, lr: float, decay: float) -> Array:
    """MuonH (arXiv:2603.28743); nothing decays on a sphere."""
    return on_sphere(w, newton_schulz(nesterov(g, state)), state, lr)


def on_sphere(w: Array, direction: Array, state: State, lr: float) -> Array:
    """A step of lr times the initial norm, and back to that norm."""
    radius = state.setdefault("radius", np.linalg.norm(w))
    moved = w - lr * radius * direction / np.linalg.norm(direction)
    return moved * radius / np.linalg.norm(moved)


def muonball(w: Array, g: Array, state: State, lr: float, decay: float) -> Array:
    """MuonBall: the spectral norm is held. Polar Express starts from the matrix over 1.01 times its norm."""
    radius = (w.shape[0] / w.shape[1]) ** 0.5
    moved = w - lr * radius * newton_schulz(nesterov(g, state), POLAR_EXPRESS, 1.01)
    return moved * radius / np.linalg.norm(moved, 2)


def normuon(w: Array, g: Array, state: State, lr: float, decay: float, beta2: float = 0.95) -> Array:
    """Algorithm 1 of arXiv:2510.05491, with the 0.2 sqrt(R C) of its step length (--optimizer_args.adjust rms)."""
    o = newton_schulz(nesterov(g, state))
    state["v"] = beta2 * state.get("v", 0.0) + (1 - beta2) * (o**2).mean(1, keepdims=True)
    scaled = o / (np.sqrt(state["v"]) + 1e-8)
    return w - lr * decay * w - 0.2 * lr * w.size**0.5 / np.linalg.norm(scaled) * scaled


def rmnp(w: Array, g: Array, state: State, lr: float, decay: float, beta: float = 0.95) -> Array:
    """RMNP: rows of one length, max(1, sqrt(R / C))."""
    state["m"] = beta * state.get("m", 0.0) + (1 - beta) * g
    u = (1 - MU) * g + MU * state["m"]
    f = max(1.0, w.shape[0] / w.shape[1]) ** 0.5
    return w * (1 - lr * decay) - lr * f * u / np.linalg.norm(u, axis=1, keepdims=True)


def adam_direction(g: Array, square: Array, state: State, betas: Betas = BETAS, eps: float = EPS) -> Array:
    """m / (sqrt(v) + eps), bias-corrected (arXiv:1412.6980); square: what v averages, for Adam g^2."""
    t = state["t"] = state.get("t", 0) + 1
    state["m"] = betas[0] * state.get("m", 0.0) + (1 - betas[0]) * g
    state["v"] = betas[1] * state.get("v", 0.0) + (1 - betas[1]) * square
    return state["m"] / (1 - betas[0] ** t) / (np.sqrt(state["v"] / (1 - betas[1] ** t)) + eps)


def adamw(w: Array, g: Array, state: State, lr: float, decay: float, betas: Betas = BETAS, eps: float = EPS) -> Array:
    """AdamW (arXiv:1711.05101)."""
    return (1 - lr * decay) * w - lr * adam_direction(g, g**2, state, betas, eps)


def adamh(w: Array, g: Array, state: State, lr: float, decay: float) -> Array:
    """MuonH's head: Adam's direction on a sphere."""
    return on_sphere(w, adam_direction(g, g**2, state), state, lr)


def adam_mini(w: Array, g: Array, state: State, lr: float, decay: float) -> Array:
    """Adam-mini (arXiv:2406.16793) with a block per row, which is any matrix but queries and keys."""
    axes = tuple(range(1, g.ndim)) or None  # a vector is one block
    square = (g**2).mean(axes, keepdims=True)
    return (1 - lr * decay) * w - lr * adam_direction(g, square, state)


def lamb(w: Array, g: Array, state: State, lr: float, decay: float, corrected: bool = True) -> Array:
    """LAMB (arXiv:1904.00962), with eta |W| in place of the paper's phi(|W|); corrected: as Adam's moments are."""
    r = adam_direction(g, g**2, state)
    if not corrected:
        r = state["m"] / (np.sqrt(state["v"]) + EPS)
    r = r + decay * w
    return w - lr * np.linalg.norm(w) / np.linalg.norm(r) * r


def nadam(w: Array, g: Array, state: State, lr: float, decay: float) -> Array:
    """NAdam (Dozat 2016) with torch's momentum schedule, of which 0.004 is psi."""
    beta1, beta2 = BETAS
    t = state["t"] = state.get("t", 0) + 1
    mu, after = (beta1 * (1 - 0.5 * 0.96 ** (i * 0.004)) for i in (t, t + 1))
    state["product"] = state.get("product", 1.0) * mu
    state["m"] = beta1 * state.get("m", 0.0) + (1 - beta1) * g
    state["v"] = beta2 * state.get("v", 0.0) + (1 - beta2) * g**2
    ahead = (1 - mu) * g / (1 - state["product"]) + after * state["m"] / (1 - state["product"] * after)
    return (1 - lr * decay) * w - lr * ahead / (np.sqrt(state["v"] / (1 - beta2**t)) + EPS)


def lion(w: Array, g: Array, state: State, lr: float, decay: float) -> Array:
    """Lion (arXiv:2302.06675)."""
    m = state.get("m", np.zeros_like(g))
    state["m"] = BETAS[1] * m + (1 - BETAS[1]) * g
    return (1 - lr * decay) * w - lr * np.sign(BETAS[0] * m + (1 - BETAS[0]) * g)


def signum(w: Array, g: Array, state: State, lr: float, decay: float, mu: float = 0.9, ahead: bool = False) -> Array:
    """Signum (arXiv:1802.04434); ahead: with Nesterov's momentum."""
    state["m"] = mu * state.get("m", 0.0) + g
    return (1 - lr * decay) * w - lr * np.sign(g + mu * state["m"] if ahead else state["m"])


def ademamix(
    w: Array, g: Array, state: State, lr: float, decay: float, warmups: tuple[int, int] = (20, 20), alpha: float = 8.0
) -> Array:
    """AdEMAMix (arXiv:2409.03137, algorithm 1), beta3 = 0.999; warmups: of alpha and beta3, in steps."""
    t, (beta1, beta2), beta3 = state.get("t", 0) + 1, BETAS, 0.999
    a, b = (min(t / warmup, 1.0) if warmup else 1.0 for warmup in warmups)
    lives = [np.log(0.5) / np.log(beta) for beta in (beta1, beta3)]
    slow = 0.5 ** (1 / ((1 - b) * lives[0] + b * lives[1]))
    adam_direction(g, g**2, state)
    state["m2"] = slow * state.get("m2", 0.0) + (1 - slow) * g
    mixed = state["m"] / (1 - beta1**t) + a * alpha * state["m2"]
    return (1 - lr * decay) * w - lr * mixed / (np.sqrt(state["v"] / (1 - beta2**t)) + EPS)


def hadams_adamw(w: Array, g: Array, state: State, lr: float, decay: float) -> Array:
    """AdamW with the constants that hadam gives it."""
    return adamw(w, g, state, lr, decay, (0.8, 0.95), 1e-10)


Step = Callable[[Array, Array, State, float, float], Array]
# optimizer -> role -> step; adamw's where a role is not named.
STEPS: dict[str, dict[str, Step]] = {
    "adamw": {},
    "muonh": {**dict.fromkeys(HIDDEN, muonh), "head": adamh},
    "hadam": {**dict.fromkeys(LEARNED_ROLES, hadams_adamw), **dict.fromkeys(HIDDEN, nadam)},
    **{step.__name__: dict.fromkeys(HIDDEN, step) for step in (muon, dmuon, normuon, muonball, rmnp)},
    **{step.__name__: dict.fromkeys(LEARNED_ROLES, step) for step in (lion, signum, adam_mini, lamb, ademamix)},
}


def train(optimizer: str, role: str, w: Array, grads: list[Array], lr: float, decay: float) -> Array:
    """Weights of a role after all gradients; every expert for itself."""
    if role == "expert":
        return np.stack([train(optimizer, "matrix", w[e], [g[e] for g in grads], lr, decay) for e in range(len(w))])
    step: Any = STEPS[optimizer].get(role, adamw)
    w, state = w.astype(np.float64), {}
    for g in grads:
        w = step(w, g.astype(np.float64), state, lr, decay)
    return w
