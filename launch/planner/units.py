"""How bytes and seconds are printed."""


def gb(size: float) -> str:
    return f"{size / 1e9:,.1f} GB"


def seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f} s" if value < 100 else f"{value:,.0f} s" if value < 6000 else f"{value / 3600:.1f} h"
