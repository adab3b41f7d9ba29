"""A small dataset built for the session, quick ways to build others, and a watch over the planted secret."""

import logging
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml
from planted import forms_of_the_secret, grep

from data_build import pipeline
from data_build.pipeline import build
from data_build.recipe import load_recipe


class _Watch(logging.Handler):
    """Keeps what the run's log records tell of the secret."""

    def __init__(self):
        super().__init__(logging.DEBUG)
        self.leaks: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if any(form in text for form in forms_of_the_secret()):
            self.leaks.append(f"{record.name}: {record.levelname}")


@pytest.fixture(scope="session", autouse=True)
def no_secret_is_told(tmp_path_factory):
    """After the last test: the secret is in no log record and no file of the whole run, caches and datasets included.

    Exceptions are looked at where they are caught, in `test_archives`.
    """
    watch = _Watch()
    logging.getLogger().addHandler(watch)
    logging.getLogger("urllib3").setLevel(logging.DEBUG)  # it logs addresses
    yield
    logging.getLogger().removeHandler(watch)
    assert watch.leaks == []
    assert grep(tmp_path_factory.getbasetemp()) == []


@pytest.fixture(scope="session")
def small_limit() -> int:
    """Planets of the small dataset."""
    return 24


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory, small_limit) -> Path:
    """A dataset of a few planets, built with two workers. Read it, do not change it.

    A build of another program has left its folder there.
    """
    folder = tmp_path_factory.mktemp("small") / "dataset"
    (folder.parent / ".dataset.partial/train").mkdir(parents=True)
    build("sample", folder, limit=small_limit, workers=2, progress=False)
    return folder


@pytest.fixture(scope="session")
def gathered():
    """The recipe's planets for a small limit: reading the catalogues takes seconds."""
    return pipeline.gather_planets(load_recipe("sample"), 20)


@pytest.fixture
def quick_recipe(monkeypatch, gathered) -> dict:
    """A recipe of a few planets and atmospheres, built in this process, where the models are loaded already."""

    class Inline:
        def submit(self, task, *arguments):
            future = Future()
            future.set_result(task(*arguments))
            return future

    monkeypatch.setattr(pipeline, "gather_planets", lambda recipe, limit, harvests: gathered)
    monkeypatch.setattr(pipeline, "worker_pool", lambda workers: nullcontext(Inline()))
    return {**load_recipe("sample").as_dict(), "candidates_per_planet": 10}


@pytest.fixture
def quick_build(quick_recipe, tmp_path_factory):
    """A build of `quick_recipe`."""
    recipe = tmp_path_factory.mktemp("recipe") / "quick.yaml"
    recipe.write_text(yaml.safe_dump(quick_recipe))
    return lambda out: build(recipe, out, limit=20, progress=False)
