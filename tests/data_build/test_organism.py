"""What archives say of the metabolic network's organism, in texts and in the quality report."""

from types import SimpleNamespace

import numpy as np
import pytest

from data_build.organism import checks, compounds, facts
from data_build.planets import Atmosphere, Planet
from data_build.sources import Cobra
from data_build.text import describe, scrub, telling_words


def archive(*rows: dict, complete: bool = True):
    return SimpleNamespace(rows=lambda: iter(rows), manifest={"complete": complete})


@pytest.fixture
def harvests():
    """Rows as their stages give them: figures as published for E. coli K-12 MG1655, the rest synthetic."""
    return {
        "genbank": archive(
            {"accession": "NC_000001.1", "length_bp": 5, "gc_fraction": 0.1, "coding_sequences": 1},
            {"accession": "NC_000913.3", "length_bp": 4641652, "gc_fraction": 0.5079, "coding_sequences": 4315},
        ),
        "ensembl": archive({"assembly": None, "length_bp": 1}, {"assembly": "GCA_000005845.2", "length_bp": 4641652}),
        "gtdb": archive(
            {
                "accession": "RS_GCF_000005845.2",
                "length_bp": 4641652,
                "proteins": 4319,
                "taxonomy": "d__Bacteria;p__Pseudomonadota;s__Escherichia coli",
            }
        ),
        "uniprot": archive(
            {"taxonomy_id": 83333, "enzyme_classes": "2.7.1.1; 2.7.1.2"},
            {"taxonomy_id": 83333, "enzyme_classes": "2.7.1.2"},
            {"taxonomy_id": 2190, "enzyme_classes": "1.1.1.1"},
        ),
        "kegg": archive(
            {"compound": "C00031", "formula": "C6H12O6"},
            {"compound": "C00022", "formula": "C3H4O3"},
            {"compound": "C00001", "formula": "H3O2"},
            {"compound": "C00138", "formula": "Fe2S2R4"},
            {"compound": "C99999", "formula": "C"},
        ),
    }


def test_each_archive_tells_one_fact(harvests):
    told = dict(facts(harvests))
    assert told == {
        "ensembl": "Ensembl Genomes lists Escherichia coli K-12 MG1655 with the assembly GCA_000005845.2 of 4641652 "
        "base pairs.",
        "genbank": "NCBI GenBank gives the genome of Escherichia coli K-12 MG1655 as 4641652 base pairs with a GC "
        "content of 50.8% and 4315 coding sequences.",
        "gtdb": "GTDB places Escherichia coli K-12 MG1655 in Bacteria, Pseudomonadota, Escherichia coli and predicts "
        "4319 proteins.",
        "kegg": "The core metabolic network of Escherichia coli K-12 MG1655 has 5 metabolites that KEGG lists, 3 of "
        "them with the same atoms.",
        "uniprot": "UniProt lists 2 reviewed enzymes of Escherichia coli K-12 MG1655 in 2 enzyme classes.",
    }
    for sentence in told.values():
        assert scrub(sentence) == sentence and not telling_words(sentence)


def test_what_is_not_there_is_not_told(harvests):
    assert facts({}) == () and checks({}) == []
    others = {name: archive(*list(harvest.rows())[:1]) for name, harvest in harvests.items() if name != "gtdb"}
    others["uniprot"] = archive(*harvests["uniprot"].rows(), complete=False)  # a number of some rows means nothing
    assert [name for name, _ in facts(others)] == ["kegg"]


def test_the_network_agrees_with_kegg_but_for_its_charges(harvests):
    """Pyruvate is C3H3O3 with its charge; water with one oxygen too many is found, in and out of the cell."""
    assert compounds(harvests) == {"checked": 5, "agree": 3, "differ": ["h2o_c", "h2o_e"]}


def test_genomes_of_other_lengths_are_reported(harvests):
    assert [check["beyond"] for check in checks(harvests) if "length" in check["check"]] == [{}]
    harvests["gtdb"] = archive(
        {"accession": "RS_GCF_000005845.2", "length_bp": 5000000, "proteins": None, "taxonomy": "d__Bacteria"}
    )
    assert checks(harvests)[1]["beyond"]["gtdb"] == 5000000
    assert dict(facts(harvests))["gtdb"] == "GTDB places Escherichia coli K-12 MG1655 in Bacteria."


def test_every_metabolite_is_known_to_kegg_by_name():
    assert all(formula and identifiers for _, formula, identifiers in Cobra().metabolites())


def test_the_sentences_end_the_text():
    planet = Planet(key="x-b", name="X b", source="s", kind="observed", values={"radius_earth": 1.25})
    rng = np.random.default_rng(0)
    assert describe(planet, Atmosphere(1.0, 0.1, 0.1), True, rng, ["One.", "Two."]).endswith(" One. Two.")
