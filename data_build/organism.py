"""What the archives of genomes, proteins and compounds say of the organism whose metabolic network the records have.

They hold the whole tables (`archives/` of a dataset); here the organism's own rows become sentences for the text of
records with a metabolism, and checks of the network for quality.json. A sentence is the same in every record.
"""

from collections.abc import Mapping

from cobra.core.formula import Formula

from data_build.harvest import Harvest
from data_build.sources import Cobra
from data_build.sources.networks import E_COLI

#: Two archives' lengths of one genome may differ by this share.
LENGTH_LIMIT = 0.001


def facts(harvests: Mapping[str, Harvest]) -> tuple[tuple[str, str], ...]:
    """Pairs of an archive and a sentence; none where an archive has no row of the organism."""
    told = {}
    if genome := _genome(harvests, "genbank"):
        told["genbank"] = (
            f"NCBI GenBank gives the genome of {E_COLI.name} as {genome['length_bp']} base pairs with "
            f"a GC content of {genome['gc_fraction']:.1%} and {genome['coding_sequences']} coding "
            "sequences."
        )
    if genome := _genome(harvests, "ensembl"):
        told["ensembl"] = f"Ensembl Genomes lists {E_COLI.name} with the assembly {genome['assembly']}" + (
            f" of {genome['length_bp']} base pairs." if genome["length_bp"] else "."
        )
    if genome := _genome(harvests, "gtdb"):
        ranks = [rank.split("__")[1] for rank in genome["taxonomy"].split(";") if "__" in rank]
        told["gtdb"] = f"GTDB places {E_COLI.name} in {', '.join(ranks)}" + (
            f" and predicts {genome['proteins']} proteins." if genome["proteins"] else "."
        )
    enzymes = _enzymes(harvests)
    if enzymes:
        classes = {number for row in enzymes for number in _classes(row)}
        told["uniprot"] = (
            f"UniProt lists {len(enzymes)} reviewed enzymes of {E_COLI.name} in {len(classes)} enzyme classes."
        )
    checked = compounds(harvests)
    if checked["checked"]:
        told["kegg"] = (
            f"The core metabolic network of {E_COLI.name} has {checked['checked']} metabolites that KEGG "
            f"lists, {checked['agree']} of them with the same atoms."
        )
    return tuple(sorted(told.items()))


def checks(harvests: Mapping[str, Harvest]) -> list[dict]:
    """Entries for the checks in quality.json: the network against KEGG, and the archives against one another."""
    found = []
    if "kegg" in harvests:
        found.append(
            {
                "check": "metabolites' formulas against KEGG, hydrogen apart (the network's are charged)",
                "limit": 0,
                **compounds(harvests),
                "then": "reported: the published network stands",
            }
        )
    lengths = {
        name: genome["length_bp"]
        for name in ("genbank", "ensembl", "gtdb")
        if (genome := _genome(harvests, name)) and genome["length_bp"]
    }
    if len(lengths) > 1:
        spread = max(lengths.values()) / min(lengths.values()) - 1
        found.append(
            {
                "check": f"genome length of {E_COLI.name}, bp",
                "limit": LENGTH_LIMIT,
                "checked": len(lengths),
                "beyond": lengths if spread > LENGTH_LIMIT else {},
                "then": "reported",
            }
        )
    return found


def compounds(harvests: Mapping[str, Harvest]) -> dict:
    """How many metabolites of the network KEGG lists, how many with the same atoms besides hydrogen, and the others'
    identifiers in the network (KEGG's own records may not be passed on)."""
    listed = (
        {row["compound"]: row["formula"] for row in harvests["kegg"].rows() if row["formula"]}
        if "kegg" in harvests
        else {}
    )
    agree, differ = 0, []
    for metabolite, formula, identifiers in Cobra().metabolites():
        theirs = [atoms for name in identifiers if (atoms := _atoms(listed.get(name, ""))) is not None]
        if theirs:
            same = _atoms(formula) in theirs
            agree += same
            if not same:
                differ.append(metabolite)
    return {"checked": agree + len(differ), "agree": agree, "differ": differ}


def _genome(harvests: Mapping[str, Harvest], archive: str) -> dict | None:
    """The archive's row of the organism's genome."""
    key = {"genbank": "accession", "gtdb": "accession", "ensembl": "assembly"}[archive]
    mark = E_COLI.sequence if archive == "genbank" else E_COLI.assembly
    rows = harvests[archive].rows() if archive in harvests else ()
    return next((row for row in rows if mark in (row[key] or "")), None)


def _enzymes(harvests: Mapping[str, Harvest]) -> list[dict]:
    """UniProt's enzymes of the organism; none where the rows were limited, since their number would mean nothing."""
    if "uniprot" not in harvests or not harvests["uniprot"].manifest["complete"]:
        return []
    return [row for row in harvests["uniprot"].rows() if row["taxonomy_id"] == E_COLI.uniprot_id]


def _classes(row: dict) -> list[str]:
    return [number.strip() for number in (row["enzyme_classes"] or "").split(";") if number.strip()]


def _atoms(formula: str) -> dict[str, int] | None:
    """Element → count without hydrogen; None for a formula with a residue (R) or a repeated part, or none at all."""
    if not formula or any(mark in formula for mark in "R*(.n"):
        return None
    return {element: count for element, count in Formula(formula).elements.items() if element != "H"}
