"""Simple models, tuned on the train planets: what the stack has to beat.

Each gives the test records a score that the stack's has the same name for, so that the two can be paired. Tuning
splits the train records by planet, as the dataset itself is split.
"""

import hashlib
import io
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import threadpoolctl
from sklearn.base import BaseEstimator, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.impute import SimpleImputer
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_predict
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from astrobio.dataset import MANIFEST, AstrobioDataset
from astrobio.files import cache_root, write_whole
from astrobio.schema import PLANET_COLUMNS, RETRIEVAL_COLUMNS
from launch.evaluation.features import Features, Fields, area_mean, read
from launch.evaluation.scores import INTERVALS, emulation_scores, gaussian_crps, inside, retrieval_scores, share_told

FOLDS = 5
SQUARES = "neg_mean_squared_error"
_SEPARATOR = " | "  # of a cached column's model and name
#: The version of this code, as it is imported: who edits it while it runs does not cache its results as the new code's.
_CODE = hashlib.sha256(
    b"".join(Path(__file__).with_name(f"{module}.py").read_bytes() for module in ("baselines", "features", "scores"))
).hexdigest()[:16]
COMPONENTS = 48  # of the climate fields; 99.9% of their variance on the sample


@dataclass(frozen=True)
class Tuned:
    """A model with the settings to choose from."""

    model: BaseEstimator
    grid: dict[str, list]

    def best(self, numbers: np.ndarray, target: np.ndarray, groups: np.ndarray, scoring: str = SQUARES) -> Any:
        """The model with the best settings of the grid by ``scoring`` on held-out groups, not fitted."""
        search = GridSearchCV(self.model, self.grid, scoring=scoring, cv=GroupKFold(FOLDS), refit=False)
        return clone(self.model).set_params(**search.fit(numbers, target, groups=groups).best_params_)

    def classifier(self, numbers: np.ndarray, label: np.ndarray, groups: np.ndarray) -> CalibratedClassifierCV:
        """The best by ROC-AUC, fitted, its probabilities calibrated on held-out groups (Platt 1999)."""
        folds = list(GroupKFold(FOLDS).split(numbers, label, groups))
        return CalibratedClassifierCV(self.best(numbers, label, groups, "roc_auc"), cv=folds).fit(numbers, label)


def _imputer() -> SimpleImputer:
    """The mean where a number is unknown, with a column that says so."""
    return SimpleImputer(add_indicator=True, keep_empty_features=True)


LOGISTIC = Tuned(
    make_pipeline(_imputer(), StandardScaler(), LogisticRegression(max_iter=2000)),
    {"logisticregression__C": [0.01, 0.1, 1, 10]},
)
SUPPORT_VECTORS = Tuned(
    make_pipeline(_imputer(), StandardScaler(), SVC()),
    {"svc__C": [1, 10, 100, 1000], "svc__gamma": [0.003, 0.01, 0.03, 0.1]},
)
BOOSTING = Tuned(
    HistGradientBoostingClassifier(max_iter=150, min_samples_leaf=10, random_state=0),
    {"learning_rate": [0.03, 0.1], "max_leaf_nodes": [4, 16]},
)


def simple_models(folder: Path, split: str = "test") -> pd.DataFrame:
    """What every simple model says of the records of a split, in the columns of `launch.evaluation.predictions`: the
    columns are pairs (model, column), the index is ``run_id``.

    Fitted once for a dataset and a version of this code, and cached under `astrobio.files.cache_root`.
    """
    content = json.loads((folder / MANIFEST).read_text())["content_sha256"]
    cache = cache_root() / "simple_models" / f"{content[:16]}-{split}-{_CODE}.parquet"
    if not cache.is_file():
        table = _fitted(folder, split)
        buffer = io.BytesIO()
        table.set_axis([_SEPARATOR.join(pair) for pair in table.columns], axis=1).to_parquet(buffer)
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_whole(cache, buffer.getvalue())
    table = pd.read_parquet(cache)
    return table.set_axis(pd.MultiIndex.from_tuples([name.split(_SEPARATOR) for name in table.columns]), axis=1)


def _fitted(folder: Path, split: str) -> pd.DataFrame:
    datasets = [AstrobioDataset(folder, name, max_text_tokens=2) for name in ("train", split)]
    (train, train_fields), (test, test_fields) = map(read, datasets)
    # On some cores the threads of these small fits wait for each other longer than they compute.
    with threadpoolctl.threadpool_limits(1):
        found = {(name, "habitable"): values for name, values in classifiers(train, test).items()}
        found |= {(name, "observables"): values for name, values in observers(train, test).items()}
        mean = train_fields.values.mean(0)
        for name, fields in emulators(train, train_fields, test, test_fields):
            for score, values in emulation_scores(fields, test_fields.values, mean).items():
                found[name, f"emulation {score}"] = np.full(len(test), np.nan)
                found[name, f"emulation {score}"][test_fields.rows] = values
        for name, scores in retrievers(train, test).items():
            found |= {(name, score): values for score, values in scores.items()}
    table, test_table = (np.asarray(dataset.records["planet"]) for dataset in datasets)
    for name, values in _told(table, test_table, train.planet, test.planet).items():
        found[name, "text numbers"] = values
    return pd.DataFrame(found, index=pd.Index(test.run_id, name="run_id"))


def _told(train: np.ndarray, test: np.ndarray, near: np.ndarray, near_test: np.ndarray) -> dict[str, np.ndarray]:
    """`share_told` [N] by a text that gives the train records' medians, and by that of the nearest train record.

    Args:
        train: planet table [M, P] in units, NaN where unknown; ``test`` [N, P].
        near: the same normalised, in which distances are taken; ``near_test`` [N, P].
    """
    nearest = KNeighborsRegressor(1).fit(np.nan_to_num(near), np.nan_to_num(train))
    told = {
        "medians of the train records": np.broadcast_to(np.nanmedian(train, axis=0), test.shape),
        "the nearest train record": nearest.predict(np.nan_to_num(near_test)),
    }
    names = [column.name for column in PLANET_COLUMNS]

    def known(record: np.ndarray) -> dict[str, float]:
        return {name: x for name, x in zip(names, record, strict=True) if np.isfinite(x)}

    return {
        model: np.array([share_told(known(said), known(record)) for said, record in zip(texts, test, strict=True)])
        for model, texts in told.items()
    }


def classifiers(train: Features, test: Features) -> dict[str, np.ndarray]:
    """Probabilities [N] of the test records by model; each is trained on the labelled records."""
    table, climate = "SVM on the planet table", "gradient boosting on the climate, else that SVM"
    found = _probabilities(
        train,
        test,
        {
            "logistic regression on the planet table": (LOGISTIC, "planet"),
            table: (SUPPORT_VECTORS, "planet"),
            "gradient boosting on all modalities": (BOOSTING, "every"),
            climate: (BOOSTING, "climate"),
        },
    )
    if climate in found:
        found[climate] = np.where(test.present["climate"], found[climate], found[table])
    return found


def observers(train: Features, test: Features) -> dict[str, np.ndarray]:
    """`classifiers` that know the star, the planet and the spectrum, but no atmosphere and no climate."""
    return _probabilities(
        train,
        test,
        {
            "SVM on star, planet and spectrum": (SUPPORT_VECTORS, "observable"),
            "gradient boosting on star, planet and spectrum": (BOOSTING, "observable"),
        },
    )


def _probabilities(train: Features, test: Features, models: dict[str, tuple[Tuned, str]]) -> dict[str, np.ndarray]:
    """Probabilities [N] by the majority class and, where there are planets of both labels to tune on in every fold, by
    each model, which reads those numbers of `Features`."""
    use = train.labelled
    label, groups = train.label[use], train.planet_key[use]
    found = {"majority class": np.full(len(test), label.mean())}
    if any(len(np.unique(groups[label == value])) < 2 * FOLDS for value in (0, 1)):
        return found
    for name, (model, numbers) in models.items():
        fitted = model.classifier(getattr(train, numbers)[use], label, groups)
        found[name] = fitted.predict_proba(getattr(test, numbers))[:, 1]
    return found


def emulators(
    train: Features, train_fields: Fields, test: Features, test_fields: Fields
) -> Iterator[tuple[str, np.ndarray]]:
    """(model, its climates [M, F, Y, X] of the test records with one), from planet and atmosphere alone."""
    x, x_test = train.planet[train_fields.rows], test.planet[test_fields.rows]
    groups = train.planet_key[train_fields.rows]
    shape = train_fields.values.shape[1:]
    flat = train_fields.values.reshape(len(train_fields.values), -1)
    mean = train_fields.values.mean(0)
    yield "mean field", np.broadcast_to(mean, (len(x_test), *shape))
    if len(np.unique(groups)) < 2 * FOLDS:
        return

    basis = PCA(min(COMPONENTS, len(flat) - 1), svd_solver="randomized", random_state=0)
    coefficients = basis.fit_transform(flat)

    def fields(predicted: np.ndarray) -> np.ndarray:
        return basis.inverse_transform(predicted).reshape(-1, *shape).astype(np.float32)

    def predicted(model: Tuned, target: np.ndarray) -> np.ndarray:
        return model.best(x, target, groups).fit(x, target).predict(x_test)

    nearest = Tuned(
        make_pipeline(_imputer(), StandardScaler(), KNeighborsRegressor(weights="distance")),
        {"kneighborsregressor__n_neighbors": [1, 2, 4]},
    )
    yield "nearest neighbours", fields(predicted(nearest, coefficients))
    linear = Tuned(make_pipeline(_imputer(), StandardScaler(), Ridge()), {"ridge__alpha": [0.1, 1, 10, 100]})
    yield "linear regression", fields(predicted(linear, coefficients))

    means = area_mean(train_fields.values)
    pattern = mean - means.mean(0)[:, None, None]
    smooth = Tuned(
        make_pipeline(_imputer(), StandardScaler(), KernelRidge(kernel="rbf")),
        {"kernelridge__alpha": [1e-3, 1e-2, 1e-1], "kernelridge__gamma": [0.003, 0.01, 0.03, 0.1]},
    )
    shift = predicted(smooth, means)[:, :, None, None]
    yield "kernel regression of global means", (shift + pattern).astype(np.float32)
    leading = coefficients[:, basis.explained_variance_ratio_ > 0.01]
    yield "Gaussian process", fields(_gaussian_process(x, leading, coefficients, x_test))


def _gaussian_process(x: np.ndarray, leading: np.ndarray, target: np.ndarray, x_test: np.ndarray) -> np.ndarray:
    """The mean at ``x_test`` of a Gaussian process with a length scale for each number, by maximum likelihood of the
    ``leading`` targets (Rasmussen & Williams 2006, ch. 5)."""
    scaled = make_pipeline(_imputer(), StandardScaler())
    x = scaled.fit_transform(x)
    kernel = ConstantKernel(10.0) * Matern(np.full(x.shape[1], 5.0), (0.1, 1e4), nu=2.5) + WhiteKernel(0.01, (1e-6, 10))
    with warnings.catch_warnings():  # a length scale at its bound says that the number does not matter
        warnings.simplefilter("ignore", ConvergenceWarning)
        kernel = GaussianProcessRegressor(kernel, normalize_y=True).fit(x, leading).kernel_
    process = GaussianProcessRegressor(kernel, optimizer=None, normalize_y=True).fit(x, target)
    return process.predict(scaled.transform(x_test))


def retrievers(train: Features, test: Features) -> dict[str, dict[str, np.ndarray]]:
    """Scores (`retrieval_scores`) of the test records by model, from star, planet and spectrum; NaN without."""
    found = {}
    models: dict[str, Tuned | None] = {
        "spread of the train records": None,
        "linear regression": Tuned(
            make_pipeline(_imputer(), StandardScaler(), Ridge()), {"ridge__alpha": [1, 10, 100, 1000]}
        ),
        "gradient boosting": Tuned(
            HistGradientBoostingRegressor(learning_rate=0.05, max_iter=200, min_samples_leaf=10, random_state=0),
            {"max_leaf_nodes": [4, 8, 31]},
        ),
    }
    for name, tuned in models.items():
        mean = np.full((len(test), len(RETRIEVAL_COLUMNS)), np.nan)
        sigma = np.full(len(RETRIEVAL_COLUMNS), np.nan)
        for i in range(len(RETRIEVAL_COLUMNS)):
            use = train.present["spectrum"] & np.isfinite(train.retrieval[:, i])
            target, groups = train.retrieval[use, i], train.planet_key[use]
            if not use.any():
                continue
            if tuned is None or len(np.unique(groups)) < 2 * FOLDS:
                mean[:, i], sigma[i] = target.mean(), target.std()
                continue
            model = tuned.best(train.observable[use], target, groups)
            # The residuals of held-out planets are the width of its Gaussian.
            held_out = cross_val_predict(model, train.observable[use], target, groups=groups, cv=GroupKFold(FOLDS))
            sigma[i] = np.sqrt(np.mean((held_out - target) ** 2))
            mean[:, i] = clone(model).fit(train.observable[use], target).predict(test.observable)
        found[name] = retrieval_scores(
            gaussian_crps(mean, sigma, test.retrieval),
            {share: inside(mean, sigma, test.retrieval, share) for share in INTERVALS},
            np.isfinite(test.retrieval),
        )
    return found
