"""Surveillance data: counts or rates of a disease by date and group, from CSV files, and cut into seasons.

grippeweb         influenza-like illness in Germany by region and age, RKI GrippeWeb (CC BY 4.0): found or downloaded
simulated         12 seasons of influenza in 4 regions by the binomial chain: the same each time, to try things on
boarding-school   an outbreak of influenza in an English school in 1978, built in: boys in bed (BMJ 1978;1:587)
a path            of a CSV or TSV file. The layouts of GrippeWeb and of CDC ILINet (as FluView exports it, or with a
                  column DATE) are known by their headers; of others, `date`, `value` and `group` name the columns

What is wrong with a file is an error. What is repaired is told: `Surveillance.repairs` says it in words.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd

from ablations.data import sird
from ablations.data.files import Published
from ablations.design import DataError

MOST_ROWS = 20_000_000  # of a file, which is read so many at a time:
ROWS_AT_ONCE = 100_000
LONGEST_LINE = 100_000  # bytes: a parser would take memory for all of a longer one
LONGEST_GAP = 2  # missing steps in a row that are filled by interpolation
FEWEST_SEASONS = 4  # two to learn from, one to decide by, one to test on
BOARDING_SCHOOL = (3, 8, 26, 76, 225, 298, 258, 233, 189, 128, 68, 29, 14, 4)  # from 22 January 1978
BOARDING_SCHOOL_BOYS = 763
NAMES = ("grippeweb", "simulated", "boarding-school")
GRIPPEWEB = Published(
    "grippeweb",
    contents={"GrippeWeb_Daten_des_Wochenberichts.tsv": "7d2eaaa3c7014e485780a8e672f8f947"},
    downloads={"GrippeWeb_Daten_des_Wochenberichts.tsv": "7d2eaaa3c7014e485780a8e672f8f947"},
    url="https://zenodo.org/records/20176588/files/",
)
GRIPPEWEB_COLUMNS = ("Erkrankung", "Altersgruppe", "Region", "Kalenderwoche", "Inzidenz")
ILINET_VALUE = "% WEIGHTED ILI"
FLUVIEW_COLUMNS = ("REGION", "YEAR", "WEEK", ILINET_VALUE)


@dataclass(frozen=True)
class Surveillance:
    """Values (groups, n), not negative, on n dates that lie `step` days apart."""

    groups: tuple[str, ...]
    dates: pd.DatetimeIndex
    values: np.ndarray
    step: int
    repairs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Seasons:
    """Whole seasons (seasons, groups, lead + length): each with the `lead` steps before it, which belong to the season
    before, as a forecaster's history does."""

    names: tuple[str, ...]
    groups: tuple[str, ...]
    values: np.ndarray
    lead: int
    step: str  # "week" or "day"
    repairs: tuple[str, ...] = ()


def load(name: str, date: str = "", value: str = "", group: str = "") -> Surveillance:
    """The data of that name or path. Raises `DataError` that names what is wrong, where, and what is allowed."""
    if name == "boarding-school":
        dates = pd.date_range("1978-01-22", periods=len(BOARDING_SCHOOL))
        return Surveillance(("boarding school",), dates, np.array([BOARDING_SCHOOL], float), 1)
    if name == "simulated":
        return _simulated()
    return _parsed(name, content_hash(name), date, value, group)


def content_hash(name: str) -> str:
    """What changes when the content of the data does."""
    if name in ("simulated", "boarding-school"):
        return hashlib.sha256(load(name).values.tobytes()).hexdigest()[:16]
    if name == "grippeweb":
        return GRIPPEWEB.contents["GrippeWeb_Daten_des_Wochenberichts.tsv"][:16]
    path = _checked_path(name)
    return _hash_of(path, path.stat().st_mtime_ns)


def cut(data: Surveillance, lead: int, first_month: int = 7) -> Seasons:
    """The data's whole seasons, each a year from the start of `first_month`, with the `lead` steps before it.

    Seasons that the data do not cover from the first step of their lead to their end are left out, which is said.
    Raises `DataError` if fewer than four remain.
    """
    length = round(364 / data.step)
    first = [i for i in range(1, len(data.dates)) if data.dates[i].month == first_month != data.dates[i - 1].month]
    whole = [i for i in first if i >= lead and i + length <= len(data.dates)]
    if len(whole) < FEWEST_SEASONS:
        raise DataError(
            f"the data hold {len(whole)} whole seasons from month {first_month} on ({data.dates[0]:%Y-%m-%d} to "
            f"{data.dates[-1]:%Y-%m-%d}, a season needs {lead} steps before it); at least {FEWEST_SEASONS} are needed, "
            "so that whole seasons can be held out: use a longer file, or another month with --set season=..."
        )
    left_out = [f"{data.dates[i]:%Y-%m-%d}" for i in first if i not in whole]
    why = f"are left out: the data do not hold them whole with the {lead} steps before"
    said = (f"seasons from {', '.join(left_out)} {why}",) if left_out else ()
    values = np.stack([data.values[:, i - lead : i + length] for i in whole])
    names = tuple(f"{data.dates[i].year}/{(data.dates[i].year + 1) % 100:02}" for i in whole)
    return Seasons(names, data.groups, values, lead, "week" if data.step == 7 else "day", data.repairs + said)


@cache
def _simulated(years: int = 13, regions: int = 4, population: int = 100_000) -> Surveillance:
    """Weekly shares of infectious people, each year an outbreak that begins in autumn, above a low level."""
    generator = np.random.default_rng(0)
    mu = np.full(regions, 1 / 5)
    values = np.full((regions, 52 * years), 2e-4)
    for year in range(years):
        rates = sird.Rates(
            mu * generator.uniform(1.25, 1.5) * generator.uniform(0.97, 1.03, regions), mu, mu**0, mu * 1e-3
        )
        weekly = sird.binomial_chain(rates, 7 * 36, population, generator).infectious[:, ::7]
        start = 52 * year + 10 + generator.integers(8)
        values[:, start : start + 36] += weekly[:, : values.shape[1] - start]
    reported = sird.observe(values, population, 0.1, generator)
    dates = pd.date_range("2000-07-03", periods=values.shape[1], freq="7D")
    return Surveillance(tuple(f"region {i + 1}" for i in range(regions)), dates, reported, 7)


@cache
def _parsed(name: str, content: str, date: str, value: str, group: str) -> Surveillance:
    if name == "grippeweb":
        source: IO[bytes] = io.BytesIO(GRIPPEWEB.read("GrippeWeb_Daten_des_Wochenberichts.tsv"))
    else:
        source = _checked_path(name).open("rb")
    with source:
        parts = [_numbers(_long(rows, name, date, value, group), name) for rows in _read(source, name)]
    return _regular(pd.concat(parts), name)


def _long(table: pd.DataFrame, name: str, date: str, value: str, group: str) -> pd.DataFrame:
    """Rows (date, value as it is written, group) of a table by the names of its columns, or by its known layout."""
    if date or value:
        return _of_columns(table, name, date, value, group)
    if set(GRIPPEWEB_COLUMNS) <= set(table):
        return _of_grippeweb(table)
    if ILINET_VALUE in table and "DATE" in table:
        return _of_columns(table, name, "DATE", ILINET_VALUE, group)
    if set(FLUVIEW_COLUMNS) <= set(table):
        return _of_fluview(table, name)
    raise DataError(
        f"{name} has neither the layout of GrippeWeb nor that of ILINet; name its columns with --date and --value, "
        f"and --group if it has several series. It has {', '.join(map(str, table))}"
    )


def _checked_path(name: str) -> Path:
    path = Path(name)
    if not path.is_file():
        raise DataError(f"{name!r} names no data; allowed are {', '.join(NAMES)} and the path of a CSV file (--data)")
    return path


@cache
def _hash_of(path: Path, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _read(source: IO[bytes], name: str) -> Iterator[pd.DataFrame]:
    """The table in parts, so that only one part's text is ever in memory; whatever of comma, semicolon and tab
    separates its columns. FluView writes a title above the header."""
    rows = 0
    try:
        _check_lines(source)
        lines = io.TextIOWrapper(source, "utf-8-sig", newline="")
        header, titles = lines.readline(), 0
        if header.startswith("PERCENTAGE OF VISITS"):
            header, titles = lines.readline(), 1
        lines.seek(0)
        separator = max(",;\t", key=header.count)
        for part in pd.read_csv(
            lines, sep=separator, skiprows=titles, dtype=str, keep_default_na=False, chunksize=ROWS_AT_ONCE
        ):
            if not isinstance(part.index, pd.RangeIndex):
                raise ValueError(f"its rows have more columns than its header, {header.strip()!r}")
            if (rows := rows + len(part)) > MOST_ROWS:
                raise DataError(
                    f"{name} has more than {MOST_ROWS:,} rows, which no series by date and group needs; keep those of "
                    "the dates and groups that are needed"
                )
            yield part
    except (UnicodeDecodeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{name} cannot be read as CSV ({error}); save it as UTF-8 with a header line") from error


def _check_lines(source: IO[bytes]) -> None:
    """ValueError if the file has a line that no table has, such as the gap of a sparse file."""
    number = 0
    while line := source.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE:
            raise ValueError(f"its line {number:,} has {LONGEST_LINE:,} bytes or more")
    source.seek(0)


def _numbers(long: pd.DataFrame, name: str) -> pd.DataFrame:
    """The same rows with values as numbers, NaN where one is missing, and one copy of each group's name."""
    missing = long["value"].str.strip().isin(["", "NA", "NaN", "nan", "X"])
    numbers = pd.to_numeric(long["value"].where(~missing), errors="coerce")
    for what, wrong in (
        ("no number, whose decimals follow a point", numbers.isna() & ~missing),
        ("negative or infinite", ~numbers.between(0, 1e300) & ~missing),
    ):
        if wrong.any():
            row = int(wrong.to_numpy().argmax())
            raise DataError(
                f"{name}, data row {long.index[row] + 1} ({long['date'].iloc[row]:%Y-%m-%d}, "
                f"{long['group'].iloc[row]}): the value {long['value'].iloc[row]!r} is {what}; counts and rates are 0 "
                f"or more. {int(wrong.sum())} such rows among {len(long):,}"
            )
    return long.assign(value=numbers, group=long["group"].map(sys.intern))


def _of_columns(table: pd.DataFrame, name: str, date: str, value: str, group: str) -> pd.DataFrame:
    for option, column in (("date", date), ("value", value), ("group", group)):
        if column not in table and (column or option != "group"):
            near = difflib.get_close_matches(column, list(map(str, table)), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise DataError(f"{name} has no column {column!r} (--{option}).{hint} It has {', '.join(map(str, table))}")
    groups = table[group] if group else pd.Series(value, index=table.index)
    return pd.DataFrame({"date": _dates(table[date], name), "value": table[value], "group": groups})


def _of_grippeweb(table: pd.DataFrame) -> pd.DataFrame:
    ili = table[table["Erkrankung"] == "ILI"]
    groups = ili["Region"] + ", " + ili["Altersgruppe"]
    return pd.DataFrame({"date": _dates(ili["Kalenderwoche"], "GrippeWeb"), "value": ili["Inzidenz"], "group": groups})


def _of_fluview(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Weeks of the CDC begin on Sundays; the first of a year is the one with 4 January in it."""
    try:
        years, weeks = table["YEAR"].astype(int), table["WEEK"].astype(int)
    except ValueError as error:
        raise DataError(f"{name}: YEAR and WEEK must be whole numbers: {error}") from error
    fourth = pd.to_datetime(years.astype(str) + "-01-04")
    first = fourth - pd.to_timedelta((fourth.dt.day_of_week + 1) % 7, unit="D")
    dates = first + pd.to_timedelta(7 * (weeks - 1), unit="D")
    return pd.DataFrame({"date": dates, "value": table[ILINET_VALUE], "group": table["REGION"]})


def _dates(column: pd.Series, name: str) -> pd.Series:
    """Days, or the Mondays of ISO weeks such as 2020-W53."""
    weeks = column.str.fullmatch(r"\d{4}-W\d{2}")
    local = column.str.replace(r"([T ]\d\d:\d\d[\d:.]*)(Z|[+-]\d\d:?\d\d)$", r"\1", regex=True)  # of its own clock
    text, form = (column + "-1", "%G-W%V-%u") if weeks.all() else (local, "ISO8601")
    dates = pd.to_datetime(text, format=form, errors="coerce").dt.normalize()
    if dates.isna().any():
        row = int(dates.isna().to_numpy().argmax())
        where = f"{name}, data row {column.index[row] + 1}"
        raise DataError(f"{where}: {column.iloc[row]!r} is no date; allowed: 2020-12-31 or 2020-W53")
    return dates


def _regular(long: pd.DataFrame, name: str) -> Surveillance:
    """The table (date, value, group) as even series, with what was repaired."""
    if long.empty:
        raise DataError(f"{name} holds no rows of data; a header and one row per date are needed")
    twice = long[long.duplicated(["group", "date"])]
    if len(twice):
        raise DataError(
            f"{name} repeats dates ({len(twice):,} of its rows), the first {twice['date'].iloc[0]:%Y-%m-%d} of "
            f"{twice['group'].iloc[0]}; name the column that tells its series apart with --group, or remove them"
        )
    wide = long.pivot(index="date", columns="group", values="value").sort_index()
    if len(wide) < 2:
        raise DataError(f"{name} holds a single date; a series needs more")
    step = int(pd.Series(wide.index).diff().dt.days.median())
    grid = pd.date_range(wide.index[0], wide.index[-1], freq=f"{step}D")
    if step not in (1, 7) or not wide.index.isin(grid).all():
        odd = "" if step not in (1, 7) else f", and {wide.index[~wide.index.isin(grid)][0]:%Y-%m-%d} lies between"
        raise DataError(f"{name} has a row every {step} days{odd}; allowed are daily and weekly series")
    wide = wide.reindex(grid)
    known = wide.notna().to_numpy()
    first, last = known.argmax(axis=0).max(), len(wide) - 1 - known[::-1].argmax(axis=0).max()
    common = wide.iloc[first : last + 1]
    if common.empty:
        raise DataError(f"{name}: its groups share no dates; use groups that were reported at the same time")
    repairs = []
    if len(common) < len(wide):
        repairs.append(
            f"{name}: cut to {common.index[0]:%Y-%m-%d} to {common.index[-1]:%Y-%m-%d}, which all groups have"
        )
    filled = common.interpolate(limit_area="inside", limit=LONGEST_GAP)
    if filled.isna().any().any():
        of = filled.columns[filled.isna().any()][0]
        where = filled.index[filled[of].isna()][0]
        raise DataError(
            f"{name}: {of} lacks more than {LONGEST_GAP} values in a row around {where:%Y-%m-%d}; at most "
            f"{LONGEST_GAP} are filled by interpolation. Use a part of the file without the gap"
        )
    if count := int(common.isna().sum().sum()):
        gap = common.index[common.isna().any(axis=1)][0]
        repairs.append(f"{name}: missing values ({count:,}, the first of {gap:%Y-%m-%d}) filled by interpolation")
    empty = filled.columns[(filled == 0).all()]
    if len(empty):
        raise DataError(f"{name}: all values of {empty[0]} are 0; there is nothing to forecast. Leave that group out")
    groups = tuple(map(str, filled.columns))
    return Surveillance(groups, pd.DatetimeIndex(filled.index), filled.to_numpy().T.copy(), step, tuple(repairs))
