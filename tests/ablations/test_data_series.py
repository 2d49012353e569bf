"""Claims on surveillance data: layouts are read, seasons are whole, bad files are refused, repairs are told."""

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ablations.data import series, tell_repairs
from ablations.design import DataError

SAMPLES = Path(__file__).parents[3] / "shared" / "data" / "epidemics"


def weekly(years=6, start="2010-10-04"):
    """Dates and values of a series that peaks each January."""
    dates = pd.date_range(start, periods=52 * years, freq="7D")
    return pd.DataFrame(
        {"day": dates.strftime("%Y-%m-%d"), "cases": 50 + np.rint(40 * np.cos(dates.day_of_year / 58.1))}
    )


def written(folder, table, name="cases.csv", **options):
    table.to_csv(folder / name, index=False, **options)
    return str(folder / name)


def read(folder, table):
    return series.load(written(folder, table), "day", "cases", "place" if "place" in table else "")


def test_a_date_with_a_time_is_the_day_on_its_own_clock_whatever_the_offset(tmp_path):
    table = weekly(years=1)
    offsets = np.where(np.arange(len(table)) % 2, "T00:00:00+01:00", "T23:30+0200")
    data = read(tmp_path, table.assign(day=table["day"] + offsets))
    assert [f"{date:%Y-%m-%d}" for date in data.dates] == table["day"].tolist()


def test_any_csv_is_read_by_the_names_of_its_columns(tmp_path):
    table = weekly()
    data = series.load(written(tmp_path, table, sep=";"), "day", "cases")
    assert (data.step, data.groups, data.repairs) == (7, ("cases",), ())
    np.testing.assert_array_equal(data.values[0], table["cases"])
    assert str(data.dates[0].date()) == "2010-10-04"


def test_groups_become_series_and_rows_may_come_in_any_order(tmp_path):
    north, south = weekly().assign(place="north"), weekly().assign(place="south")
    south["cases"] *= 2
    data = read(tmp_path, pd.concat([south, north]).sample(frac=1, random_state=0))
    assert data.groups == ("north", "south")
    np.testing.assert_array_equal(data.values[1], 2 * data.values[0])


def test_the_layout_of_grippeweb_is_known(tmp_path):
    rows = [
        (10, "2010/11", ill, "00+", region, week, rate)
        for ill, factor in (("ARE", 9), ("ILI", 1))
        for region in ("Bundesweit", "Osten")
        for week, rate in (("2020-W52", 100 * factor), ("2020-W53", 200 * factor), ("2021-W01", 300 * factor))
    ]
    columns = ["Meldungen", "Saison", "Erkrankung", "Altersgruppe", "Region", "Kalenderwoche", "Inzidenz"]
    data = series.load(written(tmp_path, pd.DataFrame(rows, columns=columns), "web.tsv", sep="\t"))
    assert data.groups == ("Bundesweit, 00+", "Osten, 00+")
    assert data.values.tolist() == [[100, 200, 300]] * 2
    assert [str(date.date()) for date in data.dates] == ["2020-12-21", "2020-12-28", "2021-01-04"]


def test_grippeweb_by_name_is_downloaded_once_with_its_checksum(publisher, monkeypatch):
    (served, url), name = publisher, "GrippeWeb_Daten_des_Wochenberichts.tsv"
    content = b"Erkrankung\tAltersgruppe\tRegion\tKalenderwoche\tInzidenz\nILI\t00+\tOsten\t2021-W01\t3.5\n"
    content += content.splitlines()[-1].replace(b"W01", b"W02") + b"\n"
    sums = {name: hashlib.md5(content).hexdigest()}
    source = replace(series.GRIPPEWEB, contents=sums, downloads=sums, url=url)
    monkeypatch.setattr(series, "GRIPPEWEB", source)
    (served / name).write_bytes(content + b"forged")
    with pytest.raises(DataError, match=f"{name} be downloaded .*hash of downloaded file"):
        series.load("grippeweb")
    (served / name).write_bytes(content)
    assert series.load("grippeweb").values.tolist() == [[3.5, 3.5]]
    monkeypatch.setattr(series, "GRIPPEWEB", replace(source, url="http://127.0.0.1:1/"))
    series._parsed.cache_clear()
    assert series.load("grippeweb").groups == ("Osten, 00+",)


def test_the_layouts_of_ilinet_are_known(tmp_path):
    plain = tmp_path / "plain.csv"
    plain.write_text("DATE,% WEIGHTED ILI,AGE 0-4\n2001-12-30,1.5,\n2002-01-06,2.5,3\n")
    assert series.load(str(plain)).values.tolist() == [[1.5, 2.5]]
    export = tmp_path / "ILINet.csv"
    export.write_text(
        "PERCENTAGE OF VISITS FOR INFLUENZA-LIKE-ILLNESS REPORTED BY SENTINEL PROVIDERS\n"
        "REGION TYPE,REGION,YEAR,WEEK,% WEIGHTED ILI,%UNWEIGHTED ILI\n"
        "National,X,2014,53,5.9,6\nNational,X,2015,1,4.4,4\nNational,X,2015,2,4.1,4\n"
    )
    data = series.load(str(export))
    assert data.values.tolist() == [[5.9, 4.4, 4.1]]
    assert [str(date.date()) for date in data.dates] == ["2014-12-28", "2015-01-04", "2015-01-11"]  # CDC's calendar


@pytest.mark.parametrize(
    ("file", "groups", "weeks", "seasons"),
    [("rki_grippeweb.tsv", 12, 794, 14), ("cdc_ilinet_national_weekly_1997_2022.csv", 1, 1305, 24)],
)
def test_files_as_their_publishers_ship_them_are_read_whole(file, groups, weeks, seasons):
    if not (SAMPLES / file).exists():
        pytest.skip(f"{SAMPLES / file} is not on this machine")
    data = series.load(str(SAMPLES / file))
    assert data.values.shape == (groups, weeks)
    assert data.values.min() >= 0
    assert len(series.cut(data, lead=28).names) == seasons


def test_the_boarding_school_is_the_published_outbreak():
    data = series.load("boarding-school")
    assert data.values[0].tolist() == [3, 8, 26, 76, 225, 298, 258, 233, 189, 128, 68, 29, 14, 4]
    assert (data.values[0].argmax(), series.BOARDING_SCHOOL_BOYS, data.step) == (5, 763, 1)


def test_seasons_are_whole_years_with_the_steps_before_them(tmp_path):
    data = read(tmp_path, weekly())
    seasons = series.cut(data, lead=10)
    assert seasons.names == ("2011/12", "2012/13", "2013/14", "2014/15", "2015/16")
    assert seasons.values.shape == (5, 1, 10 + 52)
    first = data.dates.get_loc("2011-07-04")
    np.testing.assert_array_equal(seasons.values[0], data.values[:, first - 10 : first + 52])
    assert 10 + 23 <= seasons.values[0, 0].argmax() <= 10 + 29  # January


def test_seasons_that_are_not_whole_are_left_out_aloud(tmp_path):
    seasons = series.cut(read(tmp_path, weekly()), lead=45)
    assert seasons.names[0] == "2012/13"
    assert seasons.repairs == (
        "seasons from 2011-07-04, 2016-07-04 are left out: the data do not hold them whole with the 45 steps before",
    )


def test_a_short_gap_is_filled_aloud(tmp_path):
    table = weekly().drop(index=[30])
    table.loc[80, "cases"] = np.nan
    data = read(tmp_path, table)
    assert data.repairs == (
        f"{tmp_path}/cases.csv: missing values (2, the first of 2011-05-02) filled by interpolation",
    )
    expected = (weekly()["cases"][29] + weekly()["cases"][31]) / 2
    assert data.values[0, 30] == expected
    with pytest.warns(UserWarning, match=r"missing values \(2"):
        tell_repairs(data.repairs)


def test_groups_are_cut_to_their_common_dates_aloud(tmp_path):
    long, short = weekly().assign(place="a"), weekly().iloc[4:-3].assign(place="b")
    data = read(tmp_path, pd.concat([long, short]))
    assert data.values.shape == (2, 52 * 6 - 7)
    assert "cut to 2010-11-01 to" in data.repairs[0]


def with_value(value, rows=slice(3, 4)):
    table = weekly().astype({"cases": object})
    table.iloc[rows, 1] = value
    return table


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (with_value(-2), r"data row 4 \(2010-10-25, cases\): the value '-2' is negative.* 1 such rows"),
        (with_value("many"), "the value 'many' is no number"),
        (with_value("inf"), "the value 'inf' is negative or infinite"),
        (with_value(np.nan, slice(3, 6)), "lacks more than 2 values in a row around"),
        (weekly().drop(index=range(30, 40)), "lacks more than 2 values in a row around 2011-05-16"),
        (
            pd.concat([weekly(), weekly().iloc[7:9]]),
            r"repeats dates \(2 of its rows\), the first 2010-11-22 .* --group",
        ),
        (weekly().assign(cases=0), "all values of cases are 0"),
        (
            weekly().astype({"cases": object}).assign(cases="1,5"),
            "the value '1,5' is no number, whose decimals follow a",
        ),
        (weekly().assign(day="30.12.2020"), r"data row 1: '30.12.2020' is no date; allowed: 2020-12-31 or 2020-W53"),
        (weekly().rename(columns={"cases": "case"}), r"no column 'cases' .*Did you mean 'case'. It has day, case"),
        (weekly().iloc[::4], "a row every 28 days; allowed are daily and weekly"),
        (weekly().iloc[:0], "holds no rows"),
        (weekly().iloc[:1], "a single date"),
    ],
)
def test_bad_data_are_refused_with_the_reason_and_the_place(tmp_path, table, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, table)


def test_a_day_between_the_weeks_is_refused(tmp_path):
    table = weekly()
    table.loc[9, "day"] = "2010-12-07"
    with pytest.raises(DataError, match="a row every 7 days, and 2010-12-07 lies between"):
        read(tmp_path, table)


@pytest.mark.parametrize("years", [1, 4])
def test_too_few_seasons_are_refused(tmp_path, years):
    with pytest.raises(DataError, match=r"hold \d whole seasons from month 7 on .* at least 4 are needed"):
        series.cut(read(tmp_path, weekly(years)), lead=28)


def test_unknown_layouts_and_names_say_what_is_allowed(tmp_path):
    with pytest.raises(DataError, match=r"name its columns with --date and --value.*It has day, cases"):
        series.load(written(tmp_path, weekly()))
    with pytest.raises(
        DataError, match="'gripweb' names no data; allowed are grippeweb, simulated, boarding-school and the path"
    ):
        series.load("gripweb")
    (tmp_path / "image.csv").write_bytes(bytes(range(256)))
    with pytest.raises(DataError, match="cannot be read as CSV"):
        series.load(str(tmp_path / "image.csv"), "day", "cases")


def test_a_file_of_many_rows_is_read_in_parts_and_as_if_it_were_one(tmp_path, monkeypatch):
    north, south = weekly().assign(place="north"), weekly().assign(place="south")
    table = pd.concat([south, north]).sample(frac=1, random_state=0)
    whole = read(tmp_path, table)
    series._parsed.cache_clear()
    monkeypatch.setattr(series, "ROWS_AT_ONCE", 100)
    np.testing.assert_array_equal(read(tmp_path, table).values, whole.values)
    series._parsed.cache_clear()
    table.iloc[333, 1] = -1
    with pytest.raises(DataError, match=r"data row 334 .* 1 such rows among 100"):
        read(tmp_path, table)
    monkeypatch.setattr(series, "MOST_ROWS", 200)
    with pytest.raises(DataError, match="has more than 200 rows"):
        read(tmp_path, weekly().assign(place="north"))


@pytest.mark.slow
def test_reading_a_large_file_takes_a_fraction_of_its_size_in_memory(tmp_path):
    table = pd.concat([weekly(30, "1990-01-01").assign(place=f"place {i}", note="x" * 400) for i in range(400)])
    path, size = tmp_path / "large.csv", 0
    table.to_csv(path, index=False)
    code = (
        "import resource, sys\nfrom ablations.data import series\n"
        "peak = lambda: 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\nbefore = peak()\n"
        "assert series.load(sys.argv[1], 'day', 'cases', 'place').values.shape == (400, 1560)\nprint(peak() - before)"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    size = path.stat().st_size
    assert size > 250_000_000
    assert int(ran.stdout) < 0.75 * size


@pytest.mark.parametrize(("text", "line"), [("", 1), ("day,cases\n2020-01-06,3\n", 3)], ids=["all", "the rest"])
def test_a_file_without_lines_is_refused_before_it_is_read(tmp_path, text, line):
    with open(tmp_path / "huge.csv", "wb") as file:
        file.write(text.encode())
        file.truncate(2_000_000_000)
    with pytest.raises(DataError, match=f"its line {line} has 100,000 bytes or more"):
        series._parsed.__wrapped__(str(tmp_path / "huge.csv"), "", "day", "cases", "")


def test_the_content_hash_changes_with_the_content_alone(tmp_path):
    one, other = written(tmp_path, weekly(), "a.csv"), written(tmp_path, weekly(), "b.csv")
    assert series.content_hash(one) == series.content_hash(other)
    written(tmp_path, with_value(7), "b.csv")
    assert series.content_hash(one) != series.content_hash(other)
