"""What the checks need to know about a model: a few numbers, counted on the meta device and cached.

python -m launch.ds_config.facts        # of every preset; `make setup`
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from astrobio.config import ConfigError, StackConfig, load_preset, preset_names
from astrobio.files import cache_root, code_hash, write_whole
from launch import ROOT

if TYPE_CHECKING:  # its imports take seconds, which a cached count saves
    from astrobio.stack import AstrobioStack

PACKAGES = ("torch", "transformers", "torch_geometric", "peft")


@dataclass(frozen=True)
class ModelFacts:
    """Elements of all ``parameters``, of those that train, of the ``largest`` tensor and of each tensor in each kind
    of repeated layer; the language model's ``hidden_size``; the ``classes`` of its modules, by name and by whole name;
    whether it is a mixture that adds a ``balance`` loss; LoRA's targets that are ``unmatched``; the parts that are
    ``frozen_at_random``."""

    parameters: int
    trainable: int
    largest: int
    hidden_size: int
    layers: tuple[tuple[int, ...], ...]
    classes: tuple[str, ...] = ()
    balance: bool = False
    unmatched: tuple[str, ...] = ()
    frozen_at_random: tuple[str, ...] = ()

    @property
    def frozen(self) -> bool:
        return self.trainable < self.parameters

    def tensors_in_a_layer(self, more_than: int) -> int:
        """The largest number of tensors of more elements than that in one repeated layer."""
        return max((sum(size > more_than for size in layer) for layer in self.layers), default=0)


def facts_of(network: "AstrobioStack") -> ModelFacts:
    from torch import nn  # here, as below: a cached count saves the seconds

    sizes = [p.numel() for p in network.parameters()]
    layers = {
        tuple(sorted(p.numel() for p in layer.parameters()))
        for module in network.modules()
        if isinstance(module, nn.ModuleList)
        for layer in module
    }
    classes = {
        name
        for module in network.modules()
        for kind in [type(module)]
        for name in (kind.__name__, f"{kind.__module__}.{kind.__qualname__}")
    }
    return ModelFacts(
        sum(sizes),
        sum(p.numel() for p in network.parameters() if p.requires_grad),
        max(sizes),
        network.language.hidden_size,
        tuple(sorted(layers)),
        tuple(sorted(classes)),
        bool(getattr(network.language.model.config, "output_router_logits", False)),
        tuple(network.language.unmatched),
        tuple(network.config.frozen_at_random),
    )


def network_of(stack: StackConfig, name: str) -> "AstrobioStack":
    """The network on the meta device: it shows all sizes, and mistakes in them.

    Raises:
        ConfigError: it cannot be built.
    """
    from launch.zero.engine import meta_stack

    try:
        return meta_stack(stack)
    except ConfigError as error:
        raise ConfigError(f"--model {name}: {error}") from None
    except (ValueError, TypeError, KeyError, RuntimeError) as error:  # sizes that do not fit together
        raise ConfigError(f"--model {name}: the network cannot be built: {error}") from error


def model_facts(stack: StackConfig) -> ModelFacts:
    """Of the network that ``stack`` describes. Building it, even on the meta device, takes seconds: the result is
    cached in ``~/.cache/astrobio`` (or ``$ASTROBIO_CACHE``) under the hash of all that it depends on.

    Raises:
        ConfigError: the network cannot be built.
    """
    path = _cached_in(stack)
    if path is not None and path.is_file():
        cached: dict[str, Any] = {
            key: tuple(map(tuple, value)) if key == "layers" else tuple(value) if isinstance(value, list) else value
            for key, value in json.loads(path.read_text()).items()
        }
        return ModelFacts(**cached)
    facts = facts_of(network_of(stack, stack.name))
    if path is not None:
        try:
            write_whole(path, json.dumps(dataclasses.asdict(facts)))
        except OSError:
            pass  # a cache that cannot be written costs time, nothing else
    return facts


def _cached_in(stack: StackConfig) -> Path | None:
    """The file in the cache; None where the facts also depend on files elsewhere."""
    if stack.language.init_from:
        return None
    sources = [*sorted(ROOT.joinpath("astrobio").glob("*.py")), Path(__file__)]
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(stack), sort_keys=True, default=str).encode())
    digest.update(code_hash(sources, PACKAGES))
    return cache_root() / "facts" / f"{digest.hexdigest()[:32]}.json"


if __name__ == "__main__":  # so that the first `astrobio check` need not
    for name in preset_names():
        model_facts(load_preset(name))
