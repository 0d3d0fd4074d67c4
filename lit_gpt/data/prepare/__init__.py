"""From text to packed shards: see prepare()."""

from lit_gpt.data.prepare.run import prepare

__all__ = ["prepare"]
