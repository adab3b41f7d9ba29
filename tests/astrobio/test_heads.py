"""The heads of the tasks beside the label: what they read, what they learn, and that they keep silent where told."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from astrobio import losses, schema
from astrobio.batch import Batch
from astrobio.config import ConfigError, load_preset
from astrobio.dataset import AstrobioDataset
from astrobio.heads import QuickLinear, spherical_harmonics
from astrobio.mixture import mixture
from astrobio.planet import ATMOSPHERE_COLUMNS, bulk
from astrobio.stack import AstrobioStack, StackOutput

COLUMNS = [column.name for column in schema.PLANET_COLUMNS]
TASKS = ("observables", "emulation", "retrieval")
#: What the tasks' heads do not read, as small as it can be.
ONLY_TASKS = {
    "climate": None,
    "metabolism": None,
    "language.config.num_hidden_layers": 1,
    "language.max_text_tokens": 8,
    "modality_dropout": 0.0,
}


@pytest.fixture(scope="module")
def dataset(mini_dataset) -> AstrobioDataset:
    return AstrobioDataset(mini_dataset, "train", max_text_tokens=8)


@pytest.fixture
def stack() -> AstrobioStack:
    torch.manual_seed(0)
    return AstrobioStack(load_preset("tiny", ONLY_TASKS))


@pytest.fixture(scope="module")
def batch(dataset) -> Batch:
    """Four records with climate and spectrum; what a retrieval looks for is made up."""
    whole = [item for item in map(dataset.__getitem__, range(48)) if all(item["present"].values())][:4]
    made = dataset.collate(whole)
    return dataclasses.replace(
        made,
        retrieval=torch.randn(made.retrieval.shape, generator=torch.Generator().manual_seed(0)),
        retrieval_known=torch.ones_like(made.retrieval_known),
    )


def changed(batch: Batch, names) -> Batch:
    """Other values in these columns of the planet table."""
    planet = batch.planet.clone()
    planet[:, [COLUMNS.index(name) for name in names]] += 1.0
    return dataclasses.replace(batch, planet=planet)


def tasks_of(stack, batch):
    with torch.no_grad():
        return stack.eval()(batch).tasks


def test_observables_and_retrieval_do_not_see_the_atmospheres_columns(stack, batch):
    """They would be the answer: nobody knows them before the spectrum is read."""
    one, two = tasks_of(stack, batch), tasks_of(stack, changed(batch, ATMOSPHERE_COLUMNS))
    assert torch.equal(one.observables, two.observables) and torch.equal(one.retrieval, two.retrieval)
    assert not torch.allclose(one.emulation.surface, two.emulation.surface)
    known = bulk(torch.ones(1, len(COLUMNS), dtype=torch.bool))[0].tolist()
    assert {name for name, kept in zip(COLUMNS, known, strict=True) if not kept} == set(ATMOSPHERE_COLUMNS)


def test_observables_and_retrieval_see_spectrum_and_bulk_parameters(stack, batch):
    one = tasks_of(stack, batch)
    for other in (tasks_of(stack, changed(batch, ["radius_earth"])), tasks_of(stack, batch.without("spectrum"))):
        assert not torch.allclose(one.observables, other.observables)
        assert not torch.allclose(one.retrieval, other.retrieval)


def test_the_emulated_climate_is_of_planet_and_atmosphere_alone(stack, batch):
    one = tasks_of(stack, batch).emulation
    other = batch
    for name in ("climate", "metabolism", "spectrum", "text"):
        other = other.without(name)
    two = tasks_of(stack, other).emulation
    assert torch.equal(one.levels, two.levels) and torch.equal(one.surface, two.surface)
    assert one.levels.shape == (4, 5, 10, 32, 64) and one.surface.shape == (4, 3, 32, 64)


def of_task(out: StackOutput, task: str) -> list[float]:
    """The parts of the loss of one task."""
    return [float(value) for name, value in out.parts.items() if name.partition(".")[0] == task]


@pytest.mark.parametrize("task", TASKS)
def test_what_is_not_known_costs_nothing_and_moves_nothing(stack, batch, task):
    unknown = {
        "observables": lambda: dataclasses.replace(
            batch, label_probability_known=torch.zeros_like(batch.label_probability_known)
        ),
        "emulation": lambda: batch.without("climate"),
        "retrieval": lambda: dataclasses.replace(batch, retrieval_known=torch.zeros_like(batch.retrieval_known)),
    }[task]()
    out = stack(unknown)
    assert of_task(out, task) and not any(of_task(out, task))
    out.loss.backward()
    gradients = [p.grad for p in getattr(stack.tasks, task).parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
    stack.zero_grad()
    out = stack(batch)
    out.loss.backward()
    assert all(of_task(out, task)) and any(p.grad.any() for p in getattr(stack.tasks, task).parameters())


def test_what_the_tasks_learn_survives_modality_dropout(batch):
    """A planet table or a climate that is hidden from the fusion is still a pair to learn the climate from."""
    torch.manual_seed(0)
    with_climate = {key: value for key, value in ONLY_TASKS.items() if key != "climate"}
    stack = AstrobioStack(load_preset("tiny", {**with_climate, "modality_dropout": 0.99}))
    whole = stack.eval()(batch)
    dropped = stack.train()(batch)
    assert torch.equal(dropped.tasks.emulation.levels, whole.tasks.emulation.levels)
    torch.testing.assert_close(dropped.parts["emulation"], whole.parts["emulation"])
    assert dropped.parts["emulation"] > 0


def test_outputs_for_evaluation_are_detached(stack, batch):
    """DeepSpeed takes outputs that need a gradient for the beginning of the backward pass."""
    tasks = stack(batch).tasks
    assert not any(x.requires_grad for x in (tasks.observables, *tasks.emulation, tasks.retrieval))


def test_each_task_may_be_left_out(dataset, batch):
    stack = AstrobioStack(load_preset("tiny", {**ONLY_TASKS, "tasks.observables": None, "tasks.retrieval": None}))
    out = stack(batch)
    assert out.tasks.observables is None and out.tasks.retrieval is None and out.tasks.emulation is not None
    assert not {"observables", "retrieval"} & set(out.parts)
    with pytest.raises(ConfigError, match="tasks.retrieval reads spectrum, .* leave it out"):
        load_preset("tiny", {"spectrum": None, "tasks.observables": None})
    with pytest.raises(ConfigError, match="did you mean 'emulation'"):
        load_preset("tiny", {"tasks.emulations": None})


def test_spherical_harmonics_are_orthogonal_on_the_grid():
    patterns = torch.from_numpy(spherical_harmonics(4)).unflatten(1, (32, 64))
    products = losses.area_mean(patterns[:, None] * patterns[None])
    degrees = np.repeat(np.arange(5), 2 * np.arange(5) + 1)
    np.testing.assert_allclose(products, np.diag(1.0 / (1 + degrees) ** 2), atol=5e-3)
    assert np.allclose(patterns[0], 1)


def fitted(stack, batch_of, steps, rate=3e-3):
    optimizer = torch.optim.AdamW([*stack.planet.parameters(), *stack.tasks.parameters()], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    stack.train()
    for step in range(steps):
        optimizer.zero_grad()
        batch_of(step).backward()
        optimizer.step()
        schedule.step()
    return stack.eval()


def test_emulation_beats_linear_regression_on_a_climate_that_is_not_linear(stack):
    """Warm where the star stands, the more so the thinner the air: a product of two columns, which no ridge regression
    finds. 256 planets to learn from, 64 to be tested on."""
    rng = torch.Generator().manual_seed(0)
    planet = torch.randn(320, len(COLUMNS), generator=rng)
    known = torch.ones_like(planet, dtype=torch.bool)
    longitude = torch.linspace(0, 2 * torch.pi, 65)[:-1]
    pattern = torch.cos(longitude).expand(32, 64)
    amount = planet[:, 3] * planet[:, 11]
    levels = (planet[:, 3, None, None] + amount[:, None, None] * pattern)[:, None, None].expand(-1, 5, 10, -1, -1)
    surface = levels[:, :3, 0]

    def error(rows):
        climate = stack.tasks.emulation(stack.planet(planet[rows], known[rows]))
        return losses.emulation(*climate, levels[rows], surface[rows]).mean()

    train, test = torch.arange(256), torch.arange(256, 320)
    fitted(stack, lambda step: error(torch.randperm(256, generator=rng)[:16]), steps=100)
    x, y = planet.numpy(), surface[:, 0].flatten(1).numpy()
    linear = Ridge(1.0).fit(x[train], y[train]).predict(x[test])
    weights = losses.latitude_weights(32, planet.device).repeat_interleave(64).numpy() / 64
    with torch.no_grad():
        assert error(test).item() < 0.7 * ((((linear - y[test]) ** 2) @ weights) ** 0.5).mean()


def test_a_quick_linear_layer_starts_as_a_linear_one_and_moves_further():
    torch.manual_seed(0)
    quick, plain = QuickLinear(32, 64, gain=20.0), torch.nn.Linear(32, 64)
    x = torch.randn(256, 32)
    moved = []
    for layer in (quick, plain):
        before = layer(x).detach()
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-4)
        layer(x).square().mean().backward()
        optimizer.step()
        moved.append((layer(x) - before).std().item())
    torch.testing.assert_close(quick(x).std(), plain(x).std(), rtol=0.2, atol=0)
    assert moved[0] == pytest.approx(20 * moved[1], rel=0.2)


def test_a_posterior_is_as_wide_as_what_it_cannot_know(stack):
    """The first column is told by the tokens, with noise of 0.3; the others are not."""
    torch.manual_seed(0)
    head, columns = stack.tasks.retrieval, len(schema.RETRIEVAL_COLUMNS)
    known = torch.ones(256, columns, dtype=torch.bool)

    def drawn():
        tokens, values = torch.randn(256, 4, stack.language.hidden_size), torch.randn(256, columns)
        values[:, 0] = tokens[:, 0, 0] + 0.3 * torch.randn(256)
        return mixture(head(tokens), columns), values

    fitted(stack, lambda _: (lambda found, values: found.nll(values, known).mean())(*drawn()), steps=150)
    with torch.no_grad():
        found, values = drawn()
    low, high = found.quantile(0.05), found.quantile(0.95)
    within = ((low <= values) & (values <= high)).float().mean(0)
    assert ((0.8 < within) & (within < 0.97)).all()
    width = (high - low).mean(0)
    assert width[0] < 0.6 * width[1:].min()
