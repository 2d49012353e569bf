"""Claims of `ablate compare`: planted changes between two folders are found, and equal ones called so."""

import math

import pandas as pd
import pytest
import synthetic
from scipy import stats

from ablations.cli import main
from ablations.design import DesignError
from ablations.records import Records
from ablations.report.compare import compare

STUDY = synthetic.EPIDEMIC | {"factors": synthetic.EPIDEMIC["factors"][::2], "figures": []}  # cell and depth


@pytest.fixture
def folders(tmp_path):
    return Records(tmp_path / "a"), Records(tmp_path / "b")


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    """One study on two machines: new noise, 0.6 of the time, and one planted loss."""
    a, b = Records(tmp_path_factory.mktemp("a")), Records(tmp_path_factory.mktemp("b"))
    synthetic.write_study(a, STUDY, seeds=8)
    synthetic.PLANTED["epidemic"]["cell", "rnn"] += 0.05
    try:
        synthetic.write_study(b, STUDY, seeds=8, machine=1)
    finally:
        synthetic.PLANTED["epidemic"]["cell", "rnn"] -= 0.05
    return a, b


@pytest.fixture(scope="module")
def rows(machines):
    return compare(*machines, "quick")[0].rows.set_index(["response", "condition"])


def test_a_planted_loss_is_worse_and_the_rest_equivalent(rows):
    words = rows.loc["error", "verdict"].drop("all")
    assert words.to_dict() == {
        "baseline": "equivalent",
        "cell=lstm": "equivalent",
        "cell=rnn": "worse",
        "depth=2": "equivalent",
    }
    assert rows.loc[("error", "cell=rnn"), "mean"] == pytest.approx(0.05, abs=0.01)


def test_times_are_compared_as_ratios_and_equal_counts_are_identical(rows):
    times = rows.loc["seconds_per_step"]
    assert (times["verdict"] == "better").all()
    assert times.loc["all", "mean"] == pytest.approx(-0.4, abs=0.02)
    assert (times["high"] < -0.3).all()
    assert (rows.loc["parameters", "verdict"] == "identical").all()


def test_every_number_is_that_of_the_paired_runs(rows, machines):
    a, b = (records.table("epidemic") for records in machines)
    pairs = a.merge(b, on=["cell", "depth", "seed"], suffixes=("_a", "_b"))
    mine = pairs[(pairs["cell"] == "lstm") & (pairs["depth"] == "1")]
    test = stats.ttest_rel(mine["error_b"], mine["error_a"])
    row, interval = rows.loc[("error", "cell=lstm")], test.confidence_interval(0.95)
    found = (row["a"], row["b"], row["low"], row["high"], row["p"])
    exact = (mine["error_a"].mean(), mine["error_b"].mean(), interval.low, interval.high, test.pvalue)
    assert found == pytest.approx(exact)
    change = (pairs["error_b"] - pairs["error_a"]).groupby(pairs["seed"]).mean()
    assert rows.loc[("error", "all"), "mean"] == pytest.approx(change.mean())
    assert rows.loc[("error", "all"), "sd"] == pytest.approx(change.std())


def test_equal_folders_are_identical_and_never_better_or_worse(folders):
    for records in folders:
        synthetic.write_study(records, STUDY, seeds=3)
    found = compare(*folders, "quick")[0]
    assert set(found.rows["verdict"]) == {"identical"}
    assert found.environments == []


def test_command_writes_a_page_with_tables_and_says_what_it_found(machines, tmp_path, capsys):
    a, b = (str(records.root) for records in machines)
    assert main(["compare", a, b, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "B is worse in 1 and equivalent in 3 of 4 conditions" in said
    page = (tmp_path / "index.html").read_text()
    assert "synthetic processor 1" in page
    table = pd.read_csv(tmp_path / "tables" / "epidemic_comparison.csv")
    assert len(table) == len(compare(*machines, "quick")[0].rows)
    assert (tmp_path / "figures" / "epidemic_comparison.svg").exists()


def test_other_data_of_the_same_seed_is_not_a_pair(folders):
    a, b = folders
    synthetic.write_study(a, STUDY, seeds=3, details=False)
    synthetic.write_study(b, STUDY, seeds=3, details=False, split="other")
    found = compare(a, b, "quick")[0]
    assert found.rows.empty
    assert "12 pairs saw different data" in " ".join(found.notes)


def test_versions_are_named_and_a_single_seed_decides_nothing(folders):
    a, b = folders
    synthetic.write_study(a, STUDY, seeds=1, details=False)
    newer = STUDY | {"version": "9"}
    synthetic.write_study(b, newer, seeds=1, machine=1, details=False)
    found = compare(a, b, "quick")[0]
    assert "A holds version 1 of the study, B version 9." in found.notes
    primary = found.rows[found.rows["response"] == "error"]
    assert set(primary["verdict"]) == {"undecided"}
    assert all(map(math.isnan, primary["more_seeds"]))


def test_folders_without_a_common_study_are_an_error_that_names_what_they_hold(folders):
    synthetic.write_study(folders[0], STUDY, seeds=1, details=False)
    synthetic.write_study(folders[1], synthetic.VISION, seeds=1, details=False)
    with pytest.raises(DesignError, match=r"a holds epidemic; .*b holds vision"):
        compare(*folders, "quick")
