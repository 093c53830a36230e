"""CUDA C++ kernels without a build step: compiled by NVRTC at first use, kept as cubins on disk, launched on
torch's current stream.

Sources are the `*.cu` files beside this module or given by path (headers: `*.cuh` beside the source or this module,
included by quotes). They must not include CUDA headers, because an NVRTC wheel carries none, and every kernel is
`extern "C"`. A cubin is keyed by the text of the source and of all headers, the target architecture, the macros and
the NVRTC version, so a stale one is never used. It lies under `cubins` in maquette's cache folder (`$MAQUETTE_CACHE`);
where that cannot be written, kernels are compiled once per process instead.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib
import logging
import struct
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from maquette.cache import cache_folder
from maquette.errors import MissingDependencyError, UnsupportedError
from maquette.io.atomic import atomic_write_bytes

if TYPE_CHECKING:
    from cuda.core import Kernel

KernelArgument: TypeAlias = "Tensor | int | float | None"

MIN_COMPUTE_CAPABILITY = (8, 0)
"""Oldest GPUs that the kernels support (Ampere): they use warp-wide integer reductions and tf32 matrix products."""

_SOURCE_FOLDER = Path(__file__).parent
_LOG = logging.getLogger(__name__)
_LOCK = threading.RLock()
_MODULES: dict[tuple[str, str | Path, tuple[str, ...]], Any] = {}
_KERNELS: dict[tuple[str, str | Path, tuple[str, ...], tuple[str, ...]], dict[str, CompiledKernel]] = {}
_ARCHS: dict[int, str] = {}


@dataclass(frozen=True)
class CompiledKernel:
    """A kernel to launch.

    Attributes:
        name: its `extern "C"` name.
        handle: the driver's handle.
        owner: keeps the handle valid.
    """

    name: str
    handle: int
    owner: Kernel | None


def cubin_folder() -> Path:
    """Folder of compiled kernels."""
    return cache_folder() / "cubins"


def require_nvrtc() -> None:
    """Checks that cuda-core, cuda-bindings and NVRTC can be loaded.

    Raises:
        MissingDependencyError: names what is missing and the extra that installs it.
    """
    try:
        importlib.import_module("cuda.core")
        importlib.import_module("cuda.bindings.nvrtc").nvrtcVersion()
    except Exception as error:  # cuda-pathfinder raises several unrelated types when a library is absent
        raise MissingDependencyError(
            f"the CUDA kernels need cuda-core, cuda-bindings and NVRTC, which could not be loaded ({error}): "
            "run `pip install 'maquette[cuda]'`, or use another backend (backend='reference')"
        ) from error


def compile_cubin(source_name: str | Path, arch: str, options: Sequence[str] = ()) -> bytes:
    """Compiles one source to machine code, from the disk cache when it is there. Needs no GPU.

    Args:
        source_name: file name beside this module, such as `"gaussian_blend.cu"`, or the path of a source elsewhere.
        arch: target such as `"sm_90"`.
        options: macros, each `"NAME"` or `"NAME=VALUE"`.

    Raises:
        MissingDependencyError: cuda-core or NVRTC is missing.
        UnsupportedError: the compiler refused the source; the message holds its log.
    """
    require_nvrtc()
    path = cubin_folder() / f"{Path(source_name).stem}-{arch}-{_cache_key(source_name, arch, options)}.cubin"
    with contextlib.suppress(OSError):
        return path.read_bytes()
    cubin = _compile(source_name, arch, options)
    try:
        atomic_write_bytes(path, cubin)
    except OSError as error:
        _LOG.warning("compiled kernels cannot be kept in %s (%s); set MAQUETTE_CACHE to a writable folder", path, error)
    return cubin


def load_kernels(
    source_name: str | Path, kernel_names: Sequence[str], options: Sequence[str] = ()
) -> dict[str, CompiledKernel]:
    """Kernels of one source for the current CUDA device, compiled at first use.

    Args:
        source_name: as for `compile_cubin`.
        kernel_names: `extern "C"` functions of that source.
        options: macros, each `"NAME"` or `"NAME=VALUE"`.

    Raises:
        MissingDependencyError: cuda-core or NVRTC is missing.
        UnsupportedError: no CUDA device, one older than compute capability 8.0, or a compile error.
    """
    key = (_current_arch(), source_name, tuple(kernel_names), tuple(options))
    kernels = _KERNELS.get(key)
    if kernels is None:
        with _LOCK:
            module = _load_module(source_name, key[0], key[3])
            found = {name: module.get_kernel(name) for name in kernel_names}
            kernels = {name: CompiledKernel(name, int(kernel.handle), kernel) for name, kernel in found.items()}
            _KERNELS[key] = kernels
    return kernels


def launch(
    kernel: CompiledKernel,
    grid: int | tuple[int, ...],
    block: int | tuple[int, ...],
    *args: KernelArgument,
    shared_bytes: int = 0,
    stream: int | None = None,
) -> None:
    """Launches a kernel on torch's current stream of the current CUDA device; returns at once.

    Args:
        kernel: from `load_kernels`.
        grid, block: numbers of blocks and of threads per block; a grid with a zero launches nothing.
        args: tensors become pointers to their first element (they must be contiguous: not checked here), None a null
            pointer, int an integer of the parameter's width (up to 8 bytes), float a 32-bit float.
        shared_bytes: dynamic shared memory per block, at most 48 KiB together with the static part.
        stream: what `current_stream` returned, to save looking it up again.

    Raises:
        UnsupportedError: the driver refused the launch.
    """
    grid = (grid, 1, 1) if isinstance(grid, int) else (*grid, 1, 1)[:3]
    block = (block, 1, 1) if isinstance(block, int) else (*block, 1, 1)[:3]
    if 0 in grid:
        return
    parameters = _PARAMETERS.of_count(len(args))
    # This line is most of a launch, and asking isinstance of a Tensor most of its time.
    values = [arg if type(arg) is int else arg.data_ptr() if type(arg) is Tensor else _bits(arg) for arg in args]
    parameters.pack_into(parameters.values, 0, *values)
    stream = current_stream() if stream is None else stream
    status = _driver_launch()(kernel.handle, *grid, *block, shared_bytes, stream, parameters.pointers, None)
    if status:
        raise UnsupportedError(
            f"the CUDA driver refused to launch {kernel.name} with grid {grid} and block {block} (CUresult {status})"
        )


def current_stream() -> int:
    """Handle of torch's current stream of the current CUDA device, for `launch`."""
    get_handle: Callable[[int], int] = torch._C._cuda_getCurrentRawStream  # without making an object of it
    return get_handle(torch.cuda.current_device())


class _Parameters:
    """Room for the values of one launch, eight bytes each, and their addresses, as the driver wants them.

    The driver copies as many low bytes of a value as the kernel's parameter has.
    """

    def __init__(self, count: int) -> None:
        self.values = (ctypes.c_int64 * count)()
        first = ctypes.addressof(self.values)
        self.pointers = (ctypes.c_void_p * count)(*range(first, first + 8 * count, 8))
        self.pack_into = struct.Struct(f"<{count}q").pack_into


class _ParametersOfThread(threading.local):
    """The driver has copied the values when a launch returns, so one room per thread and count suffices."""

    def __init__(self) -> None:
        self._rooms: dict[int, _Parameters] = {}

    def of_count(self, count: int) -> _Parameters:
        room = self._rooms.get(count)
        if room is None:
            room = self._rooms[count] = _Parameters(count)
        return room


_PARAMETERS = _ParametersOfThread()


@functools.cache
def _driver_launch() -> Callable[..., int]:
    """The driver's `cuLaunchKernel`, called directly, because cuda-core looks at every argument anew."""
    library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    function = library.cuLaunchKernel
    handle, number = ctypes.c_void_p, ctypes.c_uint
    function.argtypes = [handle, *[number] * 7, handle, handle, handle]
    return function


@functools.cache
def _cuda_core() -> Any:
    return importlib.import_module("cuda.core")


def _bits(value: KernelArgument) -> int:
    """What stands in the low bytes of a parameter."""
    if isinstance(value, Tensor):
        return value.data_ptr()
    if isinstance(value, float):
        bits: int = struct.unpack("<I", struct.pack("<f", value))[0]
        return bits
    return value or 0


def _current_arch() -> str:
    """Target of the current device, such as "sm_90", looked up once per device."""
    if not _ARCHS and not torch.cuda.is_available():
        raise UnsupportedError(
            "no CUDA device is visible to torch: move the tensors to the CPU, or run `maquette doctor`"
        )
    index = torch.cuda.current_device()
    if index not in _ARCHS:
        capability = torch.cuda.get_device_capability(index)
        if capability < MIN_COMPUTE_CAPABILITY:
            raise UnsupportedError(
                f"{torch.cuda.get_device_name(index)} has compute capability {capability[0]}.{capability[1]}; the CUDA "
                "kernels need 8.0 (Ampere) or newer: use backend='reference' or the CPU"
            )
        _ARCHS[index] = f"sm_{capability[0]}{capability[1]}"
    return _ARCHS[index]


def _load_module(source_name: str | Path, arch: str, options: tuple[str, ...]) -> Any:
    key = (arch, source_name, options)
    if key not in _MODULES:
        cubin = compile_cubin(source_name, arch, options)
        torch.cuda.current_stream()  # creates the context that the module is loaded into
        _MODULES[key] = _cuda_core().ObjectCode.from_cubin(cubin, name=Path(source_name).name)
    return _MODULES[key]


def _cache_key(source_name: str | Path, arch: str, options: Sequence[str]) -> str:
    from cuda.bindings import nvrtc

    digest = hashlib.sha256()
    source = _source_path(source_name)
    sources = [source, *(path for folder in _include_folders(source) for path in sorted(folder.glob("*.cuh")))]
    for part in [arch, *options, repr(nvrtc.nvrtcVersion()), *(path.read_text(encoding="utf-8") for path in sources)]:
        data = part.encode("utf-8")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:24]


def _source_path(source_name: str | Path) -> Path:
    path = _SOURCE_FOLDER / source_name
    elsewhere = isinstance(source_name, Path) and source_name.is_absolute()
    if path.suffix != ".cu" or not (elsewhere or path.parent == _SOURCE_FOLDER) or not path.is_file():
        known = sorted(p.name for p in _SOURCE_FOLDER.glob("*.cu"))
        raise UnsupportedError(f"no kernel source named {source_name!r}; there are: {', '.join(known)}")
    return path


def _include_folders(source: Path) -> list[Path]:
    """Folders of the headers of a source, without repetition."""
    return list(dict.fromkeys((source.parent, _SOURCE_FOLDER)))


def _compile(source_name: str | Path, arch: str, options: Sequence[str]) -> bytes:
    from cuda.core import Program, ProgramOptions

    macros: list[str | tuple[str, str]] = []
    for option in options:
        name, equals, value = option.partition("=")
        macros.append((name, value) if equals else name)
    source = _source_path(source_name)
    settings = ProgramOptions(
        name=source.name,
        arch=arch,
        std="c++17",
        define_macro=macros or None,
        include_path=[str(folder) for folder in _include_folders(source)],
    )
    program = Program(source.read_text(encoding="utf-8"), "c++", settings)
    try:
        code = program.compile("cubin").code
    except Exception as error:  # cuda-core has no public type for compiler errors
        raise UnsupportedError(f"NVRTC could not compile {source.name} for {arch}: {error}") from error
    finally:
        program.close()
    return code if isinstance(code, bytes) else code.encode("latin-1")
