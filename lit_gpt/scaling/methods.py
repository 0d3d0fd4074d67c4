"""Which method trains which role under each native optimizer, and what methods have in common.

| optimizer | matrix, expert, router | head | embedding, vector, conv |
|---|---|---|---|
| adamw | adamw | adamw | adamw |
| muon, normuon, muonball, rmnp | the method of that name | adamw | adamw |
| dmuon | muon | adamw | adamw |
| muonh | muonh | adamh | adamw |
| hadam | nadam | adamw | adamw |
| lion | lion | lion | lion |

adamh goes along AdamW's direction on a hypersphere. Any other optimizer trains every role in its own way.
"""

from __future__ import annotations

from lit_gpt.scaling.base import LEARNED_ROLES

HIDDEN = ("matrix", "expert", "router")  # both dimensions grow with width
ORTHOGONAL = ("muon", "normuon", "muonh", "muonball")  # a step's spectral norm is the same at any width
ON_A_SPHERE = ("muonh", "adamh", "muonball")  # the norm is held, so there is nothing to decay
KEEPS_ITS_START = ("muonh", "adamh")  # the norm is the initial one: zero stays zero

METHODS: dict[str, dict[str, str]] = {
    "adamw": {},
    "hadam": dict.fromkeys(HIDDEN, "nadam"),
    "lion": dict.fromkeys(LEARNED_ROLES, "lion"),
    "muonh": {**dict.fromkeys(HIDDEN, "muonh"), "head": "adamh"},
    "dmuon": dict.fromkeys(HIDDEN, "muon"),
    **{name: dict.fromkeys(HIDDEN, name) for name in ("muon", "normuon", "muonball", "rmnp")},
}


def method_of(optimizer: str, role: str) -> str:
    """The method that trains a role."""
    return METHODS[optimizer].get(role, "adamw") if optimizer in METHODS else optimizer
