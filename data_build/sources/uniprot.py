"""UniProt: reviewed enzymes of archaea and of the metabolic network's organism, by its REST service, page by page."""

import csv
from collections.abc import Iterator
from typing import Any

import requests

from data_build.cache import DataError
from data_build.sources.base import Field, SourceInfo, first_row_changes, good, require_columns
from data_build.sources.networks import E_COLI

PAGE = 500  # entries, the service's limit
QUERY = f"reviewed:true AND ec:* AND (taxonomy_id:2157 OR organism_id:{E_COLI.uniprot_id})"


class UniProt:
    """Proteins with their enzyme class and sequence."""

    info = SourceInfo(
        name="uniprot",
        title="UniProt",
        modality="metabolism",
        kind="observed",
        version="UniProtKB/Swiss-Prot, live",
        client="requests",
        licence="CC BY 4.0",
        citation="UniProt Consortium 2025, Nucleic Acids Res. 53, D609",
        requests_per_second=5.0,
        fields=(
            Field("accession", "string", required=True, theirs="Entry"),
            Field("organism", "string", required=True, theirs="Organism"),
            Field("taxonomy_id", "int64", minimum=1, required=True, theirs="Organism (ID)"),
            Field("enzyme_classes", "string", theirs="EC number"),
            Field("length_aa", "int64", "aa", 1, 50000, required=True, theirs="Length"),
            Field("mass_da", "float64", "Da", 50, 1e7, theirs="Mass"),
            Field("sequence", "string", required=True, theirs="Sequence"),
        ),
    )

    page_size = PAGE

    def changes(self, session: requests.Session) -> list[str]:
        """What an entry has otherwise than expected."""
        self.page_size = 1
        return first_row_changes(self, session)

    def rows(self, session: requests.Session) -> Iterator[dict[str, Any]]:
        """Every entry of `QUERY`."""
        url = "https://rest.uniprot.org/uniprotkb/search"
        params = {
            "query": QUERY,
            "format": "tsv",
            "size": str(self.page_size),
            "sort": "accession asc",
            "fields": "accession,organism_name,organism_id,ec,length,mass,sequence",
        }
        seen = 0
        while True:
            answer = good(session.get(url, params=params), self.info)
            total = int(answer.headers["x-total-results"])
            lines = csv.DictReader(answer.text.splitlines(), delimiter="\t")
            require_columns(self.info, lines.fieldnames or ())
            for row in lines:
                if row["Length"] and row["Sequence"] is not None and int(row["Length"]) != len(row["Sequence"]):
                    raise DataError(
                        f"{self.info.title}: {row['Entry']} has {len(row['Sequence'])} of {row['Length']} "
                        "residues: the answer was cut short; try again later"
                    )
                seen += 1
                yield row
            if "next" not in answer.links:
                break
            url, params = answer.links["next"]["url"], {}
        if seen != total:
            raise DataError(
                f"{self.info.title}: gave {seen} entries of {total}: the answer was cut short; try again "
                "later, what was fetched is kept"
            )
