"""The data contract: what one record of a built dataset holds, with names, shapes, units and dtypes.

A record is one planet under one set of atmospheric conditions (a *run*); its key is ``run_id``. Every modality but
the planet table and the text may be absent: then its ``<modality>_present`` flag is False and its arrays are null,
never filled with made-up values.

On disk a dataset is a folder::

    train/ validation/ test/   Hugging Face ``datasets`` (Arrow, memory-mapped), split by planet
    held_out_gcm/ measured/    further test sets, where the recipe asks for them (see `TEST_SETS`)
    dataset_dict.json          what ``datasets.DatasetDict.save_to_disk`` writes beside them
    stats.json                 normalisation, from the train split only (see `Moments`)
    tokenizer/                 ``transformers`` tokenizer trained on the train texts
    manifest.json              schema version, recipe, versions, counts, sha256 of every file (see `MANIFEST_KEYS`)
    quality.json               completeness, range, unit and consistency checks
    quarantine.jsonl           records set aside, one JSON object a line, each with the reason
    README.md                  the dataset card
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

SCHEMA_VERSION = 2

SPLITS = ("train", "validation", "test")

#: Further test sets, each in a folder of its own beside the splits where the recipe asks for it. ``held_out_gcm``: the
#: runs of the test planets with climate, spectrum and label of a circulation model that no training record is from.
#: ``measured``: planets with a measured spectrum; nothing is known of their climate, so that they have no label.
TEST_SETS = ("held_out_gcm", "measured")


@dataclass(frozen=True)
class Column:
    """One number of the planet table, or one variable of a climate cube.

    ``minimum`` and ``maximum`` are the physically possible range in ``unit``: a value outside it is an error in the
    data, not an unusual planet. ``log`` says that the value is normalised as ``log10(value + offset)``.
    """

    name: str
    unit: str
    minimum: float
    maximum: float
    meaning: str
    required: bool = False
    log: bool = False
    offset: float = 0.0


#: The star and planet table: record field ``planet`` [P] float32, in this order.
PLANET_COLUMNS = (
    Column("stellar_temperature_k", "K", 2000, 12000, "effective temperature of the star", required=True),
    Column("stellar_radius_sun", "R_sun", 0.05, 50, "radius of the star", log=True),
    Column("stellar_mass_sun", "M_sun", 0.05, 20, "mass of the star", log=True),
    Column("instellation_w_m2", "W m-2", 1, 1e8, "stellar flux at the planet", required=True, log=True),
    Column("radius_earth", "R_earth", 0.1, 30, "radius of the planet", required=True, log=True),
    Column("mass_earth", "M_earth", 1e-3, 1e4, "mass of the planet", log=True),
    Column("gravity_m_s2", "m s-2", 0.5, 200, "surface gravity of the planet", required=True, log=True),
    Column(
        "rotation_period_d",
        "d",
        0.05,
        1e5,
        "sidereal rotation period of the planet; the orbital period where it is taken to be tidally locked",
        required=True,
        log=True,
    ),
    Column("orbital_period_d", "d", 0.05, 1e5, "orbital period of the planet", required=True, log=True),
    Column("semi_major_axis_au", "au", 1e-3, 1e3, "semi-major axis of the orbit", log=True),
    Column("eccentricity", "1", 0, 0.99, "eccentricity of the orbit"),
    Column(
        "surface_pressure_bar", "bar", 1e-3, 1e3, "surface pressure of the sampled atmosphere", required=True, log=True
    ),
    Column("co2_vmr", "1", 0, 1, "volume mixing ratio of CO2", required=True, log=True, offset=1e-7),
    Column("ch4_vmr", "1", 0, 1, "volume mixing ratio of CH4", required=True, log=True, offset=1e-9),
)

#: ``climate_levels`` [V, T, Z, Y, X] float16: variables on pressure levels, top of the atmosphere first.
CLIMATE_LEVEL_VARIABLES = (
    Column("air_temperature", "K", 30, 2000, "air temperature"),
    Column("log10_specific_humidity", "log10(kg kg-1)", -9, 0, "decimal logarithm of specific humidity, floor -9"),
    Column("cloud_fraction", "1", 0, 1, "cloud area fraction"),
    Column("eastward_wind", "m s-1", -500, 500, "eastward wind"),
    Column("northward_wind", "m s-1", -500, 500, "northward wind"),
)

#: ``climate_surface`` [S, T, Y, X] float16: variables without a level.
CLIMATE_SURFACE_VARIABLES = (
    Column("surface_temperature", "K", 30, 2000, "surface temperature"),
    Column("absorbed_shortwave", "W m-2", 0, 2e4, "absorbed stellar flux at the top of the atmosphere"),
    Column("outgoing_longwave", "W m-2", 0, 2e4, "outgoing longwave flux at the top of the atmosphere"),
)

CLIMATE_TIMES = 1  # a steady state
CLIMATE_LEVELS = 10
CLIMATE_LATITUDES = 32
CLIMATE_LONGITUDES = 64

SPECTRUM_POINTS = 1000
#: Last axis of ``spectrum`` [W, 3] float32. Depth and σ are NaN at wavelengths that were not observed.
SPECTRUM_CHANNELS = ("wavelength_um", "transit_depth", "transit_depth_sigma")

#: What a retrieval looks for in a spectrum: record field ``retrieval`` [R] float32, in this order; the atmosphere at
#: the terminator from which the spectrum was computed. Present where ``spectrum_present`` and the spectrum is computed.
RETRIEVAL_COLUMNS = (
    Column("terminator_temperature_k", "K", 30, 2000, "air temperature, mean over the levels"),
    Column("terminator_h2o_vmr", "1", 0, 1, "volume mixing ratio of water, mean over levels", log=True, offset=1e-9),
    Column("retrieved_co2_vmr", "1", 0, 1, "volume mixing ratio of CO2", log=True, offset=1e-7),
    Column("retrieved_ch4_vmr", "1", 0, 1, "volume mixing ratio of CH4", log=True, offset=1e-9),
    Column("terminator_cloud_fraction", "1", 0, 1, "largest cloud fraction of the levels"),
)

#: Of the fields that have the same shape in every record.
SHAPES = {
    "climate_levels": (
        len(CLIMATE_LEVEL_VARIABLES),
        CLIMATE_TIMES,
        CLIMATE_LEVELS,
        CLIMATE_LATITUDES,
        CLIMATE_LONGITUDES,
    ),
    "climate_surface": (len(CLIMATE_SURFACE_VARIABLES), CLIMATE_TIMES, CLIMATE_LATITUDES, CLIMATE_LONGITUDES),
    "spectrum": (SPECTRUM_POINTS, len(SPECTRUM_CHANNELS)),
}

#: Last axis of ``metabolism_node_features`` [N, F] float32. Metabolites fill the element counts, charge and
#: compartment; reactions fill bounds and flux (mmol gDW-1 h-1). What does not apply to a node kind is 0.
NODE_FEATURES = (
    "carbon",
    "hydrogen",
    "nitrogen",
    "oxygen",
    "phosphorus",
    "sulfur",
    "charge",
    "extracellular",
    "lower_bound",
    "upper_bound",
    "flux",
)
#: Values of ``metabolism_node_kind`` [N] int8.
NODE_KINDS = ("metabolite", "reaction")
#: Last axis of ``metabolism_edge_features`` [E, 2] float32. ``stoichiometry`` is signed (negative: consumed);
#: ``flux`` is stoichiometry × the reaction's flux, so that it sums to zero over the edges of a balanced metabolite.
#: Edges run substrate → reaction and reaction → product: ``metabolism_edge_index`` [2, E] int64.
EDGE_FEATURES = ("stoichiometry", "flux")

#: Modalities in the order of the model's prefix. The first is always there.
MODALITIES = ("planet", "climate", "metabolism", "spectrum")
OPTIONAL_MODALITIES = MODALITIES[1:]

#: Where the parts of a record come from; `PROVENANCE_KINDS` in falling order of trust.
PROVENANCE_PARTS = (*MODALITIES, "text")
PROVENANCE_KINDS = ("observed", "simulated", "emulated", "synthetic")

_PROVENANCE = {
    "source": datasets.Value("string"),
    "version": datasets.Value("string"),
    "licence": datasets.Value("string"),
    "kind": datasets.Value("string"),
    "quality": datasets.Value("float32"),  # 0 (worthless) to 1 (as good as the source gets)
}

#: The general circulation models that CLERO emulates. No training record knows anything of the last one.
GCMS = ("um", "exoplasim", "lfric", "exocam")
HELD_OUT_GCM = GCMS[-1]

#: The record, as Hugging Face `datasets` stores it.
FEATURES = datasets.Features(
    {
        # "<planet_key>/<number>", or "<planet_key>/<source>-<number>" where the climate is stored
        "run_id": datasets.Value("string"),
        "planet_key": datasets.Value("string"),  # no planet key is in two splits
        "planet": datasets.List(datasets.Value("float32"), length=len(PLANET_COLUMNS)),  # NaN where unknown
        "planet_mask": datasets.List(datasets.Value("bool"), length=len(PLANET_COLUMNS)),  # True where known
        "planet_derived": datasets.List(datasets.Value("bool"), length=len(PLANET_COLUMNS)),  # True where computed
        "climate_present": datasets.Value("bool"),
        "climate_levels": datasets.Array5D(SHAPES["climate_levels"], "float16"),
        "climate_surface": datasets.Array4D(SHAPES["climate_surface"], "float16"),
        "metabolism_present": datasets.Value("bool"),
        "metabolism_node_kind": datasets.List(datasets.Value("int8")),
        "metabolism_node_features": datasets.Array2D((None, len(NODE_FEATURES)), "float32"),
        "metabolism_edge_index": datasets.Array2D((None, 2), "int64"),  # stored as [E, 2]: only the first axis may vary
        "metabolism_edge_features": datasets.Array2D((None, len(EDGE_FEATURES)), "float32"),
        "spectrum_present": datasets.Value("bool"),
        "spectrum": datasets.Array2D(SHAPES["spectrum"], "float32"),
        "text": datasets.Value("string"),
        "label_present": datasets.Value("bool"),
        "label": datasets.Value("int8"),  # 1 habitable, 0 not, by HABITABILITY_RULE; 0 where absent
        # Probability that the rule holds, by LABEL_PROBABILITY; NaN where the climate was not emulated. The held-out
        # model's is NaN in train and validation too.
        "label_probability": datasets.Value("float32"),
        "label_probability_by_gcm": datasets.List(datasets.Value("float32"), length=len(GCMS)),  # NaN as above
        "retrieval": datasets.List(datasets.Value("float32"), length=len(RETRIEVAL_COLUMNS)),  # NaN where absent
        "provenance": {part: dict(_PROVENANCE) for part in PROVENANCE_PARTS},
    }
)

#: The rule behind ``label``. A change of any number in it is a new version.
HABITABILITY_RULE: dict[str, Any] = {
    "name": "temperate-ocean",
    "version": 1,
    "text": "habitable if at least 10% of the surface is free of ice (at least 273.15 K), the area-weighted global "
    "mean surface temperature is at most 340 K (the moist greenhouse limit of Kasting, Whitmire & Reynolds "
    "1993), and water vapour makes up at most 30% of the atmosphere's column mass (else a runaway greenhouse, "
    "as CLERO defines it); a run whose verdict changes when its surface is 5 K warmer or colder and its column "
    "water 25% more or less (half of the emulator's own standard deviation) has no label",
    "freezing_point_k": 273.15,
    "minimum_ice_free_fraction": 0.1,
    "maximum_mean_surface_temperature_k": 340.0,
    "maximum_column_water_fraction": 0.3,
    "margin_k": 5.0,
    "margin_column_water": 0.25,
}

#: How ``label_probability`` is computed. A change of any number in it is a new version.
LABEL_PROBABILITY: dict[str, Any] = {
    "name": "temperate-ocean probability",
    "version": 1,
    "text": "share of the climates drawn from the emulator's own distribution, equally many of each circulation model "
    "but the one held out, for which the rule holds without its margins",
    "gcms": list(GCMS[:-1]),
    "draws_per_gcm": 8,
}

#: What manifest.json must hold.
MANIFEST_KEYS = (
    "schema_version",
    "recipe",
    "seed",
    "content_sha256",
    "counts",
    "habitability_rule",
    "label_probability",
    "versions",
    "files",
)


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of one group of columns, as stats.json stores them: two equally long lists.

    Taken after the column's own transform (`Column.log`), over the train split, over present values only.
    stats.json maps ``planet`` [P], ``climate_levels`` [V], ``climate_surface`` [S], ``node_features`` [F] and
    ``edge_features`` [2] to ``{"mean": [...], "std": [...]}``; no standard deviation is zero. Node and edge features
    pass through ``sign(x) log1p(|x|)`` first, since fluxes span decades. A spectrum is normalised by itself.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file, read in blocks: what manifest.json holds of each."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
