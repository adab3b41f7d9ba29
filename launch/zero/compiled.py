"""DeepSpeed's compiled parts, compiled once for all environments of a user that would compile the same.

DeepSpeed itself calls ninja at each start of each process, and ninja compiles again, for minutes, whenever another
environment or another ninja has used torch's one folder. Here a compiled op is cached under the hash of all that it
depends on, and loaded from the cache.
"""

import contextlib
import hashlib
import importlib.util
import os
import sys
import sysconfig
import time
from pathlib import Path

import deepspeed
import ninja
import psutil
import torch
from deepspeed.ops.op_builder import cpu
from deepspeed.ops.op_builder.builder import OpBuilder
from filelock import FileLock
from torch.utils.cpp_extension import _get_build_directory

from astrobio.files import cache_root, write_whole

_compile = OpBuilder.jit_load


def keep_compiled() -> None:
    """Make DeepSpeed load cached ops and compile only the others."""
    OpBuilder.jit_load = load


def load(builder: OpBuilder, verbose: bool = False):
    """Replacement for `OpBuilder.jit_load`: the op's module. One process compiles, the others wait for the lock.

    Raises:
        RuntimeError, OSError, ImportError: it cannot be compiled.
    """
    builder = _without_toolkit(builder)
    kept = file_of(builder)
    if not kept.is_file():
        with contextlib.redirect_stdout(sys.stderr):
            folder = Path(_get_build_directory(builder.name, verbose=False))
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.astrobio.lock")):
            remove_stale_lock(folder)
            if not kept.is_file():
                print(f"compiling DeepSpeed's {builder.name} (once, a minute or some)", flush=True)
                _find_own_ninja()
                module = _compile(_without_symbols(builder), verbose)
                write_whole(kept, (folder / f"{builder.name}.so").read_bytes())
                return module  # the cached file must not be loaded too: torch registers a library's name once
    spec = importlib.util.spec_from_file_location(builder.name, kept)
    assert spec is not None and spec.loader is not None  # by the file's ending
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    OpBuilder._loaded_ops[builder.name] = module
    return module


def _without_toolkit(builder: OpBuilder) -> OpBuilder:
    """For NVMe on a machine with a card: DeepSpeed's builder of async_io then asks for CUDA's headers and libraries,
    of which its sources take nothing. The CPU's builder compiles the same files with g++ alone."""
    return cpu.AsyncIOBuilder() if builder.name == cpu.AsyncIOBuilder.NAME else builder


def _without_symbols(builder: OpBuilder) -> OpBuilder:
    """Debugging symbols take a quarter of the compiler's time and most of the file."""
    arguments = builder.cxx_args
    builder.cxx_args = lambda: [argument for argument in arguments() if argument != "-g"]
    return builder


def file_of(builder: OpBuilder) -> Path:
    """The op's file in the cache; its sources, the versions of its libraries and the processor decide the name."""
    digest = hashlib.sha256(_processor().encode())
    for source in builder.sources():
        digest.update(Path(builder.deepspeed_src_path(source)).read_bytes())
    versions = f"torch-{torch.__version__}-{sysconfig.get_config_var('SOABI')}-deepspeed-{deepspeed.__version__}"
    return cache_root() / "ops" / versions / f"{builder.name}-{digest.hexdigest()[:16]}.so"


def _processor() -> str:
    """What ``-march=native`` and the card's architecture stand for."""
    info = Path("/proc/cpuinfo")
    flags = (
        next((line for line in info.read_text().splitlines() if line.startswith(("flags", "Features"))), "")
        if info.is_file()
        else ""
    )
    card = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
    return f"{flags} {card} {os.environ.get('TORCH_CUDA_ARCH_LIST', '')}"


def _find_own_ninja() -> None:
    """Let torch find the ninja that was installed with this project, also where its environment is not activated."""
    folder = str(ninja.BIN_DIR)
    if os.environ.get("PATH", "").split(os.pathsep)[0] != folder:
        os.environ["PATH"] = os.pathsep.join([folder, os.environ.get("PATH", os.defpath)])


def remove_stale_lock(folder: Path) -> None:
    """Wait while another process compiles in the folder, and remove the ``lock`` of a compilation that was killed.

    torch 2.13.0 (`torch.utils.file_baton`) waits for that file for ever, without a word. It is stale if it is older
    than a minute and no process works in the folder.
    """
    lock = folder / "lock"
    with contextlib.suppress(FileNotFoundError):
        while time.time() - lock.stat().st_mtime <= 60 or _somebody_works_in(folder):
            time.sleep(0.5)
        lock.unlink()


def _somebody_works_in(folder: Path) -> bool:
    for process in psutil.process_iter(["cwd", "pid"]):
        if process.info["cwd"] == str(folder) and process.info["pid"] != os.getpid():
            return True
    return False
