"""Read files that anyone may have made: nothing in them runs, and they fill no more memory than they are long.

DCP's index `.metadata` is a pickle, and a pickle may call whatever it names. The one here may name
only the classes that describe tensors. The tensors themselves are zip files written by torch.save;
they are read with weights_only, and only when nothing in them is compressed.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import re
import zipfile
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.futures import Future

from lit_gpt.checkpoint.layout import INDEX
from lit_gpt.checkpoint.writing import THREADS
from lit_gpt.errors import UserError
from lit_gpt.utils.files import regular

# What torch 2.11 to 2.14 name in an index that describes tensors alone. BytesStorageMetadata is
# left out on purpose: it announces pickled objects.
DESCRIPTIONS = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorStorageMetadata",
        "ChunkStorageMetadata",
        "TensorProperties",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},  # a look-up of a layout by its name
}
Shapes = Mapping[str, tuple[torch.Size, torch.dtype]]
DATA_FILE = re.compile(r"__\d+_\d+\.distcp", re.ASCII)  # __<rank>_<number>.distcp, in the same folder


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in DESCRIPTIONS.get(module, ()):
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module in ("pathlib", "pathlib._local") and name in ("PosixPath", "WindowsPath"):
            return PurePosixPath  # where it was written, which nobody asks; Python 3.13 moved the class
        raise pickle.UnpicklingError(f"it names {module}.{name}, which describes no tensor")


def read_index(path: Path) -> Metadata:
    """The index of a step folder. Raises UserError when it is damaged or holds more than descriptions of tensors."""
    try:
        with regular(path / INDEX).open("rb") as file:
            index = _Unpickler(file).load()
        _check(index)
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError(f"the index {path / INDEX} is damaged or missing ({reason(error)})") from error
    return index


def stored_shapes(path: Path) -> Shapes:
    """Name -> (full shape, dtype) of every tensor in a step folder. Raises UserError as read_index does."""
    stored = read_index(path).state_dict_metadata
    return {name: (s.size, s.properties.dtype) for name, s in stored.items() if isinstance(s, TensorStorageMetadata)}


def data_files(index: Metadata) -> dict[str, int]:
    """Name -> the bytes that the tensors in it take, of every data file."""
    sizes: dict[str, int] = defaultdict(int)
    for place in (index.storage_data or {}).values():
        sizes[place.relative_path] += place.length
    return dict(sizes)


def _check(index: Any) -> None:
    """Raises ValueError unless every tensor lies in data files of the folder, as long as its shape says."""
    if not isinstance(index, Metadata):
        raise ValueError("it is no index of a checkpoint")
    places = dict(index.storage_data)
    for place in places.values():
        if not isinstance(place, _StorageInfo) or vars(place).get("transform_descriptors"):
            raise ValueError("it says no place of a tensor")
        if not DATA_FILE.fullmatch(place.relative_path) or min(place.offset, place.length) < 0:
            raise ValueError(f"it names the file {place.relative_path!r} at {place.offset}")
    for name, stored in index.state_dict_metadata.items():
        if not isinstance(stored, TensorStorageMetadata):
            raise ValueError(f"{name} is no tensor")
        if min((0, *stored.size, *(n for c in stored.chunks for n in (*c.sizes, *c.offsets)))) < 0:
            raise ValueError(f"{name} has negative sizes")
        if sum(math.prod(c.sizes) for c in stored.chunks) != math.prod(stored.size):
            raise ValueError(f"the parts of {name} are not the whole")
        for chunk in stored.chunks:
            size = math.prod(chunk.sizes) * stored.properties.dtype.itemsize
            if places[MetadataIndex(name, chunk.offsets)].length < size:
                raise ValueError(f"{name} is larger than what is stored of it")


class _Region(io.RawIOBase):
    """`length` bytes of an open file from `start` on, as a file of its own, read without a copy in between.

    DCP's own view of a file cannot be read to its end, which zipfile does.
    """

    def __init__(self, file: IO[bytes], start: int, length: int) -> None:
        self.file, self.start, self.length, self.at = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.length}[whence]
        return self.at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[: max(self.length - self.at, 0)]
        done = 0
        while done < len(view) and (n := os.preadv(self.file.fileno(), [view[done:]], self.start + self.at + done)):
            done += n  # at most 2 GiB a call (preadv(2))
        self.at += done
        return done


class Reader(dcp.FileSystemReader):
    """DCP's reader of a step folder, for tensors alone; resharding is DCP's."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        self.index = read_index(Path(self.path))
        self.index.storage_meta = StorageMeta(load_id=self.load_id)
        return self.index

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill the tensors of the plan; what DCP calls. Raises ValueError for a stored part of another shape."""
        with ThreadPoolExecutor(THREADS) as pool:
            for first in range(0, len(plan.items), THREADS):  # a few at a time: they are copies
                items = plan.items[first : first + THREADS]
                for item, part in zip(items, pool.map(self._part, items)):
                    target = planner.resolve_tensor(item).detach()
                    if target.shape != part.shape:
                        raise ValueError(f"{item.dest_index.fqn} is stored with the shape {tuple(part.shape)}")
                    target.copy_(part)
                    planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _part(self, item: ReadItem) -> torch.Tensor:
        """What is stored of one part of a tensor."""
        if item.type != LoadItemType.TENSOR:
            raise ValueError(f"{item.dest_index.fqn} is no tensor")
        place = self.storage_data[item.storage_index]
        with Path(self.path, place.relative_path).open("rb") as file:
            tensor = load_zip(cast(Any, _Region(file, place.offset, place.length)), place.length)
        return narrow_tensor_by_index(_plain(tensor), item.storage_offsets, item.lengths)


def read_tensors(path: Path, state: dict[str, torch.Tensor], *, no_dist: bool) -> None:
    """Fill the tensors of `state` with those of a step folder. Raises UserError when its files are damaged."""
    try:
        dcp.load(state, storage_reader=Reader(path), no_dist=no_dist)
    except (Exception, CheckpointException) as error:  # the latter is a BaseException
        raise UserError(
            f"The checkpoint {path} cannot be loaded ({reason(error)}). If its files are damaged or missing, "
            "use another step of this run."
        ) from error


def load_zip(file: IO[bytes] | Path, size: int, **options: Any) -> Any:
    """What torch.save wrote: tensors and plain values. size: bytes of the file.

    Raises ValueError for what would unpack to more than that or names code, and whatever torch.load raises.
    """
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    if any(e.compress_type != zipfile.ZIP_STORED for e in entries) or sum(e.file_size for e in entries) > size:
        raise ValueError("it is compressed, which torch.save never does")
    if not isinstance(file, Path):
        file.seek(0)
    try:
        return torch.load(file, map_location="cpu", weights_only=True, **options)
    except pickle.UnpicklingError as error:  # whose text explains how to run the code all the same
        raise ValueError("it holds more than tensors and plain values") from error


def _plain(tensor: Any) -> torch.Tensor:
    """`tensor` itself. Raises ValueError unless it is an ordinary tensor with its own memory."""
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout != torch.strided:
        raise ValueError(f"it holds a {type(tensor).__name__} that is no plain tensor")
    if tensor.device.type != "cpu" or tensor.untyped_storage().nbytes() < tensor.nbytes:
        raise ValueError("it holds a tensor that is larger than its memory")
    return tensor.detach()


def plain_tensors(values: Any) -> dict[str, torch.Tensor]:
    """`values` itself. Raises ValueError unless it is a table of names and ordinary tensors."""
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ValueError("it holds no table of tensors")
    return {name: _plain(tensor) for name, tensor in values.items()}


def reason(error: BaseException) -> str:
    """One line that says what went wrong; of DCP's failures on several ranks, the first."""
    if isinstance(error, CheckpointException) and error.failures:
        rank, (cause, _) = min(error.failures.items(), key=lambda item: item[0])
        return f"rank {rank}: {reason(cause)}" if dist.is_initialized() else reason(cause)
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
