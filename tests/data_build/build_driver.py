"""A build in a process of its own, with archives at a local server: ``build_driver.py RECIPE OUT MIRROR CACHE``.

Writes every log record to stderr, and the most memory it and its workers held to stdout.
"""

import json
import logging
import resource
import sys
from pathlib import Path

from data_build.cache import DataError
from data_build.pipeline import build
from data_build.policy import Policy, RateLimit


def main(recipe: str, out: str, mirror: str, cache: str) -> int:
    logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
    RateLimit.wait = lambda self: None  # the local server needs no sparing
    policy = Policy(mirror=mirror or None, root=Path(cache), tries=2, backoff_s=0.0, timeout_s=(2.0, 10.0))
    try:
        manifest = build(recipe, Path(out), workers=1, policy=policy)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    peaks = [resource.getrusage(who).ru_maxrss * 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    records = sum(count.get("records", 0) for kinds in manifest["counts"].values() for count in kinds.values())
    print(json.dumps({"content_sha256": manifest["content_sha256"], "records": records, "peak_bytes": peaks}))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
