"""What optimizers of libraries keep between steps, as their code has it: see optimizer_facts.Memory.

tests/optim/test_state_size.py compares each with what the library keeps.
"""

from __future__ import annotations

from math import inf, prod

from lit_gpt.scaling.optimizer_facts import Args, Kept, Memory, Shape, copies


def momentum(shape: Shape, args: Args) -> Kept:
    """One copy of the weights; none where the momentum is 0, for which these libraries make no buffer."""
    return copies(1.0 if args.get("momentum", 1.0) else 0.0)(shape, args)


def factored(times: int) -> Memory:
    """The momentum, and `times` factored second moments: one number per row and one per column (Adafactor).

    A vector has one per weight. A kernel (R, 1, K) is R matrices of one row and K columns.
    """

    def memory(shape: Shape, args: Args) -> Kept:
        moments = 1 if len(shape) < 2 else times * (1 / shape[-1] + 1 / shape[-2])
        return Kept((1 + moments + bool(args.get("ams_bound"))) * prod(shape))

    return memory


def preconditioned(copies_of_weights: int, largest: float = inf) -> Memory:
    """Copies of the weights, and two n x n matrices for every axis of length n.

    The two are the statistics of the axis, and their eigenbasis (SOAP) or inverse root (Shampoo). An axis longer than
    `largest` has none, and so has a vector unless the option precondition_1d is on.
    """

    def memory(shape: Shape, args: Args) -> Kept:
        limit = args.get("max_precondition_dim", largest)
        axes = shape if len(shape) > 1 or args.get("precondition_1d") else ()
        return Kept(copies_of_weights * prod(shape) + 2 * sum(n * n for n in axes if n <= limit))

    return memory


def _projected(shape: Shape, args: Args, rank: float) -> tuple[float, float]:
    """How many numbers a projection onto a rank has, and how many a projected gradient has.

    As pytorch-optimizer's GaLoreProjector does it.
    """
    rows, columns = shape
    r, kind = min(rank, rows, columns), args.get("projection_type", "std")
    if kind == "full":
        return r * (rows + columns), r * r
    tall = rows >= columns
    right = {"right": True, "left": False, "reverse_std": not tall}.get(kind, tall)
    return (r * columns, rows * r) if right else (rows * r, r * columns)


def galore(rank: int) -> Memory:
    """The projection onto that rank, and Adam's two moments of the projected gradient."""

    def memory(shape: Shape, args: Args) -> Kept:
        projection, low = _projected(shape, args, args.get("rank", rank))
        return Kept(projection + 2 * low)

    return memory


def conda(shape: Shape, args: Args) -> Kept:
    """Momentum, the second moment in its basis, and the basis."""
    basis, low = _projected(shape, args, min(shape))
    return Kept(prod(shape) + basis + low)


def quantised(bits: int, block: int, codes: int) -> Memory:
    """Two moments of so many bits, with a scale per block and a table of `codes` values.

    torchao keeps tensors of fewer than 4,096 values, and those that are no whole number of blocks, in fp32.
    """

    def memory(shape: Shape, args: Args) -> Kept:
        count, size = prod(shape), args.get("block_size", block)
        small = count < 4096 or count % size
        return Kept(2 * (count if small else count * (bits / 32 + 1 / size) + codes))

    return memory
