"""The model for transformers: GPT and its cached decoding, in the class that AutoModelForCausalLM loads.

The forward pass, the cache and the weights' names are those of the package that trained the model; this file only
speaks transformers' language. Nothing but torch and transformers is needed.

Shapes: B rows, T tokens of a call, S tokens so far with this call's, V vocabulary.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from lit_gpt.evals.decoding import Decoder
from lit_gpt.model import GPT
from lit_gpt.tools.remote.configuration_scalelab import ScaleLabConfig

# What transformers calls the cache: "cache" since 5.24, "past_key_values" before.
CACHE = next(f.name for f in dataclasses.fields(CausalLMOutputWithPast) if f.name in ("cache", "past_key_values"))
ROOM = 256  # tokens that a cache has room for beside the first call's; it doubles where that is not enough
ONE_SIDE = "attention_mask must have its zeros on one side of a row: pad every row on the left"


class ScaleLabCache(Cache):
    """What the layers remember of B rows: keys and values within their windows, states of recurrent layers."""

    def __init__(self, model: GPT, batch: int, first: int):
        super().__init__(layers=[])
        self.room = first + ROOM
        self.decoder = Decoder(model, batch, self.room)

    def hidden(self, tokens_BT: Tensor, doc_ids_BT: Tensor | None, last_only: bool) -> Tensor:
        """What the head reads of the next tokens, (B, T, n), or with last_only of the last one, (B, 1, n)."""
        missing = self.get_seq_length() + tokens_BT.shape[1] - self.room
        if missing > 0:
            more = max(missing, self.room)
            self.decoder.extend(more)
            self.room += more
        return self.decoder.hidden(tokens_BT, doc_ids_BT, last_only=last_only)

    def __len__(self) -> int:
        """How many layers there are."""
        return len(self.decoder.caches)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of each row so far."""
        return self.decoder.length

    @property
    def is_linear(self) -> list[bool]:
        """Of each layer; False has transformers work out which tokens of a longer text are new."""
        return [False] * len(self)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Go on with these rows, as beam search does."""
        self.decoder.select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Go on with these rows."""
        self.decoder.select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Go on with each row so many times."""
        rows = torch.arange(len(self.decoder.start_B), device=self.decoder.start_B.device)
        self.decoder.select(rows.repeat_interleave(repeats))

    def crop(self, *lengths: Any, **named: Any) -> None:
        """Raises NotImplementedError."""
        raise NotImplementedError("The states of recurrent layers cannot go back: this cache cannot be cropped.")

    def __deepcopy__(self, memo: dict[int, Any]) -> ScaleLabCache:
        """A copy to go on with in another way; the model is not copied."""
        memo[id(self.decoder.model)] = self.decoder.model
        made = copy.copy(self)
        made.decoder = copy.deepcopy(self.decoder, memo)
        return made


class ScaleLabForCausalLM(PreTrainedModel, GenerationMixin):
    """The language model. It computes in the dtype of its weights, with a residual stream in fp32 as in training."""

    config_class = ScaleLabConfig
    base_model_prefix = "model"
    _no_split_modules = ["Block"]  # noqa: RUF012 (transformers' form)
    _is_stateful = True  # transformers: assisted generation, which has to go back, is refused

    def __init__(self, config: ScaleLabConfig):
        super().__init__(config)
        described, multipliers = config.described()
        # Rows are single documents, whose positions count from behind their padding: learned ones are no distances.
        described = described.replace(doc_positions="restart")
        self.model = GPT(described, multipliers, compute_dtype=torch.get_default_dtype())
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        cache: ScaleLabCache | None = None,
        past_key_values: ScaleLabCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits (B, T, V) in fp32, the loss where labels are given, and the cache with use_cache.

        attention_mask: (B, S), 0 for padding on one side of a row; with a cache on the left. labels: (B, T), the
        input_ids themselves, -100 where a prediction does not count. cache, past_key_values: what an earlier call gave,
        under either name; then input_ids are the tokens after it. logits_to_keep: only so many last positions, or
        those of an index; 0 for all.
        Raises ValueError for another attention_mask.
        """
        self._compute_in(self.model.wte.weight.dtype)
        cache = past_key_values if cache is None else cache
        if cache is None and use_cache:
            self._check_generates()
            cache = ScaleLabCache(self.model, *input_ids.shape)
        doc_ids_BT = documents(attention_mask, input_ids, cache)
        if cache is None:
            h_BTD, _ = self.model.hidden(input_ids, doc_ids_BT)
        else:
            last_only = isinstance(logits_to_keep, int) and logits_to_keep == 1
            h_BTD = cache.hidden(input_ids, doc_ids_BT, last_only)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits_BTV = self.model.logits(h_BTD[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits_BTV, labels=labels, vocab_size=logits_BTV.shape[-1])
        output = CausalLMOutputWithPast(loss=loss, logits=logits_BTV)
        if cache is not None:
            output[CACHE] = cache
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: Tensor, next_sequence_length: int | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The arguments of `forward` for the next call; of input_ids, the tokens that the cache has not seen."""
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        if kwargs.get("cache_position") is not None:  # how transformers said it before 5
            next_sequence_length = len(kwargs["cache_position"])
        if next_sequence_length is not None:
            input_ids = input_ids[:, -next_sequence_length:]
        names = ("attention_mask", "use_cache", "logits_to_keep")
        return {"input_ids": input_ids, "cache": cache, **{n: kwargs[n] for n in names if n in kwargs}}

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """No: transformers' caches hold keys and values only. `forward` makes the cache."""
        return False

    def get_input_embeddings(self) -> nn.Module:
        """The token table."""
        return self.model.wte

    def get_output_embeddings(self) -> nn.Module | None:
        """The head; None where the token table is the head too."""
        return self.model.head

    def _check_generates(self) -> None:
        experts = self.model.config.experts
        if experts is not None and experts.routing == "expert_choice":
            raise ValueError("With expert_choice, experts choose among whole rows: such a model cannot generate.")

    def _compute_in(self, dtype: torch.dtype) -> None:
        """Follow the weights, which `to` may have moved to another dtype."""
        if self.model.compute_dtype == dtype:
            return
        for module in (self.model, *self.model.blocks):
            module.compute_dtype = dtype  # type: ignore[assignment]
        self.model.stream_dtype = dtype if self.model.config.post_norm else torch.promote_types(dtype, torch.float32)

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: parameters that are not loaded have a start of their own."""


def documents(mask_BS: Tensor | None, tokens_BT: Tensor, cache: ScaleLabCache | None) -> Tensor | None:
    """The mask as documents, (B, T): padding is one of its own, which nothing else sees. None without padding.

    Raises ValueError for a mask that this is not true of.
    """
    length = tokens_BT.shape[1]
    seen = 0 if cache is None else cache.get_seq_length()
    if mask_BS is None or (seen and length == 1):  # generate: every new token counts
        return None
    if mask_BS.ndim != 2 or mask_BS.shape[1] != seen + length:
        raise ValueError(f"attention_mask is {tuple(mask_BS.shape)}; it must be {(len(tokens_BT), seen + length)}.")
    new_BT = mask_BS[:, seen:].bool()
    if new_BT.all():
        return None
    if (new_BT.diff(dim=1).sum(1) > 1).any() or (cache is not None and (seen or not new_BT[:, -1].all())):
        raise ValueError(f"{ONE_SIDE}.")
    return new_BT.int()
