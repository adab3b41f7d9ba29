"""Loads a model by name, and counts parameters and FLOPs of each part without allocating weights."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode
from torch_geometric.data import Data

from astrobio.batch import Batch, Moments, graph_batch
from astrobio.config import ConfigError, LanguageConfig, StackConfig, load_preset, told
from astrobio.language import no_causal_model, reads
from astrobio.schema import (
    EDGE_FEATURES,
    MODALITIES,
    NODE_FEATURES,
    NODE_KINDS,
    PLANET_COLUMNS,
    RETRIEVAL_COLUMNS,
    SHAPES,
)
from astrobio.stack import AstrobioStack
from launch.planner.simulation.experts import GROUPED_MM, grouped_mm

aten = torch.ops.aten
#: Nodes and directed edges of the network a sample is counted with: E. coli's core metabolism (Orth et al. 2010), the
#: one the sample dataset holds.
NODES, EDGES = 167, 720
#: Text tokens of a language model given as a Hugging Face folder, unless --seq_length says otherwise.
_TOKENS = 1024


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


def load_model(name: str, seq_length: int | None = None) -> StackConfig:
    """A preset, a YAML file, or a plain language model of the sizes in a Hugging Face folder's config.json.

    Raises:
        ConfigError: it is none of them, or transformers does not know such a model.
    """
    if not (Path(name) / "config.json").is_file():
        return load_preset(name)
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)  # without which it would ask, and wait
        known = AutoConfig.for_model(config.model_type)
    except Exception as error:  # a file that is broken, or sizes that a model's own checks refuse
        cure = "; its model is code of its own, which is not run" if "trust_remote_code" in str(error) else ""
        raise ConfigError(f"--model {name}: config.json: {told(error)}{cure}") from error
    if why := no_causal_model(config):
        raise ConfigError(f"--model {name}: a {config.model_type!r} {why}")
    sizes = {
        key: value
        for key, value in config.to_diff_dict().items()
        if reads(known, key)
        and key not in ("architectures", "model_type", "transformers_version", "dtype", "torch_dtype", "auto_map")
    }
    if getattr(config, "num_hidden_layers", None):  # even where it is the default: quick plans shorten it
        sizes["num_hidden_layers"] = config.num_hidden_layers
    length = seq_length or min(_TOKENS, getattr(config, "max_position_embeddings", None) or _TOKENS)
    return StackConfig(
        name=Path(name).resolve().name,
        language=LanguageConfig(
            model_type=config.model_type, config={**sizes, "use_cache": False}, max_text_tokens=length
        ),
    )


def count(config: StackConfig) -> list[Part]:
    """Each part of the stack, and last their ``total``. A sample has all modalities and as much text as is read."""
    with torch.device("meta"):
        stack = AstrobioStack(config)
    batch = nominal_batch(config, device="meta")
    trainable = {p for p in stack.parameters() if p.requires_grad}
    stack.requires_grad_(False)  # `torch.no_grad` would do, but trips torch 2.13's module tracker
    with WithoutData(), FlopCounterMode(display=False) as counter:  # which counts before the other mode answers
        stack(batch)
    flops = counter.get_flop_counts()

    def part(name: str, module: torch.nn.Module, path: str) -> Part:
        parameters = list(module.parameters())
        return Part(
            name,
            sum(p.numel() for p in parameters),
            sum(p.numel() for p in parameters if p in trainable),
            sum(flops.get(path, {}).values()),
        )

    root = type(stack).__name__
    return [
        *(part(name, module, f"{root}.{name}") for name, module in stack.named_children()),
        part("total", stack, "Global"),
    ]


def nominal_batch(config: StackConfig, size: int = 1, length: int | None = None, device: str = "cpu") -> Batch:
    """``size`` samples with all modalities and ``length`` text tokens, or as many as the model reads.

    Floating-point tensors are zeros on ``device``, or have no data where that is "meta"; whole numbers are real.
    """

    def floats(*shape: int) -> Tensor:
        return torch.zeros(shape, device=device)

    there, tokens = torch.ones(size, dtype=torch.bool), length or config.language.max_text_tokens
    metabolite = torch.arange(EDGES) % (NODES // 2)
    graphs = [
        Data(
            x=floats(NODES, len(NODE_FEATURES)),
            kind=torch.arange(NODES) % len(NODE_KINDS),
            edge_index=torch.stack([metabolite, metabolite + NODES // 2]),
            edge_attr=floats(EDGES, len(EDGE_FEATURES)),
            stoichiometry=floats(EDGES),
            balanced=torch.ones(NODES, dtype=torch.bool),
            flux_mean=floats(NODES),
            flux_std=floats(NODES),
        )
        for _ in range(size)
    ]
    surface = SHAPES["climate_surface"]
    return Batch(
        run_ids=["nominal"] * size,
        planet=floats(size, len(PLANET_COLUMNS)),
        planet_known=torch.ones(size, len(PLANET_COLUMNS), dtype=torch.bool),
        climate_levels=floats(size, *SHAPES["climate_levels"]),
        climate_surface=floats(size, *surface),
        graphs=graph_batch(graphs),
        spectrum=floats(size, *SHAPES["spectrum"]),
        spectrum_spread=floats(size),
        retrieval=floats(size, len(RETRIEVAL_COLUMNS)),
        retrieval_known=torch.ones(size, len(RETRIEVAL_COLUMNS), dtype=torch.bool),
        tokens=torch.zeros(size, tokens, dtype=torch.long),
        real=torch.ones(size, tokens, dtype=torch.bool),
        label=torch.zeros(size, dtype=torch.long),
        label_present=there,
        label_probability=floats(size),
        label_probability_known=there,
        present={name: there for name in MODALITIES},
        quality={name: floats(size) for name in MODALITIES},
        observed=there,
        moments=Moments(floats(surface[0]), floats(surface[0])),
    )


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
            if func is GROUPED_MM.default:
                func = grouped_mm
        return func(*args, **kwargs)
