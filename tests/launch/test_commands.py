"""Every command of `astrobio` has a help with an example, and starting waits for no large package."""

import re
import subprocess
import sys

import pytest

from launch import ROOT
from launch.cli import main

COMMANDS = ("check", "compare", "acceptance", "carry", "explain", "params", "plan", "checkpoint", "checkpoint export")


def help_of(command: str, capsys) -> str:
    with pytest.raises(SystemExit) as leaving:
        main([*command.split(), "-h"])
    assert leaving.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command, capsys):
    assert re.search(rf"\nexample:\n  astrobio {command}\b", help_of(command, capsys))


def test_data_has_a_help_of_its_own(capsys):
    assert "usage: astrobio data build" in help_of("data build", capsys)


def test_starting_imports_nothing_slow():
    script = "import sys, launch.cli; print({'torch', 'deepspeed', 'transformers', 'datasets'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
