"""Features for simple models: some numbers of each modality of a record, NaN where it is absent."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from astrobio.dataset import AstrobioDataset
from astrobio.planet import ATMOSPHERE_COLUMNS
from astrobio.schema import CLIMATE_LATITUDES, MODALITIES, NODE_FEATURES, NODE_KINDS, PLANET_COLUMNS

#: Places of the columns that a telescope can tell.
OBSERVABLE = [index for index, column in enumerate(PLANET_COLUMNS) if column.name not in ATMOSPHERE_COLUMNS]

SPECTRUM_BINS = 25  # of equally many points


@dataclass(frozen=True)
class Features:
    """Features of the N records of a split, normalised as the stack reads them."""

    run_id: np.ndarray  # [N] str
    planet_key: np.ndarray  # [N] str
    label: np.ndarray  # [N] int
    labelled: np.ndarray  # [N] bool
    present: dict[str, np.ndarray]  # modality → [N] bool
    planet: np.ndarray  # [N, P]
    climate: np.ndarray  # [N, 2 F]: area-weighted mean and spread of each of the F fields
    metabolism: np.ndarray  # [N, 5]
    spectrum: np.ndarray  # [N, 2 bins + 1]: mean depth and mean weight of each bin, and the spread
    retrieval: np.ndarray  # [N, R]

    def __len__(self) -> int:
        return len(self.run_id)

    @property
    def every(self) -> np.ndarray:
        """The numbers of all modalities side by side."""
        return np.concatenate([getattr(self, name) for name in MODALITIES], axis=1)

    @property
    def observable(self) -> np.ndarray:
        """Of star, planet and spectrum, without the atmosphere."""
        return np.concatenate([self.planet[:, OBSERVABLE], self.spectrum], axis=1)


@dataclass(frozen=True)
class Fields:
    """Climates ``values`` [M, F, Y, X] float32, normalised, of the records ``rows`` [M] of a split."""

    rows: np.ndarray
    values: np.ndarray


def read(dataset: AstrobioDataset) -> tuple[Features, Fields]:
    """Read every record of a split once."""
    items = [_numbers(dataset[index]) for index in range(len(dataset))]
    fields = {row: item.pop("fields") for row, item in enumerate(items) if "fields" in item}

    def column(name: str, dtype: Any = None) -> np.ndarray:
        known = next((item[name] for item in items if name in item), np.zeros(0))
        return np.array([item.get(name, np.full(np.shape(known), np.nan)) for item in items], dtype)

    run_id = column("run_id", str)
    features = Features(
        run_id=run_id,
        planet_key=np.array([name.rpartition("/")[0] for name in run_id]),
        label=column("label", int),
        labelled=column("labelled", bool),
        present={name: np.array([item["present"][name] for item in items]) for name in MODALITIES},
        **{name: column(name, float) for name in (*MODALITIES, "retrieval")},
    )
    return features, Fields(np.array(list(fields), int), np.stack(list(fields.values())))


def _numbers(item: dict[str, Any]) -> dict[str, Any]:
    present = item["present"]
    numbers = {
        "run_id": item["run_id"],
        "label": item["label"],
        "labelled": item["label_present"],
        "present": present,
        "planet": np.where(item["planet_known"], item["planet"], np.nan),
        "retrieval": np.where(item["retrieval_known"], item["retrieval"], np.nan),
    }
    if present["climate"]:
        fields = fields_of(item)
        mean = area_mean(fields)
        spread = np.sqrt(np.maximum(area_mean((fields - mean[:, None, None]) ** 2), 0))
        numbers |= {"fields": fields, "climate": np.concatenate([mean, spread])}
    if present["metabolism"]:
        numbers["metabolism"] = _network(item["graph"])
    if present["spectrum"]:
        _, depth, weight = item["spectrum"].T.reshape(3, SPECTRUM_BINS, -1)
        total = weight.sum(1)
        mean = np.where(total > 0, (depth * weight).sum(1) / np.maximum(total, 1e-9), np.nan)
        numbers["spectrum"] = np.concatenate([mean, weight.mean(1), [item["spectrum_spread"]]])
    return numbers


def fields_of(item: dict[str, Any]) -> np.ndarray:
    """A record's climate as fields [F, Y, X]: the levels of each variable, then the surface; mean over times."""
    levels, surface = item["climate_levels"].mean(1), item["climate_surface"].mean(1)
    return np.concatenate([levels.reshape(-1, *levels.shape[-2:]), surface])


def _network(graph) -> np.ndarray:
    """Sizes of a metabolic network, the share of its reactions that run, and their mean flux and uptake."""
    nodes = graph.x.numpy()
    reactions = nodes[graph.kind.numpy() == NODE_KINDS.index("reaction")]
    flux = reactions[:, NODE_FEATURES.index("flux")]
    still = np.median(flux)  # of the normalised fluxes: most are 0
    return np.array(
        [
            len(nodes) - len(reactions),
            len(reactions),
            np.mean(np.abs(flux - still) > 1e-6),
            np.abs(flux - still).mean(),
            reactions[:, NODE_FEATURES.index("lower_bound")].mean(),
        ]
    )


def area_mean(fields: np.ndarray) -> np.ndarray:
    """Area-weighted mean [...] of fields [..., Y, X]."""
    edges = np.linspace(-np.pi / 2, np.pi / 2, CLIMATE_LATITUDES + 1)
    return fields.mean(-1) @ (np.diff(np.sin(edges)) / 2).astype(np.float32)
