"""The selection of runs among the candidates, so that only physics predicts the label.

Runs come in pairs of one habitable and one not. The two of a pair share everything that is not physics: the split, the
kind of planet, the columns known, derived and read, the climate's quality, which modalities are present, and the
wording of the text. So the label is balanced in every split for every value of all those, and no classifier can learn
it from them. Most pairs are of one planet; a planet that reaches only one class whatever its atmosphere is paired with
another planet with the same columns known and derived, and then the text names and describes neither.

Climates of archives and of a real GCM are few, and their provenance distinguishes them: they are paired only with one
another, within a planet, a source and its processing. Those without a partner get no label.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from astrobio.schema import OPTIONAL_MODALITIES, PLANET_COLUMNS, SPLITS
from data_build.humidity import SUPERSATURATION_LIMIT
from data_build.instruments import modes
from data_build.planets import Atmosphere, Planet
from data_build.recipe import Recipe
from data_build.sampling import stream


@dataclass(frozen=True)
class StoredClimate:
    """A climate that was not emulated: ``row`` of the Parquet file ``path``, of ``source``; see
    `data_build.sources.climate`. ``processing`` says what was averaged and interpolated."""

    source: str
    climate_id: str
    processing: str
    path: Path
    row: int


@dataclass(frozen=True)
class Candidate:
    """One planet with one atmosphere: its label (None where open), whether it is in CLERO's core domain, and its mean
    relative humidity next to the surface, before it was capped.

    Its climate is CLERO's, or a stored one.
    """

    planet: Planet
    number: int
    atmosphere: Atmosphere
    label: int | None
    core: bool
    stored: StoredClimate | None = None
    relative_humidity: float = 0.0

    @property
    def possible(self) -> bool:
        """Whether the emulator gives the air no more water than its error may add to what air can hold."""
        return self.relative_humidity <= SUPERSATURATION_LIMIT

    @property
    def run_id(self) -> str:
        """``<planet key>/<number>``, or ``<planet key>/<source>-<number>`` of a stored climate; the candidate's
        number is independent of the label."""
        source = f"{self.stored.source}-" if self.stored else ""
        return f"{self.planet.key}/{source}{self.number:03d}"


@dataclass(frozen=True)
class Run:
    """A selected candidate, with what it shares with its partner."""

    candidate: Candidate
    split: str
    pair: str  # the same for both partners
    present: dict[str, bool]
    named: bool  # whether the text may give the planet's name and description


@dataclass
class Block:
    """Planets that go into one split together, and their pairs of (habitable, not) candidates."""

    planets: list[Planet]
    pairs: list[tuple[Candidate, Candidate]] = field(default_factory=list)


def select_runs(
    candidates: dict[str, list[Candidate]], recipe: Recipe, stored: Iterable[Candidate] = ()
) -> tuple[list[tuple[Run, ...]], list[dict]]:
    """Choose the runs.

    Args:
        candidates: planet key → that planet's candidates.
        stored: candidates with a stored climate; all of them are selected.

    Returns:
        Groups of runs (pairs, and single runs without a label) in a random order, and the planets set aside with the
        reason.
    """
    planets = [candidates[key][0].planet for key in sorted(candidates)]
    groups: dict[tuple, list[Planet]] = defaultdict(list)
    for planet in planets:
        groups[signature(planet)].append(planet)
    blocks, set_aside = [], []
    for members in groups.values():
        found, alone = _blocks(members, candidates, recipe)
        blocks += found
        set_aside += [
            {
                "planet_key": planet.key,
                "reason": "every labelled candidate is of one class, and no planet "
                "with the same columns known and derived has runs of the other class to spare",
            }
            for planet in alone
        ]
    splits = assign_splits(blocks, recipe)
    runs = [
        _pair_runs(pair, split, recipe) for block, split in zip(blocks, splits, strict=True) for pair in block.pairs
    ]
    planet_split = {planet.key: split for block, split in zip(blocks, splits, strict=True) for planet in block.planets}
    runs += _unlabelled(candidates, planet_split, 2 * len(runs), recipe)
    runs += _stored_runs(list(stored), planet_split, recipe)
    order = stream(recipe.seed, "order").permutation(len(runs))
    return [runs[index] for index in order], set_aside


def without_supersaturated(candidates: dict[str, list[Candidate]]) -> tuple[dict[str, list[Candidate]], list[dict]]:
    """The candidates whose climate is possible (`Candidate.possible`).

    Returns:
        Planet key → candidates, and the planets without any, with the reason.
    """
    kept = {key: [candidate for candidate in members if candidate.possible] for key, members in candidates.items()}
    reason = f"every candidate has a mean relative humidity above {SUPERSATURATION_LIMIT:g} next to the surface"
    set_aside = [{"planet_key": key, "reason": reason} for key, members in kept.items() if not members]
    return {key: members for key, members in kept.items() if members}, set_aside


def signature(planet: Planet) -> tuple:
    """What a record reveals of a planet besides numbers; partners from two planets must share it."""
    names = [column.name for column in PLANET_COLUMNS]
    return (
        planet.kind,
        planet.source,
        tuple(mode.name for mode in modes(planet)),
        len(planet.raw_columns),
        tuple(name in planet.values for name in names),
        tuple(name in planet.derived for name in names),
    )


def _blocks(
    planets: list[Planet], candidates: dict[str, list[Candidate]], recipe: Recipe
) -> tuple[list[Block], list[Planet]]:
    """Blocks of planets with one signature, and the planets without a partner."""
    wanted = recipe.pairs_per_observed_planet if planets[0].kind == "observed" else recipe.pairs_per_synthetic_planet
    # Candidates are used up as they are paired: lists by (planet key, label, core).
    free: dict[tuple, list[Candidate]] = defaultdict(list)
    for planet in planets:
        for candidate in candidates[planet.key]:
            free[planet.key, candidate.label, candidate.core].append(candidate)

    def pair(first: Planet, second: Planet, count: int) -> list[tuple[Candidate, Candidate]]:
        """Up to ``count`` pairs of a habitable run of ``first`` and another of ``second``, core runs with core runs."""
        pairs: list[tuple[Candidate, Candidate]] = []
        while len(pairs) < count:
            before = len(pairs)
            for core in (True, False):
                habitable, not_habitable = free[first.key, 1, core], free[second.key, 0, core]
                if habitable and not_habitable and len(pairs) < count:
                    pairs.append((habitable.pop(0), not_habitable.pop(0)))
            if len(pairs) == before:
                break
        return pairs

    blocks: list[Block] = []
    one_class: dict[int, list[Planet]] = {0: [], 1: []}
    for planet in planets:
        block = Block([planet], pair(planet, planet, wanted))
        if block.pairs:
            blocks.append(block)
            continue
        habitable = any(candidate.label == 1 for candidate in candidates[planet.key])
        one_class[int(habitable)].append(planet)
    own = list(blocks)
    alone = []
    while one_class[0] and one_class[1]:
        first, second = one_class[1].pop(0), one_class[0].pop(0)
        pairs = pair(first, second, wanted)
        if pairs:
            blocks.append(Block([first, second], pairs))
        else:
            alone += [first, second]
    for label, lonely in one_class.items():
        for planet in lonely:
            # A planet with both classes lends runs of the missing one; the one that lent least comes first.
            for block in sorted(own, key=lambda block: len(block.planets)):
                lender = block.planets[0]
                pairs = pair(planet, lender, wanted) if label else pair(lender, planet, wanted)
                if pairs:
                    block.planets.append(planet)
                    block.pairs += pairs
                    break
            else:
                alone.append(planet)
    return blocks, alone


def assign_splits(blocks: list[Block], recipe: Recipe) -> list[str]:
    """A split for each block: of each kind of planet, each split gets its share as nearly as possible."""
    rng = stream(recipe.seed, "splits")
    tickets = rng.random(len(blocks))
    splits: list[str] = [""] * len(blocks)
    filled: dict[tuple[str, str], int] = defaultdict(int)
    for index in sorted(range(len(blocks)), key=lambda i: (-len(blocks[i].planets), tickets[i])):
        kind, size = blocks[index].planets[0].kind, len(blocks[index].planets)
        total = size + sum(filled[kind, split] for split in SPLITS)
        split = max(SPLITS, key=lambda name: recipe.splits[name] * total - filled[kind, name])
        filled[kind, split] += size
        splits[index] = split
    return splits


def _pair_runs(pair: tuple[Candidate, Candidate], split: str, recipe: Recipe) -> tuple[Run, ...]:
    name = "+".join(candidate.run_id for candidate in pair)
    present = _draw_present(name, pair[0].planet, recipe)
    named = pair[0].planet.key == pair[1].planet.key
    # In the order of their numbers, not the habitable one first: the order of records must not reveal the label either.
    ordered = sorted(pair, key=lambda candidate: (candidate.number, candidate.planet.key))
    return tuple(Run(candidate, split, name, present, named) for candidate in ordered)


def _unlabelled(
    candidates: dict[str, list[Candidate]], planet_split: dict[str, str], labelled: int, recipe: Recipe
) -> list[tuple[Run, ...]]:
    """Runs with an open label, up to the recipe's share."""
    open_ = [candidate for key in sorted(planet_split) for candidate in candidates[key] if candidate.label is None]
    wanted = min(len(open_), round(labelled * recipe.unlabelled_share))
    chosen: Iterable[int] = stream(recipe.seed, "unlabelled").permutation(len(open_))[:wanted]
    return [
        (
            Run(
                open_[i],
                planet_split[open_[i].planet.key],
                open_[i].run_id,
                _draw_present(open_[i].run_id, open_[i].planet, recipe),
                named=True,
            ),
        )
        for i in chosen
    ]


def _stored_runs(stored: list[Candidate], planet_split: dict[str, str], recipe: Recipe) -> list[tuple[Run, ...]]:
    """Every stored climate: in pairs of one habitable and one not if a planet has two that are otherwise alike, the
    others without a label. A planet without a split gets one."""
    new = {candidate.planet.key: candidate.planet for candidate in stored if candidate.planet.key not in planet_split}
    blocks = [Block([new[key]]) for key in sorted(new)]
    planet_split = planet_split | dict(zip(sorted(new), assign_splits(blocks, recipe), strict=True))
    alike: dict[tuple, list[Candidate]] = defaultdict(list)
    for candidate in stored:
        if climate := candidate.stored:
            planet, air = candidate.planet, candidate.atmosphere
            alike[planet.key, climate.source, climate.processing, air.rest, signature(planet)].append(candidate)
    runs = []
    for members in alike.values():
        verdicts = [[candidate for candidate in members if candidate.label == label] for label in (1, 0)]
        pairs = list(zip(*verdicts, strict=False))
        paired = {candidate.run_id for pair in pairs for candidate in pair}
        alone = [(replace(candidate, label=None),) for candidate in members if candidate.run_id not in paired]
        for group in [*pairs, *alone]:
            name = "+".join(candidate.run_id for candidate in group)
            # The climate is the record's purpose; a spectrum would need a tidally locked planet's terminator.
            present = {**_draw_present(name, group[0].planet, recipe), "climate": True, "spectrum": False}
            ordered = sorted(group, key=lambda candidate: candidate.number)
            runs.append(
                tuple(
                    Run(candidate, planet_split[candidate.planet.key], name, present, named=True)
                    for candidate in ordered
                )
            )
    return runs


def _draw_present(name: str, planet: Planet, recipe: Recipe) -> dict[str, bool]:
    """Which modalities a group of runs has; a partner's planet has the same `signature`, and with it the same modes."""
    rng = stream(recipe.seed, "present", name)
    present = {modality: bool(rng.random() >= recipe.absent_share[modality]) for modality in OPTIONAL_MODALITIES}
    return {**present, "spectrum": present["spectrum"] and bool(modes(planet))}
