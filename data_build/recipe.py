"""What to build: a recipe is a YAML file of `Recipe`'s fields; unknown keys are errors."""

import difflib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import yaml

from astrobio.schema import OPTIONAL_MODALITIES, SPLITS
from data_build.cache import DataError
from data_build.sources import ARCHIVES, CATALOGUES, PLANET_ARCHIVES

_OPTIONAL = ("archives", "held_out_gcm", "exoplasim")
_FOLDER = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Wanted:
    """What a recipe wants of an archive: at most so many ``rows``. If it cannot be read the build goes on without it,
    unless it is ``required``."""

    rows: int
    required: bool = False


@dataclass(frozen=True)
class Recipe:
    """Everything a build depends on besides the sources: the same recipe gives the same content hash.

    Shares are fractions of one; ranges are (low, high) in the unit of the name. The files in
    ``data_build/recipes`` explain each field.
    """

    name: str
    seed: int
    catalogues: tuple[str, ...]
    sampled_planets: int
    candidates_per_planet: int
    surface_pressure_bar: tuple[float, float]
    co2_vmr: tuple[float, float]
    ch4_vmr: tuple[float, float]
    pairs_per_observed_planet: int
    pairs_per_synthetic_planet: int
    unlabelled_share: float
    absent_share: dict[str, float]
    splits: dict[str, float]
    wavelength_um: tuple[float, float]
    vocabulary_size: int
    archives: dict[str, Wanted] = field(default_factory=dict)
    held_out_gcm: bool = False  # whether the test planets' runs are emulated with the model held out too
    exoplasim: dict[str, int] = field(default_factory=dict)  # planets, and years at most, for a real GCM to run

    def as_dict(self) -> dict:
        """The recipe as plain JSON-able values, for the manifest; without what is left at its default."""
        archives = {name: asdict(wanted) if wanted.required else wanted.rows for name, wanted in self.archives.items()}
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in {**asdict(self), "archives": archives}.items()
            if key not in _OPTIONAL or value
        }


def load_recipe(recipe: str | Path) -> Recipe:
    """Read a recipe by name (``data_build/recipes/NAME.yaml``) or from a file.

    Raises:
        DataError: no such recipe, not YAML, an unknown or absent key, or a value out of its range; each is named.
    """
    path = _recipe_path(recipe)
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: a recipe is a mapping of keys to values, this is {type(content).__name__}")
    required = [entry.name for entry in fields(Recipe) if entry.name not in _OPTIONAL]
    _check_keys(path, "", content, required, optional=_OPTIONAL)
    if content.get("exoplasim"):
        _check_keys(path, "exoplasim.", content["exoplasim"], ("planets", "years"))
    _check_keys(path, "absent_share.", content["absent_share"], OPTIONAL_MODALITIES)
    _check_keys(path, "splits.", content["splits"], SPLITS)
    content = {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}
    _check_values(path, content)
    archives = {
        name: Wanted(**wanted) if isinstance(wanted, dict) else Wanted(wanted)
        for name, wanted in content.get("archives", {}).items()
    }
    return Recipe(**{**content, "archives": archives})


def _recipe_path(recipe: str | Path) -> Path:
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise DataError(f"recipe {path}: no such file")
        return path
    names = sorted(file.stem for file in _FOLDER.glob("*.yaml"))
    if str(recipe) not in names:
        raise DataError(
            f"unknown recipe {str(recipe)!r}{did_you_mean(str(recipe), names)}; there is: "
            f"{', '.join(names)}, or give the path of a .yaml file"
        )
    return _FOLDER / f"{recipe}.yaml"


def did_you_mean(word: str, known) -> str:
    """``, did you mean 'x'?`` or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def _check_keys(path: Path, prefix: str, content, required, optional=()) -> None:
    known = [*required, *optional]
    if not isinstance(content, dict):
        raise DataError(f"{path}: {prefix.rstrip('.')} must be a mapping with the keys {', '.join(known)}")
    for key in content:
        if key not in known:
            raise DataError(f"{path}: unknown key {prefix}{key}{did_you_mean(str(key), known)}")
    for key in required:
        if key not in content:
            raise DataError(f"{path}: the key {prefix}{key} is absent")


def _check_values(path: Path, content: dict) -> None:
    def require(key: str, value, condition: bool, limit: str) -> None:
        if not condition:
            raise DataError(f"{path}: {key} is {value!r}, it must be {limit}")

    for key in ("name",):
        require(key, content[key], isinstance(content[key], str) and bool(content[key]), "a text")
    for key, lowest in (
        ("seed", 0),
        ("sampled_planets", 0),
        ("candidates_per_planet", 2),
        ("pairs_per_observed_planet", 1),
        ("pairs_per_synthetic_planet", 1),
        ("vocabulary_size", 260),
    ):
        value = content[key]
        require(key, value, type(value) is int and value >= lowest, f"a whole number of at least {lowest}")
    for key, low, high in (
        ("surface_pressure_bar", 0.1, 12),
        ("co2_vmr", 0, 1),
        ("ch4_vmr", 0, 0.05),
        ("wavelength_um", 0.3, 30),
    ):
        value = content[key]
        require(
            key,
            value,
            isinstance(value, tuple)
            and len(value) == 2
            and all(map(_is_number, value))
            and low <= value[0] < value[1] <= high
            and value[0] > 0,
            f"two numbers, rising, above 0 and within [{low}, {high}]",
        )
    shares = {
        "unlabelled_share": content["unlabelled_share"],
        **{f"absent_share.{key}": value for key, value in content["absent_share"].items()},
        **{f"splits.{key}": value for key, value in content["splits"].items()},
    }
    for key, value in shares.items():
        require(key, value, _is_number(value) and 0 <= value < 1, "a share in [0, 1)")
    total = sum(content["splits"].values())
    require("splits", content["splits"], abs(total - 1) < 1e-9, f"shares that add up to 1 (they add up to {total:g})")
    held_out = content.get("held_out_gcm", False)
    require("held_out_gcm", held_out, isinstance(held_out, bool), "true or false")
    catalogues = content["catalogues"]
    require("catalogues", catalogues, isinstance(catalogues, tuple) and bool(catalogues), "a list of catalogue names")
    for name in catalogues:
        offered = [*CATALOGUES, *PLANET_ARCHIVES]
        if name not in offered:
            raise DataError(
                f"{path}: unknown catalogue {name!r}{did_you_mean(str(name), offered)}; there is: {', '.join(offered)}"
            )
        if name in ARCHIVES and name not in content.get("archives", {}):
            raise DataError(
                f"{path}: the catalogue {name} is read over the network: give it a line in archives, such "
                f"as {name}: 20000"
            )
    for key, highest in (("planets", 1000), ("years", 300)):
        value = content["exoplasim"][key] if content.get("exoplasim") else 1
        require(
            f"exoplasim.{key}",
            value,
            type(value) is int and 1 <= value <= highest,
            f"a whole number from 1 to {highest}",
        )
    archives = content.get("archives", {})
    require("archives", archives, isinstance(archives, dict), "a mapping of archives to the most rows to take of each")
    for name, wanted in archives.items():
        if name not in ARCHIVES:
            raise DataError(
                f"{path}: unknown archive {name!r}{did_you_mean(str(name), ARCHIVES)}; there is: {', '.join(ARCHIVES)}"
            )
        key, rows = f"archives.{name}", wanted
        if isinstance(wanted, dict):
            _check_keys(path, f"{key}.", wanted, ("rows",), optional=("required",))
            required, rows = wanted.get("required", False), wanted["rows"]
            require(f"{key}.required", required, isinstance(required, bool), "true or false")
            key += ".rows"
        require(key, rows, type(rows) is int and rows >= 1, "a whole number of rows, at least 1")


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
