"""What the data says of itself before it is opened: its vocabulary, its tokenizer, the end of its documents."""

from __future__ import annotations

from dataclasses import dataclass

from lit_gpt.config.model import ModelConfig
from lit_gpt.config.run import RunConfig
from lit_gpt.data.corpus import Corpus
from lit_gpt.data.discover import describe_sources, open_corpus
from lit_gpt.data.mixture import first_sample, load_mixture, shifted
from lit_gpt.data.origin import agree
from lit_gpt.data.remote import NoData, is_remote, local_path
from lit_gpt.data.stream import StreamInfo
from lit_gpt.errors import UserError
from lit_gpt.ops.boundaries import DocumentEnds
from lit_gpt.scaling.base import Fork, Phase, Plan

# ArchScale's shards are Llama-2's tokens and carry no side file; its </s> is id 2
# (huggingface.co/meta-llama/Llama-2-7b-hf, tokenizer_config.json).
LLAMA_VOCABULARY, LLAMA_EOS = 32000, 2


@dataclass(frozen=True)
class TrainingData:
    """What is known of the training data. missing: why nothing is, "" where something is or nobody asked."""

    sources: tuple[tuple[str, StreamInfo], ...] = ()
    missing: str = ""

    @property
    def vocab_size(self) -> int | None:
        """What the sources agree on; None where none of them says. Raises UserError where they disagree."""
        return agree(self.sources).vocab_size


def describe_training_data(
    folder: str, mixture: str | None, eos_token_id: int | None, may_be_missing: bool
) -> TrainingData:
    """What the sources in --train_data_dir say, without opening them.

    A folder that is not there says nothing, which a run finds out later. may_be_missing: go on where there is no data,
    as a dry run does, and say so unless nobody typed that folder; otherwise an empty one raises NoData.
    """
    if not is_remote(folder) and not local_path(folder).exists():
        typed = may_be_missing and folder != RunConfig().train_data_dir
        return TrainingData(missing=f"The folder {folder} is not there." if typed else "")
    try:
        return TrainingData(tuple(describe_sources(folder, "train", mixture, eos_token_id)))
    except NoData as missing:
        if not may_be_missing:
            raise
        return TrainingData(missing=str(missing))


def curriculum(mixture: str | None) -> list[Phase]:
    """The phases of --data_mixture; [] where it is the same throughout, or not given."""
    phases = load_mixture(mixture) if mixture else []
    return phases if len(phases) > 1 else []


def training_corpus(
    folder: str, mixture: str | None, eos_token_id: int | None, plan: Plan, fork: Fork | None
) -> Corpus:
    """The shuffled training data; fork: where its order begins, and what was seen of it before."""
    phases = shifted(plan.curriculum, fork.order_start(plan.context)) if fork else plan.curriculum
    return open_corpus(
        folder,
        "train",
        plan.context,
        plan.data_seed,
        mixture=phases or mixture,
        eos_token_id=eos_token_id,
        offsets=fork.offsets if fork else None,
    )


def unreached(plan: Plan) -> tuple[str, ...]:
    """A note for every phase of the Plan's curriculum that none of its sequences is of."""
    starts = [phase["from_tokens"] for phase in plan.curriculum]
    firsts = [first_sample(min(tokens, plan.tokens), plan.context) for tokens in (*starts, plan.tokens)]
    return tuple(
        f"the phase from {tokens:,} tokens on is "
        + (f"never reached, the run has {plan.tokens:,}" if tokens >= plan.tokens else "shorter than one sequence")
        for tokens, first, end in zip(starts, firsts, firsts[1:])
        if first == end
    )


def document_ends(model: ModelConfig, data: Corpus) -> DocumentEnds | None:
    """Where documents end, None when they are not kept apart.

    Raises UserError when the run needs the token that ends one, and nothing says what it is.
    """
    if not model.varlen:
        return None
    if data.eos_id is not None:
        return DocumentEnds(data.eos_id, model.doc_len)
    if model.vocab_size == LLAMA_VOCABULARY:
        return DocumentEnds(LLAMA_EOS, model.doc_len)
    raise UserError(
        "Document boundaries (varlen) need the end-of-document token, and the data does not say which it is. "
        "Give --eos_token_id."
    )
