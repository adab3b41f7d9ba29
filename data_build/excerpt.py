"""The first records of a built dataset as a dataset of its own: small enough to carry to another machine."""

import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path

import datasets

from astrobio.dataset import MANIFEST, dataset_problems
from astrobio.files import whole_folder, write_whole
from astrobio.schema import SPLITS, sha256_of
from data_build.cache import DataError
from data_build.records import record_digest
from data_build.validation import read_records

#: Of the records asked for.
SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}
#: Taken over as they are: they tell of the dataset that the records are from.
OF_THE_WHOLE = ("quality.json", "README.md", "quarantine.jsonl", "stats.json")


def shares(records: int) -> dict[str, int]:
    """Of ``records`` in all, how many of each split."""
    return {split: max(1, int(share * records)) for split, share in SHARES.items()}


def excerpt(source: Path, out: Path, records: dict[str, int]) -> dict:
    """Write a dataset of the first ``records`` of each split, normalised as ``source`` is; returns its manifest.

    Raises:
        DataError: ``source`` is no whole dataset or has fewer records, or something is at ``out`` already.
    """
    if problems := dataset_problems(source):
        raise DataError("\n".join(problems))
    if out.exists():
        raise DataError(f"--out {out}: is there already; nothing is overwritten")
    parts = datasets.load_from_disk(str(source))
    for split in SPLITS:
        if records[split] > len(parts[split]):
            raise DataError(
                f"--records: {records[split]} would be of {split}, which has {len(parts[split])} in "
                f"{source}: ask for fewer"
            )
    chosen = datasets.DatasetDict({split: parts[split].select(range(records[split])) for split in SPLITS})
    with whole_folder(out) as folder:
        shown = datasets.is_progress_bar_enabled()
        datasets.disable_progress_bars()
        chosen.save_to_disk(str(folder))
        if shown:
            datasets.enable_progress_bars()
        shutil.copytree(source / "tokenizer", folder / "tokenizer")
        for name in OF_THE_WHOLE:
            shutil.copy(source / name, folder)
        manifest = json.loads((source / MANIFEST).read_text())
        digest = hashlib.sha256()
        for split in SPLITS:
            for record in read_records(chosen[split]):
                digest.update(record_digest(record))
        manifest |= {
            "content_sha256": digest.hexdigest(),
            "counts": {split: _counts(chosen[split]) for split in SPLITS},
            "files": {
                str(path.relative_to(folder)): {"sha256": sha256_of(path), "bytes": path.stat().st_size}
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            },
        }
        write_whole(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return manifest


def _counts(split: datasets.Dataset) -> dict[str, dict[str, int]]:
    """Kind of planet → planets and records."""
    kinds = [provenance["planet"]["kind"] for provenance in split["provenance"]]
    planets = dict(zip(split["planet_key"], kinds, strict=True))
    return {
        kind: {"planets": list(planets.values()).count(kind), "records": number}
        for kind, number in sorted(Counter(kinds).items())
    }
