"""What the stack reads: records, normalised and collated."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Batch as GraphBatch
from torch_geometric.data import Data

from astrobio.transfer import packed, unpacked


@dataclass
class Moments:
    """Tensors of stats.json that the losses need to go back to physical units."""

    surface_mean: Tensor  # [S]
    surface_std: Tensor  # [S]

    def to(self, device) -> "Moments":
        return Moments(self.surface_mean.to(device), self.surface_std.to(device))


#: A modality's own fields, zeros where it is absent.
_FIELDS = {"climate": ("climate_levels", "climate_surface"), "spectrum": ("spectrum", "spectrum_spread")}


@dataclass
class Batch:
    """What the stack reads: normalised, float32, zeros where something is absent.

    Attributes:
        run_ids: the records' keys.
        planet: [B, P]; planet_known: [B, P] bool.
        climate_levels: [B, V, T, Z, Y, X]; climate_surface: [B, S, T, Y, X].
        graphs: PyG batch of the metabolic networks, see `GraphVAE.forward`.
        spectrum: [B, W, 3]: µm, depth, weight; see `astrobio.normalisation.normalised_spectrum`.
        spectrum_spread: [B]: what one of the depth's units is, log10(ppm).
        retrieval: [B, R], `RETRIEVAL_COLUMNS`, normalised; retrieval_known: [B, R] bool.
        tokens, real: [B, L] token ids and whether they are text, not padding.
        label, label_present: [B]: the hard label, for figures of merit.
        label_probability: [B] in 0 to 1: the schema's, or the label where it has none; see `AstrobioStack.target`.
        label_probability_known: [B] bool.
        present, quality: for each modality [B] bool, and [B] in 0 to 1.
        observed: [B] bool: a planet somebody has seen, not one that was drawn.
    """

    run_ids: list[str]
    planet: Tensor
    planet_known: Tensor
    climate_levels: Tensor
    climate_surface: Tensor
    graphs: GraphBatch
    spectrum: Tensor
    spectrum_spread: Tensor
    retrieval: Tensor
    retrieval_known: Tensor
    tokens: Tensor
    real: Tensor
    label: Tensor
    label_present: Tensor
    label_probability: Tensor
    label_probability_known: Tensor
    present: dict[str, Tensor]
    quality: dict[str, Tensor]
    observed: Tensor
    moments: Moments

    def __len__(self) -> int:
        return len(self.run_ids)

    def __reduce__(self):
        """From a loader's process in one piece (`astrobio.transfer`)."""
        return _batch, packed(self._fields())

    def _fields(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def to(self, device) -> "Batch":
        """From the host to a card in one copy, which the host does not wait for."""
        if torch.device(device).type != "cpu" and self.tokens.device.type == "cpu" and type(self.tokens) is Tensor:
            skeleton, layout, content = packed(self._fields(), pinned=torch.cuda.is_available())
            return _batch(skeleton, layout, content.to(device, non_blocking=True))
        moved: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, dict):
                moved[field.name] = {key: tensor.to(device) for key, tensor in value.items()}
            else:
                moved[field.name] = value.to(device) if hasattr(value, "to") else value
        return Batch(**moved)

    def without(self, part: str, rows: Tensor | None = None) -> "Batch":
        """A copy in which ``part`` (a modality or ``text``) is absent, in all ``rows`` [B] bool or in those."""
        rows = torch.ones_like(self.label_present) if rows is None else rows
        if part == "text":  # the first token stays: something has to be read
            real = self.real & ~(rows[:, None] & (torch.arange(self.real.shape[1], device=rows.device) > 0))
            return dataclasses.replace(self, real=real)
        changes: dict[str, Any] = {"present": {**self.present, part: self.present[part] & ~rows}}
        if part == "planet":
            changes["planet_known"] = self.planet_known & ~rows[:, None]
        elif part == "metabolism":
            graphs = self.graphs.clone()
            kept = ~rows
            graphs.x = graphs.x * kept[graphs.batch, None]
            owner = graphs.batch[graphs.edge_index[0]]
            graphs.edge_attr = graphs.edge_attr * kept[owner, None]
            changes["graphs"] = graphs
        else:
            for name in _FIELDS[part]:
                value = getattr(self, name)
                changes[name] = value * ~rows.view(-1, *[1] * (value.dim() - 1))
        return dataclasses.replace(self, **changes)


def graph_batch(graphs: list[Data]) -> GraphBatch:
    """A PyG batch that knows the nodes of its largest graph, ``longest``: on a card the host would wait for it."""
    batch = GraphBatch.from_data_list(graphs)
    batch.longest = max(graph.num_nodes for graph in graphs)
    return batch


def _batch(*state) -> Batch:
    return Batch(**unpacked(*state))
