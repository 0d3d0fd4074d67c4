"""Where a run runs. All knowledge of Lightning Fabric and of launchers lives here.

Fabric picks the accelerator, reads the launcher's environment, starts the process group and
builds the device mesh. The rest is done without its wrappers: the compute dtype is a matter of
FSDP2's policy and of the model, not of autocast, so modules and optimizers need no set-up by it.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import TorchElasticEnvironment
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from torch.distributed import distributed_c10d as c10d
from torch.distributed.device_mesh import DeviceMesh

from lit_gpt.errors import UserError
from lit_gpt.parallel.gloo import one_thread_per_group
from lit_gpt.utils.heap import keep_freed_memory
from lit_gpt.utils.launcher import world_size

Said = TypeVar("Said")
DTYPES = {
    "bf16": torch.bfloat16,
    "bf16-mixed": torch.bfloat16,
    "fp32": torch.float32,
    "32": torch.float32,
}

# GPUs of a node, where no launcher says it: as in NVIDIA's HGX and DGX machines with A100, H100 or H200.
NODE = 8
# Seconds. NCCL's own default; gloo's is 30 minutes, https://docs.pytorch.org/docs/stable/distributed.html.
COLLECTIVE_TIMEOUT = 600.0

# Fabric advises TF32 wherever a GPU has it. The only products in fp32 are those of routers, which must be exact.
logging.getLogger("lightning_fabric.utilities.rank_zero").addFilter(
    lambda record: "set_float32_matmul_precision" not in record.getMessage()
)


@dataclass(frozen=True)
class Runtime:
    """What the training loop needs to know about where it runs.

    mesh: the ranks that hold the sharded weights, None for one process without a launcher. One
    shard group: ("shard",), all ranks. Several: ("replicate", "shard"), shards inside a group and
    copies across groups (HSDP). timeout: seconds that a collective may take.
    """

    fabric: Fabric
    rank: int
    world_size: int
    device: torch.device
    compute_dtype: torch.dtype
    mesh: DeviceMesh | None
    timeout: float = COLLECTIVE_TIMEOUT

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def runs_ahead(self) -> bool:
        """Whether the host goes on while the device computes, and waits only where it reads a number."""
        return self.device.type == "cuda"

    def barrier(self) -> None:
        """Wait until all ranks are here. Collective."""
        self.fabric.barrier()

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of `tensor` over all ranks, as a new tensor; no host sync."""
        total = tensor.clone()
        if self.mesh is not None:
            dist.all_reduce(total)
        return total

    def gather(self, said: Said) -> list[Said]:
        """What every rank has to say, by rank. On the host."""
        everyone = [said] * self.world_size
        if self.mesh is not None:
            dist.all_gather_object(everyone, said)
        return everyone


def shard_group(given: int | None, ranks: int) -> int:
    """Processes that divide one copy of the weights among them: `given`, else those of this node.

    Raises UserError where `given` does not divide the `ranks` processes of the run.
    """
    if given and ranks % given:
        sizes = ", ".join(str(n) for n in range(1, ranks + 1) if ranks % n == 0)
        raise UserError(
            f"--shard_group {given} does not divide the {ranks} process{'es' * (ranks > 1)} of this run. Use one of: "
            f"{sizes}."
        )
    return given or int(os.environ.get("LOCAL_WORLD_SIZE", min(ranks, NODE)))


def start_runtime(
    *,
    precision: str | None = None,
    offloading: bool = False,
    shards: int | None = None,
    deterministic: bool = False,
    timeout: float = COLLECTIVE_TIMEOUT,
) -> Runtime:
    """Join the run this process belongs to.

    precision: bf16 (or bf16-mixed), fp32 (or 32); None is bf16 on CUDA and fp32 elsewhere.
    shards: see shard_group.
    deterministic: deterministic kernels everywhere.
    timeout: seconds after which a collective fails, in every process group: with gloo as a RuntimeError; NCCL ends
    the process (its watchdog, TORCH_NCCL_ASYNC_ERROR_HANDLING). See peers.py, which comes first.
    Under torchrun, even with one process, the weights are sharded by FSDP2. Without it: one
    process on the first GPU, or on the CPU.

    Raises UserError for an unknown precision, more processes than GPUs, shard groups of unequal sizes, Slurm tasks
    without torchrun, and offloading without torchrun.
    """
    if precision not in (None, *DTYPES):
        raise UserError(f"--precision {precision} is unknown. Use one of: {', '.join(DTYPES)}.")
    if deterministic:
        _make_deterministic()
    size = shard_group(shards, world_size())
    return _join(precision, size, timeout) if os.environ.get("WORLD_SIZE") else _alone(precision, offloading)


def _join(precision: str | None, shards: int, timeout: float) -> Runtime:
    # What torchrun started, not what is visible: a job may use some of a node's GPUs (departure D12).
    devices = int(os.environ["LOCAL_WORLD_SIZE"])
    num_nodes = world_size() // devices
    cuda = torch.cuda.is_available()
    if cuda and devices > torch.cuda.device_count():
        raise UserError(
            f"torchrun started {devices} processes on this node, which has {torch.cuda.device_count()} GPUs. "
            f"Use torchrun --nproc_per_node {torch.cuda.device_count()}, or CUDA_VISIBLE_DEVICES= for the CPU."
        )
    one_thread_per_group()
    limit = timedelta(seconds=timeout)
    # DeviceMesh and new_group do not hand the limit of the whole group on: theirs are these two constants (torch
    # 2.11 to 2.14), so this reaches every group, whoever makes it.
    c10d.default_pg_timeout = c10d.default_pg_nccl_timeout = limit
    strategy = ModelParallelStrategy(
        parallelize_fn=lambda model, mesh: model,
        process_group_backend="cpu:gloo,cuda:nccl" if cuda else "gloo",
        timeout=limit,
    )
    fabric = Fabric(
        accelerator="cuda" if cuda else "cpu",
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy,
        plugins=[TorchElasticEnvironment()],
    )
    fabric.launch()
    return _runtime(fabric, precision, _mesh(strategy.device_mesh, shards), timeout)


def _mesh(fabric_mesh: DeviceMesh, shards: int) -> DeviceMesh:
    """Groups of `shards` ranks in their order, in which those of a node follow one another."""
    ranks = fabric_mesh.mesh.reshape(-1, shards)
    if len(ranks) == 1:
        return DeviceMesh(fabric_mesh.device_type, ranks[0], mesh_dim_names=("shard",))
    return DeviceMesh(fabric_mesh.device_type, ranks, mesh_dim_names=("replicate", "shard"))


def _alone(precision: str | None, offloading: bool) -> Runtime:
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        raise UserError(
            f"srun started {os.environ['SLURM_STEP_NUM_TASKS']} tasks that do not know of each other. "
            "Start one task per node, and torchrun in it: see launch_scripts/."
        )
    if offloading:
        raise UserError(
            "--offloading true is done by FSDP2, which needs torchrun. For one GPU type: "
            "torchrun --nproc_per_node 1 pretrain.py ..."
        )
    fabric = Fabric(accelerator="cuda" if torch.cuda.is_available() else "cpu", devices=1)
    fabric.launch()
    return _runtime(fabric, precision, None, COLLECTIVE_TIMEOUT)


def _runtime(fabric: Fabric, precision: str | None, mesh: DeviceMesh | None, timeout: float) -> Runtime:
    device = fabric.device
    if device.type == "cpu":
        keep_freed_memory()
    return Runtime(
        fabric=fabric,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        device=device,
        compute_dtype=DTYPES[resolved_precision(precision)],
        mesh=mesh,
        timeout=timeout,
    )


def resolved_precision(label: str | None) -> str:
    """ "bf16" or "fp32": what a label of --precision, or none, means on this machine."""
    dtype = DTYPES[label or ("bf16" if torch.cuda.is_available() else "fp32")]
    return "bf16" if dtype == torch.bfloat16 else "fp32"


def _make_deterministic() -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # only costs time here
    torch.backends.cudnn.benchmark = False
