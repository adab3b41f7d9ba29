"""The project's folder, and what lies in it for the tests."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: The ds_configs that are shipped, by name.
DS_CONFIGS = {path.stem: path for path in sorted((ROOT / "ds_configs").glob("*.json"))}
