"""Opens a built dataset, normalises its records and collates them into a `Batch`."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from astrobio import schema
from astrobio.batch import Batch, Moments, graph_batch
from astrobio.config import ConfigError, suggestion
from astrobio.normalisation import normalised_spectrum, squashed, transformed
from astrobio.reading import RecordReader, local_copy

MANIFEST = "manifest.json"
NEEDED = (
    MANIFEST,
    "stats.json",
    "quality.json",
    "dataset_dict.json",
    "tokenizer/tokenizer.json",
    *(f"{split}/dataset_info.json" for split in schema.SPLITS),
)

#: What the retrieved columns are normalised with: the moments of the quantity they are taken from, so that stats.json
#: needs none of their own.
RETRIEVED_FROM = {
    "terminator_temperature_k": ("climate_levels", "air_temperature"),
    "terminator_h2o_vmr": ("climate_levels", "log10_specific_humidity"),
    "retrieved_co2_vmr": ("planet", "co2_vmr"),
    "retrieved_ch4_vmr": ("planet", "ch4_vmr"),
    "terminator_cloud_fraction": ("climate_levels", "cloud_fraction"),
}
#: Where a column stands in its group of stats.json.
_PLACES = {
    "planet": [column.name for column in schema.PLANET_COLUMNS],
    "climate_levels": [column.name for column in schema.CLIMATE_LEVEL_VARIABLES],
}


def dataset_problems(folder: str | Path, hash_files: bool = True) -> list[str]:
    """What keeps ``folder`` from being a whole dataset of this schema, a line each; empty if nothing does.

    Compares every file with the manifest's size, and with its sha256 too unless ``hash_files`` is off.
    """
    folder = local_copy(folder)
    if not folder.is_dir():
        return [f"{folder}: no such dataset folder; `astrobio data build sample --out {folder}` builds one"]
    missing = [f"{folder / name}: missing" for name in NEEDED if not (folder / name).is_file()]
    if missing:
        return missing
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except ValueError as error:
        return [f"{folder / MANIFEST}: not valid JSON: {error}"]
    if manifest.get("schema_version", schema.SCHEMA_VERSION) != schema.SCHEMA_VERSION:
        recipe = manifest.get("recipe", {}).get("name", "sample")
        return [
            f"{folder / MANIFEST}: schema_version is {manifest['schema_version']!r}, this program reads "
            f"{schema.SCHEMA_VERSION}: remove the folder and build it again: `astrobio data build {recipe} "
            f"--out {folder}`"
        ]
    lacking = [key for key in schema.MANIFEST_KEYS if key not in manifest]
    if lacking:
        return [f"{folder / MANIFEST}: lacks {', '.join(lacking)}"]
    problems = []
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{path}: missing, but listed in {MANIFEST}")
        elif path.stat().st_size != expected["bytes"]:
            problems.append(f"{path}: {path.stat().st_size} bytes, {MANIFEST} says {expected['bytes']}")
        elif hash_files and schema.sha256_of(path) != expected["sha256"]:
            problems.append(f"{path}: its sha256 is not the one in {MANIFEST}: the file was changed or damaged")
    return problems


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer in ``folder``.

    Where it lacks a token to begin with or to pad with, the one that ends a text serves: something has to be read
    first, and padding is never looked at.

    Raises:
        ConfigError: not a tokenizer, or one without a token that ends a text.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, OSError, KeyError) as error:
        raise ConfigError(f"{folder}: not a tokenizer that transformers can load: {error}") from None
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"{folder}: the tokenizer has no eos token")
    for name in ("bos_token", "pad_token"):
        if getattr(tokenizer, name) is None:
            setattr(tokenizer, name, tokenizer.eos_token)
    return tokenizer


def test_sets(folder: str | Path) -> list[str]:
    """The further test sets (`astrobio.schema.TEST_SETS`) that a dataset's folder holds."""
    return [name for name in schema.TEST_SETS if (Path(folder) / name / "dataset_info.json").is_file()]


class AstrobioDataset(torch.utils.data.Dataset):
    """One split of a built dataset, map-style and memory-mapped; `collate` makes a `Batch` of its items.

    Args:
        folder: the dataset's folder, or an fsspec URL of one, which is copied to this machine first.
        split: ``train``, ``validation``, ``test``, or one of `astrobio.schema.TEST_SETS`, where the dataset has it.
        max_text_tokens: longer texts are cut.

    Raises:
        ConfigError: the folder holds no dataset of this schema, or not this split.
    """

    def __init__(self, folder: str | Path, split: str, max_text_tokens: int, tokenizer: str | Path | None = None):
        folder = local_copy(folder)
        problems = dataset_problems(folder, hash_files=False)
        if problems:
            raise ConfigError("\n".join(problems))
        known = (*schema.SPLITS, *test_sets(folder))
        if split not in known:
            raise ConfigError(f"{folder}: the dataset has no split {split!r}{suggestion(split, known)}")
        self.folder, self.split, self.max_text_tokens = folder, split, max_text_tokens
        self.records = datasets.load_from_disk(str(self.folder / split)).with_format("numpy")
        self.tokenizer = load_tokenizer(tokenizer or self.folder / "tokenizer")
        self.stats = {
            name: (np.asarray(value["mean"], np.float32), np.asarray(value["std"], np.float32))
            for name, value in json.loads((self.folder / "stats.json").read_text()).items()
        }
        self.moments = Moments(*map(torch.from_numpy, self.stats["climate_surface"]))
        sources = [RETRIEVED_FROM[column.name] for column in schema.RETRIEVAL_COLUMNS]
        mean, std = (
            np.array([self.stats[group][i][_PLACES[group].index(name)] for group, name in sources]) for i in range(2)
        )
        self.stats["retrieval"] = mean, std

    @property
    def records(self) -> datasets.Dataset:
        """The split as `datasets` has it, for whole columns; single records are read by `RecordReader`."""
        return self._reader.records

    @records.setter
    def records(self, records: datasets.Dataset) -> None:
        self._reader = RecordReader(records)

    def __len__(self) -> int:
        return len(self.records)

    def run_ids(self, indices: list[int]) -> list[str]:
        if not hasattr(self, "_run_ids"):
            self._run_ids = list(self.records["run_id"])
        return [str(self._run_ids[i]) for i in indices]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One record, normalised. A record that breaks the schema is an error that names it, never skipped."""
        try:
            record = self._reader[int(index)]
        except Exception as error:  # Arrow's own errors do not say which record
            raise ValueError(f"{self.folder / self.split}: record {index} cannot be read: {error}") from error
        try:
            return self._normalised(record)
        except (ValueError, TypeError, IndexError, KeyError) as error:
            raise ValueError(
                f"{self.folder / self.split}: record {index} ({record.get('run_id')}) is corrupt: {error}"
            ) from error

    def _normalised(self, record: dict[str, Any]) -> dict[str, Any]:
        item: dict[str, Any] = {"run_id": str(record["run_id"])}
        known = np.asarray(record["planet_mask"], bool)
        values = np.asarray(record["planet"], np.float32)
        item["planet"] = self.planet(values, known)
        item["planet_known"] = known
        if record["climate_present"]:
            item["climate_levels"] = self._scale("climate_levels", record["climate_levels"], axis=0)
            item["climate_surface"] = self._scale("climate_surface", record["climate_surface"], axis=0)
        else:
            item["climate_levels"] = np.zeros(schema.SHAPES["climate_levels"], np.float32)
            item["climate_surface"] = np.zeros(schema.SHAPES["climate_surface"], np.float32)
        item["graph"] = self._graph(record) if record["metabolism_present"] else self._empty_graph()
        item["spectrum"], item["spectrum_spread"] = (
            normalised_spectrum(record["spectrum"])
            if record["spectrum_present"]
            else (np.zeros(schema.SHAPES["spectrum"], np.float32), 0.0)
        )
        retrieval = np.asarray(record["retrieval"], np.float32)
        item["retrieval_known"] = np.isfinite(retrieval)
        item["retrieval"] = self.retrieval(retrieval, item["retrieval_known"])
        tokens = self.tokenizer(str(record["text"]), add_special_tokens=False)["input_ids"][: self.max_text_tokens - 2]
        item["tokens"] = [self.tokenizer.bos_token_id, *tokens, self.tokenizer.eos_token_id]
        item["label"], item["label_present"] = int(record["label"]), bool(record["label_present"])
        chance = float(record["label_probability"])
        item["label_probability_known"] = bool(np.isfinite(chance)) or item["label_present"]
        item["label_probability"] = chance if np.isfinite(chance) else float(item["label"])
        provenance = record["provenance"]
        item["present"] = {
            "planet": True,
            **{name: bool(record[f"{name}_present"]) for name in schema.OPTIONAL_MODALITIES},
        }
        item["quality"] = {
            name: float(provenance[name]["quality"]) if item["present"][name] else 0.0 for name in schema.MODALITIES
        }
        item["observed"] = str(provenance["planet"]["kind"]) == "observed"
        for name in ("planet", "climate_levels", "climate_surface", "spectrum", "retrieval"):
            if not np.isfinite(item[name]).all():
                raise ValueError(f"{name} holds a value that is not finite")
        return item

    def planet(self, values: np.ndarray, known: np.ndarray) -> np.ndarray:
        """The planet table [P], normalised; 0, the mean, where it is not known."""
        return self._scale("planet", transformed("planet", schema.PLANET_COLUMNS, values, known), axis=0) * known

    def retrieval(self, values: np.ndarray, known: np.ndarray) -> np.ndarray:
        """What a retrieval looks for [R], normalised; 0 where it is not known."""
        values = transformed("retrieval", schema.RETRIEVAL_COLUMNS, values, known)
        return self._scale("retrieval", values, axis=0) * known

    def _scale(self, name: str, values: np.ndarray, axis: int) -> np.ndarray:
        mean, std = self.stats[name]
        values = np.asarray(values, np.float32)
        if values.shape[axis] != len(mean):
            raise ValueError(f"{name} has {values.shape[axis]} variables, stats.json has {len(mean)}")
        shape = [1] * values.ndim
        shape[axis] = -1
        return (values - mean.reshape(shape)) / std.reshape(shape)

    def _graph(self, record: dict[str, Any]) -> Data:
        kind = torch.as_tensor(np.asarray(record["metabolism_node_kind"], np.int64))
        nodes = np.asarray(record["metabolism_node_features"], np.float32)
        edges = np.asarray(record["metabolism_edge_features"], np.float32)
        index = torch.as_tensor(np.asarray(record["metabolism_edge_index"], np.int64).T.copy())
        if len(kind) != len(nodes) or index.shape[1] != len(edges) or (len(edges) and int(index.max()) >= len(kind)):
            raise ValueError(
                f"metabolism: {len(kind)} node kinds, {len(nodes)} nodes, {index.shape[1]} edges with "
                f"{len(edges)} features do not fit together"
            )
        inside = (kind == schema.NODE_KINDS.index("metabolite")) & torch.from_numpy(
            nodes[:, schema.NODE_FEATURES.index("extracellular")] == 0
        )
        return self._data(
            kind,
            self._scale("node_features", squashed(nodes), axis=1),
            index,
            self._scale("edge_features", squashed(edges), axis=1),
            torch.from_numpy(edges[:, schema.EDGE_FEATURES.index("stoichiometry")].copy()),
            inside,
        )

    def _empty_graph(self) -> Data:
        """A metabolite and a reaction that stand for no network: the graph layers must have something to run on."""
        return self._data(
            torch.tensor([0, 1]),
            np.zeros((2, len(schema.NODE_FEATURES)), np.float32),
            torch.tensor([[0, 1], [1, 0]]),
            np.zeros((2, len(schema.EDGE_FEATURES)), np.float32),
            torch.zeros(2),
            torch.zeros(2, dtype=torch.bool),
        )

    def _data(self, kind, nodes, index, edges, stoichiometry, inside) -> Data:
        flux = schema.NODE_FEATURES.index("flux")
        mean, std = self.stats["node_features"]
        return Data(
            x=torch.from_numpy(nodes),
            kind=kind,
            edge_index=index,
            edge_attr=torch.from_numpy(edges),
            stoichiometry=stoichiometry,
            balanced=inside,
            flux_mean=torch.full((len(kind),), float(mean[flux])),
            flux_std=torch.full((len(kind),), float(std[flux])),
        )

    def collate(self, items: list[dict[str, Any]]) -> Batch:
        def stack(name: str, dtype=None) -> Tensor:
            return torch.as_tensor(np.stack([item[name] for item in items]), dtype=dtype)

        length = max(len(item["tokens"]) for item in items)
        tokens = torch.full((len(items), length), self.tokenizer.pad_token_id)
        real = torch.zeros(len(items), length, dtype=torch.bool)
        for row, item in enumerate(items):
            tokens[row, : len(item["tokens"])] = torch.tensor(item["tokens"])
            real[row, : len(item["tokens"])] = True
        return Batch(
            run_ids=[item["run_id"] for item in items],
            planet=stack("planet"),
            planet_known=stack("planet_known"),
            climate_levels=stack("climate_levels"),
            climate_surface=stack("climate_surface"),
            graphs=graph_batch([item["graph"] for item in items]),
            spectrum=stack("spectrum"),
            spectrum_spread=stack("spectrum_spread", torch.float32),
            retrieval=stack("retrieval", torch.float32),
            retrieval_known=stack("retrieval_known"),
            tokens=tokens,
            real=real,
            label=stack("label", torch.long),
            label_present=stack("label_present"),
            label_probability=stack("label_probability", torch.float32),
            label_probability_known=stack("label_probability_known"),
            present={name: torch.tensor([item["present"][name] for item in items]) for name in schema.MODALITIES},
            quality={name: torch.tensor([item["quality"][name] for item in items]) for name in schema.MODALITIES},
            observed=stack("observed"),
            moments=self.moments,
        )
