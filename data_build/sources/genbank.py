"""NCBI GenBank: reference genomes of methanogens and of the metabolic network's organism, by Bio.Entrez: searched,
counted, fetched in batches."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import requests
from Bio import Entrez, SeqIO

from data_build.cache import DataError
from data_build.credentials import Credentials, SignIn
from data_build.fetch import Authorisation
from data_build.sources.base import Field, SourceInfo, first_row_changes
from data_build.sources.biopython import sent_through
from data_build.sources.networks import E_COLI

SEARCH_PAGE, FETCH_PAGE = 500, 20
TERM = (
    "(Methanobacteriota[Organism] AND refseq[Filter] AND complete genome[Title] AND 500000:4000000[SLEN]) "
    f"OR {E_COLI.sequence}[Accession]"
)


class GenBank:
    """What a genome is and how much of it codes; the sequences themselves stay in the cache."""

    info = SourceInfo(
        name="genbank",
        title="NCBI GenBank",
        modality="metabolism",
        kind="observed",
        version="nuccore, live",
        client="Bio.Entrez",
        licence="public domain (NCBI places no restrictions on its use)",
        citation="Sayers et al. 2024, Nucleic Acids Res. 52, D134",
        requests_per_second=3.0,
        fields=(
            Field("accession", "string", required=True),
            Field("organism", "string", required=True),
            Field("taxonomy_id", "int64", minimum=1),
            Field("length_bp", "int64", "bp", 1, 10**10, required=True),
            Field("gc_fraction", "float64", "1", 0, 1, required=True),
            Field("coding_sequences", "int64", "1", 0, 10**6, required=True),
            Field("topology", "string"),
        ),
        sign_in=SignIn(
            variables={"email": "NCBI_EMAIL", "key": "NCBI_API_KEY"},
            where="https://account.ncbi.nlm.nih.gov/settings/",
            hosts=("eutils.ncbi.nlm.nih.gov",),
            keyring_service="astrobio:ncbi",
            open_parts=("email",),
        ),
    )

    page_size = FETCH_PAGE

    def changes(self, session: requests.Session) -> list[str]:
        """What a genome has otherwise than expected."""
        self.page_size = 1
        return first_row_changes(self, session)

    def rows(self, session: requests.Session) -> Iterator[dict[str, Any]]:
        """Every genome that `TERM` finds."""
        found = self._found(session)
        while asked := list(islice(found, self.page_size)):
            with sent_through(session, Entrez):
                handle = Entrez.efetch(db="nuccore", id=",".join(asked), rettype="gbwithparts", retmode="text")
            count = 0
            for record in SeqIO.parse(handle, "genbank"):
                count += 1
                yield self._row(record)
            if count != len(asked):
                raise DataError(
                    f"{self.info.title}: {len(asked)} records were asked for, {count} came: the answer "
                    "was cut short; try again later, what was fetched is kept"
                )

    def _found(self, session: requests.Session) -> Iterator[str]:
        """The identifiers that the search gives."""
        seen, total = 0, None
        while total is None or seen < total:
            with sent_through(session, Entrez):
                answer = Entrez.read(
                    Entrez.esearch(
                        db="nuccore", term=TERM, retstart=seen, retmax=SEARCH_PAGE, idtype="acc", sort="accession"
                    )
                )
            total = int(answer["Count"])
            if not answer["IdList"] and seen < total:
                raise DataError(
                    f"{self.info.title}: the search gave {seen} of {total} identifiers: it was cut "
                    "short; try again later, what was fetched is kept"
                )
            seen += len(answer["IdList"])
            yield from answer["IdList"]

    def authorise(self, credentials: Credentials, ask) -> Authorisation:
        """E-mail address and key travel as parameters; the address that is logged and kept does not have them."""
        return Authorisation(params={"email": credentials.reveal("email"), "api_key": credentials.reveal("key")})

    def _row(self, record) -> dict[str, Any]:
        whole = next((feature for feature in record.features if feature.type == "source"), None)
        if whole is not None and int(whole.location.end) != len(record.seq):
            raise DataError(
                f"{self.info.title}: {record.id} has {len(record.seq)} of {int(whole.location.end)} bases: "
                "the answer was cut short; try again later"
            )
        sequence = str(record.seq).upper()
        known = sum(sequence.count(base) for base in "ACGT")
        taxon = next(
            (
                entry.split(":")[1]
                for feature in record.features
                for entry in feature.qualifiers.get("db_xref", [])
                if entry.startswith("taxon:")
            ),
            None,
        )
        return {
            "accession": record.id,
            "organism": record.annotations.get("organism"),
            "taxonomy_id": taxon,
            "length_bp": len(sequence),
            "gc_fraction": (sequence.count("G") + sequence.count("C")) / known if known else None,
            "coding_sequences": sum(feature.type == "CDS" for feature in record.features),
            "topology": record.annotations.get("topology"),
        }
