"""The folder that is carried to a machine without a network."""

import importlib.metadata
import json
import os
import subprocess
import sys
import zipfile

import pytest

from astrobio.config import ConfigError
from launch.experiments import carry


def box(tmp_path, **versions):
    """`pip list` of a machine with everything that is installed here, but for ``versions`` (None: not there)."""
    here = {carry.canonicalize_name(found.name): found.version for found in importlib.metadata.distributions()}
    here |= {name.replace("_", "-"): version for name, version in versions.items()}
    path = tmp_path / "box.txt"
    path.write_text("".join(f"{name}=={version}\n" for name, version in here.items() if version))
    return path


def test_what_is_there_and_new_enough_stays_there(tmp_path):
    assert carry.missing(carry.read_box(box(tmp_path, torch="2.11.0+cu130", transformers="5.20.0")), "3.12") == {}


def test_what_is_too_old_or_not_there_is_carried_as_tested_here(tmp_path):
    there = carry.read_box(box(tmp_path, transformers="5.17.0", deepspeed=None, pydantic=None, pydantic_core=None))
    taken = carry.missing(there, "3.12")
    assert set(taken) == {"transformers", "deepspeed", "pydantic", "pydantic-core"}  # pydantic-core for pydantic's sake
    assert taken["deepspeed"] == importlib.metadata.version("deepspeed")


def test_wandb_is_left_out(tmp_path):
    assert "wandb" not in carry.missing(carry.read_box(box(tmp_path, wandb=None)), "3.12")


def test_a_name_without_a_version_counts_as_new_enough(tmp_path):
    path = tmp_path / "box.txt"
    path.write_text(box(tmp_path, transformers=None).read_text() + "\n# what the provider's page names\ntransformers\n")
    assert carry.missing(carry.read_box(path), "3.12") == {}


@pytest.mark.parametrize("version", ["2.9.1", None])
def test_torch_is_not_carried(tmp_path, version):
    with pytest.raises(ConfigError, match=r"torch is (2\.9\.1|not there), and torch.*2\.10 is needed"):
        carry.missing(carry.read_box(box(tmp_path, torch=version)), "3.12")


@pytest.mark.parametrize(
    "text, said",
    [
        ("torch 2.11\n", "line 1: 'torch 2.11' is neither NAME==VERSION nor NAME"),
        (None, "make it there: python3 -m pip list"),
    ],
)
def test_a_list_that_is_none(tmp_path, text, said):
    path = tmp_path / "box.txt"
    if text:
        path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        carry.read_box(path)


def test_the_folder_runs_by_itself(tmp_path, sample_dataset, monkeypatch):
    """Its own project, its own wheels, its own data: nothing of this checkout."""

    def add_probe(wanted, into, python):  # in place of what a package index would send
        assert wanted == [], "everything is there"
        into.mkdir()
        with zipfile.ZipFile(into / "probe-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("probe.py", "here = True\n")
            wheel.writestr("probe-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: probe\nVersion: 1.0\n")
            wheel.writestr(
                "probe-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            wheel.writestr("probe-1.0.dist-info/RECORD", "")

    monkeypatch.setattr(carry, "_wheels", add_probe)
    out = tmp_path / "carried"
    with pytest.raises(ConfigError, match=r"0\.01: .* would take \d+\.\d MB, and 0\.0 are allowed; the .* probe"):
        carry.carry(box(tmp_path), out, sample_dataset, 12, "3.12", 0.01)
    assert not out.exists()
    wheels, sizes = carry.carry(box(tmp_path), out, sample_dataset, 12, "3.12", 64)
    assert wheels == {} and sizes.keys() == {"project", "data", "wheels", "run.sh"} and all(sizes.values())
    run = subprocess.run(
        ["sh", str(out / "run.sh"), "--minutes", "0.01"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable, "PYTHONPATH": ""},
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert (out / "site" / "probe.py").exists()
    found = json.loads((out / "acceptance" / "acceptance.json").read_text())
    assert found["model"] == "tiny" and found["ok"]
    with pytest.raises(ConfigError, match="is there already"):
        carry.carry(box(tmp_path), out, sample_dataset, 12, "3.12", 64)
