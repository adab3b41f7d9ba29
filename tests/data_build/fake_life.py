"""Stand-ins for the archives of genomes, proteins and metabolism; see `fake_archives`."""

import gzip
import hashlib
import io
import json
from pathlib import Path

from archive_server import Reply
from Bio import SeqIO
from Bio.Seq import Seq
from Bio.SeqRecord import SeqRecord

RECORDINGS = Path(__file__).parent / "recordings"


class FakeGenBank:
    """GenBank records recorded by Biopython; the search's answer and the record of E. coli are synthetic."""

    then, host = "refused", "eutils.ncbi.nlm.nih.gov"
    names = {"AL109817.1": "iro.gb", "EU851978.1": "EU851978.gbk", "KF527485.1": "KF527485.gbk", "NC_000913.3": ""}

    def text(self, name: str) -> str:
        if self.names[name]:
            return (RECORDINGS / self.names[name]).read_text()
        record = SeqRecord(
            Seq("ACGT" * 15 + "GC" * 2),
            name,
            name.split(".")[0],
            "synthetic",
            annotations={"molecule_type": "DNA", "organism": "Escherichia coli synthetic"},
        )
        return record.format("genbank")

    def __init__(self):
        self.found, self.cut_short = list(self.names), False

    def reply(self, request):
        asked = {**request.query, **request.form}
        if request.path.endswith("esearch.fcgi"):
            found = self.found[int(asked["retstart"]) :][:2]
            ids = "".join(f"<Id>{name}</Id>" for name in found)
            return Reply(
                f"""<?xml version="1.0" encoding="UTF-8" ?>
<!DOCTYPE eSearchResult PUBLIC "-//NLM//DTD esearch 20060628//EN" "https://eutils.ncbi.nlm.nih.gov/eutils/dtd/20060628/esearch.dtd">
<eSearchResult><Count>{len(self.found)}</Count><RetMax>{len(found)}</RetMax><RetStart>{asked["retstart"]}</RetStart>
<IdList>{ids}</IdList><TranslationSet/><QueryTranslation>synthetic</QueryTranslation></eSearchResult>""".encode(),
                headers={"Content-Type": "text/xml; charset=UTF-8"},
            )  # noqa: E501
        names = asked["id"].split(",")[: 1 if self.cut_short else None]
        text = "\n".join(map(self.text, names))
        return Reply(text.encode(), headers={"Content-Type": "text/plain"})

    def empty(self):
        self.found = []

    def expected(self, field):
        records = [SeqIO.read(io.StringIO(self.text(name)), "genbank") for name in self.found]
        known = {
            "accession": [record.id for record in records],
            "length_bp": [len(record) for record in records],
            "organism": [record.annotations["organism"] for record in records],
        }
        return known.get(field.name)


class FakeKegg:
    """Synthetic entries in KEGG's flat format: its own may not be passed on."""

    then, host = "refused", "rest.kegg.jp"

    def __init__(self):
        self.compounds, self.cut_short = ["C00031", *(f"C9{i:04d}" for i in range(11))], False  # C00031: glucose

    def reply(self, request):
        operation, rest = request.path.lstrip("/").split("/", 1)
        if operation == "link":
            return Reply("".join(f"path:map01100\tcpd:{name}\n" for name in self.compounds).encode() or b"\n")
        asked = [entry.removeprefix("cpd:") for entry in rest.split("+")][: 5 if self.cut_short else 10]
        return Reply(
            "".join(
                f"""ENTRY       {name}                      Compound
NAME        synthetic {name}
FORMULA     C6H12O6
EXACT_MASS  180.0634
MOL_WEIGHT  180.1559
PATHWAY     map00010  Glycolysis
///
"""
                for name in asked
            ).encode()
        )

    def empty(self):
        self.compounds = []

    def expected(self, field):
        return {
            "compound": self.compounds,
            "name": [f"synthetic {name}" for name in self.compounds],
            "pathways": ["map00010"] * len(self.compounds),
        }.get(field.name)


class FakeEnsembl:
    """Synthetic genomes, in the form of the service; 500 for a taxon that it does not have."""

    then, host = "continued", "rest.ensembl.org"

    def __init__(self):
        self.genomes = [
            {
                "name": f"synthetic_genome_{i}",
                "display_name": f"Synthetic genome {i}",
                "taxonomy_id": str(2190 + i),
                "assembly_accession": f"GCA_00000{i}.1",
                "base_count": str(10**6 + i),
            }
            for i in range(2)
        ]
        self.coli = {
            "name": "synthetic_coli",
            "display_name": "Synthetic E. coli",
            "taxonomy_id": "511145",
            "assembly_accession": "GCA_000005845.2",
            "base_count": "64",
        }
        self.cut_short = False

    def reply(self, request):
        found = {"Methanococcus": self.genomes, "511145": [self.coli], "9606": [{"name": "synthetic_human"}]}
        taxon = request.path.split("/")[-1]
        if not found.get(taxon) or (taxon == "511145" and not self.genomes):
            return Reply(b'{"error":"Can\'t call method \\"taxon_id\\" on an undefined value"}', 500)
        body = json.dumps(found[taxon]).encode()
        cut, self.cut_short = (10 if self.cut_short else None), False
        return Reply(body, cut=cut)

    def empty(self):
        self.genomes = []

    def expected(self, field):
        return [
            genome[field.column] if field.dtype == "string" else int(genome[field.column])
            for genome in (*self.genomes, *([self.coli] if self.genomes else []))
        ]


class FakeUniProt:
    """Synthetic entries, two a page, along a cursor."""

    then, host = "refused", "rest.uniprot.org"

    def __init__(self):
        self.rows = [
            {
                "Entry": f"Q0000{i}",
                "Organism": "synthetic archaeon",
                "Organism (ID)": "2190",
                "EC number": "1.1.1.1",
                "Length": "4",
                "Mass": "480",
                "Sequence": "MKVL",
            }
            for i in range(5)
        ]
        for row in self.rows[3:]:
            row |= {
                "Organism": "synthetic Escherichia coli (strain K12)",
                "Organism (ID)": "83333",
                "EC number": f"2.7.1.{row['Entry'][-1]}; 2.7.1.9",
            }
        self.names = list(self.rows[0])
        self.cut_short = False

    def reply(self, request):
        start = int(request.query.get("cursor", 0))
        lines = ["\t".join(self.names), *("\t".join(row.values()) for row in self.rows[start : start + 2])]
        headers = {"x-total-results": str(len(self.rows))}
        if start + 2 < len(self.rows) and not (self.cut_short and start):
            headers["Link"] = f'<https://rest.uniprot.org/uniprotkb/search?cursor={start + 2}>; rel="next"'
        return Reply(("\n".join(lines) + "\n").encode(), headers=headers)

    def empty(self):
        self.rows = []

    def expected(self, field):
        kind = {"string": str, "int64": int, "float64": float}[field.dtype]
        return [kind(row[field.column]) for row in self.rows]


class FakeGtdb:
    """A synthetic release of three archaeal genomes, E. coli's, and another bacterial one."""

    then, host = "refused", "data.gtdb.ecogenomic.org"

    def __init__(self):
        self.rows = [
            {
                "accession": f"RS_GCF_00000{i}.1",
                "gtdb_taxonomy": "d__Archaea;p__synthetic",
                "genome_size": str(2 * 10**6 + i),
                "gc_percentage": "41.5",
                "protein_count": "2100",
                "checkm2_completeness": "99.1",
            }
            for i in range(3)
        ]
        self.rows += [
            {
                **self.rows[0],
                "accession": "RS_GCF_000005845.2",
                "genome_size": "64",
                "gtdb_taxonomy": "d__Bacteria;p__synthetic;s__Escherichia coli",
            }
        ]
        self.names = [*self.rows[0], "ncbi_date"]
        self.cut_short = False

    def reply(self, request):
        other = [{**row, "accession": "RS_GCF_9.1"} for row in self.rows[3:]]  # of bacteria only E. coli is taken
        files = {
            "ar53_metadata_r220.tsv.gz": self.packed(self.rows[:3]),
            "bac120_metadata_r220.tsv.gz": self.packed(other + self.rows[3:]),
        }
        if request.path.endswith("MD5SUM.txt"):
            return Reply(
                "".join(f"{hashlib.md5(packed).hexdigest()}  ./{name}\n" for name, packed in files.items()).encode()
            )
        packed = files[request.path.split("/")[-1]]
        return Reply(packed[:-20] if self.cut_short else packed)

    def packed(self, rows):
        lines = ["\t".join(self.names), *("\t".join([*row.values(), "none"]) for row in rows)]
        return gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0)

    def empty(self):
        self.rows = []

    def expected(self, field):
        kind = {"string": str, "int64": int, "float64": float}[field.dtype]
        return [kind(row[field.column]) for row in self.rows]
