"""The sources as ``astrobio data sources`` lists them: what each is, whether its sign-in is there, what is cached."""

from data_build import credentials
from data_build.sources import ARCHIVES, INFOS, OPTIONAL
from data_build.sources.base import SourceInfo
from data_build.store import AnswerStore


def inventory() -> list[dict]:
    """One entry for each source; of credentials only whether they are needed, where they were found, and how to set
    them."""
    return [
        {
            **info.as_dict(),
            "network": name in ARCHIVES,
            "optional": name in OPTIONAL,
            "sign_in": _sign_in(info),
            "rows_cached": AnswerStore(name).rows() if name in ARCHIVES else None,
        }
        for name, info in INFOS.items()
    ]


def table(entries: list[dict]) -> str:
    """The entries for people: a line each."""
    rows = [("source", "modality", "kind", "sign-in", "rows cached", "licence")]
    rows += [
        (
            entry["name"],
            entry["modality"],
            entry["kind"],
            _told(entry["sign_in"]),
            "-" if entry["rows_cached"] is None else str(entry["rows_cached"]),
            entry["licence"],
        )
        for entry in entries
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    ]
    missing = [
        f"{entry['name']}: {entry['sign_in']['how']}"
        for entry in entries
        if entry["sign_in"]["use"] == "required" and not entry["sign_in"]["found_in"]
    ]
    return "\n".join([*lines, *(["", "To sign in:", *missing] if missing else [])])


def _sign_in(info: SourceInfo) -> dict:
    if info.sign_in is None:
        return {"use": "none", "found_in": None, "how": None}
    found = credentials.find(info.sign_in)
    return {
        "use": "required" if info.sign_in.required else "optional",
        "found_in": ", ".join(sorted(set(found.found_in.values()))) if found else None,
        "how": credentials.how_to(info.sign_in),
    }


def _told(sign_in: dict) -> str:
    if sign_in["use"] == "none":
        return "none"
    return f"{sign_in['use']}, " + (f"found in {sign_in['found_in']}" if sign_in["found_in"] else "not found")
