"""Genome Taxonomy Database: its table of archaeal genomes, a compressed file that is read as a stream."""

import csv
import gzip
import hashlib
import io
from collections.abc import Iterator
from typing import Any

import requests

from data_build.cache import DataError
from data_build.sources.base import Field, SourceInfo, good, require_columns

RELEASE = "https://data.gtdb.ecogenomic.org/releases/release220/220.0"
FILE = "ar53_metadata_r220.tsv.gz"


class Gtdb:
    """Genomes with their place in the taxonomy, size and completeness."""

    info = SourceInfo(
        name="gtdb", title="GTDB", modality="metabolism", kind="observed",
        version="release 220, ar53", client="requests",
        licence="CC BY-SA 4.0",
        citation="Parks et al. 2022, Nucleic Acids Res. 50, D785",
        requests_per_second=1.0,
        fields=(Field("accession", "string", required=True),
                Field("taxonomy", "string", required=True, theirs="gtdb_taxonomy"),
                Field("length_bp", "int64", "bp", 1, 10**10, required=True, theirs="genome_size"),
                Field("gc_percent", "float64", "%", 0, 100, required=True, theirs="gc_percentage"),
                Field("proteins", "int64", "1", 0, 10**6, theirs="protein_count"),
                Field("completeness_percent", "float64", "%", 0, 100, theirs="checkm_completeness")))

    def rows(self, session: requests.Session) -> Iterator[dict[str, Any]]:
        """Every genome of the release; in the end the file's MD5 is compared with the release's own list."""
        sums = good(session.get(f"{RELEASE}/MD5SUM.txt"), self.info).text
        expected = next((line.split()[0] for line in sums.splitlines() if line.strip().endswith(FILE)), None)
        if expected is None:
            raise DataError(f"{self.info.title}: MD5SUM.txt does not list {FILE}: the release has changed, please "
                            "report it")
        answer = good(session.get(f"{RELEASE}/{FILE}", stream=True), self.info)
        answer.raw.decode_content = True  # what the web server packed, not the file itself
        packed = _Hashed(answer.raw)
        with gzip.open(packed, "rt", encoding="utf-8", newline="") as file:
            lines = csv.DictReader(file, delimiter="\t")
            require_columns(self.info, lines.fieldnames or ())
            for row in lines:
                yield {name: None if value == "none" else value for name, value in row.items()}
        if packed.md5.hexdigest() != expected:
            raise DataError(f"{self.info.title}: {FILE} has MD5 {packed.md5.hexdigest()}, the release says {expected}: "
                            "it is damaged or cut short; build with --refresh")


class _Hashed(io.RawIOBase):
    """A stream that is hashed as it is read."""

    def __init__(self, raw):
        self._raw, self.md5 = raw, hashlib.md5(usedforsecurity=False)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        block = self._raw.read(len(buffer))
        self.md5.update(block)
        buffer[:len(block)] = block
        return len(block)
