"""Each part of the loss against a case whose answer is known."""

import math

import pytest
import torch
from torch_geometric.data import Batch, Data

from astrobio import losses
from astrobio.batch import graph_batch
from astrobio.graph_vae import GraphVAE


def test_energy_balance_weighs_latitudes_by_area():
    absorbed, outgoing = torch.full((1, 32, 64), 240.0), torch.full((1, 32, 64), 240.0)
    assert float(losses.energy_imbalance(absorbed, outgoing)) == 0
    pole, equator = absorbed.clone(), absorbed.clone()
    pole[:, 0] += 100
    equator[:, 16] += 100
    at_pole, at_equator = (float(losses.energy_imbalance(x, outgoing)) for x in (pole, equator))
    assert 0 < at_pole < at_equator / 100  # the band at the pole is 20 times smaller; the penalty is squared
    assert float(losses.latitude_weights(32, absorbed.device).sum()) == pytest.approx(1)


def test_classification_counts_labelled_samples_only():
    logits = torch.tensor([[0.0, 0.0], [9.0, -9.0]], requires_grad=True)
    loss = losses.classification(logits, torch.tensor([1.0, 1.0]), torch.tensor([True, False]))
    assert loss.item() == pytest.approx(math.log(2))
    none = losses.classification(logits, torch.tensor([1.0, 1.0]), torch.tensor([False, False]))
    none.backward()
    assert none.item() == 0 and not logits.grad.any()


def test_classification_is_least_at_the_probability_that_is_given():
    chance, there = torch.tensor([0.3]), torch.tensor([True])
    tried = torch.linspace(0.05, 0.95, 19)
    found = [losses.classification(torch.log(torch.tensor([[1 - q, q]])), chance, there).item() for q in tried]
    assert tried[found.index(min(found))].item() == pytest.approx(0.3)
    assert min(found) == pytest.approx(-0.3 * math.log(0.3) - 0.7 * math.log(0.7))


def test_energy_is_free_within_what_is_tolerated_and_linear_beyond():
    def penalty(absorbed, outgoing):
        return float(losses.energy_imbalance(*(torch.full((1, 32, 64), flux) for flux in (absorbed, outgoing))))

    assert penalty(240.5, 239.5) < 0.03  # 0.2%
    assert penalty(242.4, 237.6) == pytest.approx(0.5, abs=0.01)  # 1%
    assert penalty(288.0, 192.0) == pytest.approx(19.5, abs=0.2)  # 20%
    assert penalty(192.0, 288.0) == penalty(288.0, 192.0)


def test_emulation_weighs_area_and_all_fields_alike():
    levels, surface = torch.zeros(2, 5, 10, 32, 64), torch.zeros(2, 3, 32, 64)
    floor = losses.EMULATION_FLOOR
    wrong = surface.clone()
    wrong[0, 1] = 2.0
    error = losses.emulation(levels, surface, levels, wrong)
    torch.testing.assert_close(error, torch.tensor([4 / 53 + floor, floor]).sqrt())
    polar = levels.clone()
    polar[0, :, :, 0] = 1.0
    share = float(losses.latitude_weights(32, levels.device)[0])
    error = losses.emulation(levels, surface, polar, surface)
    torch.testing.assert_close(error, torch.tensor([50 / 53 * share + floor, floor]).sqrt())


def test_a_climate_that_is_hit_exactly_has_a_finite_slope():
    fields = torch.zeros(1, 5, 10, 32, 64, requires_grad=True)
    surface = torch.zeros(1, 3, 32, 64)
    losses.emulation(fields, surface, fields.detach(), surface).sum().backward()
    assert torch.equal(fields.grad, torch.zeros_like(fields))


def test_values_that_do_not_count_may_be_broken():
    values = torch.tensor([1.0, float("nan")], requires_grad=True)
    mean = losses.mean_present(values, torch.tensor([True, False]))
    mean.backward()
    assert mean.item() == 1 and values.grad.tolist() == [1, 0]


def test_consistency_is_zero_where_all_agree_and_moves_only_the_single_predictions():
    fused = torch.tensor([[2.0, 0.0]], requires_grad=True)
    agreeing = torch.tensor([[[2.0, 0.0], [-5.0, 5.0]]], requires_grad=True)
    present = torch.tensor([[True, False]])
    assert losses.consistency(fused, agreeing, present).item() == pytest.approx(0, abs=1e-6)
    loss = losses.consistency(fused, agreeing, torch.tensor([[True, True]]))
    loss.backward()
    assert loss.item() > 0 and fused.grad is None and agreeing.grad[0, 1].any()


def chain(flux: list[float]) -> Batch:
    """Three metabolites in a row, a → b → c, by two reactions that turn one into one; only b is inside the cell."""
    kind = torch.tensor([0, 0, 0, 1, 1])
    data = Data(
        x=torch.zeros(5, 11),
        kind=kind,
        edge_index=torch.tensor([[0, 3, 1, 4], [3, 1, 4, 2]]),
        stoichiometry=torch.tensor([-1.0, 1.0, -1.0, 1.0]),
        balanced=torch.tensor([0, 1, 0, 0, 0]).bool(),
        flux_mean=torch.zeros(5),
        flux_std=torch.ones(5),
        flux=torch.tensor([0.0, 0.0, 0.0, *flux]),
    )
    return graph_batch([data])


@pytest.mark.parametrize(
    ("flux", "imbalance"), [([2e4, 2e4], 0.0), ([2e4, 0.0], 1.0), ([3e4, 1e4], 0.5), ([0.0, 0.0], 0.0)]
)
def test_mass_balance_of_a_chain(flux, imbalance):
    graph = chain(flux)
    squashed = torch.sign(graph.flux) * torch.log1p(graph.flux.abs())
    assert GraphVAE._imbalance(squashed, graph).item() == pytest.approx(imbalance, abs=1e-3)
