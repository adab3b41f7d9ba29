"""Tables read through TAP are whole, whatever a service means by ``TOP n ... ORDER BY``."""

import pytest
from archive_server import ArchiveServer, Reply
from astropy.table import Table
from fake_tap import FakeTap, votable

from data_build.cache import DataError
from data_build.policy import Policy, RateLimit
from data_build.sources import tap
from data_build.sources.base import Field, SourceInfo, connect
from data_build.sources.tap import TapArchive


class Made(TapArchive):
    """An archive of one synthetic table."""

    service, table, where = "https://tap.synthetic/TAP", "made", "kind = 'synthetic'"
    info = SourceInfo(
        name="made",
        title="Made",
        modality="planet",
        version="1",
        licence="none",
        citation="none",
        kind="synthetic",
        fields=(Field("name", "string", theirs="made_name"), Field("mass", "float64")),
    )


def columns(count: int) -> dict[str, list]:
    return {"made_name": [f"O'Brien {i:04d}" for i in range(count)], "mass": [float(i) for i in range(count)]}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(RateLimit, "wait", lambda self: None)
    monkeypatch.setattr(tap, "PAGE", 20)


def read(script, tmp_path) -> tuple[list, list]:
    """The rows' keys, and the requests."""
    with ArchiveServer(script) as server:
        session = connect(Made(), Policy(tries=1, mirror=server.url, root=tmp_path / "cache"))
        return [row["made_name"] for row in Made().rows(session)], server.requests


@pytest.mark.parametrize("cuts_first", [False, True])
@pytest.mark.parametrize(
    ("count", "cut_short"), [(0, False), (1, False), (20, False), (21, False), (50, False), (7, True)]
)
def test_every_row_comes_once_and_in_order(count, cuts_first, cut_short, tmp_path):
    stand_in = FakeTap(columns(count), "tap.synthetic", cuts_first)
    stand_in.cut_short = cut_short
    assert read(stand_in.reply, tmp_path)[0] == columns(count)["made_name"]


def test_pages_stay_few_where_the_service_cuts_before_it_sorts(tmp_path):
    _, requests = read(FakeTap(columns(200), "tap.synthetic", cuts_first=True).reply, tmp_path)
    assert len(requests) < 8 * 200 / 20


def test_the_condition_stays_apart_from_the_range_of_keys(tmp_path):
    _, requests = read(FakeTap(columns(45), "tap.synthetic").reply, tmp_path)
    queries = [request.form["QUERY"] for request in requests]
    assert queries[0] == "SELECT COUNT(*) AS n FROM made WHERE kind = 'synthetic'"
    assert queries[3] == (
        "SELECT TOP 20 made_name, mass FROM made WHERE (kind = 'synthetic') AND made_name > 'O''Brien 0019' "
        "ORDER BY made_name"
    )


@pytest.mark.parametrize("page", [1, 2, 3])
def test_a_table_that_ends_early_without_a_word_is_refused(page, tmp_path):
    """The service counts 50 rows, and from some page on gives nothing."""
    stand_in, pages = FakeTap(columns(50), "tap.synthetic"), []

    def script(request):
        if "TOP" in request.form["QUERY"]:
            pages.append(request)
            if len(pages) >= page:
                return votable(Table(stand_in.columns)[:0])
        return stand_in.reply(request)

    with pytest.raises(DataError, match=f"gave {20 * (page - 1)} rows, but counts 50: the answer was cut short"):
        read(script, tmp_path)


def test_the_same_page_again_and_again_is_refused(tmp_path):
    stand_in = FakeTap(columns(50), "tap.synthetic")

    def script(request):
        return votable(Table(stand_in.columns)[:20]) if "TOP" in request.form["QUERY"] else stand_in.reply(request)

    with pytest.raises(DataError, match="does not keep the order"):
        read(script, tmp_path)


def test_a_page_that_ignores_the_range_is_refused(tmp_path):
    """Twenty rows from the middle, though fewer are in the range they span."""
    stand_in = FakeTap(columns(50), "tap.synthetic")

    def script(request):
        query = request.form["QUERY"]
        return votable(Table(stand_in.columns)[[9, 3, 7, 1]]) if "TOP" in query else stand_in.reply(request)

    with pytest.raises(DataError, match="counts 2: it does not keep the order"):
        read(script, tmp_path)


@pytest.mark.parametrize(
    "body",
    [
        b'<?xml version="1.0"?><VOTABLE version="1.4"><RESOURCE type="results"><INFO name="QUERY_STATUS" value="ERROR">'
        b"synthetic: the database is away</INFO></RESOURCE></VOTABLE>",
        b"<html>ORA-01013: user requested cancel of current operation</html>",
    ],
)
def test_a_failure_with_the_status_200_is_not_kept(body, tmp_path):
    with pytest.raises(Exception, match="away|E19"):
        read(lambda request: Reply(body, headers={"Content-Type": "application/x-votable+xml"}), tmp_path)
    assert read(FakeTap(columns(3), "tap.synthetic").reply, tmp_path)[0] == columns(3)["made_name"]
