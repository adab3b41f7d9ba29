"""The dataset card: README.md beside the data."""

from collections import Counter
from pathlib import Path

from astrobio.schema import HELD_OUT_GCM, OPTIONAL_MODALITIES, TEST_SETS
from data_build.humidity import SUPERSATURATION_LIMIT
from data_build.instruments import G395H, LRS, PRISM, SOSS, VISITS
from data_build.sources.networks import NETWORKS


def write_card(folder: Path, manifest: dict, quality: dict) -> None:
    """Write ``README.md`` from the manifest and the quality report."""
    (folder / "README.md").write_text(card(manifest, quality))


def card(manifest: dict, quality: dict) -> str:
    """The card's text."""
    recipe = manifest["recipe"]
    rows = [
        [
            split,
            kind,
            count["planets"],
            count.get("records", 0),
            count.get("label_habitable", 0),
            count.get("label_not_habitable", 0),
            count.get("label_open", 0),
            *(count.get(f"with_{modality}", 0) for modality in OPTIONAL_MODALITIES),
        ]
        for split, kinds in manifest["counts"].items()
        for kind, count in kinds.items()
    ]
    complete = quality["completeness"]["observed"]
    completeness = [
        [name, *(f"{share[key]:.0%}" for key in ("raw", "derived", "known"))]
        for name, share in complete.items()
        if "raw" in share
    ]
    sources = [
        [name, info["modality"], info["kind"], info["version"], info["licence"], info["citation"]]
        for name, info in manifest["sources"].items()
    ]
    beyond = sum(kind.get("beyond saturation", 0) for kind in quality["candidates"].values())
    networks = "; ".join(f"`{name}`, {network.meaning}" for name, network in NETWORKS.items())
    match = quality["crossmatch"]
    in_common = match["by_name"] + match["by_alias"] + match["by_position"]
    return f"""# astrobio dataset `{recipe["name"]}`

Rocky planets under sampled atmospheres: for each run the star and planet table, a climate datacube, a metabolic
network, a transmission spectrum, a text and a habitability label. Any modality but the table and the text may be
absent. Field names, shapes and units: `astrobio/schema.py`, schema version {manifest["schema_version"]}.

Content hash `{manifest["content_sha256"]}`, seed {manifest["seed"]}.

## Records

{
        _table(
            [
                "split",
                "planets are",
                "planets",
                "records",
                "habitable",
                "not",
                "no label",
                *(f"with {modality}" for modality in OPTIONAL_MODALITIES),
            ],
            rows,
        )
    }

No planet is in two splits. `observed` planets are in a catalogue, `synthetic` ones are sampled around catalogued host
stars; `provenance.planet.kind` tells them apart, and figures should be given for each.

## The label

{_label(manifest, quality["label"])}

## Where it comes from

{_table(["source", "modality", "kind", "version", "licence", "citation"], sources)}

The catalogues are matched by name, alias, and position with period: {match["primary"]} and {match["secondary"]}
entries, {in_common} in common. {match["inside_extended_domain"]} planets lie in CLERO's extended domain,
{match["inside_core_domain"]} of them in its core. `quality.json` lists where the catalogues disagree on one of these by
more than {match["disagreement_limit"]:.0%} ({len(match["disagreements"])} numbers).

Columns of the observed planets, read from a catalogue or derived by physics:

{_table(["column", "read", "derived", "known"], completeness)}

{_archives(quality.get("archives", {}))}{_failed(manifest.get("failed_archives", {}))}{
        _stored(quality.get("stored_climates", []))
    }## What to keep in mind

- The climates are an emulator's mean for tidally locked, ocean-covered planets. Humidity above saturation is capped; a
  run whose humidity is more than {SUPERSATURATION_LIMIT:g} times saturation next to the surface, on average, is no
  candidate ({beyond} of them).
- Catalogued planets above about 1.6 Earth radii may have no rocky surface at all (Rogers 2015).
- Masses of planets known by transit alone follow from a mass–radius relation (Chen & Kipping 2017), as do radii of
  planets known by radial velocity alone, from M sin i.
- The metabolic network is a candidate, one of {len(NETWORKS)} and the same for both runs of a pair, with bounds that
  follow from temperature, CO2 and CH4 by the assumptions in `data_build/sources/cobra.py`: {networks}.
  None is a methanogen's, an acetogen's or a phototroph's.
- Spectra are of {VISITS} transits in each mode of JWST that the star's brightness allows: {PRISM.name} from J =
  {PRISM.brightest_j:g} on, {SOSS.name} and {G395H.name} of brighter stars, and {LRS.name}. Elsewhere they are NaN. A
  catalogued planet that is not known to transit has none; sampled planets are taken to transit.
- Clouds are one grey deck over a share of the terminator. Collision-induced absorption is left out: no Python package
  ships tables of the pairs of N2, CO2 and CH4.
- Set aside, with reasons in `quarantine.jsonl`: {sum(quality["set_aside"].values())}.
"""


def _label(manifest: dict, figures: dict) -> str:
    """The section on the label."""
    rule, probability = manifest["habitability_rule"], manifest["label_probability"]
    flips = ""
    if "share_that_flips" in figures:
        flips = f"""

`{TEST_SETS[0]}/` has the runs of the test planets once more, with climate, spectrum and label of {HELD_OUT_GCM}, of
which no record of train and validation knows anything. {figures["share_that_flips"]:.0%} of the labels that both models
give are opposite."""
    return f"""`{rule["name"]}` version {rule["version"]}: {rule["text"]}.

It is computed from the emulated climate of a hypothetical ocean planet, not observed. Runs are chosen in pairs of one
habitable and one not that share everything that is not physics: which modalities are present, which columns are known
or derived, the provenance and its qualities (the lower of the two), the wording of the text. The share of habitable
runs says nothing about planets at large.

`label_probability` (`{probability["name"]}` version {probability["version"]}) tells how sure a label is: the
{probability["text"]}
({", ".join(probability["gcms"])}, {probability["draws_per_gcm"]} draws each). A record's own label has a probability of
{figures["mean_probability_of_own_label"]:.0%} on average; {figures["share_less_probable_than_not"]:.1%} of the labels
are less probable than their opposite. Who guesses the more probable label of each run is right in
{figures["bayes_ceiling"]:.0%} of the draws: the Bayes ceiling of any classifier of these runs.{flips}"""


def _archives(archives: dict) -> str:
    """The section on rows that were asked for over the network; empty if there are none."""
    if not archives:
        return ""
    rows = [
        [
            name,
            entry["rows"],
            "all" if entry["complete"] else "the first, by key",
            sum(entry["quarantined"].values()),
            "; ".join(f"{count}: {reason}" for reason, count in entry["unused"].items()) or 0,
        ]
        for name, entry in archives.items()
    ]
    return f"""## Archives

The rows of these archives are in `archives/`, checked, as Parquet, with the rows set aside in `quarantine.jsonl` there.
Catalogues and Gaia are merged into the planet table, telescopes' observations of a planet's star are told in its text,
climates are records of their own, measured spectra (`nasa_spectra`) are only in `archives/`. Of genomes, proteins and
compounds, those of the metabolic network's organism are told in the text of records that have the network, and check
it (`quality.json`).

{_table(["archive", "rows", "of what it has", "reasons to set rows aside", "not used"], rows)}

"""


def _failed(archives: dict[str, str]) -> str:
    """The section on archives that could not be read; empty if there are none."""
    if not archives:
        return ""
    rows = [[name, " ".join(reason.split()).replace("|", "\\|")] for name, reason in archives.items()]
    return f"""## Archives that could not be read

The recipe names these archives too. They could not be read when the dataset was built, and nothing of them is in it.

{_table(["archive", "why"], rows)}

"""


def _stored(climates: list[dict]) -> str:
    """The section on climates that were not emulated; empty if there are none."""
    if not climates:
        return ""
    count = Counter((entry["source"], entry["planet"]) for entry in climates)
    return f"""## Climates that were not emulated

Means over time, conservatively regridded and interpolated to the emulator's levels; the label follows from them by the
same rule. Since their provenance tells them apart, only pairs of one habitable and one not, of one planet and source,
have it; the others are without a label (the rule's verdict is in `quality.json`, `stored_climates`).

{_table(["source", "planet", "climates"], [[*key, number] for key, number in sorted(count.items())])}

"""


def _table(head: list[str], rows: list[list]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
