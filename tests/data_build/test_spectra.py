"""Measured spectra: from the archive's files to wavelengths, depths as fractions and errors. All data are synthetic."""

import json

import numpy as np
import pytest
from archive_server import ArchiveServer
from fake_tap import POINTS, FakeSpectra, ipac

from data_build.harvest import harvest
from data_build.policy import Policy, RateLimit
from data_build.sources import ARCHIVES
from data_build.sources.nasa_spectra import read_points
from data_build.spectra import measured_spectra

FIRST, SECOND = POINTS


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(RateLimit, "wait", lambda self: None)


def made(stand_in, tmp_path, limit=1000, **policy):
    with ArchiveServer(stand_in.reply) as server:
        made.requests = server.requests
        policy = Policy(tries=1, mirror=server.url, root=tmp_path / "cache", **policy)
        return harvest(ARCHIVES["nasa_spectra"](), tmp_path / f"stage-{limit}", policy, limit)


def test_a_spectrum_is_in_micrometres_and_fractions_in_the_order_of_wavelength(tmp_path):
    spectra = measured_spectra(made(FakeSpectra(), tmp_path))
    assert [spectrum.planet for spectrum in spectra] == ["Synthetic-1 b", "Synthetic-2 c"]
    first = spectra[0]
    assert first.facility == "James Webb Space Telescope" and first.reference.startswith("Désert et al. 2015, 2015ApJ")
    assert first.wavelength_um == pytest.approx([0.8, 1.2, 4.5])
    np.testing.assert_allclose(first.bandwidth_um, [0.05, 0.1, np.nan])
    assert first.transit_depth == pytest.approx([0.0140, 0.0150, 0.0155])
    assert first.sigma == pytest.approx([2e-4, 2e-4, 4e-4])  # of 0.01 and 0.03 % the mean; of 0.04 % alone, itself
    assert spectra[1].wavelength_um == pytest.approx([5.0])  # the other point has no error


def test_limits_and_points_without_a_depth_are_set_aside_with_the_reason(tmp_path):
    stand_in = FakeSpectra()
    points = {name: list(values) for name, values in POINTS[FIRST].items()}
    points["PL_TRANDEPLIM"][0], points["PL_TRANDEP"][1] = "1", "null"
    stand_in.files[FIRST] = ipac(points)
    stage = made(stand_in, tmp_path)
    entries = [json.loads(line) for line in (stage.folder / "quarantine.jsonl").read_text().splitlines()]
    assert entries == [
        {"point": f"{FIRST}#0", "reasons": ["transit_depth is a limit"]},
        {"point": f"{FIRST}#1", "reasons": ["transit_depth is absent"]},
    ]
    assert measured_spectra(stage)[0].wavelength_um == pytest.approx([4.5])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda files: files.pop(FIRST), "its file is not there"),
        (
            lambda files: files.update({FIRST: ipac({name: column[:2] for name, column in POINTS[FIRST].items()})}),
            "its file has 2 of 3 points",
        ),
        (lambda files: files.update({FIRST: ipac(POINTS[FIRST], {"PL_TRANDEP": "mmag"})}), "the unit of PL_TRANDEP is"),
        (lambda files: files.update({FIRST: ipac(POINTS[FIRST]).replace("1.50", "many")}), "its file is no IPAC table"),
        (
            lambda files: files.update({FIRST: ipac({name: POINTS[FIRST][name] for name in ("BANDWIDTH",)})}),
            "its file has no CENTRALWAVELNG, PL_TRANDEP",
        ),
    ],
)
def test_a_spectrum_whose_file_is_not_right_is_set_aside_as_a_whole(change, reason, tmp_path):
    stand_in = FakeSpectra()
    change(stand_in.files)
    stage = made(stand_in, tmp_path)
    assert [spectrum.planet for spectrum in measured_spectra(stage)] == ["Synthetic-2 c"]
    assert all(found.startswith(reason) for found in stage.manifest["quarantined"])


@pytest.mark.parametrize(("unit", "factor"), [("%", 1e-2), ("percent", 1e-2), ("", 1e-2), ("ppm", 1e-6)])
def test_depths_follow_the_files_unit(unit, factor):
    points, problem = read_points(ipac(POINTS[SECOND], {"PL_TRANDEP": unit}))
    assert problem == "" and points[0]["transit_depth"] == pytest.approx(0.70 * factor)
    assert points[0]["sigma"] == pytest.approx(0.01 * factor)


def test_a_file_that_does_not_declare_its_nulls_is_read():
    assert read_points(ipac(POINTS[FIRST], nulls=False)) == read_points(ipac(POINTS[FIRST]))


def test_a_workspace_that_is_over_is_opened_anew_and_what_is_cached_needs_none(tmp_path):
    stand_in = FakeSpectra()
    reply, files = stand_in.reply, []

    def script(request):
        if request.path.startswith("/workspace/TMP_x"):
            files.append(request.path)
            if len(files) == 2:
                stand_in.visits += 1  # someone else's visit ends ours
        return reply(request)

    stand_in.reply = script
    before = measured_spectra(made(stand_in, tmp_path))
    assert len(files) == 3 and stand_in.visits == 3
    stage = made(stand_in, tmp_path, limit=999, offline=True)
    assert made.requests == [] and len(measured_spectra(stage)) == len(before) == 2


def test_a_spectrum_that_the_limit_cuts_is_left_out(tmp_path):
    spectra = measured_spectra(made(FakeSpectra(), tmp_path, limit=4))
    assert [len(spectrum.sigma) for spectrum in spectra] == [3]
