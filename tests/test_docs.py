"""README and docs: they build strictly, their links lead somewhere, and their commands have options that exist."""

import argparse
import configparser
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from data_build.__main__ import main as data_main
from launch.options import parse_arguments

ROOT = Path(__file__).resolve().parent.parent
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "ds_configs/README.md", *DOCS]
MOST_WORDS = 1000
FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
#: A file or folder of the tree, in backticks.
NAMED = re.compile(r"`((?:astrobio|benchmarks|data_build|docs|ds_configs|launch|tests)/[\w./-]*)`")
#: Scripts that take the options of launch/train.py.
TRAIN = ("launch/train.py", "launch/experiments/full_size.py")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The pages as mkdocs builds them, where each warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_the_site_fetches_nothing(site):
    pages = [site / page.relative_to(ROOT / "docs").with_suffix(".html") for page in DOCS]
    for page in pages:
        assert not re.findall(
            r"<(?:script|img)[^>]*src=\"(?:https?:)?//|<link[^>]*href=\"(?:https?:)?//", page.read_text()
        )


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= MOST_WORDS


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings(page, site):
    prose = FENCED.sub("", page.read_text())
    for link in LINK.findall(prose):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)}: {link} leads nowhere"
        if anchor and target in DOCS:
            html = (site / target.relative_to(ROOT / "docs").with_suffix(".html")).read_text()
            assert f'id="{anchor}"' in html, f"{name_of(page)}: {link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_named_files_exist(page):
    missing = [name for name in NAMED.findall(page.read_text()) if not (ROOT / name).exists()]
    assert not missing, f"{name_of(page)} names {missing}"


def commands_of(page: Path) -> list[list[str]]:
    """The commands of the page's ``sh`` blocks, as words."""
    found = []
    for language, block in FENCED.findall(page.read_text()):
        for line in block.replace("\\\n", " ").splitlines() if language == "sh" else ():
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            command: list[str] = []
            for word in [*lexer, ";"]:
                if word not in (";", "&&", "|", ">"):
                    command.append(word)
                elif command:
                    found.append(command)
                    command = []
    return found


class Parsed(Exception):
    """The options are all known; what follows would run the command."""


def parse(main: Callable[[list[str]], object], words: list[str]) -> str:
    """What the real parser of ``main`` says against ``words``; nothing if it takes them. The command does not run."""
    whole, said = argparse.ArgumentParser.parse_args, []

    def parse_args(self, args=None, namespace=None):
        whole(self, args, namespace)
        raise Parsed

    def error(self, message):
        said.append(f"{self.prog}: {message}")
        raise Parsed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Parsed):
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        patch.setattr(argparse.ArgumentParser, "error", error)
        main(words)
    return "".join(said)


def astrobio(words: list[str]) -> object:
    """The `astrobio` command, as setup.cfg installs it."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    module, function = re.search(
        r"astrobio = ([\w.]+):(\w+)", config["options.entry_points"]["console_scripts"]
    ).groups()
    return getattr(importlib.import_module(module), function)(words)


def problem_of(command: list[str]) -> str:
    """What is wrong with a command; nothing for a good one, and for programs that are not this project's."""
    program, words = Path(command[0]).name, command[1:]
    for word in words:
        if re.match(r"(benchmarks|ds_configs|launch|tests)/", word) and not (ROOT / word).exists():
            return f"there is no {word}"
    if program == "astrobio":
        return parse(data_main, words[1:]) if words[:1] == ["data"] else parse(astrobio, words)
    if program == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return ", ".join(f"make has no target {word}" for word in words if word not in targets)
    if program == "deepspeed":
        from deepspeed.launcher.runner import parse_args

        if said := parse(parse_args, words):
            return said
        script = next(i for i, word in enumerate(words) if word.endswith(".py"))
        return (
            parse(parse_arguments, words[script + 1 :])
            if words[script] in TRAIN
            else problem_of(["python", *words[script:]])
        )
    if program == "python" and words[0] == "-m":
        if words[1] == "data_build":
            return parse(data_main, words[2:])
        return f"no parser is known of {words[1]}" if (ROOT / words[1].split(".")[0]).is_dir() else ""
    if program == "python":  # a benchmark, which parses where it runs
        source = (ROOT / words[0]).read_text()
        return ", ".join(
            f"{words[0]} has no {word}" for word in words if word[:2] == "--" and f'"{word}"' not in source
        )
    return ""


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_have_options_that_exist(page):
    for command in commands_of(page):
        assert not problem_of(command), f"{name_of(page)}: {' '.join(command)}: {problem_of(command)}"


@pytest.mark.parametrize(
    "command",
    [
        "astrobio plan --model tiny --no_such_option",
        "astrobio checkpoint export RUN",
        "astrobio data build sample --out DIR --no_such_option",
        "astrobio no_such_command",
        "deepspeed --no_such_option 2 launch/train.py --ds_config ds_configs/zero3.json",
        "deepspeed --num_gpus 2 launch/train.py --ds_config ds_configs/zero3.json --no_such_option",
        "deepspeed --num_gpus 2 launch/train.py --ds_config ds_configs/no_such.json",
        "python benchmarks/loader.py --no_such_option",
        "make no_such_target",
    ],
)
def test_a_wrong_command_is_noticed(command):
    assert problem_of(command.split())


def test_pre_commit_takes_the_tested_ruff():
    tested = re.search(r"^ruff==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    assert f"rev: v{tested}" in (ROOT / ".pre-commit-config.yaml").read_text()
