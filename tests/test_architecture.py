"""Who imports whom, in functions too: no circle, and ``data_build → astrobio ← launch``; and how long files are. Read
from the source."""

import ast
import importlib.util
import subprocess
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from project import ROOT

PACKAGES = ("astrobio", "data_build", "launch")
#: What each may not import: launch trains on datasets that are there.
APART = {
    "astrobio": ("launch", "data_build", "deepspeed"),
    "data_build": ("launch", "deepspeed"),
    "launch": ("data_build",),
}
#: But `astrobio data` is data_build's command, and `astrobio carry` takes an excerpt of a dataset along.
EXCEPT = {"launch.commands.data": "data_build.__main__.", "launch.experiments.carry": "data_build.excerpt."}


def modules_of(root: Path) -> dict[str, Path]:
    """Dotted name → file."""
    found = {}
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(module: str, path: Path) -> Iterator[str]:
    """Dotted names of all that a file imports: modules, and what is taken from them."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{source}.{name.name}" for name in node.names)


def graph_of(modules: dict[str, Path]) -> dict[str, list[str]]:
    """Module → the modules it needs: those it imports, and the packages above these that it is not in itself."""
    graph = {}
    for module, path in modules.items():
        own = {module, *packages_above(module)}
        needed = set()
        for name in imports_of(module, path):
            target = next((part for part in (name, *packages_above(name)) if part in modules), None)
            if target is not None:
                needed |= {target} | {package for package in packages_above(target) if package not in own}
        graph[module] = sorted(needed - {module})
    return graph


def packages_above(name: str) -> list[str]:
    """The nearest one first."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1)]


def circles_of(graph: dict[str, list[str]]) -> list[str]:
    """Circles, one after another: of each that is found, an import is left out, until there is none."""
    graph, found = {module: list(needed) for module, needed in graph.items()}, []
    while True:
        try:
            TopologicalSorter(graph).prepare()
            return found
        except CycleError as error:
            _, circle = error.args
            found.append(" → ".join(reversed(circle)))
            graph[circle[1]].remove(circle[0])


def test_no_module_imports_itself_by_others():
    graph = graph_of(modules_of(ROOT))
    assert "launch.loop" in graph["launch.train"], "the imports are not seen"
    circles = circles_of(graph)
    assert not circles, "import circles:\n" + "\n".join(circles)


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_keep_apart(package):
    wrong = {
        f"{module} imports {name}"
        for module, path in modules_of(ROOT).items()
        if module.split(".")[0] == package
        for name in imports_of(module, path)
        if name.split(".")[0] in APART[package] and not name.startswith(EXCEPT.get(module, ()))
    }
    assert not wrong


def test_no_file_is_too_long_to_read():
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("this is no checkout")
    lengths = {name: len((ROOT / name).read_text().splitlines()) for name in listed.stdout.splitlines()}
    assert "launch/planner/plan.py" in lengths, "the files are not seen"
    limits = {name: 350 if name.startswith("launch/planner/") else 400 for name in lengths}
    assert not {name: length for name, length in lengths.items() if length > limits[name]}


#: Keys of a ds_config that others know as fields of `DsConfig`.
PARSED = {"zero_optimization", "fp16", "bf16", "activation_checkpointing", "gradient_accumulation_steps", "nvme_path"}


def lookups_of(source: str) -> Iterator[str]:
    """What is read of a ds_config as a dict, of ``raw`` too: ``[…]`` and ``.get(…)``."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case (
                ast.Subscript(value=of, slice=key, ctx=ast.Load())
                | ast.Call(func=ast.Attribute(value=of, attr="get"), args=[key, *_])
            ):
                known = isinstance(key, ast.Constant) and key.value in PARSED
                if known or ast.unparse(of).endswith(("ds_config", "['ds_config']", ".raw")):
                    yield ast.unparse(node)


def test_a_ds_config_is_parsed_once():
    paths = [path for module, path in modules_of(ROOT).items() if module.startswith("launch.")]
    others = [path for path in paths if path.parent.name != "ds_config"]
    assert not [f"{path}: {found}" for path in others for found in lookups_of(path.read_text())]
    planted = 'job.ds_config["a"], plan.ds_config.raw.get("a"), about["ds_config"]["a"], zero.get("fp16", 1), a["b"]'
    assert len(list(lookups_of(planted))) == 4


@pytest.mark.parametrize(
    ("files", "circles"),
    [
        (
            {
                "launch/a.py": "import os\nfrom launch.b import f\n",
                "launch/b.py": "import launch.c\n",
                "launch/c.py": "",
            },
            [],
        ),
        (
            {"launch/a.py": "from launch.b import f\n", "launch/b.py": "def f():\n    from launch import a\n"},
            ["launch.a → launch.b → launch.a"],
        ),
        (
            {
                "launch/a.py": "import launch.b\n",
                "launch/b.py": "from . import c\n",
                "launch/c.py": "from .a import f\n",
            },
            ["launch.a → launch.b → launch.c → launch.a"],
        ),
        (
            {
                "launch/a.py": "import launch.rooms.b\n",
                "launch/rooms/__init__.py": "import launch.a\n",
                "launch/rooms/b.py": "",
            },
            ["launch.a → launch.rooms → launch.a"],
        ),
    ],
    ids=["none", "inside a function", "of three, relative", "by the package of what is imported"],
)
def test_a_planted_circle_is_shown(tmp_path, files, circles):
    for name, text in {"launch/__init__.py": "", **files}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert circles_of(graph_of(modules_of(tmp_path))) == circles
