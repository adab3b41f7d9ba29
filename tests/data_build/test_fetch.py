"""The transport under the archives' clients: patience, resumption, the store, and what it tells nobody."""

import gzip
import json
import logging
import threading
import time
import traceback
from email.utils import formatdate

import pytest
from archive_server import ArchiveServer, Reply

from data_build import fetch
from data_build.cache import DataError
from data_build.credentials import Secret, SignIn
from data_build.fetch import Authorisation, RefusedSignIn, Transport, open_session
from data_build.policy import Policy, RateLimit
from data_build.store import AnswerStore

URL = "https://archive.example/data"
BODY = bytes(range(256)) * 1000


@pytest.fixture
def pauses(monkeypatch):
    """Pauses between tries are noted, not slept."""
    noted = []
    monkeypatch.setattr(fetch.time, "sleep", noted.append)
    return noted


def session_of(server, tmp_path, tries=3, **options):
    policy = Policy(
        tries=tries,
        timeout_s=(1.0, 2.0),
        backoff_s=1.0,
        longest_wait_s=100.0,
        mirror=server.url,
        **{key: options.pop(key) for key in ("offline", "refresh") if key in options},
    )
    store = AnswerStore("example", tmp_path)
    return open_session(Transport("Example", store, RateLimit(1e6), policy, **options))


def scripted(*replies):
    """Answers in this order; the last one for ever."""
    left = list(replies)

    def script(request):
        return left.pop(0) if len(left) > 1 else left[0]

    return script


def test_retry_after_is_honoured_in_both_its_forms(tmp_path, pauses):
    date = formatdate(time.time() + 50, usegmt=True)
    with ArchiveServer(
        scripted(Reply(b"", 429, {"Retry-After": "7"}), Reply(b"", 503, {"Retry-After": date}), Reply(BODY))
    ) as server:
        assert session_of(server, tmp_path).get(URL).content == BODY
    waits = [pause for pause in pauses if pause > 0.5]
    assert waits[0] == 7 and waits[1] == pytest.approx(50, abs=5)


def test_pauses_grow_where_nothing_is_asked_for(tmp_path, pauses):
    with (
        ArchiveServer(scripted(Reply(b"", 500))) as server,
        pytest.raises(DataError, match="after 4 of 4 tries: it answered 500"),
    ):
        session_of(server, tmp_path, tries=4).get(URL)
    assert [pause for pause in pauses if pause > 0.5] == [1, 2, 4]


def test_too_long_a_pause_is_an_error_at_once(tmp_path, pauses):
    with (
        ArchiveServer(scripted(Reply(b"", 429, {"Retry-After": "7200"}))) as server,
        pytest.raises(DataError, match="after 1 of 3 tries.*asks to wait 7200 s, longer than 100 s"),
    ):
        session_of(server, tmp_path).get(URL)


class Resumable:
    """A file that is sent in pieces: every transfer breaks off after ``piece`` bytes."""

    def __init__(self, body, piece, etag='"v1"'):
        self.body, self.piece, self.etag, self.ranges = body, piece, etag, []

    def __call__(self, request):
        asked = request.headers.get("range")
        self.ranges.append(asked)
        start = (
            int(asked.removeprefix("bytes=").rstrip("-")) if asked and request.headers["if-range"] == self.etag else 0
        )
        rest = self.body[start:]
        headers = {"ETag": self.etag, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(self.body) - 1}/{len(self.body)}"
        return Reply(rest, 206 if start else 200, headers, cut=self.piece if len(rest) > self.piece else None)


def test_a_transfer_that_breaks_off_is_continued(tmp_path, pauses):
    archive = Resumable(BODY, 100_000)
    with ArchiveServer(archive) as server:
        assert session_of(server, tmp_path).get(URL).content == BODY
    assert archive.ranges == [None, "bytes=100000-", "bytes=200000-"]


def test_a_transfer_is_continued_by_the_next_process(tmp_path, pauses):
    archive = Resumable(BODY, 100_000)
    with ArchiveServer(archive) as server:
        with pytest.raises(DataError, match="transfer broke off"):
            session_of(server, tmp_path, tries=1).get(URL)
        assert session_of(server, tmp_path).get(URL).content == BODY
    assert archive.ranges[1] == "bytes=100000-"


def test_a_file_that_has_changed_meanwhile_is_fetched_anew(tmp_path, pauses):
    archive = Resumable(BODY, 100_000)
    with ArchiveServer(archive) as server:
        with pytest.raises(DataError):
            session_of(server, tmp_path, tries=1).get(URL)
        archive.body, archive.etag, archive.piece = BODY[::-1], '"v2"', 10**9
        assert session_of(server, tmp_path).get(URL).content == BODY[::-1]


def test_an_answer_is_asked_for_once_and_kept_without_pickles(tmp_path):
    with ArchiveServer(scripted(Reply(BODY, headers={"Set-Cookie": "id=1", "ETag": '"x"'}))) as server:
        for _ in range(2):
            answer = session_of(server, tmp_path).get(URL)
            assert answer.content == BODY and answer.status_code == 200
    assert len(server.requests) == 1
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and not path.name.endswith(".lock")]
    assert {path.parent.name for path in kept} == {"index", "blobs"}
    entry = json.loads(next(path for path in kept if path.parent.name == "index").read_text())
    assert "etag" in {name.lower() for name in entry["headers"]} and "id=1" not in json.dumps(entry)


def test_refresh_asks_again(tmp_path):
    with ArchiveServer(scripted(Reply(b"old"), Reply(b"new"))) as server:
        assert session_of(server, tmp_path).get(URL).content == b"old"
        assert session_of(server, tmp_path, refresh=True).get(URL).content == b"new"
        assert session_of(server, tmp_path, offline=True).get(URL).content == b"new"


def test_a_compressed_answer_is_kept_and_replayed_as_it_came(tmp_path):
    with ArchiveServer(scripted(Reply(gzip.compress(BODY), headers={"Content-Encoding": "gzip"}))) as server:
        assert session_of(server, tmp_path).get(URL).content == BODY
        assert session_of(server, tmp_path, offline=True).get(URL).content == BODY


def test_a_damaged_answer_is_fetched_again(tmp_path):
    with ArchiveServer(scripted(Reply(BODY))) as server:
        session_of(server, tmp_path).get(URL)
        blob = next((tmp_path / "answers/example/blobs").iterdir())
        blob.write_bytes(BODY[:-1] + b"!")
        with pytest.raises(DataError, match="offline"):
            session_of(server, tmp_path, offline=True).get(URL)
        assert session_of(server, tmp_path).get(URL).content == BODY
    assert len(server.requests) == 2


def test_requests_that_differ_are_answered_apart(tmp_path):
    with ArchiveServer(lambda request: Reply(f"{request.method} {request.query} {request.body}".encode())) as server:
        session = session_of(server, tmp_path)
        answers = {
            session.get(URL).text,
            session.get(URL, params={"a": 1}).text,
            session.post(URL, data="x").text,
            session.post(URL, data="y").text,
        }
    assert len(answers) == 4


def test_an_error_of_the_request_is_the_clients_to_read_and_not_kept(tmp_path):
    with ArchiveServer(scripted(Reply(b"no such table", 404))) as server:
        for _ in range(2):
            answer = session_of(server, tmp_path).get(URL)
            assert answer.status_code == 404 and answer.text == "no such table"
    assert len(server.requests) == 2


def test_a_redirect_is_followed_kept_and_not_signed_elsewhere(tmp_path):
    def script(request):
        if request.path == "/data":
            return Reply(b"", 302, {"Location": "https://elsewhere.example/file"})
        return Reply(BODY)

    options = {
        "authorise": lambda ask: Authorisation(headers={"Authorization": "Bearer abcd-efgh"}),
        "sign_in": SignIn({"token": "X"}, "nowhere", hosts=("archive.example",)),
    }
    with ArchiveServer(script) as server:
        assert session_of(server, tmp_path, **options).get(URL).content == BODY
        assert session_of(server, tmp_path, offline=True).get(URL).content == BODY
    signed = {request.host: request.headers.get("authorization") for request in server.requests}
    assert signed == {"archive.example": "Bearer abcd-efgh", "elsewhere.example": None}


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_an_answer_that_quotes_the_credential_is_not_kept(tmp_path, encoding):
    secret = Secret("quoted-by-the-archive").reveal()
    # The end of the first block that is searched falls into it.
    body = b"x" * (fetch._BLOCK - 5) + secret.encode() + b"y" * 100
    packed = gzip.compress(body) if encoding == "gzip" else body
    with ArchiveServer(scripted(Reply(packed, headers={"Content-Encoding": encoding}))) as server:
        assert session_of(server, tmp_path).get(URL).content == body
    assert not [
        path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size and path.suffix != ".lock"
    ]


def test_a_key_in_the_query_is_in_no_log_and_no_error(tmp_path, caplog, pauses):
    secret = Secret("-".join(["query", "key", "0123"]))
    options = {
        "authorise": lambda ask: Authorisation(params={"api_key": secret.reveal()}),
        "sign_in": SignIn({"key": "X"}, "nowhere", hosts=("archive.example",)),
    }
    caplog.set_level(logging.DEBUG)
    denied = Reply(f"denied {secret.reveal()}".encode(), 403)
    with (
        ArchiveServer(scripted(Reply(BODY[:9], cut=3), Reply(b"", 500), denied)) as server,
        pytest.raises(RefusedSignIn) as caught,
    ):
        session_of(server, tmp_path, **options).get(URL)
    assert {request.query["api_key"] for request in server.requests} == {secret.reveal()}  # it did go out
    assert "api_key=***" in caplog.text  # urllib3 did log the address
    assert secret.reveal() not in caplog.text + "".join(traceback.format_exception(caught.value))


def test_the_rate_limit_spaces_requests_of_all_threads(monkeypatch):
    sent = []
    lock = threading.Lock()
    limit = RateLimit(4.0)
    monkeypatch.setattr(fetch.time, "monotonic", lambda: 0.0)
    monkeypatch.setattr(fetch.time, "sleep", sent.append)

    def ask():
        for _ in range(5):
            with lock:
                limit.wait()

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(sent) == pytest.approx([0.25 * i for i in range(20)])


def test_a_time_out_is_named(tmp_path, pauses):
    policy = Policy(tries=1, timeout_s=(1.0, 0.1), mirror="", root=tmp_path)
    with ArchiveServer(lambda request: Reply(hang_s=5)) as server:
        transport = Transport(
            "Example",
            AnswerStore("example", tmp_path),
            RateLimit(1e6),
            Policy(**{**policy.__dict__, "mirror": server.url}),
        )
        with pytest.raises(DataError, match="nothing came for 0.1 s"):
            open_session(transport).get(URL)


def test_an_archive_that_cannot_be_reached_is_named(tmp_path, pauses):
    with ArchiveServer(scripted(Reply(b""))) as server:
        session = session_of(server, tmp_path, tries=1)
    with pytest.raises(DataError, match="no connection"):
        session.get(URL)
