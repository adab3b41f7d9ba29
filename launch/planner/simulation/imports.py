"""Imports what a ghost run needs of what a training process imports.

A third of the modules that DeepSpeed, transformers and torch_geometric import serve what no ghost run does: it compiles
and exports nothing, and reads neither tables nor datasets. Stand-ins take their places.
"""

import contextlib
import functools
import gc
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import pickle
import sys
import types
from pathlib import Path

from astrobio.files import cache_root, write_whole
from launch.planner.simulation.cache import UNREADABLE

#: With all that is below them.
NOT_NEEDED = ("torch._dynamo", "torch._inductor", "torch.export", "torch.onnx", "torch.distributed.tensor",
              "torch.distributed.fsdp", "torch.distributed._composable", "torch.distributed.checkpoint",
              "torch.distributed._functional_collectives", "torch_geometric.datasets", "torch_geometric.llm",
              "scipy.optimize", "pandas", "datasets", "deepspeed.utils.nvtx")
#: Needed only for operators whose answers are not known yet; `meta_kernels` imports it.
META_KERNELS = "torch._meta_registrations"


class _Nothing(type):
    """A class that has every attribute, itself, and nothing in it. Called, it returns the function it was given, as a
    decorator does, or itself."""

    def __getattr__(cls, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return cls

    def __call__(cls, *args, **kwargs):
        return args[0] if args and callable(args[0]) else cls

    def __bool__(cls) -> bool:
        return False

    def __iter__(cls):
        return iter(())


class _StandIn(types.ModuleType):
    __version__ = "0"

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing("Nothing", (), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self):
        self.left_out = {*NOT_NEEDED, META_KERNELS}

    def find_spec(self, name, path=None, target=None):
        if name == "transformers.utils.import_utils":
            spec = importlib.machinery.PathFinder.find_spec(name, path)
            spec.loader = _Remembering(spec.loader)
            return spec
        if any(name == left_out or name.startswith(f"{left_out}.") for left_out in self.left_out):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return _StandIn(spec.name)

    def exec_module(self, module):
        pass


_FINDER = _Finder()


class _Remembering(importlib.abc.Loader):
    """Loads what finds out which file of `transformers` has which class. It reads all of the two thousand files of
    models for that, twice; the same version gets the same answer."""

    def __init__(self, loader: importlib.abc.Loader):
        self._loader = loader

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        self._loader.exec_module(module)
        read = module.create_import_structure_from_path

        def structure(path):
            folder = Path(path).parent if Path(path).is_file() else Path(path)
            if folder.name != "models":
                return read(path)
            kept = cache_root() / "imports" / f"transformers-{importlib.metadata.version('transformers')}.pickle"
            with contextlib.suppress(*UNREADABLE):
                return pickle.loads(kept.read_bytes())
            found = read(str(folder))
            with contextlib.suppress(OSError):
                write_whole(kept, pickle.dumps(found))
            return found

        module.create_import_structure_from_path = structure


def import_libraries() -> None:
    """Import them, for ghost runs and nothing else: the stand-ins stay in this process and in those forked from it."""
    gc.disable()  # importing makes objects by the hundred thousand, and hardly one of them is garbage
    sys.meta_path.insert(0, _FINDER)
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401  by ZeroOptimizer_Stage3, late
    import torch_geometric.nn  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    import launch.zero.engine  # noqa: F401
    gc.freeze()
    gc.enable()


@functools.cache
def meta_kernels() -> None:
    """Import what torch needs for operators on tensors without data, where a stand-in is in its place."""
    if isinstance(sys.modules.get(META_KERNELS), _StandIn):
        del sys.modules[META_KERNELS]
        _FINDER.left_out.remove(META_KERNELS)
        importlib.import_module(META_KERNELS)
