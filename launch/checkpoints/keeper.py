"""The checkpoints of a run while it trains."""

import logging
from pathlib import Path
from typing import Any

import deepspeed.comm as dist

from launch.checkpoints.folder import BEST, folder_of, named, path_of, remove_leftovers, remove_old, set_aside
from launch.checkpoints.load import load
from launch.checkpoints.manifest import Damaged, Manifest
from launch.checkpoints.save import save
from launch.checkpoints.together import on_rank_0
from launch.ds_config.config import DsConfig
from launch.zero.state import FROZEN, EngineState


class Checkpoints:
    """Saves an engine's state into a run's folder, loads it back, and removes what is no longer kept."""

    def __init__(
        self,
        engine,
        run: Path,
        ds_config: DsConfig,
        seed: int = 0,
        keep_last: int = 2,
        keep_every_h: float | None = None,
    ):
        self.engine, self.run, self.ds_config, self.seed = engine, run, ds_config, seed
        self.keep_last, self.keep_every_h = keep_last, keep_every_h
        self._frozen_in: Path | None = None  # where the frozen parameters are saved as they are now
        if dist.get_rank() == 0:
            remove_leftovers(run)

    def save(self, about: dict[str, Any], best: bool = False) -> Path:
        """
        Raises:
            SaveFailed: see `launch.checkpoints.save`.
        """
        about = about | {"ds_config": self.ds_config.raw}
        frozen_in = self._frozen_in if self._frozen_in is not None and self._frozen_in.is_dir() else None
        path = save(EngineState(self.engine), self.run, about, best, frozen_in)
        self._frozen_in = path
        for problem in on_rank_0(lambda: remove_old(self.run, self.keep_last, self.keep_every_h)):
            logging.getLogger(__name__).warning("old checkpoints could not be removed: %s", problem)
        return path

    def resume(self, candidates: list[Path]) -> tuple[Path, Manifest, list[str]]:
        """Load the first of ``candidates`` that is sound; returns it and what was wrong with those before.

        Raises:
            Damaged: none is.
            LoadFailed: the engine took over something else than what is in the files.
        """
        notes = []
        for path in candidates:
            try:
                manifest = load(EngineState(self.engine), path, self.ds_config, self.seed)
            except Damaged as damaged:
                if path == candidates[-1]:
                    raise
                if dist.get_rank() == 0:
                    notes.append(f"{damaged}; set aside as {set_aside(path).name}")
                dist.barrier()
                continue
            self._frozen_in = path if self._holds_frozen(path, manifest) else None
            return path, manifest, notes
        raise ValueError("no candidates")

    def _holds_frozen(self, path: Path, manifest: Manifest) -> bool:
        """Whether the engine's frozen parameters are in this checkpoint of the same run to the last bit."""
        frozen = {part.name: parameter.dtype for parameter, part in EngineState(self.engine).frozen()}
        return (
            path.parent == folder_of(self.run)
            and manifest.world_size == dist.get_world_size()
            and frozen == {name: saved.torch_dtype for name, saved in manifest.of_kind(FROZEN).items()}
        )

    def load_best(self) -> Path | None:
        """Load the best checkpoint's weights; None where there is none, or none but the present weights.

        Raises:
            Damaged
        """
        best = named(self.run, BEST)
        if best is None or best == path_of(self.run, self.engine.global_steps):
            return None
        load(EngineState(self.engine), best, self.ds_config, weights_only=True)
        return best
