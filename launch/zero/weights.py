"""Puts values into the stack's parameters: each rank makes, or reads, its own shard and nothing else.

Bare `deepspeed.zero.Init` draws every parameter in full on every rank, throws away what other modules' initialisers
draw again, sends rank 0's numbers to all and keeps a share; models that `transformers` initialises as a whole come out
with torch's defaults instead of their own (embeddings of standard deviation 1 in place of 0.02), and initialisers that
look at a shape fail on the empty shards. Here the stack is built as on one machine, only that filling a large tensor
with numbers is put off (`PutOff`) until it is known which of them this rank keeps (`shard`).
"""

import concurrent.futures
import functools
import math
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import deepspeed
import torch
from deepspeed import comm as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from astrobio.pretrained import Pretrained
from astrobio.stack import AstrobioStack
from launch.ds_config.config import DsConfig

#: Random numbers are drawn in blocks of this many elements, each with a generator of its own: any share of a tensor
#: can be drawn without the rest, and is the same on any number of ranks.
BLOCK = 1 << 20

aten = torch.ops.aten
#: In-place operations that give a tensor its values, whatever it held: how to draw a block, given their arguments.
FILLS: dict[torch._ops.OpOverload, Callable[..., Tensor]] = {
    aten.normal_.default: lambda block, generator, mean=0.0, std=1.0: block.normal_(mean, std, generator=generator),
    aten.uniform_.default: lambda block, generator, low=0.0, high=1.0: block.uniform_(low, high, generator=generator),
    aten.fill_.Scalar: lambda block, generator, value: block.fill_(value),
    aten.zero_.default: lambda block, generator: block.zero_(),
}


@dataclass
class Fill:
    """One operation of `FILLS` that was put off: on a whole tensor of ``size`` elements, from a seed of its own."""

    operation: torch._ops.OpOverload
    arguments: tuple
    size: int
    seed: int

    def draw(self, out: Tensor, start: int = 0) -> None:
        """Write into the flat ``out`` what this fill puts at the tensor's elements ``start`` and on."""
        stop = start + len(out)

        def one_block(number: int) -> None:
            begin = number * BLOCK
            generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {number}".encode()))
            block = FILLS[self.operation](torch.empty(min(BLOCK, self.size - begin)), generator, *self.arguments)
            low, high = max(begin, start), min(begin + len(block), stop)
            out[low - start : high - start].copy_(block[low - begin : high - begin])

        with concurrent.futures.ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(one_block, range(start // BLOCK, math.ceil(stop / BLOCK))))


class PutOff(TorchDispatchMode):
    """While active, large tensors on the CPU that are filled with numbers are not: their memory is given back, and
    the fill is noted. Whatever else touches them finds their values as if nothing had been put off.
    """

    def __init__(self, seed: int, least: int = 1 << 16):
        """``least``: smaller tensors are filled at once, in elements."""
        super().__init__()
        self.seed, self.least = seed, least
        self._count = 0
        self._waiting: dict[int, tuple[torch.UntypedStorage, Fill]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in FILLS and self._can_wait(args[0]) and kwargs.get("generator") is None:
            self._put_off(func, *args)
            return args[0]
        if func is not aten.detach.default:  # all that `nn.Parameter` does to its tensor
            for tensor in tree_leaves((args, kwargs)):
                if isinstance(tensor, Tensor):
                    self._fill_now(tensor)
        return func(*args, **kwargs)

    def _can_wait(self, tensor: Tensor) -> bool:
        if tensor.device.type != "cpu" or tensor.dtype is not torch.float32 or tensor.numel() < self.least:
            return False
        whole = 4 * tensor.numel() == tensor.untyped_storage().nbytes() or self.fill_of(tensor) is not None
        return whole and tensor.is_contiguous()

    def _put_off(self, func, tensor: Tensor, *arguments) -> None:
        self._count += 1
        storage = tensor.untyped_storage()
        storage.resize_(0)
        self._waiting[storage._cdata] = (
            storage,
            Fill(func, arguments, tensor.numel(), zlib.crc32(f"{self.seed} {self._count}".encode())),
        )

    def fill_of(self, tensor: Tensor) -> Fill | None:
        """What was put off for ``tensor``; None where it has its values."""
        return self._waiting.get(tensor.untyped_storage()._cdata, (None, None))[1] if self._waiting else None

    def _fill_now(self, tensor: Tensor) -> None:
        fill = self.fill_of(tensor)
        if fill is not None:
            storage, _ = self._waiting.pop(tensor.untyped_storage()._cdata)
            storage.resize_(4 * fill.size)
            fill.draw(torch.empty(0).set_(storage))

    def fill_all(self) -> None:
        """Fill all tensors that are still pending."""
        for storage, _ in list(self._waiting.values()):
            self._fill_now(torch.empty(0).set_(storage))


def shard(stack: AstrobioStack, put_off: PutOff, ds_config: DsConfig) -> None:
    """Turn the parameters of ``stack`` into ZeRO-3 shards, each rank drawing or reading its own.

    What `deepspeed.zero.Init` does to a parameter after a module's ``__init__`` is done here to all, in order, but for
    the broadcast (deepspeed 0.19.8, `zero.Init._zero_init_param`).
    """
    init = deepspeed.zero.Init(module=nn.Module(), config_dict_or_path=ds_config.raw)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    parameters = list(stack.parameters())
    source = _sources(stack)

    def own_shard(parameter: nn.Parameter) -> Tensor:
        size = math.ceil(parameter.numel() / ranks)
        start, stop = min(rank * size, parameter.numel()), min((rank + 1) * size, parameter.numel())
        # Of the whole tensor only the pages of this rank's shard are ever touched, and take memory.
        whole = torch.empty(parameter.shape, dtype=init.dtype)
        values = whole.view(-1)[start:stop]
        fill = put_off.fill_of(parameter)
        if parameter in source:
            values.copy_(source[parameter](start, stop))
        elif fill is not None:
            fill.draw(values, start)
        else:
            values.copy_(parameter.detach().view(-1)[start:stop])
        return whole

    for parameter, whole in zip(parameters, _ahead(own_shard, parameters, "building"), strict=True):
        parameter.data = whole
        init._convert_to_deepspeed_param(parameter)
        parameter.partition()
        parameter.data = parameter.data.to(init.local_device)  # empty by now; says where the whole one is to be
    for module in stack.modules():  # DeepSpeed leaves buffers of a sharded model where they are
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(init.local_device))


def load_whole(stack: AstrobioStack) -> None:
    """Fill the parameters that come from a checkpoint, in full: for ZeRO stages below 3, and without ZeRO."""
    with torch.no_grad():
        for parameter, read in _sources(stack).items():
            parameter.view(-1).copy_(read(0, parameter.numel()))


def _sources(stack: AstrobioStack) -> dict[nn.Parameter, Callable[[int, int], Tensor]]:
    """For each parameter that comes from a checkpoint: a function that reads its elements ``start`` to ``stop``."""
    sources: dict[nn.Parameter, Callable[[int, int], Tensor]] = {}
    for part, names in stack.pretrained().items():
        checkpoint = Pretrained(getattr(stack.config, part).init_from, part)
        files = checkpoint.files()
        for parameter, name in names.items():
            sources[parameter] = functools.partial(_read, checkpoint, name, files[name])
    return sources


def _read(checkpoint: Pretrained, name: str, file: Path, start: int, stop: int) -> Tensor:
    return checkpoint.read(name, start, stop, file)


def _ahead(make: Callable, items: list, doing: str) -> Iterator:
    """``make(item)`` of each item, one ahead of what is asked for, in a thread; a progress bar on rank 0."""
    with (
        concurrent.futures.ThreadPoolExecutor(1) as pool,
        tqdm(
            total=sum(item.numel() for item in items),
            desc=doing,
            unit=" parameters",
            unit_scale=True,
            disable=dist.get_rank() != 0 or not os.isatty(2),
            leave=False,
        ) as bar,
    ):
        coming = pool.submit(make, items[0])
        for item, following in zip(items, [*items[1:], None], strict=True):
            made = coming.result()
            if following is not None:
                coming = pool.submit(make, following)
            yield made
            bar.update(item.numel())
