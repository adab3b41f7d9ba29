"""Every archive of the registry, through its real client, against a local server: what it answers when all is well,
and what becomes of everything else an archive may do."""

import json
import logging
import socket
import traceback

import pytest
from archive_server import ArchiveServer, Reply
from Bio import Entrez
from Bio.KEGG import REST
from fake_archives import fake
from planted import PLANTED, forms_of_the_secret

from data_build.cache import DataError
from data_build.fetch import RefusedSignIn
from data_build.policy import Policy, RateLimit
from data_build.rows import row_problems
from data_build.sources import ARCHIVES, OPTIONAL, copernicus
from data_build.sources.base import connect, read


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Only this machine can be reached."""
    connect_to = socket.socket.connect

    def guarded(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1"):
            raise AssertionError(f"a test wanted to reach {address}")
        return connect_to(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    monkeypatch.setattr(socket, "getaddrinfo", _local_names(socket.getaddrinfo))


def _local_names(resolve):
    def guarded(host, *arguments, **keywords):
        if host not in ("127.0.0.1", "localhost", None):
            raise AssertionError(f"a test wanted to look up {host}")
        return resolve(host, *arguments, **keywords)

    return guarded


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """No pauses between requests; `test_fetch` is about them."""
    monkeypatch.setattr(RateLimit, "wait", lambda self: None)
    monkeypatch.setattr(Entrez._open, "previous", -1.0)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert REST.urlopen  # imported before sleep is replaced
    monkeypatch.setattr(copernicus, "GASES", {2020: copernicus.GASES[2020]})  # one year is like the other


@pytest.fixture(params=ARCHIVES)
def name(request) -> str:
    return request.param


@pytest.fixture
def stand_in(name, tmp_path):
    return fake(name, tmp_path)


def rows_of(name, script, tmp_path, offline=False, timeout=2.0, credentials=True) -> list[dict]:
    """Read an archive through its real client from a server that follows ``script``."""
    archive = ARCHIVES[name]()
    sign_in = archive.info.sign_in
    given = dict.fromkeys(sign_in.variables, PLANTED) if sign_in and credentials else None
    with ArchiveServer(script) as server:
        policy = Policy(
            tries=2,
            timeout_s=(1.0, timeout),
            backoff_s=0.0,
            mirror=server.url,
            root=tmp_path / "cache",
            offline=offline,
        )
        try:
            return list(read(archive, connect(archive, policy, given)))
        except BaseException as error:
            told = "".join(traceback.format_exception(error))
            assert not [form for form in forms_of_the_secret() if form in told]
            raise
        finally:
            rows_of.requests = server.requests


def check(rows, name, stand_in) -> None:
    """The rows are those of the stand-in, in our units, and pass the quality gate."""
    archive = ARCHIVES[name]()
    compared = 0
    for field in archive.info.fields:
        expected = stand_in.expected(field)
        if expected is None:
            continue
        found = [row[field.name] for row in rows]
        if field.dtype == "float64":
            expected = [value if value is None else float(value) * field.factor for value in expected]
            assert found == pytest.approx(expected), field.name
        else:
            expected = [None if value == "" else value for value in expected]
            assert sorted(map(str, found)) == sorted(map(str, expected)), field.name
        compared += 1
    assert compared >= 2
    assert [problem for row in rows for problem in row_problems(row, archive)] == []


def test_a_good_answer_gives_its_rows(name, stand_in, tmp_path):
    rows = rows_of(name, stand_in.reply, tmp_path)
    assert rows
    check(rows, name, stand_in)


def test_the_sign_in_goes_to_the_archive_and_to_it_alone(name, stand_in, tmp_path):
    sign_in = ARCHIVES[name].info.sign_in
    rows_of(name, stand_in.reply, tmp_path)
    signed = [
        request
        for request in rows_of.requests
        if {"authorization", "private-token", "cookie"} & request.headers.keys() or "api_key" in request.query
    ]
    assert bool(signed) == (sign_in is not None)
    assert all(request.host in sign_in.hosts for request in signed)


def test_an_empty_answer_gives_no_rows(name, stand_in, tmp_path):
    if name == "copernicus":  # it is asked for named months: none of them is an error
        stand_in.empty()
        with pytest.raises(DataError, match="Copernicus"):
            rows_of(name, stand_in.reply, tmp_path)
        return
    stand_in.empty()
    assert rows_of(name, stand_in.reply, tmp_path) == []


def test_an_answer_cut_short_is_continued_or_refused(name, stand_in, tmp_path):
    stand_in.cut_short = True
    if stand_in.then == "continued":
        check(rows_of(name, stand_in.reply, tmp_path), name, stand_in)
    else:
        with pytest.raises(DataError, match="cut short|cannot read|not what|is no whole"):
            rows_of(name, stand_in.reply, tmp_path)


def test_a_malformed_answer_is_refused(name, tmp_path):
    with pytest.raises(DataError) as caught:
        rows_of(name, lambda request: Reply(b"<p>We are moving house</p>"), tmp_path, credentials=name == "copernicus")
    assert ARCHIVES[name].info.title in str(caught.value) and "report it" in str(caught.value)


def test_too_many_requests_is_waited_out(name, stand_in, tmp_path):
    refused = []

    def busy_once(request):
        if not refused and request.host == stand_in.host:
            refused.append(request)
            return Reply(b"slow down", 429, {"Retry-After": "0"})
        return stand_in.reply(request)

    check(rows_of(name, busy_once, tmp_path), name, stand_in)
    assert len(refused) == 1


def test_a_failing_server_is_an_error_that_says_so(name, stand_in, tmp_path):
    def broken(request):
        return Reply(b"oh", 500) if request.host == stand_in.host else stand_in.reply(request)

    with pytest.raises(DataError, match="after 2 of 2 tries: it answered 500 .*try again later") as caught:
        rows_of(name, broken, tmp_path, credentials=name == "copernicus")
    assert ARCHIVES[name].info.title in str(caught.value)


def test_a_silent_server_is_an_error_that_says_so(name, stand_in, tmp_path):
    with pytest.raises(DataError, match="(?s)nothing came for 0.05 s.*try again later"):
        rows_of(name, lambda request: Reply(hang_s=5.0), tmp_path, timeout=0.05, credentials=name == "copernicus")


def test_a_refused_sign_in_says_what_to_do(name, stand_in, tmp_path, caplog):
    sign_in = ARCHIVES[name].info.sign_in

    def refusing(request):  # an archive's complaint may quote the request
        return Reply(f"bad credentials {PLANTED if sign_in else ''}".encode(), 401)

    caplog.set_level(logging.DEBUG)
    with pytest.raises(RefusedSignIn) as caught:
        rows_of(name, refusing, tmp_path)
    message = str(caught.value)
    if sign_in:
        assert all(variable in message for variable in sign_in.variables.values()) and sign_in.where in message
        whole = "".join(traceback.format_exception(caught.value)) + caplog.text
        assert PLANTED not in whole and "***" in message
    else:
        assert "need no sign-in" in message


def test_a_sign_in_that_is_needed_and_absent_is_told_before_anything_is_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CDSAPI_KEY", raising=False)
    with pytest.raises(
        DataError,
        match="Copernicus Climate Data Store needs a sign-in: set CDSAPI_KEY, or write "
        "~/.cdsapirc; get one at https://cds.climate.copernicus.eu/profile",
    ):
        rows_of("copernicus", lambda request: Reply(b"", 500), tmp_path, credentials=False)


def test_a_model_that_is_not_installed_is_refused_with_the_cure(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match="ExoPlaSim is not installed.*pip install exoplasim.*gfortran"):
        OPTIONAL["exoplasim"]().ensure()


def test_mast_pages_that_end_early_are_refused(tmp_path):
    stand_in = fake("jwst", tmp_path)
    stand_in.cut_short, whole = True, stand_in.rows

    def script(request):
        if "request" in request.form and json.loads(request.form["request"])["page"] > 2:
            stand_in.rows = []
            reply = json.loads(stand_in.reply(request).body)
            reply["paging"]["rowsFiltered"] = len(whole)
            return Reply(json.dumps(reply).encode())
        return stand_in.reply(request)

    with pytest.raises(DataError, match=f"gave 8 rows of {len(whole)}: the answer was cut short"):
        rows_of("jwst", script, tmp_path)


@pytest.mark.parametrize("status", [400, 404, 500, 502])
def test_ensembl_answers_errors_in_passing(status, tmp_path):
    stand_in, asked = fake("ensembl", tmp_path), set()

    def once(request):
        first = request.path not in asked
        asked.add(request.path)
        return Reply(b"synthetic hiccup", status) if first else stand_in.reply(request)

    check(rows_of("ensembl", once, tmp_path), "ensembl", stand_in)


def test_a_taxon_that_ensembl_lacks_is_an_answer_that_is_kept(tmp_path):
    stand_in = fake("ensembl", tmp_path)
    check(rows_of("ensembl", stand_in.reply, tmp_path), "ensembl", stand_in)
    check(rows_of("ensembl", stand_in.reply, tmp_path, offline=True), "ensembl", stand_in)
    assert rows_of.requests == []


def test_errors_of_ensembl_as_a_whole_are_a_failure(tmp_path):
    stand_in = fake("ensembl", tmp_path)

    def broken(request):
        return stand_in.reply(request) if request.path.endswith("Methanococcus") else Reply(b"oh", 500)

    with pytest.raises(DataError, match="Methanosarcina failed after 2 of 2 tries: it answered 500"):
        rows_of("ensembl", broken, tmp_path)


def test_diagnostics_in_folders_of_their_own_are_a_pair(tmp_path):
    """As Way et al. 2018 keep them; the last year of one kind may lack the other."""
    stand_in = fake("rocke3d", tmp_path)
    files = stand_in.runs["Synthetic2020/warm/"]
    stand_in.runs = {f"Synthetic2018/{kind.upper()}/": {kind: file} for kind, file in files.items()}
    stand_in.decks = {"Synthetic2018/RUNDECKS/": ["P2Synthetic.R", "P2Other.R"]}
    stand_in.runs["Synthetic2018/RUNDECKS/"] = {}

    def script(request):
        reply = stand_in.reply(request)
        if request.path.endswith("AIJ/"):
            reply.body = reply.body.replace(b"</body>", b'<a href="ANN4002.aijP2Synthetic.nc">a</a></body>')
            reply.headers = {}
        return reply

    rows = rows_of("rocke3d", script, tmp_path)
    assert [row["climate_id"] for row in rows] == ["Synthetic2018/ANN4001.P2Synthetic"]
    assert row_problems(rows[0], ARCHIVES["rocke3d"]()) == []
    assert rows[0]["instellation_w_m2"] == 1000.0  # of the rundeck, in a folder of its own as well


def test_a_day_with_more_than_the_archives_limit_is_refused(tmp_path):
    stand_in = fake("gemini", tmp_path)
    rows = [{**stand_in.rows[0], "name": str(i)} for i in range(600)]
    with pytest.raises(DataError, match="500 rows for 2014-01-01 alone, at or over the archive's limit of 500"):
        rows_of(
            "gemini",
            lambda request: (
                Reply(b"", headers={"Set-Cookie": "session=one-day-of-gemini"})
                if request.path == "/login/"
                else Reply(json.dumps(rows[:500]).encode())
            ),
            tmp_path,
        )


def test_offline_replays_exactly_and_says_what_it_lacks(name, stand_in, tmp_path):
    first = rows_of(name, stand_in.reply, tmp_path)

    def never(request):
        raise AssertionError("asked while offline")

    again = rows_of(name, never, tmp_path, offline=True)
    assert [list(map(str, row.values())) for row in again] == [list(map(str, row.values())) for row in first]
    assert rows_of.requests == []
    with pytest.raises(DataError, match="offline.*not in the cache.*without --offline"):
        rows_of(name, never, tmp_path / "elsewhere", offline=True)
