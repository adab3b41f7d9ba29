"""Biopython's web clients over one of our sessions.

``Bio.Entrez`` and ``Bio.KEGG.REST`` build requests, know each service's manners and read the answers, but send by
``urllib.request.urlopen``, which knows no sessions. While `sent_through` lasts, the module's name ``urlopen`` is one
that sends through a session.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from types import ModuleType
from urllib.error import HTTPError
from urllib.request import Request
from urllib.response import addinfourl

import requests

_lock = threading.RLock()


@contextmanager
def sent_through(session: requests.Session, module: ModuleType) -> Iterator[None]:
    """Let a Biopython module send through ``session``; one user of a module at a time."""
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
            request.get_method(), request.full_url, data=request.data, stream=True, headers=dict(request.header_items())
        )
        if answer.status_code >= 400:
            raise HTTPError(request.full_url, answer.status_code, answer.reason, _message(answer), None)
        answer.raw.decode_content = True
        answer.raw.auto_close = False  # a text wrapper reads once more after the end
        return addinfourl(answer.raw, _message(answer), answer.url, answer.status_code)

    return urlopen


def _message(answer: requests.Response) -> Message:
    message = Message()
    for name, value in answer.headers.items():
        message[name] = value
    return message
