"""Genome Taxonomy Database: its tables of genomes, compressed files that are read as streams.

The columns are those of its metadata_field_desc.tsv; since release 220 completeness is CheckM2's.
"""

import csv
import gzip
import hashlib
import io
from collections.abc import Iterator
from typing import Any

import requests

from data_build.cache import DataError
from data_build.sources.base import ArchiveChanged, Field, SourceInfo, good, require_columns
from data_build.sources.networks import E_COLI

RELEASE = "https://data.gtdb.ecogenomic.org/releases/release220/220.0"
ARCHAEA, BACTERIA = "ar53_metadata_r220.tsv.gz", "bac120_metadata_r220.tsv.gz"


class Gtdb:
    """Genomes with their place in the taxonomy, size and completeness."""

    info = SourceInfo(
        name="gtdb",
        title="GTDB",
        modality="metabolism",
        kind="observed",
        version="release 220",
        client="requests",
        licence="CC BY-SA 4.0",
        citation="Parks et al. 2022, Nucleic Acids Res. 50, D785",
        requests_per_second=1.0,
        fields=(
            Field("accession", "string", required=True),
            Field("taxonomy", "string", required=True, theirs="gtdb_taxonomy"),
            Field("length_bp", "int64", "bp", 1, 10**10, required=True, theirs="genome_size"),
            Field("gc_percent", "float64", "%", 0, 100, required=True, theirs="gc_percentage"),
            Field("proteins", "int64", "1", 0, 10**6, theirs="protein_count"),
            Field("completeness_percent", "float64", "%", 0, 100, theirs="checkm2_completeness"),
        ),
    )

    def rows(self, session: requests.Session) -> Iterator[dict[str, Any]]:
        """Every archaeal genome of the release, and the organism's among the bacterial ones.

        In the end of a file its MD5 is compared with the release's own list.
        """
        sums = good(session.get(f"{RELEASE}/MD5SUM.txt"), self.info).text
        yield from self._genomes(session, sums, ARCHAEA)
        for row in self._genomes(session, sums, BACTERIA):
            if E_COLI.assembly in row["accession"]:
                yield row

    def _genomes(self, session: requests.Session, sums: str, file: str) -> Iterator[dict[str, Any]]:
        expected = next((line.split()[0] for line in sums.splitlines() if line.strip().endswith(file)), None)
        if expected is None:
            raise ArchiveChanged(
                f"{self.info.title}: MD5SUM.txt does not list {file}: the release has changed, please report it"
            )
        answer = good(session.get(f"{RELEASE}/{file}", stream=True), self.info)
        answer.raw.decode_content = True  # what the web server packed, not the file itself
        packed = _Hashed(answer.raw)
        with gzip.open(packed, "rt", encoding="utf-8", newline="") as unpacked:
            lines = csv.DictReader(unpacked, delimiter="\t")
            require_columns(self.info, lines.fieldnames or ())
            for row in lines:
                yield {name: None if value == "none" else value for name, value in row.items()}
        if packed.md5.hexdigest() != expected:
            raise DataError(
                f"{self.info.title}: {file} has MD5 {packed.md5.hexdigest()}, the release says {expected}: "
                "it is damaged or cut short; build with --refresh"
            )


class _Hashed(io.RawIOBase):
    """A stream that is hashed as it is read."""

    def __init__(self, raw):
        self._raw, self.md5 = raw, hashlib.md5(usedforsecurity=False)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        block = self._raw.read(len(buffer))
        self.md5.update(block)
        buffer[: len(block)] = block
        return len(block)
