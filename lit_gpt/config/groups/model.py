"""Options of the data and of the model.

The format of the docstrings is that of lit_gpt/config/help.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from lit_gpt.config.bounds import Bounds
from lit_gpt.config.groups.kinds import Depth, Epsilon, Experts, File, Folder, Length, Name, Scale, Share
from lit_gpt.config.words import Words


@dataclass
class DataOptions:
    """Data: the tokens to train on.

    train_data_dir: Folder with the tokens to train on. It holds shards that scripts/prepare_text.py made, files of
        nanoGPT, llm.c or Megatron, or plain text, and may be in a cloud store (az://, gs:// or s3://).
        Example: --train_data_dir data/mine
    val_data_dir: Folder with the tokens to validate on, or several as name=path,name=path. The first one is what
        --keep_best and metric/val_loss@1x mean.
        Default: none, and then nothing is validated
        Example: --val_data_dir data/mine, or --val_data_dir web=data/web,code=data/code

    data_mixture: JSON file with the weight of each source, which is a path prefix inside the training folder. A list
        of such tables changes the weights while the run goes on.
        Default: all files as one source
        Example: --data_mixture mix.json, a file with {"web/train": 0.7, "code/train": 0.3}, or with
        [{"until": "10B", "weights": {"web/train": 1}}, {"weights": {"code/train": 1}}]
    vocab_size: Number of different tokens that the model knows.
        Default: what the prepared data says, else the family's, mostly 32000
    eos_token_id: Number of the token that ends a document.
        Default: what the prepared data says
    num_workers: Threads that read data ahead of the training step.
    """

    train_data_dir: Folder = "data/redpajama_sample"
    val_data_dir: Folder | None = None
    data_mixture: File | None = None
    vocab_size: Annotated[int, Bounds(2, 2**31 - 1)] | None = None
    eos_token_id: Annotated[int, Bounds(0, 2**31 - 2)] | None = None
    num_workers: Annotated[int, Bounds(0, 1024)] = 2


@dataclass
class ModelOptions:
    """Model: which network is trained, and how large it is.

    train_model: Model family; docs/architectures.md lists them, and so does the error for an unknown name.
        Example: --train_model sambay
    depth: Number of layers. The width grows with it, so that this one number sets the size.
    ctx_len: Tokens in one training sequence.
        Default: the family's, mostly 4096

    ar: Aspect ratio: the width of the model is this times the depth.
        Default: the family's, which is 128 in transformer
        Example: --depth 4 --ar 32 makes a model of width 128
    tie_embeddings: Use one table as the input embedding and as the output head.
        Default: the family's, mostly false
    mlp: Kind of the feed-forward networks. gelu is GPT-2's: two matrices and no gate, and so two thirds of the
        weights that the others have. none leaves them out, as in the published models of Mamba.
        Default: the family's, mostly swiglu
    ffn_multiple: Hidden width of the feed-forward networks, as a multiple of the width of the model.
        Default: 4 for swiglu and gelu and 6 for relu2 in most families
        Example: --mlp relu2 --ffn_multiple 4
    ffn_multiple_of: Make the feed-forward networks two thirds of 4 times as wide as the model, rounded up to a multiple
        of this, as LLaMA's are; gelu networks 4 times as wide.
        Default: the family's own width, mostly 4 times that of the model
        Example: --ffn_multiple_of 256
    dropout: Drop this share of the entries of the embedding and of what each branch adds, in training. The masks follow
        from seed, step, sample and layer, so they are the same after a resume and on any number of processes.
        Default: the family's, mostly 0
    bias: Give the linear projections biases.
        Default: the family's, mostly false
    share_per_layer: The layers share this many blocks, which they use in turn; 0 gives each layer its own block.
        Default: the family's, mostly 0
    share_group: Divide the layers into this many groups, and share blocks only within a group.
        Default: the family's, mostly 1
        Example: --depth 12 --share_per_layer 2 --share_group 3 has 6 blocks, each of which is used twice
    mixer_options: Options of the family's mixers, such as attention or Mamba; the error for a wrong name lists them.
        Default: those in the file of the mixer
        Example: --mixer_options '{"mamba": {"d_state": 32}}'
    plugins: Python files of your own, each with one family, mixer, optimizer, scaling rule or data format
        (docs/adding.md).
        Default: none
        Example: --plugins my_rule.py
    """

    train_model: Name = "transformer"
    depth: Depth = 16
    ctx_len: Length | None = None
    ar: Annotated[int, Bounds(1, 10_000)] | None = None
    tie_embeddings: bool | None = None
    mlp: Literal["swiglu", "relu2", "oss_swiglu", "gelu", "none"] | None = None
    ffn_multiple: Annotated[float, Bounds(0, 1_000, "low")] | None = None
    ffn_multiple_of: Annotated[int, Bounds(1, 65_536)] | None = None
    dropout: Share | None = None
    bias: bool | None = None
    share_per_layer: Annotated[int, Bounds(0, 2_000)] | None = None
    share_group: Depth | None = None
    mixer_options: dict[str, dict[str, Any]] | None = None
    plugins: Words = field(default_factory=list)


@dataclass
class AttentionOptions:
    """Attention and positions: what a token sees of the sequence.

    varlen: Keep documents apart: attention and recurrence stop at the end of a document.
        Default: the family's, mostly false
    swa_len: Window of the sliding-window attention layers, in tokens.
        Default: the family's

    position: Rotary positions (rope), no positions at all (none), or a table of --ctx_len positions that is added to
        the embedding, as in GPT-2 (learned).
        Default: the family's, rope in most transformers
    rope_base: Base of the rotary frequencies; a longer context wants a larger one.
        Default: the family's, mostly 10000
    doc_positions: With --varlen true: rotary positions restart in each document, or continue through the sequence.
        Attention scores are the same but for rounding.
        Default: restart
    doc_len: With --varlen true: cut a document in a row after each so many tokens, in training and in validation; 0
        cuts none.
        Default: the family's, mostly 0
        Example: --ctx_len 32768 --varlen true --doc_len 4096
    yarn_scale: YaRN: the context is this many times that of the trained weights. It acts with --midtrain true or
        --validation true only; 1 is off.
    qkv_bias: Give queries, keys and values biases, as Qwen2 has them; --bias true gives keys none.
        Default: the family's, mostly false
    qk_norm: Put an RMS norm on queries and keys.
        Default: the family's, mostly false
    joint_qk_norm: With --qk_norm true: one norm over all heads together, as in OLMo 2, and not one for each head.
        Default: the family's, mostly false
    qk_norm_scale: With --qk_norm true: multiply the normalised queries and keys by this constant.
        Default: the family's, mostly 1
    attn_gate: Multiply the output of each attention head by a sigmoid gate for each token.
        Default: the family's, mostly false
    attn_norm: Put a norm before the output projection of attention.
        Default: the family's, mostly false
    attn_conv: Put a short causal convolution on queries, keys and values.
        Default: the family's, mostly false
    attention: Implementation of attention: auto (the fastest that can do what the model needs), or one of the names
        that `python -m lit_gpt.tools.inspect env` prints.
        Example: --attention sdpa
    """

    varlen: bool | None = None
    swa_len: Length | None = None
    position: Literal["rope", "none", "learned"] | None = None
    rope_base: Annotated[float, Bounds(1, 1e15, "low")] | None = None
    doc_positions: Literal["restart", "continue"] | None = None
    doc_len: Annotated[int, Bounds(0, 2**30)] | None = None
    yarn_scale: Annotated[float, Bounds(1, 10_000)] = 1.0
    qkv_bias: bool | None = None
    qk_norm: bool | None = None
    joint_qk_norm: bool | None = None
    qk_norm_scale: Annotated[float, Bounds(1e-3, 1_000)] | None = None
    attn_gate: bool | None = None
    attn_norm: bool | None = None
    attn_conv: bool | None = None
    attention: Name = "auto"


@dataclass
class NormOptions:
    """Norms and skip path: how a layer is added to what came before it.

    norm_class: Kind of the norms: rmsnorm or layernorm.
        Default: the family's, mostly rmsnorm
    norm_eps: Added to the mean square (or the variance) that a norm divides by the root of.
        Default: the family's, which is 1e-5 in transformer
    ffn_norm: Put a norm on the hidden activations of the feed-forward networks.
        Default: the family's, mostly false
    norm_gain: Give norms and QK-norm learnable gains. Norms inside recurrent mixers always have them.
        Default: the family's, mostly true
    post_norm: Normalise the skip path too: a branch is added to its own normalised input.
        Default: the family's, mostly false
    decoupled_norm: With --post_norm true: norms without a gain, and a gain on the branch only.
        Default: the family's, mostly false
    skip_gain: With both of these: a gain on the skip path, which starts at 1e-4.
        Default: the family's, mostly false
    reordered_norm: Put the norms behind the branches, x + norm(f(x)), as in OLMo 2.
        Default: the family's, mostly false
    parallel_block: Let the mixer and the feed-forward network of a layer read one norm, x + f(norm(x)) + g(norm(x)),
        as in PaLM.
        Default: the family's, mostly false
    skip: With add a layer is x + f(x), with none only f(x). With sum every branch sees the branch before it alone, and
        the head sees the sum of all.
        Default: the family's, mostly add
    """

    norm_class: Name | None = None
    norm_eps: Epsilon | None = None
    ffn_norm: bool | None = None
    norm_gain: bool | None = None
    post_norm: bool | None = None
    decoupled_norm: bool | None = None
    skip_gain: bool | None = None
    reordered_norm: bool | None = None
    parallel_block: bool | None = None
    skip: Literal["add", "none", "sum"] | None = None


@dataclass
class ExpertOptions:
    """Experts: mixtures of experts, in families whose names end in _moe.

    sparsity: Number of experts divided by the number that a token uses (S); there are S x k experts.
        Default: the family's, mostly 1
    top_k: Number of experts that each token uses (k), shared ones included.
        Default: the family's, mostly 2
    share_expert: Make one of the k a shared expert, which every token uses, or this many of them.
        Default: false
        Example: --top_k 6 --share_expert 2
    expert_routing: Tokens choose their experts, or experts choose their tokens.
        Default: token_choice
    router_gate: Weights of the chosen experts: softmax over the chosen ones, softmax over all experts, or a sigmoid
        for each, divided by their sum.
        Default: selected; all where a token uses one routed expert
    sqrt_gate: Take the square root of these weights, so that their 2-norm is 1.
        Default: false
    expert_capacity: An expert serves at most this many times its mean number of tokens. With expert_choice it takes
        just so many; the capacity factor of that paper is this times --top_k, less what --share_expert takes of it.
        Default: no limit; 1 with expert_choice
    aux_style: Form of the balance loss, which keeps experts equally busy.
        Default: switch
    aux_gamma: Weight of the balance loss; 0 is none.
        Default: the family's, mostly 0.001; 0 with expert_choice, or with a --bias_rate above 0
    global_aux: Balance over all processes and micro-batches of a step, not within each micro-batch.
        Default: false
    exact_aux: With --global_aux true: count the whole step before its first backward pass, which costs one more forward
        pass and makes the gradients independent of the split into micro-batches.
        Default: false, which uses the counts so far
    bias_rate: Step of the selection biases, which balance experts without a loss; 0 is off.
        Default: 0
        Example: --bias_rate 0.001
    router_z_loss: Weight of the router z-loss, which keeps the router's logits small; 0 is off.
        Default: the family's, mostly 0
        Example: --router_z_loss 0.001
    expert_parallel: The processes of a node divide the experts among them, and tokens travel to their experts.
    expert_backend: Implementation of the experts' matrix products: auto, torch, quack, padded or plain.
    """

    sparsity: Experts | None = None
    top_k: Experts | None = None
    share_expert: bool | Annotated[int, Bounds(0, 10_000)] | None = None
    expert_routing: Literal["token_choice", "expert_choice"] | None = None
    router_gate: Literal["selected", "all", "sigmoid"] | None = None
    sqrt_gate: bool | None = None
    expert_capacity: Annotated[float, Bounds(0, 10_000, "low")] | None = None
    aux_style: Literal["switch", "entropy", "switch_seq"] | None = None
    aux_gamma: Scale | None = None
    global_aux: bool | None = None
    exact_aux: bool | None = None
    bias_rate: Scale | None = None
    router_z_loss: Scale | None = None
    expert_parallel: bool = False
    expert_backend: Name = "auto"
