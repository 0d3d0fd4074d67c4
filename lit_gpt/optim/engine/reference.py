"""Every native optimizer once more: plain, slow, one parameter at a time, in float64 numpy.

Written from the papers' pseudo-code. `step(p, g, state, ...)` returns the new weights and changes `state`.
Matrices are (fan_out, fan_in); experts (E, fan_out, fan_in) are stepped one by one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray
TUNED = [
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
]
BALL = [  # the five triples of MuonBall, to the digits that were published
    (8.2051, -22.9019, 16.4607),
    (4.0664, -2.8612, 0.5184),
    (3.9096, -2.8234, 0.5250),
    (3.2856, -2.4153, 0.4853),
    (2.2779, -1.6198, 0.3985),
]


def newton_schulz(u: Array, triples: list[tuple[float, float, float]] = TUNED, margin: float = 1.0) -> Array:
    """Apply the polynomials to the singular values over margin times the norm."""
    left, s, right = np.linalg.svd(u, full_matrices=False)
    s = s / max(margin * np.linalg.norm(s), 1e-7)
    for a, b, c in triples:
        s = a * s + b * s**3 + c * s**5
    return (left * s) @ right


def momentum(g: Array, state: dict[str, Any], mu: float) -> Array:
    """Nesterov momentum without dampening."""
    state["m"] = mu * state.get("m", 0.0) + g
    return mu * state["m"] + g


def muon(p: Array, g: Array, state: dict, lr: float, decay: float, mu: float = 0.95, factor: str = "spectral") -> Array:
    out, fan_in = p.shape
    f = {
        "spectral": (out / fan_in) ** 0.5,
        "clip": max(1.0, out / fan_in) ** 0.5,
        "rms": 0.2 * max(out, fan_in) ** 0.5,
        "none": 1.0,
    }[factor]
    return (1 - lr * decay) * p - lr * f * newton_schulz(momentum(g, state, mu))


def muonh(p: Array, g: Array, state: dict, lr: float, decay: float, mu: float = 0.95) -> Array:
    return on_sphere(p, newton_schulz(momentum(g, state, mu)), state, lr)


def on_sphere(p: Array, direction: Array, state: dict, lr: float) -> Array:
    radius = state.setdefault("radius", np.linalg.norm(p))
    moved = p - lr * radius * direction / np.linalg.norm(direction)
    return moved * radius / np.linalg.norm(moved)


def muonball(p: Array, g: Array, state: dict, lr: float, decay: float, mu: float = 0.95) -> Array:
    radius = (p.shape[0] / p.shape[1]) ** 0.5
    # Polar Express starts from the matrix over 1.01 times its norm.
    moved = p - lr * radius * newton_schulz(momentum(g, state, mu), BALL, 1.01)
    return moved * radius / np.linalg.norm(moved, 2)


def normuon(p: Array, g: Array, state: dict, lr: float, decay: float, mu: float = 0.95, beta2: float = 0.95) -> Array:
    """Algorithm 1 of arXiv:2510.05491, with the 0.2 sqrt(mn) of its step length."""
    o = newton_schulz(momentum(g, state, mu))
    state["v"] = beta2 * state.get("v", 0.0) + (1 - beta2) * (o**2).mean(1, keepdims=True)
    scaled = o / (np.sqrt(state["v"]) + 1e-8)
    return p - lr * decay * p - 0.2 * lr * p.size**0.5 / np.linalg.norm(scaled) * scaled


def adam_direction(g: Array, state: dict, beta1: float, beta2: float, eps: float) -> Array:
    t = state["t"] = state.get("t", 0) + 1
    state["m"] = beta1 * state.get("m", 0.0) + (1 - beta1) * g
    state["v"] = beta2 * state.get("v", 0.0) + (1 - beta2) * g**2
    return state["m"] / (1 - beta1**t) / (np.sqrt(state["v"] / (1 - beta2**t)) + eps)


def adamw(p: Array, g: Array, state: dict, lr: float, decay: float, betas=(0.9, 0.95), eps: float = 1e-8) -> Array:
    return (1 - lr * decay) * p - lr * adam_direction(g, state, *betas, eps)


def adamh(p: Array, g: Array, state: dict, lr: float, decay: float, betas=(0.9, 0.95), eps: float = 1e-8) -> Array:
    return on_sphere(p, adam_direction(g, state, *betas, eps), state, lr)


def nadam(p: Array, g: Array, state: dict, lr: float, decay: float, betas=(0.9, 0.95), eps: float = 1e-8) -> Array:
    beta1, beta2 = betas
    t = state["t"] = state.get("t", 0) + 1
    mu, after = (beta1 * (1 - 0.5 * 0.96 ** (i * 0.004)) for i in (t, t + 1))
    state["product"] = state.get("product", 1.0) * mu
    state["m"] = beta1 * state.get("m", 0.0) + (1 - beta1) * g
    state["v"] = beta2 * state.get("v", 0.0) + (1 - beta2) * g**2
    ahead = (1 - mu) * g / (1 - state["product"]) + after * state["m"] / (1 - state["product"] * after)
    return (1 - lr * decay) * p - lr * ahead / (np.sqrt(state["v"] / (1 - beta2**t)) + eps)


def lion(p: Array, g: Array, state: dict, lr: float, decay: float, betas=(0.9, 0.95)) -> Array:
    m = state.get("m", np.zeros_like(g))
    state["m"] = betas[1] * m + (1 - betas[1]) * g
    return (1 - lr * decay) * p - lr * np.sign(betas[0] * m + (1 - betas[0]) * g)


def hadam_vectors(p: Array, g: Array, state: dict, lr: float, decay: float) -> Array:
    return adamw(p, g, state, lr, decay, (0.8, 0.95), 1e-10)


HIDDEN = ("matrix", "expert", "router")
# optimizer -> role -> step; roles that are not named are adamw's.
STEPS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "muon": dict.fromkeys(HIDDEN, muon),
    "normuon": dict.fromkeys(HIDDEN, normuon),
    "muonball": dict.fromkeys(HIDDEN, muonball),
    "muonh": {**dict.fromkeys(HIDDEN, muonh), "head": adamh},
    "hadam": {**dict.fromkeys(("head", "embedding", "vector", "conv"), hadam_vectors), **dict.fromkeys(HIDDEN, nadam)},
    "lion": dict.fromkeys((*HIDDEN, "head", "embedding", "vector", "conv"), lion),
}


def train(optimizer: str, role: str, p: Array, grads: list[Array], lr: float, decay: float) -> Array:
    """Weights after all gradients; every expert for itself."""
    step = STEPS[optimizer].get(role, adamw)
    if role == "expert":
        return np.stack([train(optimizer, "matrix", p[e], [g[e] for g in grads], lr, decay) for e in range(len(p))])
    p, state = p.astype(np.float64), {}
    for g in grads:
        p = step(p, g.astype(np.float64), state, lr, decay)
    return p
