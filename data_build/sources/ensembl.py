"""Ensembl Genomes: genomes of archaeal genera and of the metabolic network's organism, by its REST service
(``GET info/genomes/taxonomy/:taxon_name``, rest.ensembl.org/documentation).

It answers 4xx and 5xx in passing, and 500 for a taxon that it does not have (its ``fetch_all_by_taxonomy_branch`` calls
a method of nothing): what lasts is held against a taxon that it always has.
"""

from collections.abc import Iterator
from typing import Any

import requests

from data_build.sources.base import ArchiveChanged, Field, SourceInfo, require_columns
from data_build.sources.networks import E_COLI

URL = "https://rest.ensembl.org/info/genomes/taxonomy"
ALWAYS_THERE = "9606"  # Homo sapiens

#: Genera that live where it is hot, salty, cold, sour, or without oxygen, and the metabolic network's organism: names
#: or NCBI's numbers, with all that is beneath them.
TAXA = (
    "Methanococcus",
    "Methanosarcina",
    "Halobacterium",
    "Sulfolobus",
    "Pyrococcus",
    "Thermococcus",
    str(E_COLI.taxonomy_id),
)


class Ensembl:
    """Assemblies of genomes and their size. The service answers a taxon as a whole, without pages."""

    info = SourceInfo(
        name="ensembl",
        title="Ensembl Genomes",
        modality="metabolism",
        kind="observed",
        version="info/genomes, live",
        client="requests",
        licence="no restrictions (EMBL-EBI terms of use)",
        citation="Yates et al. 2022, Nucleic Acids Res. 50, D996",
        requests_per_second=10.0,  # 55,000 an hour
        fields=(
            Field("genome", "string", required=True, theirs="name"),
            Field("organism", "string", required=True, theirs="display_name"),
            Field("taxonomy_id", "int64", minimum=1, required=True),
            Field("assembly", "string", theirs="assembly_accession"),
            Field("length_bp", "int64", "bp", 1, 10**12, theirs="base_count"),
        ),
    )

    def rows(self, session: requests.Session) -> Iterator[dict[str, Any]]:
        """Every genome of `TAXA`."""
        for taxon in TAXA:
            response = session.get(f"{URL}/{taxon}", headers={"Accept": "application/json"})
            if response.status_code >= 400:  # only where `absent` says so
                continue
            answer = response.json()
            if not isinstance(answer, list):
                raise ArchiveChanged(
                    f"{self.info.title}: the answer for {taxon} is no list of genomes: the service has "
                    "changed, please report it"
                )
            for entry in answer:
                require_columns(self.info, entry)
                yield entry

    def absent(self, ask) -> bool:
        """Whether an error that lasts means that the service has nothing of the taxon: it still answers of another."""
        answer = ask("GET", f"{URL}/{ALWAYS_THERE}", headers={"Accept": "application/json"}).json()
        return isinstance(answer, list) and len(answer) > 0
