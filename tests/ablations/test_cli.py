"""Claims on the command line: it checks words first, resumes, stops cleanly and says what to do next."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pandas as pd
import planted
import psutil
import pytest

from ablations import studies
from ablations.cli import _parse, main
from ablations.plan import plan_study
from ablations.records import Records

SCRIPT = Path(__file__).with_name("planted_cli.py")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(studies.__file__).parents[2])}


CHOICE = ["planted", "width=eight", "--workers", "1", "--seeds", "2"]


@pytest.fixture(scope="module", autouse=True)
def planted_study_only():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(studies, "names", studies.names)  # undone afterwards
        planted.install()
        yield


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    """Runs folder and output of a first `ablate run`."""
    runs = tmp_path_factory.mktemp("first") / "runs"
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["run", *CHOICE, "--runs", str(runs)]) == 0
    return runs, out.getvalue()


@pytest.fixture
def done(first_run, folder):
    """The first run's records, copied to `runs`."""
    return Records(shutil.copytree(first_run[0], folder / "runs"))


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize(
    ("words", "allowed"),
    [
        (["plantd"], "Did you mean 'planted'? Allowed: planted"),
        (["planted", "widht=four"], "Did you mean 'width'? Allowed: width, jitter, trouble"),
        (["planted", "width=five"], "Allowed: four, eight"),
        (["planted", "width="], "write width=four,eight"),
        (["planted", "--preset", "quik"], "Did you mean 'quick'? Allowed: quick, smoke"),
        (["width=four"], "no study named. Allowed: planted"),
    ],
)
def test_a_word_that_names_nothing_stops_before_anything_is_written(command, words, allowed, capsys, tmp_path):
    assert main([command, *words]) == 2
    assert allowed in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_words_may_follow_options(capsys):
    assert main(["plan", "planted", "--seeds", "2", "width=eight"]) == 0
    assert "4 runs to do in 2 ensembles" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["run", "planted", "--sed", "3"], ["status", "planted"]])
def test_an_unknown_option_is_refused(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "unrecognized arguments" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--seeds", "--workers"])
def test_numbers_must_be_above_zero(option, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["run", "planted", option, "0"])
    assert "whole number above 0" in capsys.readouterr().err


def test_a_run_ends_with_what_was_done_and_the_next_command(first_run):
    runs, out = first_run
    assert "planted width=eight x2: 2 done in" in out
    assert "4 runs, 0 on record before; now: 4 done, in" in out
    assert f"Next: ablate report --runs {runs} --preset quick" in out


def test_a_finished_run_has_a_timing_and_all_responses(done):
    table = done.table("planted")
    assert table[["error", "parameters", "epochs_to_converge", "seconds_per_step"]].notna().all().all()


def test_the_same_command_again_does_nothing(done, capsys):
    before = done.table()
    assert main(["run", *CHOICE]) == 0
    assert "now: nothing to do" in capsys.readouterr().out
    pd.testing.assert_frame_equal(done.table(), before)


def test_a_new_condition_is_timed_beside_all_of_its_block(done):
    before = done.table().set_index("key").seconds_per_step
    assert main(["run", "planted", "jitter=on", "--workers", "1", "--seeds", "1"]) == 0
    after = done.table().set_index("key").loc[before.index]
    again = after.seconds_per_step != before
    assert again.groupby(after.seed).unique().map(list).to_dict() == {0: [True], 1: [False]}


def test_export_prints_the_table_of_the_records(done, capsys):
    main(["export", "--format", "csv"])
    table = pd.read_csv(
        io.StringIO(capsys.readouterr().out), dtype={"study_version": str, "data_version": str}, keep_default_na=False
    )
    pd.testing.assert_frame_equal(table, done.table(), check_dtype=False)
    main(["export", "--format", "json"])
    assert len(json.loads(capsys.readouterr().out)) == 4


def test_status_counts_runs_by_how_they_ended(done, capsys):
    main(["status"])
    row = next(line for line in capsys.readouterr().out.splitlines() if "planted" in line)
    assert [cell.strip() for cell in row.split("│")[1:-1]] == ["planted", "1", "quick", "4", "0", "0", "0", "0"]


def test_list_names_studies_factors_and_levels(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("planted", "width", "four, eight", "Do records survive"))


def test_plan_writes_nothing_and_says_what_a_run_would_cost(capsys, tmp_path):
    assert main(["plan", "planted", "--workers", "2"]) == 0
    out = capsys.readouterr().out
    assert "9 runs to do in 2 ensembles, about" in out
    assert list(tmp_path.iterdir()) == []


def test_a_plan_says_what_it_could_not_measure(capsys, tmp_path):
    assert main(["plan", "planted", "trouble=raises", "--seeds", "2", "--runs", str(tmp_path)]) == 0
    output = capsys.readouterr()
    assert "4 runs to do in 2 ensembles, at least 0." in output.out
    assert "ablate: planted trouble=raises is planned without an estimate" in output.err


def test_an_unknown_device_is_misuse(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("ABLATE_DEVICE", "tpu")
    assert main(["plan", "planted", "--runs", str(tmp_path)]) == 2
    assert "ABLATE_DEVICE=tpu is unknown; allowed: cpu, cuda" in capsys.readouterr().err


def test_fail_fast_stops_at_the_first_failure(capfd):
    arguments = ["run", "planted", "trouble=raises,slow", "--workers", "2", "--seeds", "2", "--fail-fast"]
    assert main(arguments) == 1
    assert "1 failed. Why: `ablate export --runs runs`" in capfd.readouterr().out


def test_retry_does_the_failed_runs_again_and_nothing_else(capsys, monkeypatch):
    choice = ["planted", "trouble=raises", "--seeds", "2", "--workers", "1"]
    assert main(["run", *choice]) == 1
    assert main(["run", *choice]) == 1
    assert "nothing to do" in capsys.readouterr().out
    assert main(["retry", "--dry-run"]) == 0
    assert "1 runs to do in 1 ensembles" in capsys.readouterr().out
    before = Records("runs").table()
    assert main(["retry", "--workers", "1"]) == 1
    assert "now: 1 failed" in capsys.readouterr().out
    pd.testing.assert_frame_equal(Records("runs").table(), before)


def test_retry_without_failures_says_so(done, capsys):
    assert main(["retry"]) == 0
    assert "No run of planted is on record as failed" in capsys.readouterr().out


def test_runs_of_another_process_are_left_to_it_and_said(capsys):
    records = Records("runs")
    (job, *_) = plan_study(planted.STUDY, "quick", ["width=eight"], 2, records, 1).jobs
    with records.claim(job.configurations):
        assert main(["run", *CHOICE]) == 0
    out = capsys.readouterr().out
    assert "now: 2 done, 2 elsewhere" in out
    assert "2 are another process's: `ablate status --runs runs` shows how they get on." in out
    assert "Another process still trains" in out


def test_a_shell_is_offered_studies_then_factors_and_levels():
    from ablations.cli import _complete_words

    assert list(_complete_words("", Namespace(words=[]))) == ["planted"]
    offered = list(_complete_words("", Namespace(words=["planted"])))
    assert offered[:3] == ["width=four", "width=eight", "jitter=off"]


def test_a_dry_run_writes_nothing(capsys, tmp_path):
    assert main(["run", "planted", "--dry-run", "--workers", "2"]) == 0
    assert "9 runs to do" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_status_knows_what_waits(done, capsys):
    done.plan(run for runs in plan_study(planted.STUDY, "quick", [], 3, done, 1).runs.values() for run in runs)
    main(["status"])
    row = next(line for line in capsys.readouterr().out.splitlines() if "planted" in line)
    assert [cell.strip() for cell in row.split("│")[1:-1]] == ["planted", "1", "quick", "4", "0", "0", "0", "5"]


def test_a_folder_that_cannot_be_written_ends_the_command_with_what_to_do(capsys, tmp_path):
    (tmp_path / "runs").write_text("in the way")
    assert main(["run", *CHOICE]) == 1
    error = capsys.readouterr().err
    assert "ablate: cannot write runs/planted" in error
    assert "then repeat the command" in error


def test_a_missing_extra_is_named_with_the_command_that_installs_it(done, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["export", "--format", "parquet"]) == 1
    assert "pip install 'recurve[parquet]'" in capsys.readouterr().err


def test_commands_on_records_need_neither_torch_nor_studies():
    code = (
        "import sys; from ablations.cli import main; main(['status']); main(['export']); print('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    assert ran.stdout.split()[-1] == "False"


def test_a_report_of_a_preset_that_no_run_has_is_misuse(done, capsys):
    assert main(["report", "--preset", "quik"]) == 2
    assert "'quik' is not a preset of the runs under runs. Did you mean 'quick'?" in capsys.readouterr().err
    assert not Path("report").exists()


@pytest.mark.parametrize("out", ["taken", "taken/below", "/proc/nope"])
def test_a_report_that_cannot_be_written_is_misuse_before_any_work(done, capsys, out):
    Path("taken").write_text("")
    assert main(["report", "--out", out]) == 2
    assert f"--out {out} cannot be made" in capsys.readouterr().err


def test_a_report_without_runs_is_a_page_that_says_so_and_how_to_make_some(capsys):
    assert main(["report", "epidemic"]) == 2
    assert "ablate run STUDY" in capsys.readouterr().err
    assert "so nothing can be concluded; `ablate run STUDY`" in Path("report/index.html").read_text()


@pytest.mark.parametrize("command", ["list", "plan", "run", "retry", "status", "report", "export"])
def test_help_shows_an_example_of_every_command(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert f"  ablate {command}" in capsys.readouterr().out


def interrupted(words, folder, moment):
    """What the command wrote to stderr when Ctrl-C was pressed at the moment; it must end within 5 seconds."""
    process = subprocess.Popen(
        [sys.executable, SCRIPT, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # whatever started the tests may ignore it
        cwd=folder,
        env=ENVIRONMENT,
    )
    stop = time.monotonic() + 60
    while not moment(process) and process.poll() is None and time.monotonic() < stop:
        time.sleep(0.1)
    pressed = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    assert process.wait(timeout=60) == 130
    assert time.monotonic() - pressed < 5
    _, errors = process.communicate(timeout=60)  # until processes that still load torch notice that they are alone
    assert f"To resume: ablate {' '.join(words)}" in errors
    assert "Traceback" not in errors
    return errors


def test_ctrl_c_exits_within_five_seconds_and_keeps_what_is_done(tmp_path):
    records = Records(tmp_path / "runs")
    words = ["run", "planted", "trouble=slow", "--seeds", "2", "--workers", "2"]
    interrupted(words, tmp_path, lambda process: len(records.table()) == 2)
    assert records.table().status.tolist() == ["done", "done"]


def test_ctrl_c_is_heard_while_processes_start(tmp_path):
    def is_starting(process):
        started = psutil.Process(process.pid).children()
        return any("forkserver" in " ".join(child.cmdline()) for child in started)

    interrupted(["plan", "planted"], tmp_path, is_starting)


def test_naming_data_is_setting_it():
    short = _parse(["plan", "vision", "--data", "a b.csv", "--value", "% ILI"])
    long = _parse(["plan", "vision", "--set", "value=% ILI", "--set", "data=a b.csv"])
    assert short.preset == long.preset == "quick 'data=a b.csv' 'value=% ILI'"
    assert _parse(["report", "--preset", "smoke", "--data", "mnist"]).preset == "smoke data=mnist"
