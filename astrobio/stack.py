"""The whole stack: a batch in, a loss and habitability logits out."""

import dataclasses
import json
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor, nn

from astrobio import losses
from astrobio.batch import Batch
from astrobio.blocks import Absent, Checkpoint, Checkpointed
from astrobio.config import ConfigError, StackConfig, parse
from astrobio.datacube import DatacubeEncoder
from astrobio.fusion import Fusion
from astrobio.graph_vae import GraphVAE
from astrobio.heads import Climate, TaskOutput, Tasks
from astrobio.language import Language, language_config
from astrobio.mixture import mixture
from astrobio.planet import PlanetEncoder, bulk
from astrobio.pretrained import CONFIG
from astrobio.schema import CLIMATE_SURFACE_VARIABLES, MODALITIES, RETRIEVAL_COLUMNS
from astrobio.spectrum import SpectrumEncoder

_SURFACE = [column.name for column in CLIMATE_SURFACE_VARIABLES]
ABSORBED, OUTGOING = _SURFACE.index("absorbed_shortwave"), _SURFACE.index("outgoing_longwave")


class StackOutput(NamedTuple):
    """A tuple, because DeepSpeed detects the start of a backward pass by the outputs' tensors, which it looks for in
    tuples, lists and dicts only; otherwise it would attribute a micro-step's gradients to the one before.

    ``loss``, a scalar; ``parts``: its unweighted parts, detached, float32; ``logits`` [B, 2], or None for a plain
    language model; ``weights`` [B, M + 1]: the fusion's weight of each modality, and last of the text; ``tasks``: what
    the heads of the other tasks say, detached."""

    loss: Tensor
    parts: dict[str, Tensor]
    logits: Tensor | None = None
    weights: Tensor | None = None
    tasks: TaskOutput = TaskOutput()


class AstrobioStack(nn.Module):
    """Encoders → prefix of the language model → fusion → habitability.

    Every forward pass runs every module, whatever the batch holds: under ZeRO-3 ranks that run different modules
    deadlock. An absent modality goes through its encoder as zeros; a learned dummy replaces its tokens, its losses do
    not count, and the fusion gives it no weight.
    """

    def __init__(self, config: StackConfig):
        super().__init__()
        self.config = config
        self.language = Language(config.language)
        width = self.language.hidden_size
        self._check_positions()
        builders = {
            "planet": PlanetEncoder,
            "climate": DatacubeEncoder,
            "metabolism": GraphVAE,
            "spectrum": SpectrumEncoder,
        }
        self.modalities = [name for name in MODALITIES if getattr(config, name) is not None]
        for name in self.modalities:
            setattr(self, name, builders[name](getattr(config, name), width))
        self.absent = nn.ModuleDict({name: Absent(getattr(config, name).tokens, width) for name in self.modalities})
        if config.fusion is not None:
            self.fusion = Fusion(config.fusion, width, [getattr(config, name).tokens for name in self.modalities])
        if config.tasks is not None:
            lengths = [0 if part is None else part.tokens for part in (config.planet, config.spectrum)]
            self.tasks = Tasks(config.tasks, width, *lengths)
        self._freeze()
        self.train()

    @classmethod
    def from_pretrained(cls, folder: str | Path, dtype: torch.dtype | None = None) -> "AstrobioStack":
        """The stack that ``astrobio checkpoint export`` wrote into ``folder``, in evaluation mode.

        Args:
            dtype: of the parameters; None takes that of the files.

        Raises:
            ConfigError: a file is missing, or the weights do not match the configuration.
        """
        folder = Path(folder)
        if not (folder / CONFIG).is_file():
            raise ConfigError(f"{folder / CONFIG} is missing: not an exported stack")
        content = json.loads((folder / CONFIG).read_text())
        if "astrobio_stack" not in content:
            raise ConfigError(
                f"{folder / CONFIG}: not of an exported stack; a language model alone is read by "
                "transformers.AutoModelForCausalLM.from_pretrained"
            )
        with init_empty_weights(include_buffers=False):
            stack = cls(parse(StackConfig, content["astrobio_stack"], str(folder / CONFIG)))
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                weights = {name: file.get_tensor(name) for name in file.keys()}
            unknown = stack.load_state_dict(weights, strict=False, assign=True).unexpected_keys
            if unknown:
                raise ConfigError(f"{path}: holds {unknown[0]}, which the stack has not")
        stack.language.model.tie_weights()
        empty = [name for name, parameter in stack.named_parameters() if parameter.is_meta]
        if empty:
            raise ConfigError(f"{folder}: lacks {empty[0]}" + (f" and {len(empty) - 1} more" if empty[1:] else ""))
        return (stack if dtype is None else stack.to(dtype)).eval()

    def pretrained(self) -> dict[str, dict[nn.Parameter, str]]:
        """For each part with ``init_from``: parameter → its name in the checkpoint. Under ZeRO no process needs all of
        the weights, so that nothing is read here."""
        encoders = {
            part: {parameter: f"{part}.{name}" for name, parameter in getattr(self, part).named_parameters()}
            for part in self.modalities
            if getattr(self.config, part).init_from is not None
        }
        return ({"language": self.language.pretrained} if self.language.pretrained else {}) | encoders

    def _check_positions(self) -> None:
        """Prefix and text together must fit into the language model's positions."""
        text, prefix = self.config.language.max_text_tokens, self.config.prefix_tokens
        limit = getattr(self.language.model.config, "max_position_embeddings", None)
        if limit is not None and text + prefix > limit:
            raise ConfigError(
                f"language.max_text_tokens = {text}: with {prefix} tokens of the modalities before them "
                f"that is {text + prefix} positions, and the language model has {limit}: at most "
                f"{limit - prefix} fit, or raise language.config.max_position_embeddings"
            )

    def _freeze(self) -> None:
        for name in self.config.freeze:
            for parameter_name, parameter in getattr(self, name).named_parameters():
                parameter.requires_grad_(parameter.requires_grad and "lora_" in parameter_name)

    def train(self, mode: bool = True) -> "AstrobioStack":
        """As `torch.nn.Module.train`; a frozen encoder stays in evaluation mode, without masking or dropout."""
        super().train(mode)
        for name in self.modalities:
            getattr(self, name).train(mode and name not in self.config.freeze)
        return self

    def set_activation_checkpointing(self, checkpoint: Checkpoint | None) -> None:
        """Run every repeated block of every part under ``checkpoint``; None keeps all activations."""
        for module in self.modules():
            if isinstance(module, Checkpointed):
                module.checkpoint = checkpoint
        if checkpoint is not None:
            self.language.model._set_gradient_checkpointing(True, checkpoint)
        else:
            self.language.model._set_gradient_checkpointing(False)

    def forward(self, batch: Batch) -> StackOutput:
        parts: dict[str, Tensor] = {}
        whole, batch = batch, self._drop_modalities(batch)
        tokens, tasks = self._encode(batch, whole, parts)
        states, text_logits, balance = self.language(torch.cat(tokens, dim=1) if tokens else None, batch.tokens)
        parts["language"] = losses.language(text_logits, batch.tokens[:, 1:], batch.real[:, 1:])
        if balance is not None:
            parts["balance"] = balance.float()
        logits = weights = None
        if self.modalities:
            present = torch.stack([batch.present[name] for name in self.modalities], dim=1)
            quality = torch.stack([batch.quality[name] for name in self.modalities], dim=1)
            text_states = states[:, -batch.tokens.shape[1] :]
            logits, single, weights = self.fusion(tokens, text_states, present, quality, batch.real)
            parts["classification"] = losses.classification(logits, self.target(batch), batch.label_probability_known)
            parts["consistency"] = losses.consistency(logits, single, present)
        loss = reduce(torch.add, (self.config.loss.weight(name) * part for name, part in parts.items()))
        return StackOutput(loss, {name: part.detach() for name, part in parts.items()}, logits, weights, tasks)

    def prefix(self, batch: Batch) -> Tensor | None:
        """The modalities' tokens [B, N, width], which the language model reads before the text; None without any."""
        tokens, _ = self._encode(batch, batch, {})
        return torch.cat(tokens, dim=1) if tokens else None

    def target(self, batch: Batch) -> Tensor:
        """The probability of being habitable [B] that is learned: the label itself where the climate is read from which
        it follows, elsewhere how probable it is over all climates that there could be."""
        if "climate" not in self.modalities:
            return batch.label_probability
        seen = batch.present["climate"] & batch.label_present
        return torch.where(seen, batch.label.to(batch.label_probability.dtype), batch.label_probability)

    def _drop_modalities(self, batch: Batch) -> Batch:
        """In training, a share of the samples loses a modality, so that the model does not rely on a single one."""
        if not (self.training and self.config.modality_dropout):
            return batch
        for name in self.modalities:
            kept = torch.rand(len(batch), device=batch.label.device) >= self.config.modality_dropout
            batch = batch.without(name, ~kept)
        return batch

    def _encode(self, batch: Batch, whole: Batch, parts: dict[str, Tensor]) -> tuple[list[Tensor], TaskOutput]:
        """Tokens [B, n, width] of each modality, and what the tasks' heads make of them; the losses of both go into
        ``parts``. ``whole`` is the batch that has lost no modality."""
        tokens, present = {}, batch.present
        if "planet" in self.modalities:
            tables = [(batch.planet, batch.planet_known)]
            if self.config.tasks is not None:
                tables += [(whole.planet, whole.planet_known), (whole.planet, bulk(whole.planet_known))]
            # One pass for all tables: ZeRO-3 fetches the weights once.
            tokens["planet"], *for_tasks = self._read("planet", *map(torch.cat, zip(*tables, strict=True))).chunk(
                len(tables)
            )
        if "climate" in self.modalities:
            cube = self._read("climate", batch.climate_levels, batch.climate_surface)
            tokens["climate"] = cube.tokens
            self._add_reconstruction("climate", cube, present, parts)
            surface = cube.surface.mean(2)
            surface = surface * batch.moments.surface_std[:, None, None] + batch.moments.surface_mean[:, None, None]
            imbalance = losses.energy_imbalance(surface[:, ABSORBED], surface[:, OUTGOING])
            parts["energy"] = losses.mean_present(imbalance, present["climate"])
        if "metabolism" in self.modalities:
            graph = self._read("metabolism", batch.graphs)
            tokens["metabolism"] = graph.tokens
            parts["reconstruction.metabolism"] = losses.mean_present(graph.reconstruction, present["metabolism"])
            parts["mass_balance"] = losses.mean_present(graph.imbalance, present["metabolism"])
            parts["kl"] = losses.mean_present(graph.kl, present["metabolism"])
        if "spectrum" in self.modalities:
            spectrum = self._read("spectrum", batch.spectrum, batch.spectrum_spread)
            tokens["spectrum"] = spectrum.tokens
            self._add_reconstruction("spectrum", spectrum, present, parts)
        read = {name: self.absent[name](tokens[name], present[name]) for name in self.modalities}
        tasks = TaskOutput()
        if self.config.tasks is not None:
            tasks = self._tasks(self.tasks(*for_tasks, read.get("spectrum")), batch, whole, parts)
        return list(read.values()), tasks

    def _add_reconstruction(self, name: str, output: Any, present: dict[str, Tensor], parts: dict[str, Tensor]) -> None:
        """The reconstruction's losses of one encoder; where it hides nothing, nothing is said of hidden patches."""
        if getattr(self, name).hides:
            parts[f"reconstruction.{name}_hidden"] = losses.mean_present(output.hidden, present[name])
        parts[f"reconstruction.{name}_visible"] = losses.mean_present(output.visible, present[name])

    @staticmethod
    def _tasks(tasks: TaskOutput, batch: Batch, whole: Batch, parts: dict[str, Tensor]) -> TaskOutput:
        """``tasks``, detached; their losses go into ``parts``."""
        observables, climate, posterior = tasks
        if observables is not None:
            parts["observables"] = losses.classification(
                observables, batch.label_probability, batch.label_probability_known
            )
            observables = observables.detach()
        if climate is not None:
            error = losses.emulation(*climate, whole.climate_levels.mean(2), whole.climate_surface.mean(2))
            parts["emulation"] = losses.mean_present(error, whole.present["climate"] & whole.present["planet"])
            climate = Climate(*(fields.detach() for fields in climate))
        if posterior is not None:
            known = batch.retrieval_known & batch.present["spectrum"][:, None]
            found, counted = mixture(posterior, len(RETRIEVAL_COLUMNS)), known.any(dim=1)
            crps = (found.crps(batch.retrieval) * known).sum(1)
            parts["retrieval.nll"] = losses.mean_present(found.nll(batch.retrieval, known), counted)
            parts["retrieval.crps"] = losses.mean_present(crps, counted)
            posterior = posterior.detach()
        return TaskOutput(observables, climate, posterior)

    def _read(self, name: str, *inputs):
        """The output of a modality's encoder; a frozen one records no graph for the backward pass."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and name not in self.config.freeze):
            return getattr(self, name)(*inputs)


def exported_config(config: StackConfig, dtype: str) -> dict[str, Any]:
    """``config.json`` of an exported stack: all that `AstrobioStack.from_pretrained` needs, without ``init_from``."""
    content = dataclasses.asdict(config)
    for part in MODALITIES:
        if content[part] is not None:
            content[part]["init_from"] = None
    built = language_config(config.language)
    known = type(built)()
    content["language"] |= {
        "init_from": None,
        "model_type": built.model_type,
        "config": {
            key: value
            for key, value in built.to_diff_dict().items()
            if hasattr(known, key) and key not in ("model_type", "dtype", "architectures")
        },
    }
    return {"architectures": ["AstrobioStack"], "dtype": dtype, "astrobio_stack": content}
