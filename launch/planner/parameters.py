"""Parameters and arithmetic of each part of a model, counted without its numbers."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode
from torch_geometric.data import Batch as GraphBatch
from torch_geometric.data import Data

from astrobio.config import StackConfig
from astrobio.dataset import Batch, Moments
from astrobio.schema import EDGE_FEATURES, MODALITIES, NODE_FEATURES, NODE_KINDS, PLANET_COLUMNS, SHAPES
from astrobio.stack import AstrobioStack

aten = torch.ops.aten
#: Nodes and directed edges of the network a sample is counted with: E. coli's core metabolism (Orth et al. 2010), the
#: one the sample dataset holds.
NODES, EDGES = 167, 720


@dataclass
class Part:
    """One part of a stack: elements of its parameters, of those that train, and the floating-point operations of one
    sample's forward pass, a multiplication and an addition counted as two."""

    name: str
    parameters: int
    trainable: int
    flops: int

    @property
    def fp16_bytes(self) -> int:
        return 2 * self.parameters


def count(config: StackConfig) -> list[Part]:
    """Each part of the stack, and last their ``total``. A sample has all modalities and as much text as is read."""
    with torch.device("meta"):
        stack = AstrobioStack(config)
    batch = nominal_batch(config, device="meta")
    trainable = {p for p in stack.parameters() if p.requires_grad}
    stack.requires_grad_(False)  # `torch.no_grad` would do, but trips torch 2.13's module tracker
    with FlopCounterMode(display=False) as counter, WithoutData():
        stack(batch)
    flops = counter.get_flop_counts()

    def part(name: str, module: torch.nn.Module, path: str) -> Part:
        parameters = list(module.parameters())
        return Part(name, sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p in trainable),
                    sum(flops.get(path, {}).values()))

    root = type(stack).__name__
    return [*(part(name, module, f"{root}.{name}") for name, module in stack.named_children()),
            part("total", stack, "Global")]


def nominal_batch(config: StackConfig, size: int = 1, length: int | None = None, device: str = "cpu") -> Batch:
    """``size`` samples with all modalities and ``length`` text tokens, or as many as the model reads.

    Floating-point tensors are zeros on ``device``, or have no data where that is "meta"; whole numbers are real.
    """
    def floats(*shape: int) -> Tensor:
        return torch.zeros(shape, device=device)

    there, tokens = torch.ones(size, dtype=torch.bool), length or config.language.max_text_tokens
    metabolite = torch.arange(EDGES) % (NODES // 2)
    graphs = [Data(x=floats(NODES, len(NODE_FEATURES)), kind=torch.arange(NODES) % len(NODE_KINDS),
                   edge_index=torch.stack([metabolite, metabolite + NODES // 2]),
                   edge_attr=floats(EDGES, len(EDGE_FEATURES)), stoichiometry=floats(EDGES),
                   balanced=torch.ones(NODES, dtype=torch.bool), flux_mean=floats(NODES), flux_std=floats(NODES))
              for _ in range(size)]
    surface = SHAPES["climate_surface"]
    return Batch(
        run_ids=["nominal"] * size, planet=floats(size, len(PLANET_COLUMNS)),
        planet_known=torch.ones(size, len(PLANET_COLUMNS), dtype=torch.bool),
        climate_levels=floats(size, *SHAPES["climate_levels"]), climate_surface=floats(size, *surface),
        graphs=GraphBatch.from_data_list(graphs), spectrum=floats(size, *SHAPES["spectrum"]),
        tokens=torch.zeros(size, tokens, dtype=torch.long), real=torch.ones(size, tokens, dtype=torch.bool),
        label=torch.zeros(size, dtype=torch.long), label_present=there, present={name: there for name in MODALITIES},
        quality={name: floats(size) for name in MODALITIES}, observed=there,
        moments=Moments(floats(surface[0]), floats(surface[0])))


class WithoutData(TorchDispatchMode):
    """Lets tensors on the meta device, which have shapes but no data, meet real whole numbers.

    Real indices keep sizes that depend on them known (how many nodes a graph has). A mask that has lost its data is
    taken to be True, as where a batch holds one sample and nothing is padded.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        without = [t.device.type == "meta" for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if any(without):
            if not all(without):
                args, kwargs = tree_map(lambda t: t.to("meta") if isinstance(t, Tensor) else t, (args, kwargs))
            if func is aten._local_scalar_dense.default and args[0].dtype is torch.bool:
                return True
        return func(*args, **kwargs)
