"""Counts what a ghost run allocates and does: live bytes by device and part, and a trace of all work.

A storage belongs to the part of the code that made it (`launch.planner.simulation.parts`). Bytes on the simulated GPU
are counted in the CUDA caching allocator's granules of 512 B; page-locked host memory as torch's pinned allocator takes
it, in powers of two up to the size that `launch.locked_rounding` gives.
Pageable blocks below `launch.zero.accelerator.LARGE_BLOCK`, or `LARGE_ACTIVATION` once a CPU trains, come from glibc's
heap, which is taken to grow only: it can shrink from its end alone, where some small object always lies. What is freed
within it waits for the next small block. Larger ones are mapped: they take memory up to the last byte that was written.
"""

import bisect
import weakref
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from launch.memory import page_locked_bytes
from launch.planner.simulation import experts, parts, trace, values
from launch.planner.simulation.parts import BOTH, GPU, HOST, KEPT
from launch.planner.simulation.shapes import VIEWS, Shapes
from launch.planner.simulation.spec import Peak, Phase
from launch.planner.simulation.work import FREE, work_of
from launch.zero.accelerator import IN_FP32, LARGE_ACTIVATION, LARGE_BLOCK

aten = torch.ops.aten
#: Smaller storages are not asked who made them: the stack walk costs more than they matter.
_ASK_FROM = 1 << 16
#: c10/cuda/CUDACachingAllocator.h: kMinBlockSize.
GRANULE = 512


class Recorder(TorchDispatchMode):
    """Watches every operator of a ghost run.

    Attributes:
        phases: what each phase cost, in the order they were left.
        trace: the work in program order.
        allocations: of the simulated GPU, in program order.
    """

    def __init__(
        self, device: str = GPU, vocabulary: int = 0, capability: tuple[int, int] = (8, 6), rounding: int | None = None
    ):
        """``device``: where the model computes; ``vocabulary``: the size by which logits are known; ``capability``:
        the card's; ``rounding``: of page-locked memory, see `launch.memory`."""
        super().__init__()
        self.rounding = rounding
        self.device, self.capability = device, capability
        self.live: Counter[str] = Counter()
        self.parts: dict[str, Counter[str]] = {GPU: Counter(), HOST: Counter()}
        self.peaks: dict[str, Peak] = {}
        self.phases: list[Phase] = []
        self.trace: list[trace.WorkEvent] = []
        self.allocations: list[trace.AllocationEvent] = []
        self.files: dict[str, int] = {}  # bytes of each swap file
        self.stream = 0  # the current one; 0 is the default stream
        self.vocabulary = vocabulary
        self.forward_depth = 0  # modules whose forward is running
        self.operators = 0
        self._modules: list[str] = []
        self._latest = ""  # the module last known to run: DeepSpeed's hooks work between modules
        self._sequence: list[int] = []  # autograd's sequence number when a module was entered or left …
        self._sequence_module: list[str] = []  # … and the module that ran from then on
        self._seen: dict[int, Any] = {}
        self._pinned: set[int] = set()  # storages that CUDA has page-locked …
        self._locked: set[int] = set()  # … and those that the kernel has (mlock), which CUDA takes for pageable
        self._heap: set[int] = set()  # storages on glibc's heap …
        self._large = LARGE_BLOCK  # … which are smaller
        self._mapped: dict[int, int] = {}  # storages not written to their end yet: their bytes
        self.shapes = Shapes()
        self._read = self._written = 0
        self._phase = "init"
        self._restart()

    # Phases and modules -------------------------------------------------------------------------------------------

    def begin(self, name: str) -> None:
        """End the current phase and begin another."""
        self.phases.append(Phase(self._phase, self.peaks, dict(self.live), self._read, self._written))
        self._read = self._written = 0
        self._phase = name
        self._large = LARGE_ACTIVATION if self.device == HOST else LARGE_BLOCK
        self._restart()
        self.trace.append(trace.PhaseBegins(name))
        self.allocations.append(trace.PhaseBegins(name))

    def _restart(self) -> None:
        self.peaks = {device: Peak() for device in (GPU, HOST, BOTH)}
        for device in (GPU, HOST, BOTH):
            self._note_peak(device)

    def enter(self, name: str) -> None:
        self.forward_depth += 1
        self._modules.append(name)
        self._mark(name)

    def leave(self) -> None:
        self.forward_depth -= 1
        self._modules.pop()
        self._mark(self._modules[-1] if self._modules else "")

    def _mark(self, name: str) -> None:
        if torch.is_grad_enabled():
            number = torch.autograd._get_sequence_nr()
            if not self._sequence or number >= self._sequence[-1]:
                self._sequence.append(number)
                self._sequence_module.append(name)

    def module(self) -> str:
        """The module that is running; in a backward pass the one whose forward made the node."""
        if self._modules:
            self._latest = self._modules[-1]
        else:
            node = torch._C._current_autograd_node()
            place = bisect.bisect_right(self._sequence, node._sequence_nr()) - 1 if node is not None else -1
            if place >= 0 and self._sequence_module[place]:
                self._latest = self._sequence_module[place]
        return self._latest if self._phase in ("forward", "backward", "evaluate") else ""

    # Memory -------------------------------------------------------------------------------------------------------

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the guard costs as much as the rest

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in VIEWS and not kwargs:
            out = self.view(func, *args)
            if out is not None:
                return out
        if func is _DEVICE:
            return args[0].fake_device if hasattr(args[0], "fake_device") else func(*args)
        kwargs = kwargs or {}
        if func.namespace == "profiler":
            self.operators += 1
            self._count()
            with _disable_current_modes():
                return func(*args, **kwargs)
        pinned = kwargs.pop("pin_memory", False) if "pin_memory" in kwargs else False
        if func is _ITEM:
            if args[0].device.type == GPU:
                self.trace.append(trace.HostWaitsForStream(self.stream))
            return values.scalar(args[0])
        if func is _ISINF and args[0].is_floating_point():
            # aten/src/ATen/native/TensorCompare.cpp: abs(x) == inf, with the absolute values held meanwhile.
            self.add(self.shapes(aten.empty_like.default, args, {})[0])
        out, answer = values.run(func, args, kwargs, self.shapes)
        self.operators += 1
        writes = not func.is_view and func not in FREE
        if self.device == HOST and func._overloadpacket in _IN_FP32 and args[0].dtype is torch.float16:
            wide = [
                self.shapes(aten.empty_like.default, (t,), {"dtype": torch.float32})[0]
                for t in (*args, out)
                if isinstance(t, torch.Tensor) and t.is_floating_point()
            ]
            for tensor in wide:
                self.add(tensor)
        for tensor in values.tensors_of(out):
            self.add(tensor, pinned=pinned, written=writes)
            if writes and self._mapped:
                self.touch(tensor)
        self._record(func, args, kwargs, out, answer)
        return out

    def view(self, func, source: torch.Tensor, *args) -> torch.Tensor | None:
        """The output of one of `VIEWS`, or None if `Shapes.view` cannot work it out."""
        out = self.shapes.view(func, source, *args) if values.known(source) is None else None
        return None if out is None else self._made(out)

    def empty(self, size: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return self._made(self.shapes.empty(size, dtype, device), written=False)

    def _made(self, out: torch.Tensor, written: bool = True) -> torch.Tensor:
        """Count the output of an operator without work."""
        self.operators += 1
        self.add(out, written=written)
        self._count()
        return out

    def add(self, tensor: torch.Tensor, part: str | None = None, pinned: bool = False, written: bool = True) -> None:
        """Count the tensor's storage, once; ``written``: to its end."""
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._seen:
            return
        device = GPU if tensor.device.type == GPU else HOST
        size = self._size(storage.nbytes(), device, pinned)
        part = part or self._part(tensor, size)
        if pinned:
            self._pinned.add(key)
        elif device == HOST and size < self._large:
            self._heap.add(key)
        elif device == HOST and not written:
            self._mapped[key], size = size, 0

        def gone(_, key=key):
            _, device, size, part = self._seen.pop(key)
            self._change(device, part, -size, key)
            self._pinned.discard(key)
            self._locked.discard(key)
            self._heap.discard(key)
            self._mapped.pop(key, None)

        self._seen[key] = (weakref.ref(storage, gone), device, size, part)
        self._change(device, part, size, key)

    def touch(self, tensor: torch.Tensor) -> None:
        """The tensor's numbers were written."""
        key = id(tensor.untyped_storage())
        if key not in self._mapped or not tensor.numel():
            return
        last = tensor.storage_offset() + sum(
            (n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True)
        )
        end, (reference, device, size, part) = (last + 1) * tensor.itemsize, self._seen[key]
        if end > size:
            self._seen[key] = (reference, device, end, part)
            self._change(device, part, end - size, key)
            if end >= self._mapped[key]:
                del self._mapped[key]

    def resized(self, storage: torch.UntypedStorage, size: int) -> None:
        """A storage changed its size in place, to ``size`` bytes."""
        key = id(storage)
        if key in self._seen:
            reference, device, old, part = self._seen[key]
            self._mapped.pop(key, None)
            size = self._size(size, device, key in self._pinned)
            self._seen[key] = (reference, device, size, part)
            self._change(device, part, -old, key)
            (self._heap.add if device == HOST and size < self._large else self._heap.discard)(key)
            self._change(device, part, size, key)

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        """A page-locked copy of a host tensor."""
        with torch.no_grad():
            out = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu", pin_memory=True)
        self.trace.append(trace.HostWork(2 * tensor.nbytes))
        return out

    def lock(self, tensor: torch.Tensor) -> None:
        """The tensor's memory is locked where it is, without rounding. CUDA copies from and to it through buffers of
        its own, and the host waits."""
        self.touch(tensor)
        self._locked.add(id(tensor.untyped_storage()))

    def is_locked(self, tensor: torch.Tensor) -> bool:
        return id(tensor.untyped_storage()) in self._locked or self.is_pinned(tensor)

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        return id(tensor.untyped_storage()) in self._pinned

    def _size(self, size: int, device: str, pinned: bool) -> int:
        if device == GPU:
            return -(-size // GRANULE) * GRANULE
        if pinned and self.device == GPU:  # on a CPU machine pinning does nothing
            return page_locked_bytes(size, self.rounding)
        return size

    def _change(self, device: str, part: str, size: int, key: int) -> None:
        self.parts[device][part] += size
        kept = self._kept(size) if device == HOST and key in self._heap else 0
        self.live[device] += size + kept
        self.live[BOTH] += size + kept
        if device == GPU and size:
            self.allocations.append(trace.Allocated(key, size, self.stream) if size > 0 else trace.Freed(key))
        if size > 0:
            if self.live[device] > self.peaks[device].bytes:
                self._note_peak(device)
            if self.live[BOTH] > self.peaks[BOTH].bytes:
                self._note_peak(BOTH)

    def _kept(self, size: int) -> int:
        """By how much the bytes that glibc keeps change when a small block of ``size`` comes, or goes if negative."""
        before = self.parts[HOST][KEPT]
        self.parts[HOST][KEPT] = max(before - size, 0)
        return self.parts[HOST][KEPT] - before

    def _note_peak(self, device: str) -> None:
        peak = self.peaks[device]
        peak.bytes = self.live[device]
        peak.parts = dict(self.parts[GPU] + self.parts[HOST]) if device == BOTH else dict(self.parts[device])
        peak.module = self.module()

    def _part(self, tensor: torch.Tensor, size: int) -> str:
        if size >= _ASK_FROM:
            if part := parts.part_of_caller():
                return part
            if self.vocabulary and tensor.dim() and tensor.shape[-1] == self.vocabulary and self._phase != "init":
                return parts.LOGITS
        if self.forward_depth:
            return parts.ACTIVATIONS if torch.is_grad_enabled() else parts.TEMPORARIES
        return parts.TEMPORARIES if self._phase in ("forward", "backward") else parts.OTHER

    # Work ---------------------------------------------------------------------------------------------------------

    def _record(self, func, args, kwargs, out, answer) -> None:
        if answer is None or not answer.known:
            work = work_of(func, args, kwargs, out, self.device)
            if answer is not None:
                answer.work, answer.known = work, True
        else:
            work = answer.work
        if work is None:
            self._count()
        elif work[0] == "kernel":
            self.trace.append(trace.Kernel(self.stream, *work[1:]))
        elif work[0] == "groups":
            self._record_groups(*work[1:])
        elif work[0] == "host":
            self.trace.append(trace.HostWork(work[1]))
        else:
            destination, source = (args[0], args[1]) if func._overloadpacket is aten.copy_ else (out, args[0])
            pageable = not self.is_pinned(source if work[0] == "up" else destination)
            waits = pageable or not (kwargs.get("non_blocking", False) or (len(args) > 2 and args[2]))
            self.trace.append(trace.Copy(work[0], self.stream, work[1], waits, pageable))

    def _record_groups(self, number: int, flops: int, size: int, dtype: torch.dtype) -> None:
        if experts.at_once(dtype, self.capability):
            number = 1
        elif self.device == GPU:
            self.trace.append(trace.Copy("down", self.stream, number * torch.int32.itemsize, True, True))
        self.trace += [trace.Kernel(self.stream, flops // number, size // number, dtype)] * number

    def _count(self) -> None:
        """An operator without work. Many stand in a row: a trace of their number instead of each keeps it short."""
        latest = self.trace[-1] if self.trace else None
        if isinstance(latest, trace.Operators):
            self.trace[-1] = trace.Operators(latest.number + 1)
        else:
            self.trace.append(trace.Operators(1))

    def read(self, path: str, size: int, handle: int) -> None:
        self._read += size
        self.trace.append(trace.DiskRead(handle, size))

    def write(self, path: str, size: int, handle: int) -> None:
        self.files[path] = max(self.files.get(path, 0), size)
        self._written += size
        self.trace.append(trace.DiskWrite(handle, size))


_DEVICE, _ISINF, _ITEM = torch.ops.prim.device.default, aten.isinf.default, aten._local_scalar_dense.default
_IN_FP32 = {getattr(aten, name) for name in IN_FP32}  # of copies
