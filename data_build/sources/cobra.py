"""COBRApy: metabolic networks with flux-balance fluxes under a run's conditions."""

from dataclasses import dataclass
from pathlib import Path

import cobra
import numpy as np
import swiglpk
from cobra.flux_analysis import pfba
from cobra.io import read_sbml_model

from astrobio.schema import EDGE_FEATURES, NODE_FEATURES, NODE_KINDS
from data_build.cache import check_installed
from data_build.sources.base import SourceInfo
from data_build.sources.networks import CORE, NETWORKS

#: Files of COBRApy → sha256.
_FILES = {
    "textbook.xml.gz": "c674befd7a8199f037fd851c4f8ea8502730d0328ef51b1c46946f19fb44f72a",
    "salmonella.xml.gz": "de43ce568b09b78999a6faed3761a1b62e146fc84d96d45d9372c70955120cbd",
}
_VERSION = "0.32.1"
_ELEMENTS = {"carbon": "C", "hydrogen": "H", "nitrogen": "N", "oxygen": "O", "phosphorus": "P", "sulfur": "S"}

# How each bound follows from the run's conditions is a stated assumption:
_UPTAKE = 18.5  # mmol gDW-1 h-1 of glucose at best, without oxygen (Varma & Palsson 1994)
_UPTAKE_TRACE = 0.3  # share of it that does not need an atmospheric source of organics
_HALF_CH4_BAR = 1e-4  # CH4 partial pressure that gives half of the photochemical organics (after Trainer et al. 2006)
_HALF_CO2_BAR = 1e-3  # CO2 partial pressure that gives half of the CO2 uptake bound
_CO2_UPTAKE = 20.0  # mmol gDW-1 h-1
# Growth rate over temperature: cardinal temperatures of E. coli (Rosso, Lobry & Flandrois 1993, J. Theor. Biol. 162).
_T_MIN, _T_OPT, _T_MAX = 278.05, 314.45, 320.65  # K
# Maintenance over temperature: Arrhenius law with 69 kJ mol-1 (Tijhuis, van Loosdrecht & Heijnen 1993), as at 310 K.
_MAINTENANCE_J_MOL, _MAINTENANCE_REFERENCE_K, _GAS_CONSTANT = 69e3, 310.15, 8.314462618


@dataclass(frozen=True)
class Network:
    """A graph in the layout of the schema: see `astrobio.schema.NODE_FEATURES` and ``EDGE_FEATURES``."""

    node_kind: np.ndarray  # [N] int8
    node_features: np.ndarray  # [N, F] float32
    edge_index: np.ndarray  # [E, 2] int64
    edge_features: np.ndarray  # [E, 2] float32


class Cobra:
    """The networks of `data_build.sources.networks`, without oxygen."""

    info = SourceInfo(
        name="cobra",
        modality="metabolism",
        version=f"{_VERSION}: {', '.join(NETWORKS)}",
        licence="GPL-2.0-or-later OR LGPL-2.0-or-later",
        citation="Ebrahim et al. 2013, BMC Syst. Biol. 7, 74; Orth, Fleming & Palsson 2010, EcoSal Plus 4; "
        "Thiele et al. 2011, BMC Syst. Biol. 5, 8",
        kind="simulated",
    )

    def __init__(self) -> None:
        self._read: dict[str, cobra.Model] = {}
        self._made: dict[str, cobra.Model] = {}

    def ensure(self) -> None:
        """Fetch and check the source's files; raises `DataError` if that fails."""
        for file in _FILES:
            self.path(file)

    def path(self, file: str) -> Path:
        """A model file inside the installed package, its sha256 checked."""
        return check_installed(Path(cobra.__file__).parent / "data" / file, _FILES[file], f"cobra=={_VERSION}")

    def _file(self, file: str) -> cobra.Model:
        if file not in self._read:
            self._read[file] = read_sbml_model(str(self.path(file)))
        return self._read[file]

    def _model(self, name: str) -> cobra.Model:
        if name not in self._made:
            recipe = NETWORKS[name]
            model = recipe.make({file: self._file(file) for file in {CORE, recipe.base}})
            for exchange in model.exchanges:  # what a recipe does not name is not eaten, nor is oxygen there
                if exchange.id == "EX_o2_e" or any("C" in one.elements for one in exchange.metabolites):
                    exchange.lower_bound = 0.0
            model.solver = "glpk"
            self._made[name] = model
        return self._made[name]

    def provenance(self, name: str, quality: float) -> dict:
        """The provenance of a record with this network."""
        version = f"{_VERSION}, {name}: {NETWORKS[name].meaning}"
        return {**self.info.provenance(quality), "version": version}

    def metabolites(self) -> list[tuple[str, str, list[str]]]:
        """Identifier, formula and KEGG's identifiers of each metabolite of E. coli's core network."""
        annotated = [
            (metabolite, metabolite.annotation.get("kegg.compound", []))
            for metabolite in self._model("e_coli_core").metabolites
        ]
        return [
            (metabolite.id, metabolite.formula, [known] if isinstance(known, str) else list(known))
            for metabolite, known in annotated
        ]

    def unbalanced(self) -> dict[str, dict[str, dict[str, float]]]:
        """Network → `unbalanced_reactions`, of those that have some."""
        found = {name: unbalanced_reactions(self._model(name)) for name in NETWORKS}
        return {name: reactions for name, reactions in found.items() if reactions}

    def known_share(self, name: str, climate_quality: float) -> float:
        """Share of the network's conditions that follow from the record: CO2, CH4 (which stands for the organics), and
        the temperature, which counts as much as the climate is worth. The others are assumed: each nutrient in free
        supply, the supply of each further organic, and that there is no oxygen."""
        model = self._model(name)
        carbon_dioxide = "EX_co2_e" in model.reactions
        free = sum(exchange.lower_bound < 0 for exchange in model.exchanges)
        assumed = free + len(NETWORKS[name].organics) - 1 + 1
        return (1 + carbon_dioxide + climate_quality) / (2 + carbon_dioxide + assumed)

    def network(self, name: str, temperature_k: float, co2_bar: float, ch4_bar: float) -> Network:
        """The network with parsimonious flux-balance fluxes at a temperature and partial pressures.

        Uptake of organics scales with `growth_factor` and with CH4, uptake of CO2 with CO2, maintenance with
        temperature. Where the conditions allow no growth the fluxes are all zero: the network is dormant.
        """
        model = self._model(name)
        with model:
            organics = _UPTAKE_TRACE + (1 - _UPTAKE_TRACE) * ch4_bar / (ch4_bar + _HALF_CH4_BAR)
            for exchange, share in NETWORKS[name].organics.items():
                uptake = _UPTAKE * growth_factor(temperature_k) * organics * share
                model.reactions.get_by_id(exchange).lower_bound = -uptake
            if "EX_co2_e" in model.reactions:
                model.reactions.EX_co2_e.lower_bound = -_CO2_UPTAKE * co2_bar / (co2_bar + _HALF_CO2_BAR)
            for reaction in model.reactions.query(lambda reaction: reaction.id.startswith("ATPM")):
                reaction.lower_bound *= maintenance_factor(temperature_k)
            fluxes = _fluxes(model)
            bounds = np.array([reaction.bounds for reaction in model.reactions])
        return _graph(model, fluxes, bounds)


def _graph(model: cobra.Model, fluxes: np.ndarray, bounds: np.ndarray) -> Network:
    metabolites = {metabolite.id: index for index, metabolite in enumerate(model.metabolites)}
    count = len(metabolites)
    features = np.zeros((count + len(model.reactions), len(NODE_FEATURES)), np.float32)
    column = {name: index for index, name in enumerate(NODE_FEATURES)}
    for index, metabolite in enumerate(model.metabolites):
        for name, symbol in _ELEMENTS.items():
            features[index, column[name]] = metabolite.elements.get(symbol, 0)
        features[index, column["charge"]] = metabolite.charge or 0
        features[index, column["extracellular"]] = metabolite.id.endswith("_e")
    features[count:, column["lower_bound"] : column["upper_bound"] + 1] = bounds
    features[count:, column["flux"]] = fluxes
    edges, edge_features = [], []
    for number, reaction in enumerate(model.reactions):
        for metabolite, stoichiometry in reaction.metabolites.items():
            pair = (metabolites[metabolite.id], count + number)
            edges.append(pair if stoichiometry < 0 else pair[::-1])
            edge_features.append((stoichiometry, stoichiometry * fluxes[number]))
    kind = np.full(len(features), NODE_KINDS.index("reaction"), np.int8)
    kind[:count] = NODE_KINDS.index("metabolite")
    return Network(
        kind, features, np.array(edges, np.int64), np.array(edge_features, np.float32).reshape(-1, len(EDGE_FEATURES))
    )


def unbalanced_reactions(model: cobra.Model) -> dict[str, dict[str, float]]:
    """Reaction → element or ``charge`` → what it makes out of nothing (negative: loses).

    Exchanges with the surroundings and the growth objective, which sums a cell up, balance nothing by their nature.
    """
    inside = [reaction for reaction in model.reactions if not reaction.boundary and reaction.objective_coefficient == 0]
    return {reaction.id: balance for reaction in inside if (balance := reaction.check_mass_balance())}


def growth_factor(temperature_k: float) -> float:
    """Growth rate at ``temperature_k`` over that at the optimum, 0 to 1: the cardinal temperature model with
    inflection (Rosso, Lobry & Flandrois 1993, J. Theor. Biol. 162, 447, equation 1)."""
    t = temperature_k
    if not _T_MIN < t < _T_MAX:
        return 0.0
    numerator = (t - _T_MAX) * (t - _T_MIN) ** 2
    denominator = (_T_OPT - _T_MIN) * ((_T_OPT - _T_MIN) * (t - _T_OPT) - (_T_OPT - _T_MAX) * (_T_OPT + _T_MIN - 2 * t))
    return float(np.clip(numerator / denominator, 0.0, 1.0))


def maintenance_factor(temperature_k: float) -> float:
    """Maintenance energy at ``temperature_k`` over that at 310 K: Arrhenius law with 69 kJ mol-1 (Tijhuis, van
    Loosdrecht & Heijnen 1993, Biotechnol. Bioeng. 42, 509), held beyond the highest temperature of growth."""
    inverse = 1 / min(temperature_k, _T_MAX) - 1 / _MAINTENANCE_REFERENCE_K
    return float(np.exp(-_MAINTENANCE_J_MOL / _GAS_CONSTANT * inverse))


def _fluxes(model: cobra.Model) -> np.ndarray:
    """Parsimonious fluxes [R] (Lewis et al. 2010), or zeros where the conditions are infeasible.

    A solution's last digits depend on the basis GLPK starts from, which is otherwise what the solution before left
    behind: from the standard basis a run's fluxes depend on the run alone.
    """
    swiglpk.glp_std_basis(model.solver.problem)
    try:
        solution = pfba(model)
    except cobra.exceptions.OptimizationError:  # Infeasible is one of its kinds
        return np.zeros(len(model.reactions))
    return np.round(solution.fluxes.to_numpy(), 9)
