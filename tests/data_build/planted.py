"""The secret that tests plant, and the search for it."""

import base64
import mmap
from pathlib import Path
from urllib.parse import quote, quote_plus

#: What the archives' tests sign in with. Obviously fake; it may be nowhere but in requests.
PLANTED = "Planted/Secret+of=the test"


def forms_of_the_secret() -> set[str]:
    """It, and how it travels in addresses, forms and headers."""
    return {
        PLANTED,
        quote(PLANTED),
        quote(PLANTED, safe=""),
        quote_plus(PLANTED),
        base64.b64encode(PLANTED.encode()).decode(),
    }


def grep(folder: Path) -> list[Path]:
    """Files below ``folder`` that hold the planted secret."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_size:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                if any(content.find(form.encode()) >= 0 for form in forms_of_the_secret()):
                    found.append(path)
    return found
