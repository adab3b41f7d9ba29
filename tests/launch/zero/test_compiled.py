"""What DeepSpeed compiles is kept, does not wait for a killed compilation, and is named where it fails."""

import os
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from deepspeed.accelerator import get_accelerator
from deepspeed.ops.op_builder.builder import CUDAMismatchException, MissingCUDAException
from torch.utils.file_baton import FileBaton

from astrobio.config import ConfigError
from launch.zero import compiled, ops

pytestmark = pytest.mark.usefixtures("accelerator")


def test_a_lock_left_by_a_killed_compilation_is_removed(tmp_path):
    """torch waits for it for ever; once it takes such a lock by itself, the removal can go."""
    lock = tmp_path / "lock"
    lock.touch()
    assert not FileBaton(str(lock)).try_acquire()
    at_work = threading.Timer(1, lock.unlink)  # a fresh lock may be somebody's: who compiles takes it away
    at_work.start()
    compiled.remove_stale_lock(tmp_path)
    assert at_work.finished.is_set()
    lock.touch()
    os.utime(lock, (time.time() - 120,) * 2)
    compiled.remove_stale_lock(tmp_path)
    assert not lock.exists()


def test_what_was_compiled_is_kept_for_every_environment(tmp_path, monkeypatch):
    """An op is compiled once, then loaded from the cache without asking ninja; other sources are another op."""
    builder = get_accelerator().create_op_builder("CPUAdamBuilder")
    made = []

    def compile_op(builder, verbose):
        made.append(builder.name)
        folder = Path(compiled._get_build_directory(builder.name, verbose=False))
        shutil.copy(original, folder / f"{builder.name}.so")
        return compiled_module

    compiled_module = builder.load()
    original = compiled.file_of(builder)
    assert original.is_file()
    monkeypatch.setenv("ASTROBIO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "torch"))
    monkeypatch.setattr(compiled, "_compile", compile_op)
    assert compiled.load(builder) is compiled_module, "what was compiled is loaded already"
    assert hasattr(compiled.load(builder), "adam_update")
    assert made == ["cpu_adam"]
    kept = compiled.file_of(builder)
    monkeypatch.setattr(type(builder), "sources", lambda self: ["csrc/adam/cpu_adam.cpp"])
    assert compiled.file_of(builder) != kept


@pytest.mark.parametrize(
    "error",
    [
        TypeError("expected str, not NoneType"),
        MissingCUDAException("no CUDA_HOME"),
        CUDAMismatchException("12.8 and 13.0"),
    ],
)
def test_a_part_that_cannot_be_compiled_is_named(error, monkeypatch):
    def load(verbose):
        raise error

    builder = SimpleNamespace(name="async_io", load=load)
    monkeypatch.setattr(ops, "get_accelerator", lambda: SimpleNamespace(create_op_builder=lambda name: builder))
    with pytest.raises(ConfigError, match="async_io cannot be compiled"):
        ops.build(["AsyncIOBuilder"])
