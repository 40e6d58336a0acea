"""The search on a Dask cluster on this machine: the same results without a shared folder."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

import nnlib
from nnlib.searching import search

OPTIONAL = "the cluster is optional: pip install 'dask[distributed]'"
pytest.importorskip("distributed", reason=OPTIONAL)

BASE = nnlib.Hyperparameters(hidden_sizes=(8,), epochs=9, batch_size=20, momentum=0.9)
SPACE = {
    "learning_rate": [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03],
    "hidden_sizes": [(8,), (12, 6)],
}
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(scope="module")
def data():
    return nnlib.load_dataset("standin", n_train=400, n_valid=100, n_test=50)


class Cluster:
    """A scheduler and worker processes on this machine, each worker in a folder of its own."""

    def __init__(self, folder, n_workers):
        self.folder, self.processes, self.workers = folder, [], []
        options = ["--port", "0", "--dashboard-address", ":0"]
        self.start("scheduler", *options, "--scheduler-file", "scheduler.json")
        end = time.monotonic() + 60
        while not (folder / "scheduler.json").exists():
            assert time.monotonic() < end, "the scheduler did not start"
            time.sleep(0.05)
        self.address = json.loads((folder / "scheduler.json").read_text())["address"]
        for _ in range(n_workers):
            self.add_worker()

    def start(self, what, *options):
        code = f"import sys; from distributed.cli.dask_{what} import main; main(sys.argv[1:])"
        folder = self.folder / f"process-{len(self.processes)}" if what == "worker" else self.folder
        folder.mkdir(exist_ok=True)
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        env = os.environ | threads | {"TMPDIR": str(folder)}
        command = [sys.executable, "-c", code, *options]
        with (self.folder / f"{what}-{len(self.processes)}.log").open("w") as log:
            process = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def add_worker(self):
        options = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--memory-limit", "0")
        self.workers.append(self.start("worker", self.address, *options))

    def close(self):
        for process in reversed(self.processes):
            process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path):
    cluster = Cluster(tmp_path, n_workers=3)
    yield cluster
    cluster.close()


def found(results):
    """All that two searches must have in common."""
    return [
        (t.number, t.settings, t.status, t.best_epoch, [r["valid_loss"] for r in t.history])
        for t in results.trials
    ]


def close_to(results, other):
    for a, b in zip(found(results), found(other), strict=True):
        assert a[:3] == b[:3]
        assert a[3] == pytest.approx(b[3], rel=1e-4)
    return True


def test_halving_on_a_cluster_is_halving_here(cluster, data):
    from dask.distributed import Client

    here = search(SPACE, data, BASE, "halving", progress=False)
    there = search(SPACE, data, BASE, "halving", executor=cluster.address, progress=False)
    assert close_to(here, there)
    assert sorted(t.epochs for t in there.trials) == [1] * 8 + [3] * 3 + [9]
    with Client(cluster.address) as client:
        for executor in (client, client.get_executor()):
            there = search(SPACE, data, BASE, "halving", executor=executor, progress=False)
            assert close_to(here, there)

        def plugins(dask_worker):
            return [name for name in dask_worker.plugins if name.startswith("nnlib")]

        assert list(client.run(plugins).values()) == [[], [], []]


def test_the_trials_of_a_killed_worker_move_elsewhere(cluster, data, tmp_path):
    from dask.distributed import Client

    base = BASE.replace(epochs=27)
    here, there = search(SPACE, data, base, progress=False), []
    folder = tmp_path / "search"

    def look() -> None:
        where = {"executor": cluster.address, "directory": folder}
        there.append(search(SPACE, data, base, progress=False, **where))

    thread = threading.Thread(target=look)
    thread.start()
    with Client(cluster.address) as client:
        pids = client.run(os.getpid)
        end, busy = time.monotonic() + 60, None
        while busy is None:  # in the middle: something is recorded, and this worker is at work
            assert time.monotonic() < end and thread.is_alive()
            if (folder / "results.json").exists():
                working = [worker for worker, tasks in client.processing().items() if tasks]
                busy = working[0] if working else None
        os.kill(pids[busy], signal.SIGKILL)
    thread.join(120)
    assert not thread.is_alive() and close_to(here, there[0])
    assert [worker.poll() for worker in cluster.workers].count(-signal.SIGKILL) == 1
    assert nnlib.load_results(folder).trials == there[0].trials


def test_a_worker_that_comes_later_is_sent_the_images(tmp_path, data):
    cluster = Cluster(tmp_path, n_workers=0)
    later = threading.Timer(3, cluster.add_worker)
    try:
        later.start()
        base = BASE.replace(epochs=1)
        address = cluster.address
        results = search({"l2": [0.0, 0.1]}, data, base, executor=address, progress=False)
        assert [t.status for t in results.trials] == ["complete"] * 2
    finally:
        later.join()
        cluster.close()


def test_an_address_where_nobody_answers_is_named(data):
    words = r"no scheduler answers at 'tcp://127.0.0.1:1' .* `dask scheduler`"
    with pytest.raises(nnlib.NNLibError, match=words):
        search(SPACE, data, BASE, executor="tcp://127.0.0.1:1", progress=False)


def test_the_command_searches_on_a_cluster(cluster, tmp_path, capsys):
    from nnlib import cli

    options = ["--data", "standin", "--train-images", "300", "--epochs", "1", "--hidden-sizes", "8"]
    vary = ["--vary", "learning_rate=0.001,0.01", "--seeds", "2"]
    place = ["--scheduler", cluster.address, "--directory", str(tmp_path / "s")]
    status = cli.run(["search", *place, *vary, *options])
    assert status == 0 and "best by loss: " in capsys.readouterr().out
    assert [t.status for t in nnlib.load_results(tmp_path / "s").trials] == ["complete"] * 4
