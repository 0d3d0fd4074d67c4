"""Activations of some layers wait in host memory between forward and backward (--act_offload).

What autograd keeps of a chosen block is copied to pinned memory on a stream of its own while the next blocks compute,
and comes back while the blocks after it go backward (the idea of torchtune's OffloadActivations, with layers instead of
tensors as its unit). Nothing is computed again, and the bits are the same.

    forward    block 0    block 1    ...        the memory of block 0 is free when the next chosen block has ended
    copies                  0 -> host
    backward   block 7    block 6    block 5    block 4    ...        with 0 and 4 chosen of eight
    copies                  4 -> device           0 -> device

A copy hides behind the blocks in between where it takes no longer than they do: docs/performance_details.md has the
arithmetic. The first that comes back starts when the last block has gone backward, whose memory it may then have.
Blocks are wrapped outermost, so this works with any --act_ckpt of compiled blocks, and with FSDP2.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves

from lit_gpt.nn.linear import Linear
from lit_gpt.nn.moe import MixtureOfExperts
from lit_gpt.ops.fp8 import ScaledWeights

SMALLEST = 2**22  # bytes; smaller tensors, such as sums of rows, are many copies for little memory


def chosen_layers(share: float, count: int) -> list[int]:
    """Which of `count` layers keep their activations on the host: evenly spread, from the first on, not the last.

    The last layer's are needed at once.
    """
    if share == 0:
        return []
    return [i for i in range(count - 1) if i == 0 or int(i * share) > int((i - 1) * share)]


def offload_activations(blocks: nn.ModuleList, share: float, device: torch.device) -> None:
    """Let a share of the blocks keep their activations on the host. The last wrapper around their forward passes."""
    if share == 0:
        return
    chosen, copies = chosen_layers(share, len(blocks)), _Copies(device, distance=int(1 / share))
    recall = max([i + 1 for i in chosen[-1:]] + [len(blocks) - 2])
    for i, block in enumerate(blocks):
        _wrap(block, copies, i in chosen, first=i == 0, recalls=i == recall)


def _wrap(block: nn.Module, copies: _Copies, chosen: bool, first: bool, recalls: bool) -> None:
    """recalls: the last layer that left is sent back when this block begins to go backward."""
    inner = block.forward

    @wraps(inner)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return inner(*args, **kwargs)
        copies.enter(chosen, first)
        if recalls:
            return _when_backward_begins(inner(*args, **kwargs), copies.last)
        if not chosen:
            return inner(*args, **kwargs)
        layer = copies.new_layer({p.untyped_storage().data_ptr() for p in _weights(block)})
        with saved_tensors_hooks(layer.pack, layer.unpack):
            return inner(*args, **kwargs)

    block.forward = forward


def _when_backward_begins(result: Any, layer: _Layer | None) -> Any:
    """The same result of a block, whose gradient has the layer's tensors sent back."""
    outputs = [x for x in tree_leaves(result) if isinstance(x, Tensor) and x.requires_grad]
    if layer is not None and outputs:
        outputs[0].register_hook(lambda gradient: layer.send())
    return result


def _weights(block: nn.Module) -> list[Tensor]:
    """What a block reads and does not make: its parameters, as they are gathered now, and casts that are kept."""
    scaled = [m.scaled for m in block.modules() if isinstance(m, Linear)]
    operands = [s.operand for s in scaled if isinstance(s, ScaledWeights) and s.operand is not None]
    mixtures = [m for m in block.modules() if isinstance(m, MixtureOfExperts)]
    of_experts = [m.kept if m.scaled is None else m.scaled.operands for m in mixtures]
    return [*block.parameters(), *(x for casts in (*operands, *of_experts) for x in casts)]


class _Item:
    """The bytes of one tensor on the host, and how to see them as it."""

    def __init__(self, x: Tensor, copies: _Copies):
        self.form = x.dtype, x.storage_offset(), x.shape, x.stride()
        self.copies, self.device = copies, x.device
        self.there: Tensor | None = None  # on the device, once it is on its way back
        self.host = copies.to_host(_bytes(x))

    def start(self) -> None:
        """Send it to the device, unless it is on its way."""
        if self.there is None:
            self.there = self.copies.to_device(self.host, self.device)

    def take(self) -> Tensor:
        """The tensor on the device; to be called once the copies have arrived."""
        assert self.there is not None
        (dtype, *form), there, self.there = self.form, self.there, None
        return torch.empty(0, dtype=dtype, device=self.device).set_(there.untyped_storage(), *form)

    def __del__(self) -> None:
        if self.there is not None:  # no backward pass took it: the copy ends before the memory is another's
            self.copies.arrive()
        # Copies in both directions are in one stream, so that a new one does not overtake an old one's reading.
        self.copies.free[self.host.numel()].append(self.host)


class _Leaving(NamedTuple):
    """What one block's tensors wait for before their memory is used again."""

    tensors: list[Tensor]
    done: torch.cuda.Event | None


class _Layer:
    """What one block keeps in one forward pass. weights: the storages of its parameters, which stay."""

    def __init__(self, copies: _Copies, weights: set[int], before: _Layer | None):
        self.copies, self.weights, self.before = copies, weights, before
        self.items: list[_Item] = []

    def pack(self, x: Tensor) -> Tensor | _Item:
        """A tensor that alone has its memory goes to the host; views would leave it where it is."""
        storage = x.untyped_storage()
        large = x.device.type == self.copies.device.type and storage.nbytes() >= SMALLEST
        if not large or storage.nbytes() != x.nbytes or storage.data_ptr() in self.weights:
            return x
        item = _Item(x, self.copies)
        self.items.append(item)
        return item

    def unpack(self, packed: Tensor | _Item) -> Tensor:
        """The same tensor; the first of a layer waits for all of it, and sends the layer before it on its way."""
        if isinstance(packed, Tensor):
            return packed
        if self.items or packed.there is None:
            self.send()
            packed.start()
            self.items = []
            self.copies.arrive()
            if self.before is not None:
                self.before.send()
                self.before = None
        return packed.take()

    def send(self) -> None:
        """What has not come back yet starts on its way, and may have the memory of what left."""
        self.copies.let_go(self.copies.leaving)
        for item in self.items:
            item.start()


class _Copies:
    """Copies between device and host on a stream of their own, and buffers of the host by size.

    distance: blocks from one whose tensors leave to the one that may wait for their copies and reuse the memory. With
    chosen blocks as near as that, it waits for those of the one before: a copy may take as long as the blocks between.
    """

    def __init__(self, device: torch.device, distance: int):
        self.device, self.distance, self.passed = device, distance, 0
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.free: dict[int, list[Tensor]] = defaultdict(list)
        # On their way to the host, so that their memory must stay: of each layer, and when they have all arrived.
        self.leaving: list[_Leaving] = []
        self.last: _Layer | None = None
        self.copied = False  # anything so far

    def enter(self, chosen: bool, first: bool) -> None:
        """A block begins, for which the memory of what left before may be needed."""
        if first:
            if self.last is not None and not self.copied:
                self.copied = True  # said once
                warnings.warn(
                    f"--act_offload saves nothing: its layers keep no tensor of {SMALLEST:,} bytes or more, and "
                    "smaller ones stay. Raise --micro_bsz, or drop it.",
                    stacklevel=2,
                )
            self.last = None
        self.passed += 1
        far = self.passed >= self.distance and not chosen
        self.let_go(self.leaving if far else self.leaving[:-1])

    def new_layer(self, weights: set[int]) -> _Layer:
        """The record of a block's forward pass."""
        self.last, self.passed = _Layer(self, weights, self.last), 0
        self.leaving.append(_Leaving([], None if self.stream is None else torch.cuda.Event()))
        return self.last

    def to_host(self, x: Tensor) -> Tensor:
        """Start a copy of bytes to the host, when they have been computed."""
        self.copied = True
        buffers = self.free[x.numel()]
        host = buffers.pop() if buffers else torch.empty_like(x, device="cpu", pin_memory=self.stream is not None)
        self._copy(host, x)
        tensors, done = self.leaving[-1]
        tensors.append(x)
        if done is not None and self.stream is not None:
            done.record(self.stream)
        return host

    def to_device(self, host: Tensor, device: torch.device) -> Tensor:
        """Start a copy of bytes to the device, into memory of the computing stream, when what it did before is done."""
        x = torch.empty_like(host, device=device)
        self._copy(x, host)
        return x

    def arrive(self) -> None:
        """What is computed from now on waits for the copies that were started, and may have the memory of what left."""
        if self.stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self.stream)
        self.leaving = []

    def let_go(self, layers: list[_Leaving]) -> None:
        """The same for what left of these layers, the first ones."""
        for layer in layers:
            if layer.done is not None:
                torch.cuda.current_stream(self.device).wait_event(layer.done)
        self.leaving = self.leaving[len(layers) :]

    def _copy(self, into: Tensor, x: Tensor) -> None:
        if self.stream is None:
            into.copy_(x)
            return
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            into.copy_(x, non_blocking=True)


def _bytes(x: Tensor) -> Tensor:
    """The memory of a tensor, as bytes."""
    return torch.empty(0, dtype=torch.uint8, device=x.device).set_(x.untyped_storage())
