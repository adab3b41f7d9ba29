"""KEGG: the compounds of metabolism, by Bio.KEGG.REST. For academic use only, and at most three requests a second."""

from collections.abc import Iterator
from typing import Any

import requests
from Bio.KEGG import REST, Compound

from data_build.cache import DataError
from data_build.sources.base import ArchiveChanged, Field, SourceInfo
from data_build.sources.biopython import sent_through

BATCH = 10  # entries; the service leaves the rest of a longer list out without a word
PATHWAY = "map01100"  # all metabolic pathways


class Kegg:
    """Compounds with formula, mass, and the pathways they take part in."""

    info = SourceInfo(
        name="kegg",
        title="KEGG",
        modality="metabolism",
        kind="observed",
        version=f"compounds of {PATHWAY}, live",
        client="Bio.KEGG.REST",
        licence="academic use only, see www.kegg.jp/kegg/legal.html: do not pass the records on",
        citation="Kanehisa et al. 2025, Nucleic Acids Res. 53, D672",
        requests_per_second=2.5,
        fields=(
            Field("compound", "string", required=True),
            Field("name", "string", required=True),
            Field("formula", "string"),
            Field("mass_g_mol", "float64", "g mol-1", 1, 1e6),
            Field("pathways", "string"),
        ),
    )

    def rows(self, session: requests.Session) -> Iterator[dict[str, Any]]:
        """Every compound of `PATHWAY`."""
        with sent_through(session, REST):
            text = REST.kegg_link("compound", PATHWAY).read()
        links = [line.split("\t") for line in text.splitlines() if line.strip()]
        if any(len(link) != 2 or not link[1].startswith("cpd:") for link in links):
            raise ArchiveChanged(
                f"{self.info.title}: the list of compounds is not lines of pathway and compound: the "
                "service has changed, please report it"
            )
        compounds = sorted({link[1].removeprefix("cpd:") for link in links})
        for start in range(0, len(compounds), BATCH):
            asked = compounds[start : start + BATCH]
            with sent_through(session, REST):
                entries = list(Compound.parse(REST.kegg_get([f"cpd:{entry}" for entry in asked])))
            lacking = set(asked) - {entry.entry for entry in entries}
            if lacking:
                raise DataError(
                    f"{self.info.title}: {len(asked)} compounds were asked for, "
                    f"{', '.join(sorted(lacking))} did not come: the answer was cut short; try again later"
                )
            for entry in sorted(entries, key=lambda entry: entry.entry):
                yield {
                    "compound": entry.entry,
                    "name": entry.name[0] if entry.name else None,
                    "formula": entry.formula,
                    "mass_g_mol": entry.mass,
                    "pathways": " ".join(sorted(pathway[1] for pathway in entry.pathway)),
                }
