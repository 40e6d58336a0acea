"""The folder of a run: a run broken off anywhere ends as if it never had been, and the best models
stay."""

import json
import math
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from small_runs import DATA, EVERYTHING, PLAIN, At, on_disk, pictures, run_script, same, stop, train
from threadpoolctl import threadpool_limits

import nnlib
from nnlib.network.saving import read_arrays, write_arrays
from nnlib.training.rundir import RunDirectory, _commit
from nnlib.training.trainer import Trainer

# Exact resume.


@pytest.mark.parametrize("hp", [PLAIN, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("step", [1, 5, 7, 13, 14, 20])  # an epoch has 7 steps
def test_a_run_stopped_and_called_again_ends_as_one_never_stopped(tmp_path, hp, step):
    whole = train(hp, run_dir=tmp_path / "whole")
    part = train(hp, DATA, At(step, stop), run_dir=tmp_path / "parts")
    assert part.stopped == "enough" and len(part.history) == step // 7
    resumed = train(hp, run_dir=tmp_path / "parts")
    assert resumed.stopped == "" and same(resumed, whole)
    assert on_disk(tmp_path / "parts") == on_disk(tmp_path / "whole")
    assert same(nnlib.load_run(tmp_path / "parts"), whole)


def test_stopped_after_every_single_step(tmp_path):
    for step in range(1, 22):
        train(EVERYTHING, DATA, At(step, stop), run_dir=tmp_path)
    assert same(train(EVERYTHING, run_dir=tmp_path), train(EVERYTHING))


def test_a_finished_run_is_returned_at_once(tmp_path):
    first, steps = train(run_dir=tmp_path), []
    again = train(PLAIN, DATA, At(0, steps.append), run_dir=tmp_path)
    assert same(again, first) and not steps and again.history == first.history  # seconds too


def test_a_run_saved_with_old_names_and_without_newer_fields_goes_on(tmp_path):
    whole = train(hp=PLAIN, run_dir=tmp_path / "whole")
    train(PLAIN, DATA, At(9, stop), run_dir=tmp_path / "parts")
    file = tmp_path / "parts" / "hyperparameters.json"
    saved = json.loads(file.read_text())
    saved["initialisation"] = saved.pop("initialization")
    saved["preprocessing"] = "standardise"
    del saved["l1"], saved["l1_cut"]
    file.write_text(json.dumps(saved))
    assert same(train(PLAIN, run_dir=tmp_path / "parts"), whole)


def test_more_epochs_go_on(tmp_path, capsys):
    train(run_dir=tmp_path)
    assert same(train(PLAIN.replace(epochs=5), run_dir=tmp_path), train(PLAIN.replace(epochs=5)))
    assert capsys.readouterr().out == ""
    hp = PLAIN.replace(schedule="cosine")
    train(hp, run_dir=tmp_path / "cosine")
    longer = train(hp.replace(epochs=4), run_dir=tmp_path / "cosine")
    assert "epochs was 3, now 4: the schedule follows the new length" in capsys.readouterr().out
    assert longer.history[3]["learning_rate"] == pytest.approx(
        0.05 * (1 + math.cos(math.pi * 27 / 28)) / 2
    )


@pytest.mark.parametrize("folder", [True, False])
def test_until_goes_to_an_epoch_and_again_to_the_end(tmp_path, folder):
    trainer = Trainer(EVERYTHING, DATA, run_dir=tmp_path if folder else None, progress=False)
    assert [len(trainer.run(until=n).history) for n in (1, 2, None)] == [1, 2, 3]
    assert same(trainer.result(), train(EVERYTHING))


def test_another_run_is_refused_and_named(tmp_path):
    train(run_dir=tmp_path)
    before = on_disk(tmp_path)
    with pytest.raises(
        nnlib.CheckpointError,
        match=r"hidden_sizes was \[8\], now \[9\]; learning_rate was 0\.05, now 0\.1\.",
    ) as raised:
        train(PLAIN.replace(hidden_sizes=(9,), learning_rate=0.1), run_dir=tmp_path)
    assert "resume=False" in str(raised.value) and "momentum" not in str(raised.value)
    other = pictures(150, 1)
    with pytest.raises(
        nnlib.CheckpointError, match=f"fingerprint {DATA.fingerprint}, now {other.fingerprint}"
    ):
        train(PLAIN, other, run_dir=tmp_path)
    assert on_disk(tmp_path) == before
    anew = train(PLAIN.replace(seed=4), run_dir=tmp_path, resume=False)
    assert same(anew, train(PLAIN.replace(seed=4))) and same(nnlib.load_run(tmp_path), anew)


class Steps(nnlib.Callback):
    """Notes the number of each step."""

    def __init__(self, steps: list[int]) -> None:
        self.steps = steps

    def on_step(self, trainer: Trainer) -> None:
        self.steps.append(trainer.step)


def damage(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    middle = len(raw) // 2
    raw[middle : middle + 100] = bytes(100)  # one byte might be a date, which nobody misses
    path.write_bytes(raw)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [damage, empty])
def test_a_damaged_state_is_refused_and_nothing_is_lost(tmp_path, harm):
    train(PLAIN, DATA, At(18, stop), run_dir=tmp_path)
    harm(tmp_path / "last.npz")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(nnlib.CheckpointError, match=r"last\.npz: .* damaged.* resume=False"):
        train(run_dir=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert same(train(PLAIN, run_dir=tmp_path, resume=False), train(PLAIN))


def test_results_whose_state_is_gone_are_not_written_over(tmp_path):
    train(run_dir=tmp_path)
    (tmp_path / "last.npz").unlink()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(nnlib.CheckpointError, match=r"last\.npz is gone.* name another run_dir"):
        train(run_dir=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert same(train(run_dir=tmp_path, resume=False), train())


def as_earlier_versions_left_it(folder: Path, hp: nnlib.Hyperparameters, last: bool) -> None:
    """A run with two states, of steps 14 and 18, as they were kept before; or only the first of
    them."""
    train(hp, DATA, At(14, stop), run_dir=folder)
    older = (folder / "last.npz").read_bytes()
    train(hp, DATA, At(18, stop), run_dir=folder)
    (folder / "previous.npz").write_bytes(older)
    if not last:
        (folder / "last.npz").unlink()  # killed between a rename and the next write


@pytest.mark.parametrize("hp", [PLAIN, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("last", [True, False])
def test_a_run_with_a_state_called_previous_goes_on_and_ends_without_it(tmp_path, hp, last):
    as_earlier_versions_left_it(tmp_path / "old", hp, last)
    train(hp, run_dir=tmp_path / "whole")
    steps = []
    assert same(train(hp, DATA, Steps(steps), run_dir=tmp_path / "old"), train(hp))
    assert steps[0] == (19 if last else 15)
    assert not (tmp_path / "old" / "previous.npz").exists()
    assert on_disk(tmp_path / "old") == on_disk(tmp_path / "whole")


def test_a_damaged_state_beside_a_good_one_says_how_to_go_on(tmp_path):
    as_earlier_versions_left_it(tmp_path, PLAIN, last=True)
    damage(tmp_path / "last.npz")
    with pytest.raises(nnlib.CheckpointError, match=r"delete it to go on from previous\.npz"):
        train(run_dir=tmp_path)
    (tmp_path / "last.npz").unlink()
    assert same(train(run_dir=tmp_path), train())
    as_earlier_versions_left_it(tmp_path / "both", PLAIN, last=False)
    damage(tmp_path / "both" / "previous.npz")
    with pytest.raises(nnlib.CheckpointError, match=r"previous\.npz: .* damaged.* resume=False"):
        train(run_dir=tmp_path / "both")


@pytest.mark.parametrize("harm", [damage, empty, Path.unlink])
@pytest.mark.parametrize("hp", [PLAIN, EVERYTHING], ids=["plain", "everything"])
def test_a_damaged_best_model_is_written_again_from_the_state(tmp_path, harm, hp):
    hp = hp.replace(learning_rate=0.3, epochs=12)
    whole = train(hp, run_dir=tmp_path / "whole")
    train(
        hp, DATA, At(7 * whole.best_epoch + 10, stop), run_dir=tmp_path / "parts"
    )  # the best is not the last
    harm(tmp_path / "parts" / "best.npz")
    assert same(train(hp, run_dir=tmp_path / "parts"), whole)
    assert on_disk(tmp_path / "parts") == on_disk(tmp_path / "whole")


def test_a_best_model_from_the_future_of_another_schedule_is_not_kept(tmp_path):
    hp = PLAIN.replace(schedule="cosine", epochs=4)
    train(hp, DATA, At(10, stop), run_dir=tmp_path / "cut")
    train(hp, run_dir=tmp_path / "whole")
    (tmp_path / "cut" / "best.npz").write_bytes(
        (tmp_path / "whole" / "best.npz").read_bytes()
    )  # killed before last.npz
    run = train(
        hp.replace(epochs=9, learning_rate=0.05), DATA, At(12, stop), run_dir=tmp_path / "cut"
    )
    assert run.best_epoch == 1 and nnlib.load_run(tmp_path / "cut").model.info["best"]["epoch"] == 1
    assert same(nnlib.load_run(tmp_path / "cut"), run)


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda a: a.update({"parameters.W1": np.zeros((48, 9), np.float32)}),
            r"parameters\.W1 .* \(48, 8\), found .*9",
        ),
        (
            lambda a: a.update({"velocity.b2": np.zeros(1, np.float32)}),
            r"velocity\.b2 .* \(3,\), found float32 \(1,\)",
        ),
        (lambda a: a.pop("velocity.W2"), r"velocity\.W2 .* found nothing"),
        (lambda a: a.pop("best.W2"), r"best\.W2 .* found nothing"),
    ],
)
def test_a_state_of_another_shape_is_refused(tmp_path, change, words):
    train(EVERYTHING.replace(preprocessing="scale"), DATA, At(17, stop), run_dir=tmp_path)
    arrays, meta = read_arrays(tmp_path / "last.npz")
    change(arrays)
    write_arrays(tmp_path / "last.npz", arrays, meta)
    with pytest.raises(nnlib.CheckpointError, match=words):
        train(EVERYTHING.replace(preprocessing="scale"), run_dir=tmp_path)


@pytest.mark.parametrize("change", [{"step": None}, {"tally": {"x": 1}}, {"history": 3}])
def test_a_file_that_holds_no_state_is_refused(tmp_path, change):
    train(run_dir=tmp_path)
    arrays, meta = read_arrays(tmp_path / "last.npz")
    meta.update(change)
    if meta["step"] is None:
        del meta["step"]
    write_arrays(tmp_path / "last.npz", arrays, meta)
    with pytest.raises(nnlib.CheckpointError, match=r"last\.npz: it holds no training state"):
        train(run_dir=tmp_path)


# States in memory.


@pytest.mark.parametrize("hp", [PLAIN, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("step", [0, 5, 7, 14, 17])
def test_a_state_is_a_copy_that_another_trainer_goes_on_from(hp, step):
    states = []
    trainer = Trainer(hp, DATA, progress=False)
    if step:
        trainer.callbacks = [At(step, lambda trainer: states.append(trainer.state()))]
    else:
        states.append(trainer.state())
    whole = trainer.run()  # which must not change the state
    for other in (Trainer(hp, DATA, progress=False), trainer):
        other.callbacks = []
        other.load(states[0])
        assert other.step == step and other.epoch == (step - 1) // 7 * (step > 0)
        assert same(other.run(), whole)


def test_the_state_of_another_network_or_other_data_is_refused():
    trainer = Trainer(PLAIN, DATA, progress=False)
    wide = Trainer(PLAIN.replace(hidden_sizes=(9,)), DATA, progress=False)
    with pytest.raises(nnlib.CheckpointError, match=r"^state: parameters\.W1 .* \(48, 8\), found"):
        trainer.load(wide.state())
    other = Trainer(PLAIN, pictures(150, 1), progress=False)
    with pytest.raises(nnlib.CheckpointError, match=r"^state: its data have the fingerprint"):
        trainer.load(other.state())


# What is cleared, and whose folder it is.


def test_what_a_killed_process_left_is_cleared_and_what_it_missed_is_written(tmp_path):
    train(run_dir=tmp_path)
    csv, log = ((tmp_path / name).read_text() for name in ("history.csv", "log.txt"))
    (tmp_path / "history.csv").write_text(
        csv[: len(csv) // 2]
    )  # killed after last.npz and before the history
    (tmp_path / "log.txt").unlink()
    (tmp_path / ".last.npz.123.part").write_bytes(b"half a file")
    train(run_dir=tmp_path)
    assert (tmp_path / "history.csv").read_text() == csv and (
        tmp_path / "log.txt"
    ).read_text() == log
    assert not list(tmp_path.glob(".*.part"))


def test_a_full_disk_loses_nothing_that_was_saved(tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    words = r"last\.npz: it cannot be written \(No space left on device\)\. Make room, or name"
    with (
        monkeypatch.context() as patch,
        pytest.raises(nnlib.CheckpointError, match=words) as raised,
    ):
        train(
            PLAIN, DATA, At(10, lambda trainer: patch.setattr(np, "savez", full)), run_dir=tmp_path
        )
    assert len(raised.value.run.history) == 2  # in memory nothing is lost at all
    assert same(train(run_dir=tmp_path), train())


KILLED = """
import os, random, signal, sys
from pathlib import Path
import nnlib
from nnlib.network.mlp import useful_threads
from nnlib.training.trainer import Trainer
sys.path.insert(0, sys.argv[1])
from small_runs import DATA, EVERYTHING, on_disk, same

def train(folder):
    return nnlib.train(EVERYTHING, DATA, folder, progress=False, callbacks=[nnlib.Diagnostics()])

def events(folder):
    "How many calls and returns a run makes, and which of them while it saves."
    count, saving, inside = 0, [], 0
    def profile(frame, event, _):
        nonlocal count, inside
        count += 1
        if frame.f_code is Trainer._save.__code__:
            inside += {"call": 1, "return": -1}.get(event, 0)
        if inside:
            saving.append(count)
    sys.setprofile(profile)
    train(folder)
    sys.setprofile(None)
    return count, saving

def train_and_die(folder, moment):
    "In a process of its own: train, and be killed at the given call or return."
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    count = 0
    def profile(frame, event, _):
        nonlocal count
        count += 1
        if count >= moment:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.setprofile(profile)
    train(folder)
    sys.setprofile(None)
    os._exit(0)

root, rng = Path(sys.argv[2]), random.Random(int(sys.argv[3]))
whole = train(root / "whole")
expected = on_disk(root / "whole")
count, saving = events(root / "counted")
killed = 0
for n in range(30):
    folder = root / str(n)
    moment = rng.randrange(count)
    if n % 3:
        moment = saving[len(saving) * n // 30 + rng.randrange(len(saving) // 30)]
    killed += train_and_die(folder, moment) == -signal.SIGKILL
    if (folder / "log.txt").exists():  # something was saved whole
        assert (folder / "last.npz").exists(), n
    if n % 2:
        killed += train_and_die(folder, rng.randrange(count // 4)) == -signal.SIGKILL
    run = train(folder)
    assert same(run, whole) and on_disk(folder) == expected, (n, moment)
    assert not list(folder.glob(".*.part")), n
print(killed)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills processes of its own, by fork")
def test_killed_at_any_of_thirty_moments_writes_included_it_ends_the_same(tmp_path):
    with run_script(KILLED, Path(__file__).parents[1], tmp_path, 1) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    assert int(out.splitlines()[-1]) >= 30


def test_a_folder_in_use_is_refused(tmp_path):
    with (
        RunDirectory(tmp_path).locked(),
        pytest.raises(nnlib.CheckpointError, match="another process is training"),
    ):
        train(run_dir=tmp_path)
    train(run_dir=tmp_path)


def test_the_models_of_earlier_versions_are_cleared_only_by_a_new_start(tmp_path):
    train(PLAIN, DATA, At(10, stop), run_dir=tmp_path)
    extra = tmp_path / "best-epoch-0001.npz"
    extra.write_bytes(b"kept by an earlier version")
    mine = tmp_path / "best-of-all.npz"
    mine.write_bytes(b"somebody's own")
    train(run_dir=tmp_path)
    assert extra.exists()
    train(run_dir=tmp_path, resume=False)
    assert not extra.exists() and mine.exists()


def test_the_models_know_the_weights_that_the_run_began_with(tmp_path):
    run = train(run_dir=tmp_path)
    first = Trainer(PLAIN, DATA).model.parameters
    for model in (run.model, nnlib.load_run(tmp_path).model, run.model.astype(np.float64)):
        for name, p in model.initial_parameters().items():
            np.testing.assert_array_equal(p.astype(np.float32), first[name])
    run.model.seed = 4
    with pytest.raises(
        nnlib.CheckpointError, match="seed 4 does not give the weights that the run began with"
    ):
        run.model.initial_parameters()
    tuned = train(PLAIN.replace(seed=5), DATA, init=train().model)
    with pytest.raises(nnlib.CheckpointError, match=r"init=\.\.\."):
        tuned.model.initial_parameters()


def test_folded_models_do_not_pretend_to_know_their_first_weights(tmp_path):
    path = nnlib.save_model(train().model, tmp_path / "m.npz", fold=True)
    with pytest.raises(nnlib.CheckpointError, match="folding changed the first layer"):
        nnlib.load_model(path).initial_parameters()


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(
        nnlib.CheckpointError, match=r"file: no folder can be made here .*; name another"
    ):
        train(run_dir=tmp_path / "file")


def test_the_folder_of_a_run(tmp_path):
    run = train(PLAIN, run_dir=tmp_path)
    assert (
        nnlib.Hyperparameters.from_dict(json.loads((tmp_path / "hyperparameters.json").read_text()))
        == PLAIN
    )
    best = nnlib.load_model(tmp_path)  # the folder stands for its best model
    assert all((best.parameters[name] == p).all() for name, p in run.model.parameters.items())
    head, *rows = (tmp_path / "history.csv").read_text().splitlines()
    columns = "epoch,step,learning_rate,train_loss,train_accuracy,valid_loss,valid_accuracy,seconds"
    assert head == columns and len(rows) == 3
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert len(lines) == 3
    for line, record in zip(lines, run.history, strict=True):
        assert f"epoch {record['epoch']:3d}/3" in line
        assert (
            f"valid loss {record['valid_loss']:.4f} accuracy {record['valid_accuracy']:.4f}" in line
        )
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["fingerprint"] == DATA.fingerprint and environment["numpy"] == np.__version__
    assert environment["images"] == {"train": 100, "valid": 25, "test": 25}
    assert {"nnlib", "python", "scipy", "platform", "cores"} <= set(environment) and environment[
        "cpu"
    ]
    with threadpool_limits(1):
        Trainer(PLAIN, DATA, tmp_path, progress=False).run()
    (blas, *_) = json.loads((tmp_path / "environment.json").read_text())["blas"]
    assert blas["num_threads"] == 1 and blas["internal_api"] and blas["version"]
    assert not re.search(
        r"(?<![\w.$/])/\w+/", (tmp_path / "environment.json").read_text()
    )  # no path of this machine
    loaded = nnlib.load_run(tmp_path)
    assert (
        same(loaded, run) and loaded.history == run.history and loaded.best_epoch == run.best_epoch
    )
    assert loaded.hyperparameters == PLAIN and loaded.run_dir == run.run_dir == tmp_path
    assert loaded.model.info["fingerprint"] == DATA.fingerprint
    assert (
        loaded.model.info["best"] == run.best
        and loaded.model.info["hyperparameters"] == PLAIN.to_dict()
    )
    for name, p in Trainer(
        PLAIN, DATA
    ).model.parameters.items():  # "before" is of the same network as "after"
        np.testing.assert_array_equal(loaded.model.initial_parameters()[name], p)


def test_the_commit_is_told_where_there_is_one(tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    assert _commit(tmp_path) is None
    try:
        subprocess.run([*git, "init", "-q"], check=True)
    except FileNotFoundError:
        pytest.skip("no git here")
    assert _commit(tmp_path) is None
    (tmp_path / "a").write_text("1")
    subprocess.run([*git, "add", "a"], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    head = subprocess.run(
        [*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    assert _commit(tmp_path) == head
    (tmp_path / "a").write_text("2")
    assert _commit(tmp_path) == f"{head}-dirty"


def test_load_run_refuses_what_is_no_run(tmp_path):
    with pytest.raises(nnlib.CheckpointError, match=r"hyperparameters\.json: it cannot be read"):
        nnlib.load_run(tmp_path)
    train(run_dir=tmp_path)
    (tmp_path / "hyperparameters.json").write_text("[]")
    with pytest.raises(nnlib.CheckpointError, match="an object is needed"):
        nnlib.load_run(tmp_path)


@pytest.mark.parametrize("name", ["history.csv", "log.txt", "last.npz", "hyperparameters.json"])
def test_files_of_somebody_else_are_not_written_over(tmp_path, name):
    (tmp_path / name).write_text('{"mine": 1}')
    (tmp_path / ".mine.part").write_text("not ours either")
    with pytest.raises(nnlib.CheckpointError, match=rf"{name} in it: of no run that can go on"):
        train(run_dir=tmp_path)
    assert (tmp_path / name).read_text() == '{"mine": 1}'
    assert {path.name for path in tmp_path.iterdir()} <= {name, ".mine.part", ".lock"}


def test_a_run_that_has_learned_nothing_yet_gives_its_folder_to_another(tmp_path):
    with pytest.raises(nnlib.TrainingDiverged):
        train(PLAIN.replace(learning_rate=900, activation="identity"), run_dir=tmp_path)
    run = train(PLAIN, run_dir=tmp_path)
    assert nnlib.load_run(tmp_path).hyperparameters == PLAIN and len(run.history) == 3


def test_the_folder_may_be_named_from_home_and_is_the_same_after_a_change_of_folder(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert train(run_dir="~/home").run_dir == tmp_path / "home"
    (tmp_path / "elsewhere").mkdir()

    def leave(trainer):
        os.chdir("elsewhere")

    train(PLAIN, DATA, At(10, leave), run_dir="here")
    assert (tmp_path / "here" / "last.npz").exists()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_model_that_is_of_no_run_is_not_written_over(tmp_path):
    nnlib.save_model(nnlib.MLP((48, 8, 3)), tmp_path / "best.npz")
    before = (tmp_path / "best.npz").read_bytes()
    with pytest.raises(
        nnlib.CheckpointError, match="of no run that can go on; name another run_dir"
    ):
        train(run_dir=tmp_path)
    assert (tmp_path / "best.npz").read_bytes() == before
    assert train(run_dir=tmp_path, resume=False).history
