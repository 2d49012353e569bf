"""Claims on the Ray engine: the records of a local run, also when a node of the cluster is killed meanwhile."""

import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pandas as pd
import planted
import pytest

from ablations import studies
from ablations.design import DesignError
from ablations.engines import Ended, Epoch
from ablations.engines.local import Local
from ablations.plan import longest_first, plan_study
from ablations.records import Records, RecordsError

ray = pytest.importorskip("ray", reason="needs the extra recurve[ray]")
pytestmark = pytest.mark.slow

SETTINGS = planted.DEFAULTS | {"epochs": 8, "pause": 0.15}
SLOW = replace(planted.STUDY, presets={"quick": replace(planted.STUDY.presets["quick"], settings=SETTINGS)})


@pytest.fixture
def start(monkeypatch):
    """Starts a cluster on this machine, a node for each set of resources, the first with the driver."""
    from ray.cluster_utils import Cluster

    here = [str(Path(studies.__file__).parents[2]), str(Path(__file__).parent)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*here, *sys.path]))
    with ExitStack() as stack:

        def start(*nodes):
            cluster = Cluster(initialize_head=True, head_node_args=nodes[0])
            stack.callback(cluster.shutdown)
            stack.callback(ray.shutdown)
            cluster.others = [cluster.add_node(**resources) for resources in nodes[1:]]
            cluster.wait_for_nodes()
            return cluster

        yield start


@pytest.fixture
def cluster(start):
    return start(*[{"num_cpus": 1}] * 3)


def jobs(records, words=("width=eight", "jitter=on"), seeds=4, **settings):
    preset = replace(SLOW.presets["quick"], settings=SETTINGS | settings)
    study = replace(SLOW, presets={"quick": preset})
    records.declare(study.declaration())
    return longest_first([plan_study(study, "quick", words, seeds, records, workers=6)])


def results(records):
    return records.table().drop(columns="message")


def test_a_node_killed_mid_grid_leaves_the_table_of_an_uninterrupted_local_run(cluster, tmp_path):
    from ablations.engines.ray import Ray

    local, clustered = Records(tmp_path / "local"), Records(tmp_path / "clustered")
    list(Local(2).run(jobs(local), local))
    events, killed = [], False
    for event in Ray(cluster.address).run(jobs(clustered), clustered):
        events.append(event)
        under_way = {e.job for e in events if isinstance(e, Epoch)} - {e.job for e in events if isinstance(e, Ended)}
        if not killed and len(under_way) == 3:
            cluster.remove_node(cluster.others[0], allow_graceful=False)
            killed = True
    assert killed
    outcomes = [outcome for event in events if isinstance(event, Ended) for outcome in event.outcomes]
    assert outcomes == ["done"] * 12
    pd.testing.assert_frame_equal(results(local), results(clustered), rtol=1e-11)


def test_a_run_that_kills_its_process_is_recorded_alone(cluster, tmp_path):
    from ablations.engines.ray import Ray

    records = Records(tmp_path)
    list(Ray(cluster.address).run(jobs(records, ["trouble=kills"], seeds=2), records))
    table = records.table()
    assert table.groupby("trouble").status.value_counts().to_dict() == {
        ("none", "done"): 2,
        ("kills", "done"): 1,
        ("kills", "failed"): 1,
    }
    assert table.message[table.status == "failed"].str.contains("alone was lost").all()


def test_a_folder_that_the_nodes_do_not_share_is_said(cluster, tmp_path, monkeypatch):
    from ablations.engines.ray import Ray

    records = Records(tmp_path)
    events = Ray(cluster.address).run(jobs(records, ["width=eight"], seeds=2), records)
    next(events)
    monkeypatch.setattr(Records, "status", lambda self, run: None)
    with pytest.raises(RecordsError, match="name a folder that all nodes share with --runs"):
        list(events)


def test_jobs_share_a_gpu_in_the_fractions_that_the_first_takes_of_its_memory(start, tmp_path):
    """No GPU takes part: Ray is told of one, and workers of its memory."""
    from ablations.engines.ray import Ray

    records, cluster = Records(tmp_path), start({"num_cpus": 4, "num_gpus": 1})
    many = jobs(records, seeds=2, gpu_memory=(100, 39))
    events = list(Ray(cluster.address, on_gpu=True).run(many, records))
    assert len(many) == 6
    assert planted.at_once(events) == (2, 1)
    assert records.table().status.tolist() == ["done"] * 6


def test_a_cluster_without_a_gpu_is_refused_where_one_is_asked_for(cluster, tmp_path):
    from ablations.engines.ray import Ray

    records = Records(tmp_path)
    with pytest.raises(DesignError, match="ABLATE_DEVICE=cuda: no node of the cluster has a GPU"):
        list(Ray(cluster.address, on_gpu=True).run(jobs(records), records))
