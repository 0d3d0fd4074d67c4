"""Kernels in CUDA C++, compiled when they are first needed by NVRTC, which comes with torch: no nvcc, no headers.

torch has a launcher like this one, torch.cuda._compile_kernel. It is private, may change with any version, and does not
bind a context in threads that have none yet, such as those of backward.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

# CUfunction_attribute of the driver's API.
MAX_SHARED_BYTES, SHARED_PERCENT = 8, 9  # MAX_DYNAMIC_SHARED_SIZE_BYTES, PREFERRED_SHARED_MEMORY_CARVEOUT


class Kernel:
    """One function of a module on one device."""

    def __init__(self, module: ctypes.c_void_p, name: str, device: int, shared_bytes: int):
        self.function, self.device, self.shared_bytes = ctypes.c_void_p(), device, shared_bytes
        _ask("cuModuleGetFunction", ctypes.byref(self.function), module, name.encode())
        _ask("cuFuncSetAttribute", self.function, MAX_SHARED_BYTES, shared_bytes)
        _ask("cuFuncSetAttribute", self.function, SHARED_PERCENT, 100)  # rather than cache: more blocks fit at once

    def __call__(self, grid: tuple[int, int], threads: int, arguments: ctypes.Structure) -> None:
        """On torch's current stream. arguments: the kernel's only parameter, by value."""
        stream = ctypes.c_void_p(torch.cuda.current_stream(self.device).cuda_stream)
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        with torch.cuda.device(self.device):
            _bind_context(self.device)
            _ask("cuLaunchKernel", self.function, *grid, 1, threads, 1, 1, self.shared_bytes, stream, parameters, None)


@cache
def load(source: str, names: tuple[tuple[str, int], ...], device: int) -> dict[str, Kernel]:
    """The kernels of a source by name. names: each with its bytes of shared memory. device: its index.

    Raises RuntimeError with the compiler's words where the source does not compile.
    """
    binary, module = binary_of(source, torch.cuda.get_device_capability(device)), ctypes.c_void_p()
    with torch.cuda.device(device):
        _bind_context(device)
        _ask("cuModuleLoadData", ctypes.byref(module), binary)
        return {name: Kernel(module, name, device, shared) for name, shared in names}


@cache
def binary_of(source: str, capability: tuple[int, int]) -> bytes:
    """The source as machine code for GPUs of one compute capability."""
    nvrtc, program = _nvrtc(), ctypes.c_void_p()
    options = [f"--gpu-architecture=sm_{capability[0]}{capability[1]}".encode(), b"--std=c++17"]
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None)
    failed = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    what = "ProgramLog" if failed else "CUBIN"
    size = ctypes.c_size_t()
    getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{what}")(program, text)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    if failed:
        raise RuntimeError(f"NVRTC does not compile it: {text.value.decode().strip() or f'error {failed}'}")
    return text.raw


@cache
def _nvrtc() -> ctypes.CDLL:
    """The library of torch's own that brings NVRTC along; or NVRTC where the system or torch's packages have it."""
    major, packages = (torch.version.cuda or "").split(".")[0], find_spec("nvidia")
    folders = packages.submodule_search_locations or () if packages else ()
    found = (path for folder in folders for path in Path(folder).glob(f"*/lib/libnvrtc.so.{major}"))
    for name in (Path(torch.__file__).parent / "lib" / "libcaffe2_nvrtc.so", f"libnvrtc.so.{major}", *found):
        try:
            library = ctypes.CDLL(str(name))
        except OSError:
            continue
        if hasattr(library, "nvrtcCompileProgram"):
            return library
    raise OSError(f"there is no NVRTC of CUDA {major} (pip install nvidia-cuda-nvrtc)")


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _ask(function: str, *arguments: object) -> None:
    if code := getattr(_driver(), function)(*arguments):
        words = ctypes.c_char_p()
        _driver().cuGetErrorString(code, ctypes.byref(words))
        raise RuntimeError(f"{function}: {(words.value or b'').decode() or f'error {code}'}")


def _bind_context(device: int) -> None:
    """Threads that have not yet called CUDA have no context, and the driver, unlike the runtime, gives them none."""
    context, handle = ctypes.c_void_p(), ctypes.c_int()
    _ask("cuCtxGetCurrent", ctypes.byref(context))
    if not context.value:
        _ask("cuDeviceGet", ctypes.byref(handle), device)
        _ask("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle)
        _ask("cuCtxSetCurrent", context)
