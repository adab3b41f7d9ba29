"""`astrobio data probe`: what it makes of archives that answer as expected, otherwise, or not at all."""

import json

import pytest
from archive_server import ArchiveServer, Reply
from astropy.table import Table
from fake_archives import fake
from planted import PLANTED, forms_of_the_secret

from data_build import probe as module
from data_build.__main__ import main
from data_build.policy import Policy, RateLimit
from data_build.probe import probe
from data_build.sources import ARCHIVES, copernicus


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(RateLimit, "wait", lambda self: None)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(copernicus, "GASES", {2020: copernicus.GASES[2020]})


@pytest.fixture(autouse=True)
def signed_in(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for cls in ARCHIVES.values():
        for variable in cls.info.sign_in.variables.values() if cls.info.sign_in else ():
            monkeypatch.setenv(variable, PLANTED)


@pytest.fixture
def served(monkeypatch):
    """``served(script)``: archives answer by ``script``; gives the server."""
    servers = []

    def serve(script):
        server = ArchiveServer(script).__enter__()
        servers.append(server)
        monkeypatch.setattr(
            module, "live_policy", lambda root: Policy(root=root, tries=1, mirror=server.url, timeout_s=(1.0, 2.0))
        )
        return server

    yield serve
    for server in servers:
        server.__exit__()


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_that_answers_as_expected_is_ok(name, served, tmp_path):
    server = served(fake(name, tmp_path).reply)
    assert probe([name]) == [{"name": name, "title": ARCHIVES[name].info.title, "status": "ok", "details": []}]
    assert server.requests


def test_a_probe_takes_one_row_where_an_archive_gives_pages(served, tmp_path):
    for name, asked in (
        ("tess", lambda request: "pagesize" in request.body and json.loads(request.form["request"])["pagesize"] == 1),
        ("uniprot", lambda request: request.query.get("size") == "1"),
        ("gaia", lambda request: request.form.get("QUERY", "").startswith("SELECT TOP 1 * FROM gaiadr3.gaia_source")),
        ("genbank", lambda request: {**request.query, **request.form}.get("id", ",").count(",") == 0),
    ):
        assert any(map(asked, served_requests(served, name, tmp_path))), name


def served_requests(served, name, tmp_path):
    server = served(fake(name, tmp_path).reply)
    probe([name])
    return server.requests


def status_of(name, script, served) -> tuple[str, str]:
    served(script)
    (found,) = probe([name])
    return found["status"], "; ".join(found["details"])


def test_a_column_that_is_missing_and_other_types_and_units_are_told(served, tmp_path):
    stand_in = fake("keck", tmp_path)
    columns = Table(stand_in.columns)
    columns.remove_column("elaptime")
    columns["ra"] = [str(value) for value in columns["ra"]]
    columns["waveblue"].unit, columns["wavered"].unit, columns["dec"].unit = "0.1nm", "nm", "kg"
    stand_in.columns = columns
    status, details = status_of("keck", stand_in.reply, served)
    assert status == "changed"
    assert details == (
        "elaptime is missing; ra is string, float64 is expected; dec is in kg, deg is expected; "
        "wavered is in nm, 10000 um is expected"
    )


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("gtdb", lambda stand_in: stand_in.names.remove("genome_size"), "lacks genome_size"),
        ("uniprot", lambda stand_in: stand_in.rows[0].update(Mass="light"), "Mass is str, float64 is expected"),
        ("jwst", lambda stand_in: [row.pop("s_ra") for row in stand_in.rows], "lacks s_ra"),
        ("tess", lambda stand_in: stand_in.empty(), "it gave no row"),
        ("gaia", lambda stand_in: stand_in.empty(), "it gave no row"),
        ("nasa_spectra", lambda stand_in: stand_in.files.clear(), "Synthetic_1_b_1.tbl: its file is not there"),
    ],
)
def test_what_has_changed_is_told(name, change, words, served, tmp_path):
    stand_in = fake(name, tmp_path)
    change(stand_in)
    status, details = status_of(name, stand_in.reply, served)
    assert status == "changed" and words in details


@pytest.mark.parametrize(
    ("name", "reply", "status"),
    [
        ("gaia", Reply(b"synthetic", 503), "unreachable"),
        ("gtdb", Reply(b"synthetic", 404), "changed"),
        ("keck", Reply(b"<p>We are moving house</p>"), "changed"),
        ("gtdb", Reply(b"synthetic", 403), "unreachable"),
        ("tess", Reply(f"bad token {PLANTED}".encode(), 401), "needs credentials"),
        ("copernicus", Reply(f"bad key {PLANTED}".encode(), 401), "needs credentials"),
    ],
)
def test_an_archive_that_does_not_let_in_or_answer(name, reply, status, served):
    found, details = status_of(name, lambda request: reply, served)
    assert found == status and details
    assert not [form for form in forms_of_the_secret() if form in details]


class TestCommandLine:
    def test_a_table_and_its_exit_code(self, served, tmp_path, capsys, monkeypatch):
        stand_ins = {name: fake(name, tmp_path) for name in ("ensembl", "gtdb")}
        by_host = {stand_in.host: stand_in for stand_in in stand_ins.values()}
        served(lambda request: by_host[request.host].reply(request) if request.host in by_host else Reply(b"", 500))
        assert main(["probe", "ensembl", "gtdb"]) == 0
        assert capsys.readouterr().out == "ensembl  ok\ngtdb     ok\n2 ok\n"
        stand_ins["gtdb"].names.remove("genome_size")
        assert main(["probe", "ensembl", "gtdb", "keck"]) == 1
        told = capsys.readouterr().out
        assert "gtdb     changed            GTDB: the answer lacks genome_size" in told
        assert "keck     unreachable        Keck" in told and told.endswith("\n1 ok, 1 changed, 1 unreachable\n")

    def test_missing_credentials_fail_only_an_archive_that_is_named(self, served, capsys, monkeypatch):
        monkeypatch.delenv("CDSAPI_KEY")
        served(lambda request: Reply(b"", 500))
        assert main(["probe", "copernicus"]) == 1
        assert "needs credentials  set CDSAPI_KEY, or write ~/.cdsapirc" in capsys.readouterr().out
        assert not module.failed([{"status": "ok"}, {"status": "needs credentials"}], named=False)

    def test_json_is_one_object_with_every_archive(self, served, capsys):
        served(lambda request: Reply(f"synthetic {PLANTED}".encode(), 500))
        assert main(["probe", "--json"]) == 1
        told = capsys.readouterr()
        found = json.loads(told.out)["archives"]
        assert [entry["name"] for entry in found] == list(ARCHIVES)
        assert {entry["status"] for entry in found} == {"unreachable"} and told.err == ""
        assert not [form for form in forms_of_the_secret() if form in told.out]

    def test_a_name_that_no_archive_has(self, capsys):
        assert main(["probe", "gaya"]) == 2
        assert "unknown archive 'gaya', did you mean 'gaia'?; there is: nasa_pscomppars" in capsys.readouterr().err

    def test_the_help_has_an_example(self, capsys):
        with pytest.raises(SystemExit):
            main(["probe", "-h"])
        assert "astrobio data probe gaia nasa_pscomppars --json" in capsys.readouterr().out
