"""The metabolic networks a record may have: small ones, each made from a model that COBRApy ships.

All are hypotheses of what could live on organics that fall out of an atmosphere without oxygen; none is a network of a
methanogen, an acetogen or a phototroph, of which COBRApy ships none.
"""

from collections.abc import Callable
from dataclasses import dataclass

from cobra import Metabolite, Model, Reaction


@dataclass(frozen=True)
class Organism:
    """An organism as the archives of genomes and proteins know it."""

    name: str
    taxonomy_id: int  # NCBI Taxonomy
    uniprot_id: int  # UniProt keeps the strain's proteins under its parent
    sequence: str  # RefSeq accession of the chromosome
    assembly: str  # INSDC and RefSeq number of the assembly, behind GCA_ or GCF_


#: Orth, Fleming & Palsson 2010.
E_COLI = Organism("Escherichia coli K-12 MG1655", 511145, 83333, "NC_000913", "000005845.2")


@dataclass(frozen=True)
class NetworkRecipe:
    """How a network is made, and what it takes up.

    ``base`` is the model's file in COBRApy, ``make`` changes a copy of the models read (file → model). ``organics``
    are exchanges of the organics, with their share of the uptake; ``organism`` is who the archives may tell of.
    """

    meaning: str
    base: str
    make: Callable[[dict[str, Model]], Model]
    organics: dict[str, float]
    organism: Organism | None = None


CORE, _SALMONELLA = "textbook.xml.gz", "salmonella.xml.gz"
_GLUCOSE = "EX_glc__D_e"
_FUMARATE = "EX_fum_e"

_GLYCOLYSIS = (
    *("GLCpts", "PGI", "PFK", "FBA", "TPI", "GAPD", "PGK", "PGM", "ENO", "PYK", "LDH_D", "D_LACt2", "ATPM", "H2Ot"),
    *("PIt2r", _GLUCOSE, "EX_lac__D_e", "EX_h_e", "EX_h2o_e", "EX_pi_e"),
)
#: E. coli core reaction → Salmonella's where the identifier differs by more than the periplasm's suffix. Fumarate is
#: reduced by menaquinol, which needs its own dehydrogenase.
_RENAMED = {"FORti": ("FORtppi",), "FRD7": ("FRD2", "NADH17pp"), "PYRt2": ("PYRt2rpp",), "Biomass_Ecoli_core": ()}


def _whole(models: dict[str, Model]) -> Model:
    return models[CORE].copy()


def _glycolysis(models: dict[str, Model]) -> Model:
    """Part of the core network; its objective is the energy for maintenance, as it makes no biomass."""
    model = Model("glycolysis")
    model.add_reactions([models[CORE].reactions.get_by_id(name).copy() for name in _GLYCOLYSIS])
    model.objective = "ATPM"
    return model


def _salmonella(models: dict[str, Model]) -> Model:
    """Those reactions of the genome-scale network that E. coli's core network has, through the periplasm."""
    core, whole = models[CORE], models[_SALMONELLA]
    names: set[str] = set()
    for reaction in core.reactions:
        if not reaction.boundary:
            names |= set(_RENAMED.get(reaction.id, (reaction.id, f"{reaction.id}pp")))
            continue
        # The exchange, and the pores of the outer membrane: from outside to the periplasm and nothing else.
        outside = next(iter(reaction.metabolites)).id
        pores = whole.metabolites.get_by_id(outside).reactions
        sides = {outside, outside.removesuffix("_e") + "_p"}
        names |= {reaction.id} | {pore.id for pore in pores if {one.id for one in pore.metabolites} == sides}
    model = Model("salmonella_core")
    model.add_reactions([reaction.copy() for reaction in whole.reactions if reaction.id in names])
    biomass = core.reactions.Biomass_Ecoli_core.copy()
    model.add_reactions([biomass])
    model.objective = biomass.id
    model.reactions.ATPM.upper_bound = 1000.0  # maintenance is raised with temperature
    return model


def _pair(models: dict[str, Model]) -> Model:
    """Two cells in one medium: A takes up the sugar and cannot respire, B takes up what A leaves and respires fumarate.

    Both grow at one rate, else one would outgrow the other (balanced growth: Khandelwal et al. 2013, PLoS ONE 8,
    e64567).
    """
    model = Model("pair")
    for cell in ("A", "B"):
        for reaction in models[CORE].reactions:
            if reaction.boundary:
                if cell == "A":
                    model.add_reactions([reaction.copy()])
                continue
            own = Reaction(f"{reaction.id}_{cell}", lower_bound=reaction.lower_bound, upper_bound=reaction.upper_bound)
            own.add_metabolites(
                {
                    metabolite.copy()
                    if metabolite.compartment == "e"
                    else Metabolite(
                        f"{metabolite.id}_{cell}", metabolite.formula, charge=metabolite.charge, compartment=f"c_{cell}"
                    ): number
                    for metabolite, number in reaction.metabolites.items()
                }
            )
            model.add_reactions([own])
    for name in ("GLCpts_B", "FRUpts2_B", "FUMt2_2_A"):
        model.reactions.get_by_id(name).bounds = (0.0, 0.0)
    growth = [model.reactions.get_by_id(f"Biomass_Ecoli_core_{cell}") for cell in ("A", "B")]
    model.add_cons_vars(model.problem.Constraint(growth[0].flux_expression - growth[1].flux_expression, lb=0, ub=0))
    model.objective = dict.fromkeys(growth, 1.0)
    return model


#: Name → recipe. All take up what is listed and, of what their models leave open, no oxygen.
NETWORKS = {
    "e_coli_core": NetworkRecipe(
        "the core network of Escherichia coli, fermenting glucose", CORE, _whole, {_GLUCOSE: 1.0}, E_COLI
    ),
    "e_coli_core_fumarate": NetworkRecipe(
        "the core network of Escherichia coli, respiring fumarate",
        CORE,
        _whole,
        {_GLUCOSE: 0.5, _FUMARATE: 0.5},
        E_COLI,
    ),
    "glycolysis": NetworkRecipe(
        "glycolysis and lactate fermentation alone, a part of that network", CORE, _glycolysis, {_GLUCOSE: 1.0}
    ),
    "salmonella_core": NetworkRecipe(
        "the reactions of Salmonella enterica's network that are in E. coli's core, with the growth objective of that",
        _SALMONELLA,
        _salmonella,
        {_GLUCOSE: 1.0},
    ),
    "e_coli_core_pair": NetworkRecipe(
        "two cells with E. coli's core network that feed each other: one ferments glucose, one respires fumarate",
        CORE,
        _pair,
        {_GLUCOSE: 0.5, _FUMARATE: 0.5},
    ),
}
