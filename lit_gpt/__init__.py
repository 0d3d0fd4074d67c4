"""ScaleLab: architectures, scaling rules and the training loop behind pretrain.py.

The floors, low to high, and the rule that a room imports only from lower floors,
are described in docs/architecture.md and enforced by tests/test_layers.py.
"""

__version__ = "0.1.0"
