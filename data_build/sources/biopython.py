"""Biopython's web clients over one of our sessions.

``Bio.Entrez`` and ``Bio.KEGG.REST`` build requests, follow each service's rules and parse the answers, but send by
``urllib.request.urlopen``, which has no sessions. `sent_through` replaces the module's ``urlopen`` by one that sends
through a session.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from typing import Any, cast
from urllib.error import HTTPError
from urllib.request import Request
from urllib.response import addinfourl

import requests

_lock = threading.RLock()


@contextmanager
def sent_through(session: requests.Session, module: Any) -> Iterator[None]:
    """Send a Biopython module's requests through ``session``; one thread at a time."""
    with _lock:
        original, module.urlopen = module.urlopen, _opener(session)
        try:
            yield
        finally:
            module.urlopen = original


def _opener(session: requests.Session):
    def urlopen(request: Request | str):
        if isinstance(request, str):
            request = Request(request)
        answer = session.request(
            request.get_method(),
            request.full_url,
            data=cast("bytes | None", request.data),  # Biopython encodes its forms
            stream=True,
            headers=dict(request.header_items()),
        )
        if answer.status_code >= 400:
            raise HTTPError(request.full_url, answer.status_code, answer.reason, _message(answer), None)
        answer.raw.decode_content = True
        answer.raw.auto_close = False  # a text wrapper reads again after the end
        return addinfourl(answer.raw, _message(answer), answer.url, answer.status_code)  # type: ignore[arg-type]  # a file of bytes

    return urlopen


def _message(answer: requests.Response) -> Message:
    message = Message()
    for name, value in answer.headers.items():
        message[name] = value
    return message
