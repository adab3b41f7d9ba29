"""What a stack consists of: dataclasses read from the YAML presets beside this file.

`load_preset("tiny")` or `load_preset("my/preset.yaml")` gives a `StackConfig`. A section that a preset leaves out
leaves that module out of the stack; ``base: 17b`` starts from another preset; an unknown key is an error with a
suggestion, never ignored.
"""

import dataclasses
import difflib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails

PRESETS = Path(__file__).parent / "presets"
SIZES = ("tiny", "small", "1b", "17b")  # the presets of the whole stack, all of it trained; others are variants

_strict = ConfigDict(extra="forbid")
Positive = Field(gt=0)
Share = Field(ge=0, lt=1)


class ConfigError(ValueError):
    """A wrong file, key or option; the message names it and says what would be right."""


@dataclass(config=_strict, kw_only=True)
class LoraConfig:
    """Low-rank adapters beside frozen linear layers (Hu et al. 2021, arXiv:2106.09685), by `peft`."""

    rank: int = Positive
    alpha: float = Field(default=16.0, gt=0)  # the adapters' output is scaled by alpha / rank
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: list[str] | str = "all-linear"  # names of layers, or all linear ones but the output layer


@dataclass(config=_strict, kw_only=True)
class LanguageConfig:
    """A causal language model of `transformers`, built from its configuration.

    ``config`` holds keyword arguments of the model type's configuration class (``hidden_size``,
    ``num_hidden_layers`` …), as `transformers.AutoConfig.for_model` takes them. ``init_from``, the folder of a Hugging
    Face checkpoint, gives weights, sizes and tokenizer; ``model_type`` and ``config``, if also given, must agree with
    it. With ``lora`` only the adapters train.
    """

    model_type: str | None = None  # llama, or the checkpoint's type with init_from
    init_from: str | None = None
    attn_implementation: str = "auto"  # sdpa, eager, or of the package flash_attn: flash_attention_2, flash_attention_3
    max_text_tokens: int = Positive  # longer texts are cut
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    lora: LoraConfig | None = None

    def __post_init__(self):
        if not (self.config or self.init_from):
            raise ValueError("language needs config (sizes of a new model) or init_from (a checkpoint's folder)")


@dataclass(config=_strict, kw_only=True)
class PlanetConfig:
    init_from: str | None = None  # an exported stack's folder, which gives the weights
    hidden_size: int = Positive
    depth: int = Field(ge=1, le=1000)
    tokens: int = Positive


@dataclass(config=_strict, kw_only=True)
class DatacubeConfig:
    """3-D convolution stem, then a vision transformer over (level, latitude, longitude) patches."""

    init_from: str | None = None  # an exported stack's folder, which gives the weights
    hidden_size: int = Positive
    depth: int = Field(ge=1, le=1000)
    heads: int = Positive
    stem_channels: int = Positive
    patch: tuple[int, int, int]  # levels, latitudes, longitudes
    tokens: int = Positive
    mask_share: float = Share  # of the patches, hidden in training and reconstructed


@dataclass(config=_strict, kw_only=True)
class SpectrumConfig:
    init_from: str | None = None  # an exported stack's folder, which gives the weights
    hidden_size: int = Positive
    depth: int = Field(ge=1, le=1000)
    heads: int = Positive
    patch: int = Positive  # spectral points
    tokens: int = Positive
    mask_share: float = Share


@dataclass(config=_strict, kw_only=True)
class GraphVAEConfig:
    init_from: str | None = None  # an exported stack's folder, which gives the weights
    hidden_size: int = Positive
    depth: int = Field(ge=1, le=1000)
    heads: int = Positive
    latent_size: int = Positive
    tokens: int = Positive


@dataclass(config=_strict, kw_only=True)
class FusionConfig:
    hidden_size: int = Positive
    depth: int = Field(ge=1, le=1000)
    heads: int = Positive
    dropout: float = Share


@dataclass(config=_strict, kw_only=True)
class ObservablesConfig:
    """Habitability from star, bulk parameters and spectrum; the atmosphere's own columns are hidden."""

    hidden_size: int = Positive
    dropout: float = Field(default=0.0, ge=0, lt=1)


@dataclass(config=_strict, kw_only=True)
class EmulationConfig:
    """The climate from planet and atmosphere: ``rank`` numbers give the coefficients of (degree + 1)² patterns."""

    hidden_size: int = Positive
    rank: int = Positive
    degree: int = Field(ge=0, le=31)


@dataclass(config=_strict, kw_only=True)
class RetrievalConfig:
    """The posterior of `RETRIEVAL_COLUMNS` given star, bulk parameters and spectrum: a mixture of Gaussians."""

    hidden_size: int = Positive
    components: int = Positive
    dropout: float = Field(default=0.0, ge=0, lt=1)


@dataclass(config=_strict, kw_only=True)
class TasksConfig:
    """Tasks beside the label, each with a head of its own; see `astrobio.heads`."""

    observables: ObservablesConfig | None = None
    emulation: EmulationConfig | None = None
    retrieval: RetrievalConfig | None = None


PARTS = ("language", "planet", "climate", "metabolism", "spectrum", "fusion")


#: The encoders whose tokens a task reads.
TASKS = {"observables": ("planet", "spectrum"), "emulation": ("planet",), "retrieval": ("planet", "spectrum")}


@dataclass(config=_strict, kw_only=True)
class LossConfig:
    """Weights of the parts of the loss; see `astrobio.losses` for what each part is.

    A part whose name has a dot, as ``reconstruction.climate_hidden``, has the weight of what stands before it.
    """

    classification: float = Field(default=1.0, ge=0)
    language: float = Field(default=1.0, ge=0)
    reconstruction: float = Field(default=0.1, ge=0)
    kl: float = Field(default=0.1, ge=0)
    energy: float = Field(default=0.2, ge=0)
    mass_balance: float = Field(default=0.2, ge=0)
    consistency: float = Field(default=0.15, ge=0)
    balance: float = Field(default=1.0, ge=0)
    observables: float = Field(default=1.0, ge=0)
    emulation: float = Field(default=2.0, ge=0)
    retrieval: float = Field(default=0.3, ge=0)

    def weight(self, part: str) -> float:
        return getattr(self, part.partition(".")[0])


@dataclass(config=_strict, kw_only=True)
class StackConfig:
    """The whole stack.

    ``modality_dropout`` is the share of samples that lose a modality in training. ``freeze`` names parts whose weights
    do not train: a frozen encoder runs without masking or gradients; a frozen language model or fusion still passes
    gradients to the parts before it.
    """

    name: str
    language: LanguageConfig
    planet: PlanetConfig | None = None
    climate: DatacubeConfig | None = None
    metabolism: GraphVAEConfig | None = None
    spectrum: SpectrumConfig | None = None
    fusion: FusionConfig | None = None
    tasks: TasksConfig | None = None
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    modality_dropout: float = Field(default=0.0, ge=0, lt=1)
    freeze: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        parts = [name for name in PARTS if getattr(self, name) is not None]
        for name in self.freeze:
            if name not in parts:
                raise ValueError(f"freeze names {name!r}, which is no part of this stack{suggestion(name, parts)}")
        if set(parts) <= set(self.freeze) and self.language.lora is None:
            raise ValueError("freeze names every part: nothing is left to train")
        encoders = [name for name in parts if name not in ("language", "fusion")]
        if encoders and self.fusion is None:
            raise ValueError(
                f"fusion is missing, but {', '.join(encoders)} must be fused: add a fusion section, or "
                "leave the encoders out for a plain causal language model"
            )
        if self.fusion and not encoders:
            raise ValueError(
                "fusion has no modality to fuse: add planet, climate, metabolism or spectrum, or leave "
                "fusion out for a plain causal language model"
            )

        for task, needed in TASKS.items():
            missing = [name for name in needed if getattr(self, name) is None]
            if self.tasks is not None and getattr(self.tasks, task) is not None and missing:
                raise ValueError(f"tasks.{task} reads {' and '.join(missing)}, which this stack has not: leave it out")

    @property
    def frozen_at_random(self) -> list[str]:
        """Parts whose weights neither train nor come from a checkpoint."""
        frozen = [*self.freeze, *(["language"] if self.language.lora is not None else [])]
        return [name for name in PARTS if name in frozen and getattr(getattr(self, name), "init_from", None) is None]

    @property
    def prefix_tokens(self) -> int:
        """Tokens of all modalities, which stand before the text in the language model."""
        return sum(part.tokens for part in (self.planet, self.climate, self.metabolism, self.spectrum) if part)


T = TypeVar("T")


def told(error: BaseException) -> str:
    """A library's error on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def suggestion(word: str, known) -> str:
    """``; did you mean 'x'?`` for the nearest of the known words, or their list where none is near."""
    near = nearest(word, known)
    return f"; did you mean {near!r}?" if near else f"; known: {', '.join(sorted(known))}"


def nearest(word: str, known, alike: float = 0.6) -> str | None:
    """The known word most like this one, if their similarity (0 to 1) is at least ``alike``."""
    return next(iter(difflib.get_close_matches(word, list(known), 1, alike)), None)


def parse(cls: type[T], data: Any, where: str) -> T:
    """``data`` (nested mappings) as the dataclass ``cls``; `ConfigError` names every wrong key of ``where`` at once."""
    try:
        return TypeAdapter(cls).validate_python(data)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(cls, item, where) for item in error.errors())) from None


def _explain(cls, item: ErrorDetails, where: str) -> str:
    path = ".".join(str(part) for part in item["loc"])
    if item["type"] == "unexpected_keyword_argument":
        return f"{where}: unknown key {path!r}{suggestion(str(item['loc'][-1]), _keys_at(cls, item['loc'][:-1]))}"
    if item["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{where}: {path} is missing"
    message = item["msg"].removeprefix("Value error, ")
    if not path:
        return f"{where}: {message}"
    return f"{where}: {path} = {item['input']!r}: {message[0].lower() + message[1:]}"


def _keys_at(cls, path) -> list[str]:
    """Field names of the dataclass at the nested path below ``cls``."""
    for part in path:
        hint = cls.__annotations__[part]
        cls = next((t for t in getattr(hint, "__args__", (hint,)) if dataclasses.is_dataclass(t)), hint)
    return [field.name for field in dataclasses.fields(cls)]


def preset_names() -> list[str]:
    """The shipped presets, smallest first."""
    names = [path.stem for path in PRESETS.glob("*.yaml")]
    return sorted(names, key=lambda name: (SIZES.index(name) if name in SIZES else len(SIZES), name))


def load_preset(name: str, changes: dict[str, Any] | None = None) -> StackConfig:
    """The preset of that name, or in that YAML file.

    Args:
        name: a shipped preset, or the path of a YAML file of the same form.
        changes: ``{"language.config.num_hidden_layers": 2}``: values put in place of the file's.

    Raises:
        ConfigError: no such preset or file, malformed YAML, unknown keys, wrong types.
    """
    path, data = _read_preset(name)
    data.setdefault("name", path.stem)
    for key, value in (changes or {}).items():
        set_dotted(data, key, value)
    return parse(StackConfig, data, str(path))


def _read_preset(name: str, above: tuple[str, ...] = ()) -> tuple[Path, dict]:
    """The file of a preset, and its content merged over the preset that its ``base`` names."""
    path = PRESETS / f"{name}.yaml"
    if not path.exists():
        path = Path(name)
        if path.suffix not in (".yaml", ".yml"):
            raise ConfigError(
                f"unknown model preset {name!r}{suggestion(name, preset_names())}; or give the path of a .yaml file"
            )
        if not path.is_file():
            raise ConfigError(f"model preset {name}: no such file")
    try:
        data = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must hold a mapping of sections, holds {type(data).__name__}")
    base = data.pop("base", None)
    if base is None:
        return path, data
    if str(path) in above:
        raise ConfigError(f"{path}: base = {base!r}: the presets stand on each other in a circle")
    _, below = _read_preset(str(base), (*above, str(path)))
    if _is_another_model(data.get("language"), below.get("language")):
        for key in ("model_type", "init_from", "config"):  # the base's sizes are not the other model's
            below["language"].pop(key, None)
    return path, _laid_over(below, data)


def _is_another_model(language: Any, base: Any) -> bool:
    """Whether a preset names another language model than its ``base``."""
    if not (isinstance(language, dict) and isinstance(base, dict)):
        return False
    kind = base.get("model_type", "llama")
    return "init_from" in language or language.get("model_type", kind) != kind


def _laid_over(below: Any, above: Any) -> Any:
    """``above`` merged over ``below``, level by level."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return {key: _laid_over(below.get(key), above[key]) if key in above else below[key] for key in {**below, **above}}


def set_dotted(data: dict, key: str, value: Any) -> None:
    """``data["a"]["b"] = value`` for the key ``a.b``; creates missing levels, so that `parse` can name them."""
    *parents, last = key.split(".")
    for parent in parents:
        if not isinstance(data.get(parent), dict):
            data[parent] = {}
        data = data[parent]
    data[last] = value
