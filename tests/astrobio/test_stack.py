"""The network on real records: every module runs, absent modalities count nothing, presets have their sizes."""

import dataclasses

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torch_geometric.nn import GPSConv
from torch_geometric.utils import to_dense_batch

from astrobio.config import ConfigError, load_preset, preset_names
from astrobio.dataset import AstrobioDataset
from astrobio.graph_vae import Layer, Messages, places, spread
from astrobio.stack import AstrobioStack


@pytest.fixture(scope="module")
def dataset(mini_dataset) -> AstrobioDataset:
    return AstrobioDataset(mini_dataset, "train", max_text_tokens=64)


@pytest.fixture
def stack() -> AstrobioStack:
    torch.manual_seed(0)
    return AstrobioStack(load_preset("tiny"))


def batch_of(dataset, indices):
    return dataset.collate([dataset[i] for i in indices])


def test_a_graph_layer_is_that_of_pyg(dataset):
    """With the places of the nodes found once: outputs and gradients are equal to the last bit."""
    torch.manual_seed(0)
    graphs = batch_of(dataset, range(3)).graphs
    place, real = places(graphs)
    layer = Layer(16, 4).double()
    ours, theirs = (
        torch.randn(
            len(graphs.kind), 16, dtype=torch.double, generator=torch.Generator().manual_seed(1)
        ).requires_grad_()
        for _ in range(2)
    )
    edges = graphs.edge_attr.double()
    out = layer(ours, graphs.edge_index, edges, place, real)
    expected = GPSConv.forward(layer.layer, theirs, graphs.edge_index, graphs.batch, edge_attr=edges)
    for x in (out, expected):
        (x**2).sum().backward()
    assert torch.equal(out, expected) and torch.equal(ours.grad, theirs.grad)
    rows, there = to_dense_batch(theirs, graphs.batch)
    assert torch.equal(spread(theirs, place, real), rows) and torch.equal(real, there) and not there.all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_comes_along_edges_is_summed_in_fp32(dtype):
    """1 and 3000 small terms, each below half of 1's last bit: in 16 bits the sum would stay 1."""
    messages = Messages(8, 4, heads=2, edge_dim=2)
    terms = torch.full((3001, 2, 4), torch.finfo(dtype).eps / 4, dtype=dtype)
    terms[0] = 1
    found = messages.to(dtype).aggregate(terms.float(), torch.zeros(3001, dtype=torch.long), dim_size=1)
    assert found.dtype is dtype and (found.float() > 1.3).all()
    query, key, value = (torch.randn(3, 2, 4, dtype=dtype) for _ in range(3))
    edges, index = torch.randn(3, 2, dtype=dtype), torch.zeros(3, dtype=torch.long)
    assert messages.message(query, key, value, edges, index, None, 1).dtype is torch.float32


def test_a_batch_gives_a_loss_its_parts_and_logits(stack, dataset):
    out = stack(batch_of(dataset, range(4)))
    weights = stack.config.loss
    weighted = {name.partition(".")[0] for name in out.parts}
    assert weighted == {field.name for field in dataclasses.fields(weights)} - {"balance"}  # of mixtures
    assert out.loss.item() == pytest.approx(
        sum(weights.weight(name) * float(part) for name, part in out.parts.items()), rel=1e-5
    )
    reconstruction = {name.partition(".")[2] for name in out.parts if name.startswith("reconstruction")}
    always = {"climate_visible", "spectrum_visible", "metabolism"}
    assert reconstruction == always | {"climate_hidden", "spectrum_hidden"}
    evaluated = stack.eval()(batch_of(dataset, range(4)))
    assert {name.partition(".")[2] for name in evaluated.parts if name.startswith("reconstruction")} == always
    assert out.logits.shape == (4, 2) and out.weights.shape == (4, 5)
    torch.testing.assert_close(out.weights.sum(1), torch.ones(4))


@pytest.mark.parametrize("indices", [[0], range(6)])
def test_every_parameter_has_a_gradient_even_where_all_is_absent(stack, dataset, indices):
    batch = batch_of(dataset, indices)
    for name in ("planet", "climate", "metabolism", "spectrum"):
        batch = batch.without(name)
    stack(batch).loss.backward()
    assert [name for name, p in stack.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("name", ["climate", "metabolism", "spectrum", "planet"])
def test_what_an_absent_modality_holds_does_not_matter(stack, dataset, name):
    """Its encoder runs, but nothing of it reaches the logits, the weights or the losses."""
    stack.eval()
    batch = batch_of(dataset, range(4)).without(name)
    other = dataclasses.replace(
        batch,
        climate_levels=batch.climate_levels + 3 * ~batch.present["climate"].view(-1, 1, 1, 1, 1, 1),
        climate_surface=batch.climate_surface + 3 * ~batch.present["climate"].view(-1, 1, 1, 1, 1),
        planet=batch.planet + 3 * ~batch.planet_known,
        spectrum=batch.spectrum + 0.3 * ~batch.present["spectrum"].view(-1, 1, 1),
        spectrum_spread=batch.spectrum_spread + 3 * ~batch.present["spectrum"],
        retrieval=batch.retrieval + 3 * ~batch.retrieval_known,
    )
    one, two = stack(batch), stack(other)
    torch.testing.assert_close(one.logits, two.logits)
    torch.testing.assert_close(one.loss, two.loss)
    torch.testing.assert_close(one.tasks.observables, two.tasks.observables)
    assert not one.weights[:, stack.modalities.index(name)].any()


def test_a_present_modality_matters(stack, dataset):
    stack.eval()
    batch = batch_of(dataset, range(6))
    whole = stack(batch).logits
    for name in ("planet", "climate", "metabolism", "spectrum", "text"):
        assert not torch.allclose(whole, stack(batch.without(name)).logits), name


def test_a_sample_does_not_depend_on_its_neighbours(stack, dataset):
    """Padding and batching of graphs and texts leave no trace."""
    stack.eval()
    alone = torch.cat([stack(batch_of(dataset, [i])).logits for i in range(5)])
    torch.testing.assert_close(stack(batch_of(dataset, range(5))).logits, alone, rtol=1e-3, atol=1e-4)


def test_the_prefix_reaches_the_text(stack, dataset):
    """The language model reads the modalities before the text: its loss depends on them."""
    stack.eval()
    batch = batch_of(dataset, range(4))
    assert stack(batch).parts["language"] != stack(batch.without("planet")).parts["language"]


def test_activation_checkpointing_keeps_loss_and_gradients(stack, dataset):
    def run(function):
        stack.zero_grad()
        stack.set_activation_checkpointing(function)
        torch.manual_seed(1)
        loss = stack(batch_of(dataset, range(3))).loss
        loss.backward()
        return loss.detach(), {name: p.grad.clone() for name, p in stack.named_parameters()}

    called = []

    def counting(function, *args, **kwargs):
        called.append(function)
        return checkpoint(function, *args, use_reentrant=True, **kwargs)

    loss, gradients = run(None)
    loss_again, gradients_again = run(counting)
    blocks = [
        part
        for part in (
            stack.climate.blocks,
            stack.climate.stem,
            stack.spectrum.blocks,
            stack.metabolism.layers,
            stack.fusion.blocks,
        )
    ]
    assert len(called) == sum(map(len, blocks)) + stack.config.language.config["num_hidden_layers"]
    torch.testing.assert_close(loss_again, loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients_again[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_a_preset_may_leave_modules_out(dataset, tmp_path):
    (tmp_path / "text.yaml").write_text(
        "language: {max_text_tokens: 64, config: {hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, "
        "num_attention_heads: 2, num_key_value_heads: 1, vocab_size: 2048}}"
    )
    out = AstrobioStack(load_preset(str(tmp_path / "text.yaml")))(batch_of(dataset, range(2)))
    assert out.logits is None and set(out.parts) == {"language"} and out.loss.isfinite()
    with pytest.raises(ConfigError, match="fusion is missing"):
        load_preset("tiny", {"fusion": None})


def test_presets_have_their_sizes():
    """In billions; the parts of the 17B stack as the mission names them."""
    sizes, totals = {}, {}
    for name in preset_names():
        with torch.device("meta"):
            stack = AstrobioStack(load_preset(name))
        sizes[name] = {
            child: sum(p.numel() for p in module.parameters()) / 1e9 for child, module in stack.named_children()
        }
        totals[name] = sum(p.numel() for p in stack.parameters())
    assert preset_names()[:4] == ["tiny", "small", "1b", "17b"]
    assert sum(sizes["tiny"].values()) < 0.002 and sum(sizes["small"].values()) < 0.05
    assert 0.9 < sum(sizes["1b"].values()) < 1.4
    assert 13.135 <= sizes["17b"]["language"] <= 13.145
    assert 1.14 <= sizes["17b"]["metabolism"] <= 1.26
    assert 2.4 <= sizes["17b"]["climate"] <= 2.6
    assert 16.8 <= sum(sizes["17b"].values()) <= 17.3
    # The pages with planned figures are of these: whoever changes a size plans them anew.
    assert (totals["17b"], totals["17b_frozen"], totals["1b"]) == (17_256_129_272, 17_256_129_272, 1_248_505_280)
    assert sizes["17b_llama2"]["language"] == pytest.approx(13.015864320)  # as Llama 2 13B is
