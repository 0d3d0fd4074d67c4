"""ScaleLab: architectures, scaling rules and the training loop behind pretrain.py.

The floors, low to high, and the rule that a room imports only from lower floors,
are described in docs/architecture.md and enforced by tests/test_layers.py.
"""

import importlib.util
import sys

__version__ = "0.1.0"

if importlib.util.find_spec("jsonargparse") is None:  # another Python than the one of .venv, which is a common slip
    sys.exit(
        f"error: {sys.executable} does not have the packages that ScaleLab needs. Type: source .venv/bin/activate "
        "(bash install.sh makes .venv)"
    )
