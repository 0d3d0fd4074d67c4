"""Files of a run folder that other rooms read, too; reading them needs no torch."""

from __future__ import annotations

CONFIG, ENVIRONMENT = "config.yaml", "environment.json"
# What makes a run this run: each is a JSON file (plan.json is written last), and a key of a checkpoint's meta.
IDENTITY = ("plan", "model", "numerics")
