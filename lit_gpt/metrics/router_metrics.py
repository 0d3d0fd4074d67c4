"""What routers do, as numbers: balance, size of logits, size of outputs.

`pack` makes one vector of sums over tokens, which stays on the device and is summed over ranks when
somebody logs; `unpack` turns it into metrics on the host.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import torch

from lit_gpt.nn.moe import Routed

# Experts in all layers up to which the load of each one is logged; with more, a line of metrics.jsonl would hold little
# else.
SINGLE_LOADS = 2048


def pack(routed: Routed, balance_loss: torch.Tensor) -> torch.Tensor:
    """One vector (L E + 2 L + 1,), for L layers with E experts each.

    It holds the counts of tokens per expert, the sums of squared log-sum-exps (z) and of squared outputs of every
    layer, and the balance loss.
    """
    parts = [routed.counts_E.flatten(), routed.z, routed.square, balance_loss.reshape(1)]
    return torch.cat([part.detach() for part in parts])


def unpack(values: Sequence[float], experts: int, tokens: int) -> dict[str, float]:
    """Metrics of one step from packed values summed over ranks.

    experts: E of a layer. tokens: of the step. Keys: `metric/bal_loss` (weighted, summed over layers);
    per layer i of those with experts, and as `_mean` or `_avg` over them: `metric/loop_<i>_maxvio_batch`
    ((largest load - mean) / mean), `metric/router_z_layer_<i>` (mean square of the log-sum-exp),
    `metric/expert_output_rms_layer_<i>` (of the sum of routed experts; mean as root mean square); and
    `metric/loop_<i>_expert_<j>_load`, 1 at balance.
    """
    layers = (len(values) - 1) // (experts + 2)
    counts = [values[i * experts : (i + 1) * experts] for i in range(layers)]
    z, squares = ([values[(experts + k) * layers + i] / tokens for i in range(layers)] for k in (0, 1))
    loads = [[c * experts / max(sum(row), 1e-30) for c in row] for row in counts]
    row = {"metric/bal_loss": values[-1]}
    row |= {f"metric/loop_{i}_maxvio_batch": max(load) - 1 for i, load in enumerate(loads)}
    row["metric/maxvio_batch_avg"] = statistics.fmean(max(load) - 1 for load in loads)
    row |= {f"metric/router_z_layer_{i}": value for i, value in enumerate(z)}
    row["metric/router_z_mean"] = statistics.fmean(z)
    row |= {f"metric/expert_output_rms_layer_{i}": math.sqrt(value) for i, value in enumerate(squares)}
    row["metric/expert_output_rms_mean"] = math.sqrt(statistics.fmean(squares))
    if layers * experts <= SINGLE_LOADS:
        row |= {f"metric/loop_{i}_expert_{j}_load": v for i, load in enumerate(loads) for j, v in enumerate(load)}
    return row
