"""Predictions of published runs stay within what is allowed."""

import re
import subprocess
import sys

import pytest
from project import ROOT

from benchmarks.published import predict
from benchmarks.published_cases import CASES


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name, marks=() if case.name == "R1" else pytest.mark.slow) for case in CASES]
)
def test_a_published_run_is_predicted(case):
    found = predict(case)
    assert not {key: figure["error"] for key, figure in found["figures"].items() if figure["holds"] is False}
    if case.fits is not None:
        assert found["fits"]["predicted"] is case.fits


@pytest.mark.slow
def test_the_hosts_rates_are_measured():
    command = [sys.executable, "benchmarks/hooks.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "operator_s" in done.stdout and "under ZeRO-3" in done.stdout
    on_cpu = subprocess.run([*command, "--cpu"], cwd=ROOT, capture_output=True, text=True)
    assert hook_s(done.stdout) > hook_s(on_cpu.stdout), "CUDA's streams, events and ranges cost nothing"


def hook_s(told: str) -> float:
    return float(re.search(r"hook_s ([\d.]+)", told)[1])
