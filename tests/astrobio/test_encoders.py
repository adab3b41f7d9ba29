"""What the encoders reconstruct, and how it is scored."""

import numpy as np
import pytest
import torch

from astrobio import datacube, spectrum
from astrobio.config import load_preset
from astrobio.datacube import DatacubeEncoder
from astrobio.dataset import AstrobioDataset
from astrobio.normalisation import normalised_spectrum
from astrobio.schema import SPECTRUM_POINTS
from astrobio.spectrum import SpectrumEncoder, binned_depth

WIDTH = 8


@pytest.fixture(scope="module")
def climates(mini_dataset):
    data = AstrobioDataset(mini_dataset, "train", max_text_tokens=16)
    batch = data.collate([item for item in map(data.__getitem__, range(16)) if item["present"]["climate"]])
    return batch.climate_levels, batch.climate_surface


def silent(encoder, *names):
    """The encoder, whose decoders say 0."""
    for name in names:
        for parameter in getattr(encoder, name).parameters():
            torch.nn.init.zeros_(parameter)
    return encoder


def test_hidden_and_visible_climate_is_scored_apart(climates, monkeypatch):
    """Of a decoder that says 0, the error is the mean square of the patches: here of those of the first half."""
    encoder = silent(DatacubeEncoder(load_preset("tiny").climate, WIDTH), "reconstruct_levels", "reconstruct_surface")

    def first_half(batch, length, share, device):
        return (torch.arange(length, device=device) < length * (share > 0) / 2).expand(batch, -1)

    monkeypatch.setattr(datacube, "sample_mask", first_half)
    levels, surface = climates
    out = encoder.train()(levels, surface)
    upper, lower = levels[:, :, 0, :5], levels[:, :, 0, 5:]  # patches are five levels thick
    surface_part = (surface**2).flatten(1).mean(1)
    torch.testing.assert_close(out.hidden, ((upper**2).flatten(1).mean(1) + surface_part) / 2)
    torch.testing.assert_close(out.visible, ((lower**2).flatten(1).mean(1) + surface_part) / 2)
    evaluated = encoder.eval()(levels, surface)
    assert not evaluated.hidden.any()
    torch.testing.assert_close(evaluated.visible, ((levels**2).flatten(1).mean(1) + surface_part) / 2)


def test_evaluated_fields_are_better_than_their_means_after_a_little_training(climates):
    """All of them, not the hidden tenth that a masked autoencoder learns."""
    torch.manual_seed(0)
    levels, surface = (fields[:8] for fields in climates)
    encoder = DatacubeEncoder(load_preset("tiny").climate, WIDTH)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=3e-3)
    for _ in range(80):
        out = encoder.train()(levels, surface)
        optimizer.zero_grad()
        (out.hidden + out.visible).mean().backward()
        optimizer.step()
    means = [((x - x.mean((-2, -1), keepdim=True)) ** 2).mean() for x in (levels, surface)]
    assert encoder.eval()(levels, surface).visible.mean() < 0.7 * sum(means) / 2


def observed(signal, sigma, seed=0):
    """Spectra [B, W, 3] and their spreads [B], as the dataset gives them."""
    rng = np.random.default_rng(seed)
    wavelength = np.geomspace(0.6, 20, SPECTRUM_POINTS)
    found = [
        normalised_spectrum(np.stack([wavelength, 1e-3 + row + rng.normal(0, sigma), sigma], axis=1)) for row in signal
    ]
    return torch.from_numpy(np.stack([row for row, _ in found])), torch.tensor([spread for _, spread in found])


def bands(count, seed=1):
    """Signals [count, W] of 20 ppm: one band at one of four places, which all its neighbours tell of."""
    places = np.random.default_rng(seed).integers(4, size=count)
    phase = np.linspace(0, 2 * np.pi, SPECTRUM_POINTS)
    return 28e-6 * np.sin(phase + places[:, None] * np.pi / 2)


def test_bins_are_weighted_means():
    depth, sigma = torch.randn(2, 40), torch.rand(2, 40) + 0.1
    mean, trust = binned_depth(depth, 1 / (1 + sigma**2), 10)
    precision = (sigma**-2).unflatten(-1, (-1, 10))
    torch.testing.assert_close(mean, (precision * depth.unflatten(-1, (-1, 10))).sum(-1) / precision.sum(-1))
    torch.testing.assert_close(trust, 1 / (1 + 1 / precision.sum(-1)))


@pytest.mark.parametrize("noise", [0.02, 1.0, 4.0])
def test_the_mean_spectrum_has_an_error_of_one_whatever_the_noise(noise):
    sigma = np.full(SPECTRUM_POINTS, noise * 20e-6)
    sigma[900:] *= 10
    encoder = silent(SpectrumEncoder(load_preset("tiny").spectrum, WIDTH), "reconstruct").eval()
    assert encoder(*observed(bands(64), sigma)).visible.mean().item() == pytest.approx(1, abs=0.15)


def test_what_was_not_observed_changes_nothing():
    spectra, spread = observed(bands(3), np.full(SPECTRUM_POINTS, 20e-6))
    spectra[:, 200:333, 1:] = 0
    other = spectra.clone()
    other[:, 200:333, 1] = 7.0
    encoder = SpectrumEncoder(load_preset("tiny").spectrum, WIDTH).eval()
    for one, two in zip(encoder(spectra, spread), encoder(other, spread), strict=True):
        torch.testing.assert_close(one, two)


def test_the_unit_of_the_depths_is_told():
    spectra, spread = observed(bands(3), np.full(SPECTRUM_POINTS, 20e-6))
    encoder = SpectrumEncoder(load_preset("tiny").spectrum, WIDTH).eval()
    assert not torch.allclose(encoder(spectra, spread).tokens, encoder(spectra, spread + 1).tokens)


def test_hidden_depths_are_learned_at_a_signal_to_noise_of_a_half(monkeypatch):
    """Which a loss of single points, of which noise is four fifths, cannot show."""
    torch.manual_seed(0)
    sigma = np.full(SPECTRUM_POINTS, 40e-6)
    train, test = observed(bands(64), sigma), observed(bands(64, seed=2), sigma, seed=3)
    encoder = SpectrumEncoder(load_preset("tiny").spectrum, WIDTH)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=3e-3)
    for _ in range(80):
        out = encoder.train()(*train)
        optimizer.zero_grad()
        (out.hidden + out.visible).mean().backward()
        optimizer.step()
    with torch.no_grad():
        assert encoder(*test).hidden.mean() < 0.6
    monkeypatch.setattr(spectrum, "sample_mask", lambda *_: torch.ones(64, 20, dtype=torch.bool))
    with torch.no_grad():
        assert encoder(*test).hidden.mean() > 0.8  # from nothing, nothing
