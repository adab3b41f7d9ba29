"""Ensembl Genomes: genomes of archaeal genera and of the metabolic network's organism, by its REST service
(``GET info/genomes/taxonomy/:taxon_name``, rest.ensembl.org/documentation)."""

from collections.abc import Iterator
from typing import Any

import requests

from data_build.cache import DataError
from data_build.sources.base import Field, SourceInfo, good, require_columns
from data_build.sources.networks import E_COLI

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
            answer = good(
                session.get(
                    f"https://rest.ensembl.org/info/genomes/taxonomy/{taxon}", headers={"Accept": "application/json"}
                ),
                self.info,
            ).json()
            if not isinstance(answer, list):
                raise DataError(
                    f"{self.info.title}: the answer for {taxon} is no list of genomes: the service has "
                    "changed, please report it"
                )
            for entry in answer:
                require_columns(self.info, entry)
                yield entry
