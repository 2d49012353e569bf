"""Claims on what may happen to runs, in brief; `make faults` makes it happen at length."""

import random

import faults
import pytest


@pytest.fixture(scope="module")
def reference():
    return faults.uninterrupted()


@pytest.fixture
def draw(request):
    return random.Random(request.node.name)


def test_kills_at_random_moments_lose_nothing(reference, draw):
    faults.kills_at_random_moments(4, reference, draw)


def test_kills_at_every_write_point_lose_nothing(reference, draw):
    faults.kills_at_write_points(1, reference, draw)


def test_torn_files_are_named_and_their_runs_done_again(reference, draw):
    faults.torn_files(0, reference, draw)


def test_a_full_disk_is_named_and_room_completes_the_table(reference, draw):
    faults.full_disks(2, reference, draw)


def test_a_folder_that_may_not_be_written_is_named(reference):
    faults.read_only_folder(reference)


def test_concurrent_writers_do_every_run_once(reference):
    faults.rivals(1, 4, reference)


def test_a_jumping_clock_changes_nothing(reference, draw):
    faults.jumping_clocks(1, reference, draw)


def test_what_does_not_fit_into_memory_is_done_in_halves():
    faults.want_of_memory()


@pytest.mark.slow
def test_a_command_that_is_killed_leaves_its_runs_to_others(reference):
    faults.kills_of_the_command_at_work(2, reference)


@pytest.mark.slow
def test_kills_of_any_process_of_the_command_lose_nothing(reference, draw):
    faults.kills_of_the_command(3, reference, draw)
