"""Results of gpu_check in words: a summary for a terminal, tables for docs/gpu.md."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

Found = dict[str, Any]
Row = Sequence[str]


def cases(found: Found, part: str) -> Iterator[tuple[str, Found]]:
    """Name and result of each case of a part that has one."""
    for name, row in (found.get(part) or {}).items():
        if name != "machine" and isinstance(row, dict) and "error" not in row and "skipped" not in row:
            yield name, row


def broken(found: Found) -> list[str]:
    """Cases and parts that failed, or are not as they should be."""
    names = []
    for part, rows in found.items():
        if isinstance(rows, dict):
            names += [part] if isinstance(rows.get("error"), str) else []
            wrong = [
                n for n, row in rows.items() if isinstance(row, dict) and ("error" in row or row.get("ok") is False)
            ]
            names += [f"{part}/{name}" for name in wrong]
    return names


def machine(found: Found) -> Found:
    """Of the first part that tells."""
    return next((part["machine"] for part in found.values() if isinstance(part, dict) and "machine" in part), {})


def summary(found: Found) -> str:
    """A line a case, and what is broken."""
    lines = ["", json.dumps(machine(found))]
    for part in found:
        if part not in ("arguments", "seconds"):
            lines += [f"{part:10s}{name:44s}{_numbers(row)}" for name, row in cases(found, part)]
    return "\n".join([*lines, f"seconds: {found['seconds']}", f"broken: {', '.join(broken(found)) or 'nothing'}"])


def _numbers(row: Found) -> str:
    hidden = ("took", "losses", "ms_range", "last")
    return "  ".join(f"{key} {value}" for key, value in row.items() if key not in hidden)[:200]


# --- tables ----------------------------------------------------------------------------------------------------------


def markdown(found: Found) -> str:
    """Tables of what was measured, each under a line that says what it is."""
    tables = [("Steps", *steps_table(found)), ("Numbers", *numbers_table(found)), ("Going on", *resume_table(found))]
    tables += [("Images a second", *speed_table(found)), ("Codes", *codes_table(found))]
    about = machine(found)
    words = ", ".join(str(about[key]) for key in ("gpu", "driver", "cuda", "torch", "python") if key in about)
    parts = [words]
    parts += [f"{title}:\n\n{table(columns, rows)}" for title, columns, rows in tables if rows]
    return "\n\n".join(parts) + "\n"


def table(columns: Row, rows: Sequence[Row]) -> str:
    lines = [columns, ["--"] + ["--:"] * (len(columns) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def steps_table(found: Found) -> tuple[Row, list[Row]]:
    columns = ("step", "ms", "images/s", "kernels", "under 5 µs", "counted", "GPU busy, ms", "peak memory, MiB")
    keys = ("ms", "images_per_second", "kernels", "under_5_us", "counted", "busy_ms", "peak_mib")
    parts = ("steps", "published", "compile", "ddp")
    rows = [row for part in parts for row in cases(found, part) if "ms" in row[1]]
    return columns, [(name, *(_text(row.get(key, "")) for key in keys)) for name, row in rows]


def numbers_table(found: Found) -> tuple[Row, list[Row]]:
    columns = ("losses", "largest relative difference", "equal to the last bit")
    rows = [(name, f"{row['most']:.1e}", row.get("equal", "")) for name, row in cases(found, "same") if "most" in row]
    return columns, rows


def resume_table(found: Found) -> tuple[Row, list[Row]]:
    columns = ("run cut in two", "rows of metrics.csv equal", "weights equal")
    return columns, [(name, row["rows"], _text(row["weights"])) for name, row in cases(found, "resume")]


def speed_table(found: Found) -> tuple[Row, list[Row]]:
    columns = ("model, images at once", "operation", "images/s")
    rows = []
    for name, row in cases(found, "speed"):
        for what, value in row.items():
            values = value if isinstance(value, dict) else {"": value}
            rows += [
                (name, f"{what} {inner}".strip(), _text(number))
                for inner, number in values.items()
                if what not in ("took", "peak_mib") and inner != "equal"
            ]
    return columns, rows


def codes_table(found: Found) -> tuple[Row, list[Row]]:
    columns = ("codes", "equal to the CPU's", "decoded pixels equal to the CPU's", "largest difference, levels")
    keys = ("equal_to_cpu", "levels_equal", "levels_most")
    return columns, [(name, *(_text(row[key]) for key in keys)) for name, row in cases(found, "codes")]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.6g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
