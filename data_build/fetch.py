"""Requests to archives: one `requests` transport under all their clients.

`open_session` gives a `requests.Session` for astroquery, pyvo, cdsapi and Biopython. Its transport respects each
archive's rate limit, retries as the answer says (Retry-After) or with growing pauses, resumes an interrupted transfer
(HTTP Range), caches every good answer in `data_build.store` and replays it the next time: a resumed build sends no
request twice, and an offline build replays exactly the cached answers.

The transport adds credentials to a request as it goes out, for the archive's own hosts only: neither the clients nor
the cached answers see them.
"""

import io
import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlencode, urlsplit, urlunsplit

import requests
from filelock import FileLock
from requests.adapters import HTTPAdapter
from urllib3 import HTTPResponse
from urllib3.exceptions import HTTPError, InvalidHeader
from urllib3.util import Retry

from data_build.cache import DataError
from data_build.credentials import SignIn, holds_secret, how_to, longest_secret, redacted
from data_build.policy import Policy, RateLimit
from data_build.store import Answer, AnswerStore, key_of, write_whole

#: Answers that say "not now".
BUSY = (408, 429, 500, 502, 503, 504)
_KEPT_STATUS = (200, 201, 301, 302, 303, 307, 308)
#: Headers of an answer that a client needs in a replay; cookies and the like are not cached.
_KEPT_HEADERS = (
    "content-type",
    "content-encoding",
    "content-disposition",
    "location",
    "link",
    "etag",
    "last-modified",
    "x-total-results",
)
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Authorisation:
    """What is added to an outgoing request: headers, and parameters of the query."""

    headers: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)


class RefusedSignIn(DataError):
    """The archive answered 401 or 403."""


class Transport(HTTPAdapter):
    """The transport of one archive's session; see the module.

    Args:
        title: the archive's name in messages.
        store: the cache of answers.
        limit: the archive's rate limit.
        policy: retries, pauses, and whether to send requests at all.
        authorise: called once, with a bare function ``ask(method, url, **keywords)``, when the first request goes out.
        sign_in: which hosts the result may be sent to.
        settled: whether an answer is final, given the method and its first bytes; "still running" is not cached.
        volatile: pattern of what changes in every request without changing its meaning, left out of the key.
        absent: called with ``ask`` when an error outlasts all tries: whether it is the archive's answer that there is
            nothing, which is cached. An archive that has it answers any error in passing, so all are tried again.
    """

    def __init__(
        self,
        title: str,
        store: AnswerStore,
        limit: RateLimit,
        policy: Policy,
        *,
        authorise: Callable[..., Authorisation] | None = None,
        sign_in: SignIn | None = None,
        settled: Callable[[str, bytes], bool] = lambda method, head: True,
        volatile: str | None = None,
        absent: Callable[[Callable[..., requests.Response]], bool] | None = None,
    ):
        super().__init__(pool_maxsize=8)
        self.title, self.store, self.limit, self.policy = title, store, limit, policy
        self._authorise, self._sign_in, self._settled = authorise, sign_in, settled
        self._volatile, self._absent = re.compile(volatile) if volatile else None, absent
        self._authorisation: Authorisation | None = None
        self._lock = threading.Lock()

    def send(self, request, stream=False, timeout=None, verify=True, cert=None, proxies=None) -> requests.Response:
        """Answer ``request`` from the cache, or send it and cache the answer."""
        key = self.key(request)
        kept = self._kept(key)
        if kept is None and self.policy.offline:
            raise DataError(
                f"{self.title}: offline, and the answer to {request.method} {redacted(request.url)} is "
                "not in the cache; run the same command once without --offline"
            )
        if kept is None:
            self.store.partial.mkdir(parents=True, exist_ok=True)
            with FileLock(self.store.partial / f"{key[:2]}.lock"):  # another build may be fetching the same
                answer = self._kept(key) or self._ask(request, key, verify=verify, cert=cert, proxies=proxies)
            if not isinstance(answer, Answer):
                return answer
            kept = answer
        return self._replay(request, kept)

    def _kept(self, key: str) -> Answer | None:
        return None if self.policy.refresh else self.store.find(key)

    def key(self, request) -> str:
        """The cache key of a request: method, address, body, and the form and range of the answer."""
        body = request.body or b""
        body = body.encode() if isinstance(body, str) else body
        url = request.url
        if self._volatile:
            body, url = self._volatile.sub("", body.decode("utf-8", "replace")).encode(), self._volatile.sub("", url)
        return key_of(request.method, url, body, request.headers.get("Accept", ""), request.headers.get("Range", ""))

    def _replay(self, request, answer: Answer) -> requests.Response:
        headers = {**answer.headers, "content-length": str(answer.size)}
        raw = HTTPResponse(
            body=self.store.body(answer).open("rb"),
            headers=headers,
            status=answer.status,
            preload_content=False,
            decode_content=False,
        )
        return self.build_response(request, raw)

    def _ask(self, request, key: str, **options) -> Answer | requests.Response:
        """Send a request and receive its answer, with retries."""

        def send() -> requests.Response:
            outgoing = self._signed(request)
            outgoing.headers.update(_Partial(self.store.partial / key, request).range_header())
            return self._send(outgoing, **options)

        return self._patiently(
            f"{request.method} {redacted(request.url)}",
            send,
            lambda response: self._received(request, key, response),
            lambda response: self._kept_error(request, key, response) if self._nothing_there() else None,
        )

    def _send(self, outgoing, **options) -> requests.Response:
        self.limit.wait()
        return super().send(outgoing, stream=True, timeout=self.policy.timeout_s, **options)

    def _patiently(
        self,
        what: str,
        send: Callable[[], requests.Response],
        take: Callable,
        lasting: Callable = lambda response: None,
    ):
        """``take(send())``, retried while the archive is busy or the network fails; of an error that outlasts all
        tries, ``lasting(response)``, if that gives anything.

        Raises:
            DataError: every try failed, or the archive refused.
        """
        problem = ""
        for attempt in range(1, self.policy.tries + 1):
            wait = self.policy.backoff_s * 2 ** (attempt - 1)
            # A network error is raised outside its handler: a chained one would carry the URL with its key.
            try:
                response = send()
                if not self._in_passing(response.status_code):
                    return take(response)
                if attempt == self.policy.tries and (answer := lasting(response)) is not None:
                    return answer
                problem = f"it answered {response.status_code} {response.reason}"
                wait = _pause(response, wait)
                response.close()
            except (requests.exceptions.RequestException, HTTPError, ConnectionError, TimeoutError) as error:
                problem = _in_words(error, self.policy)
            if wait > self.policy.longest_wait_s:
                problem += f" and asks to wait {wait:.0f} s, longer than {self.policy.longest_wait_s:.0f} s"
                break
            if attempt < self.policy.tries:
                time.sleep(wait)
        raise DataError(
            f"{self.title}: {what} failed after {attempt} of {self.policy.tries} tries: "
            f"{redacted(problem)}; try again later, what was fetched is kept"
        )

    def _in_passing(self, status: int) -> bool:
        """Whether an answer with this status may be another one the next time."""
        return status in BUSY or (self._absent is not None and status >= 400 and status not in (401, 403, 416))

    def _nothing_there(self) -> bool:
        try:
            return self._absent is not None and self._absent(self._bare)
        except DataError:  # the archive fails as a whole
            return False

    def _kept_error(self, request, key: str, response: requests.Response) -> Answer:
        partial = self.store.partial / key
        partial.write_text(redacted(response.text))
        return self.store.keep(key, partial, request.method, redacted(request.url), response.status_code, {})

    def _received(self, request, key: str, response: requests.Response) -> Answer | requests.Response:
        """Receive the body. A final answer is cached; any other is returned as it is."""
        partial = _Partial(self.store.partial / key, request)
        if response.status_code in (401, 403):
            self._refused(response)
        if response.status_code == 416:
            partial.discard()
            raise HTTPError("it did not continue a transfer that had broken off")
        if response.status_code not in (*_KEPT_STATUS, 206):
            content = response.raw.read(decode_content=True)
            # An archive's error message may quote the request.
            response._content = redacted(content.decode("utf-8", "replace")).encode()
            response._content_consumed = True  # type: ignore[attr-defined]  # private to requests
            return response
        partial.receive(response)
        head, secret = partial.inspect(response.headers.get("Content-Encoding", ""))
        headers = {name: value for name, value in response.headers.items() if name.lower() in _KEPT_HEADERS}
        status = 200 if response.status_code == 206 else response.status_code
        text = " ".join(headers.values())
        if secret or redacted(text) != text or not self._settled(request.method, head):
            content = partial.path.read_bytes()
            partial.discard()
            raw = HTTPResponse(
                body=io.BytesIO(content), headers=headers, status=status, preload_content=False, decode_content=False
            )
            return self.build_response(request, raw)
        answer = self.store.keep(key, partial.path, request.method, redacted(request.url), status, headers)
        partial.discard()
        return answer

    def _signed(self, request) -> requests.PreparedRequest:
        """A copy of the request with its authorisation and the mirror's address."""
        outgoing = request.copy()
        host = urlsplit(request.url).hostname
        if self._authorise is not None and self._sign_in is not None and host in self._sign_in.hosts:
            with self._lock:
                if self._authorisation is None:
                    self._authorisation = self._authorise(self._bare)
            outgoing.headers.update(self._authorisation.headers)
            if self._authorisation.params:
                outgoing.prepare_url(outgoing.url, dict(self._authorisation.params))
        outgoing.url = self._address(outgoing.url)
        return outgoing

    def _bare(self, method: str, url: str, **keywords) -> requests.Response:
        """Send a request of the sign-in itself, whose answer is not cached."""
        prepared = requests.Request(method, self._address(url), **keywords).prepare()

        def take(response: requests.Response) -> requests.Response:
            if response.status_code in (400, 401, 403):
                self._refused(response)
            if response.status_code >= 400:
                raise DataError(
                    f"{self.title}: the sign-in at {urlsplit(url).hostname} failed: it answered "
                    f"{response.status_code} {response.reason}; if it persists the archive has changed: "
                    "please report it"
                )
            _ = response.content
            return response

        return self._patiently(f"the sign-in at {urlsplit(url).hostname}", lambda: self._send(prepared), take)

    def refused(self, why: str) -> RefusedSignIn:
        """The error of a sign-in that was refused; it says what to do."""
        cure = (
            how_to(self._sign_in)
            if self._sign_in
            else "this archive's public data need no sign-in, so the address or the data's terms have changed"
        )
        return RefusedSignIn(f"{self.title}: refused the sign-in or the request ({redacted(why)}): {cure}")

    def _refused(self, response: requests.Response) -> NoReturn:
        text = response.raw.read(2000, decode_content=True).decode("utf-8", "replace")
        raise self.refused(f"{response.status_code} {response.reason}: {' '.join(text.split())[:200]}")

    def _address(self, url: str) -> str:
        if self.policy.mirror is None:
            return url
        mirror, there = urlsplit(self.policy.mirror), urlsplit(url)
        return urlunsplit(
            (mirror.scheme, mirror.netloc, f"{mirror.path.rstrip('/')}/{there.hostname}{there.path}", there.query, "")
        )


class _Partial:
    """A body being received, or the part of it that an interrupted transfer left."""

    def __init__(self, path: Path, request):
        self.path, self._facts = path, path.with_name(path.name + ".json")
        self._resumable = request.method == "GET" and "Range" not in request.headers
        self._before = self._left() if self._resumable else None
        if self._before is None:
            self.discard()

    def range_header(self) -> dict[str, str]:
        """Headers that request the rest, if the file is still the same."""
        if self._before is None:
            return {}
        return {"Range": f"bytes={self.path.stat().st_size}-", "If-Range": self._before}

    def receive(self, response: requests.Response) -> None:
        """Write the body.

        Raises:
            HTTPError: the transfer broke off. The received part stays if the archive can resume it.
        """
        mode = "wb"
        if response.status_code == 206:
            start = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
            if self._before is None or start is None or int(start[1]) != self.path.stat().st_size:
                self.discard()
                raise HTTPError("it sent another part of the file than was asked for")
            mode = "ab"
        with self.path.open(mode) as file:
            same = response.headers.get("ETag") or response.headers.get("Last-Modified")
            # Written after the file is emptied: this body's ETag must never stand for bytes of another body. A weak
            # ETag does not promise the same bytes.
            if (
                mode == "wb"
                and self._resumable
                and response.headers.get("Accept-Ranges") == "bytes"
                and same
                and not same.startswith("W/")
            ):
                write_whole(self._facts, json.dumps({"same": same}))
            for block in response.raw.stream(_BLOCK, decode_content=False):
                file.write(block)

    def inspect(self, encoding: str) -> tuple[bytes, bool]:
        """The body's first bytes, decoded, and whether the body holds a known secret."""
        with self.path.open("rb") as file:
            raw = HTTPResponse(body=file, headers={"content-encoding": encoding}, preload_content=False)
            blocks = raw.stream(_BLOCK, decode_content=True)
            head = next(blocks, b"")
            overlap = max(0, longest_secret() - 1)
            secret, tail = holds_secret(head), head
            while overlap and not secret and (block := next(blocks, b"")):
                tail = tail[-overlap:] + block
                secret = holds_secret(tail)
        return head, secret

    def discard(self) -> None:
        """Delete the partial body."""
        self.path.unlink(missing_ok=True)
        self._facts.unlink(missing_ok=True)

    def _left(self) -> str | None:
        try:
            same = json.loads(self._facts.read_text())["same"]
            return same if self.path.stat().st_size > 0 else None
        except (OSError, ValueError, KeyError):
            return None


def open_session(transport: Transport) -> requests.Session:
    """A session that sends all requests through ``transport``."""
    session = requests.Session()
    session.auth = lambda request: request  # else requests reads ~/.netrc
    session.headers.update({"User-Agent": f"astrobio/{version('astrobio')}", "Accept-Encoding": "gzip, deflate"})
    session.mount("https://", transport)
    session.mount("http://", transport)
    return session


def form(values: Mapping[str, str]) -> dict:
    """Keywords for a request that carries ``values`` in its body, not in its address."""
    return {"data": urlencode(values), "headers": {"Content-Type": "application/x-www-form-urlencoded"}}


def _pause(response: requests.Response, otherwise: float) -> float:
    """Seconds to wait, by the answer's Retry-After, else ``otherwise``."""
    value = response.headers.get("Retry-After")
    try:
        return otherwise if value is None else Retry().parse_retry_after(value)
    except InvalidHeader:
        return otherwise


def _in_words(error: Exception, policy: Policy) -> str:
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return f"no connection within {policy.timeout_s[0]:g} s"
    if isinstance(error, (requests.exceptions.Timeout, TimeoutError)) or "ReadTimeoutError" in type(error).__name__:
        return f"nothing came for {policy.timeout_s[1]:g} s"
    if isinstance(error, requests.exceptions.ConnectionError):
        return f"no connection ({type(error).__name__})"
    return f"the transfer broke off ({type(error).__name__}: {error})"
