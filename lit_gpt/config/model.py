"""What a model is: a frozen, validated description with the layer pattern as data.

Families (lit_gpt/architectures) produce a ModelConfig, flags and name tokens override
its fields, and everything below (nn, model, init, the Plan, checkpoints, eval) reads it
and nothing else.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from lit_gpt.config.readers import HEADS, NOBODY, SHAPES, YARN
from lit_gpt.errors import UserError

Norm = Literal["rmsnorm", "layernorm"]
Feedforward = Literal["swiglu", "relu2", "oss_swiglu", "gelu"]
Position = Literal["rope", "none", "learned"]
Skip = Literal["add", "none", "sum"]
AuxStyle = Literal["switch", "switch_seq", "entropy"]
# Target of a position whose prediction does not count, in data and in the loss; the default of F.cross_entropy.
IGNORE = -100


@dataclass(frozen=True)
class LayerSpec:
    """One block: a token mixer followed by a feed-forward network.

    mixer: entry of lit_gpt/nn/mixers.
    ffn: kind of feed-forward network, None for a block without one.
    window: tokens an attention layer sees, itself included; None is everything before it.
    shares: index of the layer whose keys and values (or memory) this layer reads.
    memory: what this layer shares with Gated Memory Units: the inner state of its "mixer", or
        the up half of its "ffn".
    rope_base: base of this layer's rotary frequencies; None is the model's, 0 no positions.
    skip_projection: an n x n matrix on the skip path of the mixer (post-norm only).
    experts: the feed-forward network is a mixture of experts of that kind; see Experts.
    value_embedding: a table of the vocabulary adds a vector of its own for every token to the values of an attention
        layer; see lit_gpt.nn.value_embedding.
    """

    mixer: str = "attention"
    ffn: Feedforward | None = "swiglu"
    window: int | None = None
    shares: int | None = None
    memory: Literal["mixer", "ffn"] | None = None
    rope_base: float | None = None
    skip_projection: bool = False
    experts: bool = False
    value_embedding: bool = False


@dataclass(frozen=True)
class Experts:
    """A mixture of S k experts of width I / k, of which a token uses k, so that I is active whatever k is.

    sparsity, top_k: S and k. shared: how many of the k, s, are the same for every token: a dense network as wide as
        they are together (arXiv:2401.06066), beside S k - s routed experts of which k - s are used.
    gate: "selected" is softmax over the selected experts, "all" softmax over all of them before
        the selection, "sigmoid" each expert's own, divided by their sum over the selected. Where one is
        selected only "all" tells the router anything (arXiv:2101.03961).
    sqrt_gate: the square root of the gates, so that they have unit 2-norm; with s shared experts both
        branches are divided by sqrt(1 + s) (arXiv:2603.28743 for one).
    routing: "token_choice", or "expert_choice": each expert takes its own T k / E tokens of a
        micro-batch (arXiv:2202.09368), which looks ahead in the sequence.
    capacity: with token choice, an expert serves at most this multiple of T k / E tokens of a
        micro-batch, the first ones; None serves all. With expert choice it takes that multiple of them, so that
        (k - s) times this is the paper's capacity factor; None is 1.
    aux_style: the balance loss, see lit_gpt.nn.balance. aux_gamma: its weight, 0 is none.
    global_aux: balance over all ranks and micro-batches of a step, otherwise within each micro-batch.
    exact_aux: with global_aux, counts of the whole step are taken before its first backward pass.
    router_z_loss: weight of the mean square of the router's log-sum-exp (arXiv:2202.08906).
    bias_rate: after each step an expert's selection bias moves by this much against its load
        (arXiv:2408.15664, DeepSeek-V3); 0 is off.
    """

    sparsity: int = 1
    top_k: int = 2
    shared: int = False
    gate: Literal["selected", "all", "sigmoid"] = "selected"
    sqrt_gate: bool = False
    routing: Literal["token_choice", "expert_choice"] = "token_choice"
    capacity: float | None = None
    aux_style: AuxStyle = field(default="switch", metadata=NOBODY)
    aux_gamma: float = field(default=0.001, metadata=NOBODY)
    global_aux: bool = field(default=False, metadata=NOBODY)
    exact_aux: bool = field(default=False, metadata=NOBODY)
    router_z_loss: float = field(default=0.0, metadata=NOBODY)
    bias_rate: float = field(default=0.0, metadata=SHAPES)

    @property
    def routed(self) -> int:
        """Experts that a router chooses from, E."""
        return self.sparsity * self.top_k - self.shared

    @property
    def active(self) -> int:
        """How many routed experts a token uses, which leaves out the shared ones."""
        return self.top_k - self.shared

    @property
    def mean_active(self) -> float:
        """The same on average over tokens: under expert choice the experts say how many they take."""
        chosen = self.capacity if self.routing == "expert_choice" and self.capacity else 1.0
        return min(self.active * chosen, self.routed)

    def problems(self, intermediate_size: int) -> dict[str, bool]:
        """Message -> whether these values are wrong in that way."""
        choice = self.routing == "expert_choice"
        return {
            f"sparsity is {self.sparsity} and top_k is {self.top_k}; both must be at least 1": (
                min(self.sparsity, self.top_k) < 1
            ),
            f"top_k is {self.top_k}; it must divide the hidden width {intermediate_size}": (
                intermediate_size % max(self.top_k, 1) != 0
            ),
            f"a shared expert is one of the top_k, so top_k must be at least {self.shared + 1}": (
                not 0 <= self.shared < max(self.top_k, 1)
            ),
            f"capacity is {self.capacity}; it must be positive": self.capacity is not None and self.capacity <= 0,
            "expert choice has no use for a selection bias or a balance loss: give --aux_gamma 0": (
                choice and (self.bias_rate != 0 or self.aux_gamma != 0)
            ),
            "expert choice has its own gates and balance, so router_gate and global_aux cannot act": (
                choice and (self.gate != "selected" or self.global_aux)
            ),
            f"the only routed expert of a token has gate 1 under router_gate {self.gate}, so the loss would not train "
            "the router: give --router_gate all": (
                not choice and self.active == 1 < self.routed and self.gate != "all"
            ),
            "the weights of auxiliary losses and the rate of the selection bias must not be negative": (
                min(self.aux_gamma, self.router_z_loss, self.bias_rate) < 0
            ),
            "exact_aux is a way to count for global_aux: give both": self.exact_aux and not self.global_aux,
            "switch_seq balances single sequences, so global_aux cannot act": (
                self.global_aux and self.aux_style == "switch_seq"
            ),
        }


@dataclass(frozen=True)
class Starts:
    """Initial values that no scaling rule gives; a family says them, and here are those of all others.

    up: dense feed-forward networks start with their first matrix at this times the rule's size.
    gate: gates of value embeddings and of the token smear are drawn from U(0, gate).
    stream, first: r and e of residual_scalars, in the first layer and in the last; a line in between.
    """

    up: float = 1.0
    gate: float = 0.0
    stream: tuple[float, float] = (1.0, 1.0)
    first: tuple[float, float] = (0.1, 0.1)  # nanochat's x0_lambdas

    def at(self, layer: int, depth: int) -> tuple[float, float]:
        """r and e of a layer."""
        share = layer / max(depth - 1, 1)
        r, e = (start + (end - start) * share for start, end in (self.stream, self.first))
        return r, e

    def draw_gate(self, full: Any, generator: Any) -> None:
        """Fill a tensor in place, as roles.Fill does."""
        full.uniform_(0.0, self.gate, generator=generator)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Starts:
        """Rebuild from what JSON made of it."""
        kept: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**kept)


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only language model.

    family, depth: registry name and number of layers L.
    n_embd: width n. n_head, head_dim, n_kv_head: attention heads; n_head % n_kv_head == 0.
    intermediate_size: hidden width I of the feed-forward networks.
    block_size: training context in tokens. vocab_size is padded to padding_multiple.
    layers: one LayerSpec per layer.
    post_norm: the skip path itself is normalised. decoupled_norm: norms without gain,
        and a gain on the branch only. skip_gain: a gain on the skip path, starting at 1e-4.
    reordered_norm: the norms are behind the branches, x + norm(f(x)) (OLMo 2, arXiv:2501.00656).
    parallel_block: mixer and feed-forward network read one norm, and their outputs are added together.
    dropout: the share of the entries of the embedding and of every branch's output that training drops.
    skip: "add" is x + f(x); "none" is f(x); "sum" adds every branch to one running sum
        that only the head reads, so each branch sees the previous branch alone.
    joint_qk_norm: with qk_norm, one norm over all heads together in place of one for each.
    qk_norm_scale: with qk_norm, a constant on the normalised queries and keys alike.
    norm_gain: whether norms of the model's kind, and QK-norm, have gains; those inside recurrent mixers always do.
    embedding_norm: a norm between the token table and the first layer.
    residual_scalars: each layer reads r x + e x0, with x0 what entered the first layer, and learnable r and e.
    token_smear: a learnable part of the previous token's embedding is added to each embedding.
    backout: a learnable part of the stream that enters layer backout_layer (None: the one after half of them) is taken
        out of what the last norm reads.
    starts: see Starts.
    zero_output: the last projections of mixers and feed-forward networks start at zero (role "output").
    logit_softcap: logits are c tanh(z / c); 0 leaves them as they are.
    ffn_multiple: hidden width of the dense feed-forward networks as a multiple of n; None is what nn/mlp.py says of I.
    attn_gate: one sigmoid gate per head and token. attn_sink: a learnable logit per head
        in the softmax's denominator. attn_norm: norm before the output projection.
        attn_conv: a short causal convolution and silu on queries, keys and values.
    position: "rope", "none", or "learned", a table of block_size positions that is added to the embedding (GPT-2).
        rope_base: base of the rotary frequencies.
    yarn_scale: YaRN context extension factor over yarn_context tokens; 1 is off. yarn_truncate: the ends of its ramp
        are whole pairs, as in transformers. yarn_windows: layers with a window have it too; in OLMo 3 they do not.
    varlen: attention and recurrence stop at document boundaries. doc_positions: rotary
        positions "restart" at each document or "continue" (as ArchScale does, departure D61): attention
        scores are the same, since they depend on distances, but restarting rounds less. doc_len: with varlen, a
        document in a row ends after so many tokens at the latest, in training and its validation; 0 sets no limit.
    share_per_layer, share_group: P and G: the layers are G groups of equal length, each of which
        repeats the P blocks it has; 0 gives each layer a block of its own.
    mixer_options: mixer -> option -> value, where it differs from the mixer file's default.
    attn_bias: biases on q, v, gate and output projections, not on k. qkv_bias: on q, k and v. mlp_bias: on
        the FFN and on memory units.
    """

    family: str = field(metadata=NOBODY)
    depth: int
    n_embd: int
    n_head: int = field(metadata=HEADS)
    head_dim: int = field(metadata=HEADS)
    n_kv_head: int = field(metadata=HEADS)
    intermediate_size: int = field(metadata=SHAPES)
    layers: tuple[LayerSpec, ...]
    vocab_size: int = 32000
    padding_multiple: int = field(default=64, metadata=SHAPES)
    block_size: int = field(default=4096, metadata=SHAPES)
    norm: Norm = "rmsnorm"
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    post_norm: bool = False
    decoupled_norm: bool = False
    skip_gain: bool = False
    reordered_norm: bool = False
    parallel_block: bool = False
    skip: Skip = "add"
    dropout: float = field(default=0.0, metadata=NOBODY)
    qk_norm: bool = field(default=False, metadata=HEADS)
    joint_qk_norm: bool = field(default=False, metadata=HEADS)
    qk_norm_scale: float = field(default=1.0, metadata=HEADS)
    norm_gain: bool = True
    embedding_norm: bool = False
    residual_scalars: bool = False
    token_smear: bool = False
    backout: bool = False
    backout_layer: int | None = None
    starts: Starts = field(default_factory=Starts, metadata=NOBODY)
    zero_output: bool = field(default=False, metadata=NOBODY)
    logit_softcap: float = 0.0
    ffn_multiple: float | None = field(default=None, metadata=SHAPES)
    attn_gate: bool = field(default=False, metadata=HEADS)
    attn_sink: bool = field(default=False, metadata=HEADS)
    attn_norm: bool = field(default=False, metadata=HEADS)
    attn_conv: bool = field(default=False, metadata=HEADS)
    ffn_norm: bool = False
    attn_bias: bool = field(default=False, metadata=HEADS)
    qkv_bias: bool = field(default=False, metadata=HEADS)
    mlp_bias: bool = False
    position: Position = field(default="rope", metadata=HEADS)
    rope_base: float = field(default=10_000.0, metadata=HEADS)
    rotary_fraction: float = field(default=1.0, metadata=HEADS)
    yarn_scale: float = field(default=1.0, metadata=HEADS)
    yarn_context: int = field(default=4096, metadata=YARN)
    yarn_truncate: bool = field(default=False, metadata=YARN)
    yarn_windows: bool = field(default=True, metadata=YARN)
    varlen: bool = field(default=False, metadata=NOBODY)
    doc_positions: Literal["restart", "continue"] = field(default="restart", metadata=NOBODY)
    doc_len: int = field(default=0, metadata=NOBODY)
    share_per_layer: int = 0
    share_group: int = 1
    mixer_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    experts: Experts | None = None
    padded_vocab_size: int = field(init=False, metadata=SHAPES)

    def __post_init__(self) -> None:
        multiple = max(self.padding_multiple, 1)  # a wrong one is reported below
        object.__setattr__(self, "padded_vocab_size", -(-self.vocab_size // multiple) * multiple)
        problems = self._problems()
        if problems:
            listed = "\n".join(f"  - {p}" for p in problems)
            raise UserError(f"The model {self.family} at depth {self.depth} cannot be built:\n{listed}")

    def _problems(self) -> list[str]:
        """Everything that is wrong, so that one run shows it all."""
        checks = {
            f"depth is {self.depth}; it must be at least 1": self.depth < 1,
            f"n_embd is {self.n_embd}; it must be at least 1": self.n_embd < 1,
            f"n_head is {self.n_head}; it must be at least 1": self.n_head < 1,
            f"{len(self.layers)} layers are described but depth is {self.depth}": len(self.layers) != self.depth,
            f"n_kv_head is {self.n_kv_head}; it must be at least 1 and divide n_head = {self.n_head}": (
                self.n_kv_head < 1 or self.n_head % max(self.n_kv_head, 1) != 0
            ),
            f"head_dim is {self.head_dim}; it must be positive and, with RoPE, even": (
                self.head_dim < 1 or (self.position == "rope" and self.head_dim % 2 != 0)
            ),
            f"vocab_size is {self.vocab_size}; it must be at least 2": self.vocab_size < 2,
            f"padding_multiple is {self.padding_multiple}; it must be at least 1": self.padding_multiple < 1,
            f"block_size is {self.block_size}; it must be at least 1": self.block_size < 1,
            f"intermediate_size is {self.intermediate_size}; it must be at least 1": self.intermediate_size < 1,
            f"rotary_fraction is {self.rotary_fraction}; it must be in (0, 1]": not 0 < self.rotary_fraction <= 1,
            f"rotary_fraction {self.rotary_fraction} of head_dim {self.head_dim} leaves RoPE no pair to turn": (
                self.position == "rope" and self.head_dim > 1 and 0 < self.head_dim * self.rotary_fraction < 2
            ),
            f"yarn_scale is {self.yarn_scale}; it must be at least 1": self.yarn_scale < 1,
            "skip_gain needs post_norm and decoupled_norm: pre-norm never reads it": (
                self.skip_gain and not (self.post_norm and self.decoupled_norm)
            ),
            "decoupled_norm needs post_norm: in pre-norm the branch gain is the norm's own": (
                self.decoupled_norm and not self.post_norm
            ),
            "reordered_norm puts the norms behind the branches, and post_norm before them: give one": (
                self.reordered_norm and self.post_norm
            ),
            "parallel_block has one norm, before both branches; it cannot be with post_norm, reordered_norm or skip": (
                self.parallel_block and (self.post_norm or self.reordered_norm or self.skip != "add")
            ),
            "parallel_block has no network behind the mixer that could share its inner state (memory='ffn')": (
                self.parallel_block and any(s.memory == "ffn" for s in self.layers)
            ),
            f"dropout is {self.dropout}; it must be at least 0 and below 1": not 0 <= self.dropout < 1,
            "joint_qk_norm says how qk_norm is done: give both": self.joint_qk_norm and not self.qk_norm,
            "post_norm with skip='none' or 'sum' has no skip path to normalise": (
                self.post_norm and self.skip != "add"
            ),
        }
        checks |= self._sharing_problems() | self._expert_problems() | self._stream_problems()
        mixers = {spec.mixer for spec in self.layers}
        strangers = ", ".join(sorted(set(self.mixer_options) - mixers))
        unused = f"No layer of {self.family} uses {strangers} (--mixer_options). "
        checks[f"{unused}Its mixers are {', '.join(sorted(mixers))}"] = bool(strangers)
        bad_windows = [i for i, s in enumerate(self.layers) if s.window is not None and s.window < 1]
        bad_shares = [i for i, s in enumerate(self.layers) if s.shares is not None and not 0 <= s.shares < i]
        plain = [i for i, s in enumerate(self.layers) if s.memory == "ffn" and s.ffn not in ("swiglu", "oss_swiglu")]
        checks[f"layers {plain} share the up half of their ffn, so it must be swiglu or oss_swiglu"] = bool(plain)
        checks[f"windows of layers {bad_windows} are below 1"] = bool(bad_windows)
        checks[f"layers {bad_shares} share with a layer that does not come before them"] = bool(bad_shares)
        return [message for message, wrong in checks.items() if wrong]

    def _sharing_problems(self) -> dict[str, bool]:
        period, groups = self.share_per_layer, self.share_group
        if period == 0:
            return {f"share_group is {groups}; give share_per_layer too": groups != 1}
        if period < 0 or groups < 1 or self.depth % (period * groups):
            return {f"share_per_layer * share_group = {period} * {groups} must divide the depth {self.depth}": True}
        specs = self.layers
        same = len(specs) == self.depth and all(specs[i] == specs[self.first_layer(i)] for i in range(self.depth))
        lending = any(spec.shares is not None or spec.memory is not None for spec in specs)
        return {
            "layers that share a block (share_per_layer) differ in mixer, window, table or ffn": not same,
            "layers that read another layer's keys, values or memory cannot share blocks (share_per_layer)": lending,
        }

    def _stream_problems(self) -> dict[str, bool]:
        """Of the options around the residual stream and its two ends."""
        around = [name for name in ("residual_scalars", "backout") if getattr(self, name) and self.skip != "add"]
        dense = [spec for spec in self.layers if spec.ffn is not None and not spec.experts]
        middle = self.backout_layer
        multiple = self.ffn_multiple
        return {
            f"skip={self.skip!r} leaves no residual stream for {' and '.join(around)}": bool(around),
            f"backout_layer is {middle}; it must be a layer, below {self.depth}, of a model with backout": (
                middle is not None and not (self.backout and 0 <= middle < self.depth)
            ),
            f"qk_norm_scale is {self.qk_norm_scale}; it must be positive": self.qk_norm_scale <= 0,
            "qk_norm_scale multiplies what qk_norm gives: give both": self.qk_norm_scale != 1 and not self.qk_norm,
            f"logit_softcap is {self.logit_softcap}; it must be positive, or 0 for none": self.logit_softcap < 0,
            "layers with experts keep the start of their projections, so zero_output cannot act there": (
                self.zero_output and any(spec.experts for spec in self.layers)
            ),
            f"ffn_multiple is {multiple}, which times {self.n_embd} is no width; raise it": (
                multiple is not None and round(multiple * self.n_embd) < 1
            ),
            "ffn_multiple is about dense feed-forward networks, and no layer has one": (
                multiple is not None and not dense
            ),
            "a memory (memory='ffn') has the width that follows from intermediate_size, so drop ffn_multiple": (
                multiple is not None and any(spec.memory == "ffn" for spec in self.layers)
            ),
        }

    def _expert_problems(self) -> dict[str, bool]:
        mixtures = [spec for spec in self.layers if spec.experts]
        if self.experts is None:
            return {"layers have experts, but the model does not say which (experts)": bool(mixtures)}
        return {
            "the model describes experts that no layer has": not mixtures,
            "experts are no gelu networks": any(s.ffn == "gelu" for s in mixtures),
            "a layer with experts has no feed-forward network (ffn)": any(s.ffn is None for s in mixtures),
            "experts have no biases (mlp_bias) and no inner norm (ffn_norm)": self.mlp_bias or self.ffn_norm,
            "a mixture of experts has no inner state to share (memory='ffn')": any(s.memory == "ffn" for s in mixtures),
        } | self.experts.problems(self.intermediate_size)

    def first_layer(self, layer: int) -> int:
        """The first layer that uses the same block as `layer`; itself without sharing."""
        if self.share_per_layer == 0:
            return layer
        length = self.depth // self.share_group
        return layer // length * length + layer % length % self.share_per_layer

    def base_of(self, spec: LayerSpec) -> float:
        """The rotary base of a layer: its own, else the model's."""
        return self.rope_base if spec.rope_base is None else spec.rope_base

    def stretched(self, spec: LayerSpec) -> bool:
        """Whether a layer's rotary positions have YaRN."""
        return self.yarn_scale != 1 and (self.yarn_windows or spec.window is None)

    def replace(self, **changes: Any) -> ModelConfig:
        """A copy with some fields changed, validated again."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values; the inverse of from_dict."""
        values = dataclasses.asdict(self)
        values.pop("padded_vocab_size")
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Rebuild from to_dict's values (as found in a checkpoint)."""
        layers = tuple(LayerSpec(**layer) for layer in values["layers"])
        experts = Experts(**values["experts"]) if values.get("experts") else None
        starts = Starts.from_dict(values.get("starts", {}))  # earlier versions wrote none
        return cls(**{**values, "layers": layers, "experts": experts, "starts": starts})
