"""stats.json: means and standard deviations of the train split, as `astrobio.schema.Moments` describes them."""

import numpy as np

from astrobio.schema import PLANET_COLUMNS


class Accumulator:
    """Mean and standard deviation of columns whose values arrive a few at a time."""

    def __init__(self, columns: int):
        self.count = np.zeros(columns)
        self.total = np.zeros(columns)
        self.squares = np.zeros(columns)

    def add(self, values: np.ndarray) -> None:
        """Take in ``values`` [n, columns]; NaN is absent."""
        values = np.asarray(values, float)
        self.count += np.isfinite(values).sum(0)
        self.total += np.nansum(values, 0)
        self.squares += np.nansum(values**2, 0)

    def moments(self) -> dict[str, list[float]]:
        """``{"mean": [...], "std": [...]}``; a column without values has mean 0, one without spread std 1."""
        count = np.maximum(self.count, 1)
        mean = self.total / count
        variance = np.maximum(self.squares / count - mean**2, 0)
        # Rounding leaves a tiny variance where all values are equal.
        constant = variance <= 1e-10 * np.maximum(mean**2, 1e-20)
        return {"mean": mean.tolist(), "std": np.where(constant, 1.0, np.sqrt(variance)).tolist()}


class Statistics:
    """Takes in the train records one at a time and gives the content of stats.json."""

    def __init__(self) -> None:
        self._groups: dict[str, Accumulator] = {}

    def add(self, record: dict) -> None:
        """Take in one record."""
        self._add("planet", planet_transform(record["planet"])[None])
        if record["climate_present"]:
            for name in ("climate_levels", "climate_surface"):
                self._add(name, np.asarray(record[name], float).reshape(len(record[name]), -1).T)
        if record["metabolism_present"]:
            self._add("node_features", squash(record["metabolism_node_features"]))
            self._add("edge_features", squash(record["metabolism_edge_features"]))
        if record["spectrum_present"]:
            self._add("spectrum", np.asarray(record["spectrum"])[:, 1:2])

    def as_dict(self) -> dict[str, dict[str, list[float]]]:
        """The content of stats.json."""
        return {name: accumulator.moments() for name, accumulator in self._groups.items()}

    def _add(self, name: str, values: np.ndarray) -> None:
        self._groups.setdefault(name, Accumulator(values.shape[1])).add(values)


def planet_transform(planet: np.ndarray) -> np.ndarray:
    """The planet table [P] after each column's own transform (`astrobio.schema.Column`); NaN stays."""
    planet = np.asarray(planet, float)
    return np.array(
        [
            np.log10(value + column.offset) if column.log else value
            for value, column in zip(planet, PLANET_COLUMNS, strict=True)
        ]
    )


def squash(values: np.ndarray) -> np.ndarray:
    """sign(x) log(1 + |x|)."""
    values = np.asarray(values, float)
    return np.sign(values) * np.log1p(np.abs(values))
