"""Data: token files, documents, and the global order of samples."""

from lit_gpt.data.corpus import Batch, Corpus, check_vocab
from lit_gpt.data.cursor import Cursor
from lit_gpt.data.discover import open_corpus
from lit_gpt.data.loader import Loader, StepData

__all__ = ["Batch", "Corpus", "Cursor", "Loader", "StepData", "check_vocab", "open_corpus"]
