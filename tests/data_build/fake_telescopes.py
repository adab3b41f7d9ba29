"""Stand-ins for the archives of telescopes that do not speak the Table Access Protocol; see `fake_archives`."""

import json
import re
from datetime import date

from archive_server import Reply
from fake_tap import recorded_by_astroquery


class FakeMast:
    """The MAST portal: astroquery's recordings of the columns' configuration and of 19 observations."""

    then, host = "continued", "mast.stsci.edu"

    def __init__(self):
        self.rows = json.loads(recorded_by_astroquery("mast", "caom.json"))["data"]
        # The recording has observations of one archive row twice; keys must differ.
        self.rows = list({row["obs_id"]: row for row in self.rows}.values())
        self.cut_short, self.executing = False, 1

    def reply(self, request):
        if "columnsconfig" in request.path:
            return Reply(recorded_by_astroquery("mast", "columnsconfig.json"))
        asked = json.loads(request.form["request"])
        if self.executing:
            self.executing -= 1
            return Reply(json.dumps({"status": "EXECUTING", "msg": "", "data": []}).encode())
        size = 4 if self.cut_short else asked["pagesize"]
        start = (asked["page"] - 1) * size
        pages = -(-len(self.rows) // size)
        return Reply(
            json.dumps(
                {
                    "status": "COMPLETE",
                    "msg": "",
                    "data": self.rows[start : start + size],
                    "paging": {
                        "page": asked["page"],
                        "pageSize": size,
                        "pagesFiltered": pages,
                        "rowsFiltered": len(self.rows),
                        "rowsTotal": len(self.rows),
                    },
                }
            ).encode()
        )

    def empty(self):
        self.rows = []

    def expected(self, field):
        return [row[field.column] for row in self.rows]


class FakeGemini:
    """astroquery's recording of 250 files around M 101, spread over synthetic days."""

    then, host = "continued", "archive.gemini.edu"

    def __init__(self):
        # Over the archive's limit only when it is cut short: then the same rows come under three names each.
        self.rows = json.loads(recorded_by_astroquery("gemini", "m101.json"))
        self.cut_short = False

    def reply(self, request):
        if request.path == "/login/":
            assert "password" in request.form and not request.query
            return Reply(b"<P>Welcome", headers={"Set-Cookie": "gemini_archive_session=synthetic-session"})
        first, last = re.search(r"/(\d{8})-(\d{8})", request.path).groups()
        rows = [row for row in self._all() if first <= row["day"] <= last]
        return Reply(json.dumps(rows[:500]).encode())

    def empty(self):
        self.rows = []

    def expected(self, field):
        return [row[field.column] for row in self._all()]

    def _all(self):
        days = [date(2014, 1, 1).toordinal() + 40 * i for i in range(100)]
        rows = [
            {**row, "name": f"{copy}-{row['name']}"} for copy in range(3 if self.cut_short else 1) for row in self.rows
        ]
        rows = list({row["name"]: row for row in rows}.values())
        for number, row in enumerate(rows):
            row["day"] = date.fromordinal(days[number * len(days) // len(rows)]).strftime("%Y%m%d")
        return rows
