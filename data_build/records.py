"""One run in, one record of the schema out; and the bytes by which two records are compared."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np

from astrobio.schema import (
    CLIMATE_SURFACE_VARIABLES,
    CLIMATE_TIMES,
    FEATURES,
    GCMS,
    HABITABILITY_RULE,
    HELD_OUT_GCM,
    LABEL_PROBABILITY,
    OPTIONAL_MODALITIES,
    PLANET_COLUMNS,
    PROVENANCE_PARTS,
    RETRIEVAL_COLUMNS,
)
from data_build.climates import read
from data_build.computed_spectra import computed_spectrum
from data_build.habitability import habitability, habitable_share
from data_build.planets import EMULATOR_INPUTS, Atmosphere, Planet
from data_build.recipe import Recipe
from data_build.sampling import SAMPLED_SOURCE, stream
from data_build.selection import Run, StoredClimate
from data_build.sources import INFOS, Clero, Cobra, Muscles, SourceInfo, TauRex
from data_build.sources.clero import GCM, area_mean
from data_build.sources.networks import E_COLI, NETWORKS
from data_build.text import describe, scrub

_SURFACE_TEMPERATURE = [column.name for column in CLIMATE_SURFACE_VARIABLES].index("surface_temperature")

#: Of a text without a catalogue's description, which repeats the table.
_QUALITY_PLAIN_TEXT = 0.5

_SAMPLED = SourceInfo(SAMPLED_SOURCE, "planet", "1", "Apache-2.0", "data_build.sampling", "synthetic")
_SOLAR_SYSTEM = SourceInfo(
    "solar_system", "planet", "IAU 2015 nominal values", "public domain", "Prša et al. 2016, AJ 152, 41", "observed"
)
#: Pairs of an archive and a sentence of it.
Facts = tuple[tuple[str, str], ...]

#: Fields of modalities that are not there.
ABSENT_ARRAYS: dict[str, None] = dict.fromkeys(
    (
        "climate_levels",
        "climate_surface",
        "metabolism_node_kind",
        "metabolism_node_features",
        "metabolism_edge_index",
        "metabolism_edge_features",
        "spectrum",
    )
)

_TEMPLATE = SourceInfo("template", "text", "1", "Apache-2.0", "data_build.text", "synthetic")


@cache
def models() -> tuple[Clero, TauRex, Cobra]:
    """The models, loaded once a process."""
    return Clero(), TauRex(), Cobra()


@cache
def stars() -> Muscles:
    """The stars' spectra, read once a process."""
    return Muscles()


def emulator_inputs(planet: Planet, atmosphere: Atmosphere) -> dict[str, float]:
    """CLERO's inputs for a run."""
    return {
        **{key: planet.values[name] for name, key in EMULATOR_INPUTS.items()},
        "P0": atmosphere.surface_pressure_bar,
        "CO2": atmosphere.co2_vmr,
        "CH4": atmosphere.ch4_vmr,
    }


def make_records(runs: list[Run], recipe: Recipe, facts: Facts = (), gcm: str = GCM) -> list[dict]:
    """The records of some runs, in their order, as the schema's `FEATURES` want them.

    Args:
        facts: what archives tell of the metabolic network's organism (`data_build.organism.facts`).
        gcm: the general circulation model of the emulated climates. Under another than the runs were chosen by, labels
            follow from its climates; a climate that is not possible (`Candidate.possible`) leaves them open.
    """
    emulator, _, _ = models()
    inputs = [
        emulator_inputs(run.candidate.planet, run.candidate.atmosphere) for run in runs if run.candidate.stored is None
    ]
    emulated: Iterator[tuple[np.ndarray, np.ndarray]] = iter(())
    if inputs:
        climates = emulator.climates(inputs, gcm)
        if gcm != GCM:
            runs = [
                _relabelled(*row)
                for row in zip(runs, climates.levels, climates.surface, climates.relative_humidity, strict=True)
            ]
        emulated = zip(climates.levels, climates.surface, strict=True)
    records = [
        _record(
            run,
            *(next(emulated) if run.candidate.stored is None else read(run.candidate.stored)),
            recipe,
            _told(run, recipe, facts),
            gcm,
        )
        for run in runs
    ]
    _share_quality(runs, records)
    return records


def _relabelled(run: Run, levels: np.ndarray, surface: np.ndarray, relative_humidity: float) -> Run:
    """The run with the label of another climate than it was chosen by."""
    candidate = replace(run.candidate, relative_humidity=float(relative_humidity))
    label = habitability(levels, surface, candidate.atmosphere.surface_pressure_bar) if candidate.possible else None
    return replace(run, candidate=replace(candidate, label=label))


def _share_quality(runs: list[Run], records: list[dict]) -> None:
    """Give partners the lower of their qualities, part by part: else the quality would tell the label."""
    for part in PROVENANCE_PARTS:
        lowest: dict[str, float] = {}
        for run, record in zip(runs, records, strict=True):
            quality = record["provenance"][part]["quality"]
            lowest[run.pair] = min(quality, lowest.get(run.pair, quality))
        for run, record in zip(runs, records, strict=True):
            record["provenance"][part]["quality"] = lowest[run.pair]


def _told(run: Run, recipe: Recipe, facts: Facts) -> Facts:
    """Two of the facts for a run with the organism's metabolism, the same two for its partner."""
    if not run.present["metabolism"] or not facts or NETWORKS[network_of(run, recipe)].organism != E_COLI:
        return ()
    chosen = stream(recipe.seed, "organism", run.pair).permutation(len(facts))[:2]
    return tuple(facts[index] for index in chosen)


def _record(run: Run, levels: np.ndarray, surface: np.ndarray, recipe: Recipe, told: Facts, gcm: str) -> dict:
    """``levels`` [V, Z, Y, X] and ``surface`` [S, Y, X]: the run's climate, whether or not the record keeps it."""
    candidate = run.candidate
    planet, atmosphere = candidate.planet, candidate.atmosphere
    values = {
        **planet.values,
        "surface_pressure_bar": atmosphere.surface_pressure_bar,
        "co2_vmr": atmosphere.co2_vmr,
        "ch4_vmr": atmosphere.ch4_vmr,
    }
    names = [column.name for column in PLANET_COLUMNS]
    record = {
        "run_id": candidate.run_id,
        "planet_key": planet.key,
        "planet": np.array([values.get(name, np.nan) for name in names], np.float32),
        "planet_mask": np.array([name in values for name in names]),
        "planet_derived": np.array([name in planet.derived for name in names]),
        **{f"{modality}_present": run.present[modality] for modality in OPTIONAL_MODALITIES},
        **ABSENT_ARRAYS,
        "text": describe(
            planet, atmosphere, run.named, stream(recipe.seed, "text", run.pair), [sentence for _, sentence in told]
        ),
        "label_present": candidate.label is not None,
        "label": np.int8(candidate.label or 0),
        **_label_probability(run, recipe),
        "retrieval": np.full(len(RETRIEVAL_COLUMNS), np.nan, np.float32),
        "provenance": _provenance(run, network_of(run, recipe), told, gcm),
    }
    if run.present["climate"]:
        record["climate_levels"] = np.repeat(levels[:, None], CLIMATE_TIMES, axis=1).astype(np.float16)
        record["climate_surface"] = np.repeat(surface[:, None], CLIMATE_TIMES, axis=1).astype(np.float16)
    if run.present["metabolism"]:
        record |= _metabolism(surface[_SURFACE_TEMPERATURE], atmosphere, network_of(run, recipe))
    if run.present["spectrum"]:
        rng = stream(recipe.seed, "noise", candidate.run_id)
        _, taurex, _ = models()
        computed = computed_spectrum(planet, atmosphere, levels, recipe, rng, taurex, stars())
        record["spectrum"], record["retrieval"] = computed.spectrum, computed.retrieval
        record["provenance"]["spectrum"]["quality"] = computed.quality
    return record


def _label_probability(run: Run, recipe: Recipe) -> dict:
    """The fields ``label_probability`` and ``label_probability_by_gcm`` of a run; NaN where it is not emulated."""
    shares = dict.fromkeys(GCMS, np.nan)
    candidate = run.candidate
    if candidate.stored is None:
        emulator, _, _ = models()
        gcms = [gcm for gcm in GCMS if run.split == "test" or gcm != HELD_OUT_GCM]
        inputs = emulator_inputs(candidate.planet, candidate.atmosphere)
        seed = int(stream(recipe.seed, "draws", candidate.run_id).integers(2**32))
        drawn = emulator.draws(inputs, gcms, LABEL_PROBABILITY["draws_per_gcm"], seed)
        shares |= dict(zip(gcms, habitable_share(*drawn, candidate.atmosphere.surface_pressure_bar), strict=True))
    return {
        "label_probability": np.float32(np.mean([shares[gcm] for gcm in LABEL_PROBABILITY["gcms"]])),
        "label_probability_by_gcm": np.array([shares[gcm] for gcm in GCMS], np.float32),
    }


def network_of(run: Run, recipe: Recipe) -> str:
    """The run's metabolic network, the same for its partner."""
    names = list(NETWORKS)
    return names[stream(recipe.seed, "network", run.pair).integers(len(names))]


def _metabolism(surface_temperature: np.ndarray, atmosphere: Atmosphere, name: str) -> dict:
    _, _, cobra = models()
    # Cells live where there is liquid: the mean over the surface free of ice, or over all of it if there is none.
    free = surface_temperature >= HABITABILITY_RULE["freezing_point_k"]
    share = area_mean(free.astype(float))
    temperature = area_mean(surface_temperature * free) / share if share > 0 else area_mean(surface_temperature)
    network = cobra.network(
        name,
        float(temperature),
        atmosphere.co2_vmr * atmosphere.surface_pressure_bar,
        atmosphere.ch4_vmr * atmosphere.surface_pressure_bar,
    )
    return {
        f"metabolism_{name}": getattr(network, name)
        for name in ("node_kind", "node_features", "edge_index", "edge_features")
    }


def _provenance(run: Run, network: str, told: Facts, gcm: str) -> dict:
    planet = run.candidate.planet
    emulator, taurex, cobra = models()
    text, text_quality = text_source(planet, run.named)
    if told:
        text = _together([text, *(INFOS[name] for name, _ in told)], text.kind)
    climate = (
        _climate_source(run.candidate.stored)
        if run.candidate.stored
        else emulator.provenance(emulator_inputs(planet, run.candidate.atmosphere), gcm)
    )
    parts = {
        "planet": planet_source(planet).provenance(planet.quality),
        "climate": climate,
        "metabolism": cobra.provenance(network, cobra.known_share(network, climate["quality"])),
        "spectrum": _together([taurex.info, Muscles.info], "simulated").provenance(0.0),
        "text": text.provenance(text_quality),
    }
    for modality, present in run.present.items():
        if not present:
            parts[modality]["quality"] = 0.0
    return parts


def _climate_source(stored: StoredClimate) -> dict:
    """A stored climate's provenance: its version tells what was averaged and interpolated."""
    entry = INFOS[stored.source].provenance(1.0)
    return {**entry, "version": f"{entry['version']}; {stored.processing}"}


def text_source(planet: Planet, named: bool) -> tuple[SourceInfo, float]:
    """Where a text on the planet comes from, and its quality."""
    described = named and bool(scrub(planet.description))
    text = INFOS["open_exoplanet_catalogue"] if described else _TEMPLATE
    if named and planet.observations:
        text = _together([text, *(INFOS[name] for name, _ in planet.observations)], text.kind)
    return text, 1.0 if described else _QUALITY_PLAIN_TEXT


def planet_source(planet: Planet) -> SourceInfo:
    """Where the planet's numbers come from."""
    if planet.source == SAMPLED_SOURCE:
        return _SAMPLED
    if planet.source == _SOLAR_SYSTEM.name:
        return _SOLAR_SYSTEM
    return _together([INFOS[name] for name in planet.source.split("+")], planet.kind)


def _together(infos: list[SourceInfo], kind: str) -> SourceInfo:
    """Several sources as one."""
    return SourceInfo(
        "+".join(info.name for info in infos),
        infos[0].modality,
        "; ".join(info.version for info in infos),
        "; ".join(info.licence for info in infos),
        "; ".join(info.citation for info in infos),
        kind,
    )


#: Array fields and the dtype in which they are stored.
ARRAY_DTYPES = {
    "planet": np.float32,
    "planet_mask": np.bool_,
    "planet_derived": np.bool_,
    "climate_levels": np.float16,
    "climate_surface": np.float16,
    "metabolism_node_kind": np.int8,
    "metabolism_node_features": np.float32,
    "metabolism_edge_index": np.int64,
    "metabolism_edge_features": np.float32,
    "spectrum": np.float32,
    "label_probability_by_gcm": np.float32,
    "retrieval": np.float32,
}


def record_digest(record: dict) -> bytes:
    """The sha256 of a record, fresh or read back, that depends on its content alone: fields in the schema's order,
    arrays little-endian. A dataset's content hash is the sha256 of these, split by split in the order of records."""
    digest = hashlib.sha256()
    for name in FEATURES:
        value = record[name]
        digest.update(name.encode())
        if value is None:
            digest.update(b"\0null")
        elif name in ARRAY_DTYPES:
            array = np.ascontiguousarray(value, np.dtype(ARRAY_DTYPES[name]).newbyteorder("<"))
            digest.update(repr(array.shape).encode() + array.tobytes())
        elif name == "provenance":
            for part in sorted(value):
                for key in sorted(value[part]):
                    item = value[part][key]
                    digest.update(f"{part}.{key}=".encode())
                    digest.update(np.float32(item).tobytes() if key == "quality" else str(item).encode())
        elif name == "label_probability":
            digest.update(np.float32(value).tobytes())
        elif isinstance(value, str):
            digest.update(value.encode())
        else:
            digest.update(str(int(value)).encode())
    return digest.digest()
