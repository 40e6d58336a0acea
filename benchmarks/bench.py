"""The benchmark: ``make bench``. Every number is a ratio or a median of rounds that take turns.

Writes one file for each part to data/benchmarks/ and a picture to figures/benchmark_*.png.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pictures
from contestants import AXES, CONTESTANTS, SPARSE, Work, augmentation_share, epoch_seconds, measure
from tqdm.auto import tqdm

import nnlib
from nnlib.network.mlp import useful_threads
from nnlib.training.rundir import machine

ROOT = Path(__file__).parents[1]
CORES = os.cpu_count() or 1
WORK = Work()
PARTS_OF_EPOCH = 8
SPARSE_WORK = Work((3072, 4096, 512, 10))
# the validation accuracy of the recipe that this project started from, its best of five runs
TARGET = 0.5752


def available(names: Any) -> list[str]:
    """Return the contestants that can run here; PyTorch and scikit-learn need not be installed."""
    needed = {"PyTorch eager": "torch", "scikit-learn": "scikit-learn"}

    def installed(package: str) -> bool:
        try:
            return bool(version(package))
        except PackageNotFoundError:
            return False

    return [name for name in names if installed(needed.get(name, "numpy"))]


class Arena:
    """One process for each contestant, started when first needed."""

    def __init__(self) -> None:
        self.pools: dict[str, ProcessPoolExecutor] = {}

    def measure(self, name: str, *args: Any) -> float:
        """Return the seconds of one step."""
        if name not in self.pools:
            self.pools[name] = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        return self.pools[name].submit(measure, name, *args).result()

    def close(self) -> None:
        for pool in self.pools.values():
            pool.shutdown()


def rounds(arena: Arena, cases: list[dict[str, Any]], n: int, about: str) -> pd.DataFrame:
    """Measure every case ``n`` times, all cases in turn; return one row for each measurement."""
    rows = []
    turns = [(number, case) for number in range(n) for case in cases]
    for number, case in tqdm(turns, desc=about, disable=None):
        work = case["work"]
        seconds = arena.measure(case["name"], work, case["threads"], case["steps"], case["seconds"])
        row = {
            "round": number,
            "name": case["name"],
            "sizes": work.sizes,
            "batch_size": work.batch_size,
            "threads": case["threads"],
            "seconds_per_step": seconds,
            "flops": work.flops,
        }
        rows.append(row)
    return with_rates(pd.DataFrame(rows))


def epochs(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each epoch; ``rows`` are parts of epochs.

    Parts are short, so that all contestants meet the machine in the same mood.
    """
    keys = ["round", "name", "sizes", "batch_size", "threads", "flops"]
    rows = rows.assign(round=rows["round"] // PARTS_OF_EPOCH)
    means = rows.groupby(keys, sort=False, as_index=False)["seconds_per_step"].mean()
    return with_rates(means)


def with_rates(rows: pd.DataFrame) -> pd.DataFrame:
    """Add images and operations a second."""
    steps_per_second = 1 / rows["seconds_per_step"]
    return rows.assign(
        images_per_second=rows["batch_size"] * steps_per_second,
        gflops=rows["flops"] * steps_per_second / 1e9,
    )


def summary(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return median, lowest and highest images per second of each case, in their order."""
    speed = rows.groupby(by, sort=False)["images_per_second"]
    table = speed.agg(["median", "min", "max"]).round(0).astype(int)
    return table.join(rows.groupby(by, sort=False)[["gflops"]].median().round(1)).reset_index()


# A training process that says how much memory it needed, and how long evaluation takes.
MEMORY = """
import sys
import time

import numpy as np

import nnlib
from nnlib.network.blas import product

data = nnlib.load_dataset("auto", download=False)
hp = nnlib.Hyperparameters(
    hidden_sizes=(1024, 256), momentum=0.9, l2=1e-3, flip=True, shift=2, epochs=1
)
model = nnlib.train(hp, data, run_dir=sys.argv[1], progress=False).model
times = []
for _ in range(5):
    started = time.perf_counter()
    nnlib.evaluate(model, data.test)
    times.append(time.perf_counter() - started)

x = np.ones((2500, 3072), np.float32)
weights = [p for p in model.parameters.values() if p.ndim == 2]
alone = []
for _ in range(5):
    started = time.perf_counter()
    for _ in range(-(-len(data.test) // 2500)):
        a = x
        for W in weights:
            a = product(a, W)
    alone.append(time.perf_counter() - started)

peak = float("nan")
if sys.platform != "win32":  # which does not tell
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(peak, np.median(times), np.median(alone), len(data.test))
"""


# ---- the parts: each returns what its file holds -------------------------------------------------


def speed(arena: Arena, quick: bool) -> dict[str, Any]:
    """Three epochs of the reference work, each in eight parts; contestants take turns."""
    steps = 3 if quick else 22
    cases = [
        {"name": n, "work": WORK, "threads": CORES, "steps": steps, "seconds": 0}
        for n in available(CONTESTANTS)
    ]
    rows = epochs(rounds(arena, cases, 3 * PARTS_OF_EPOCH, "speed"))
    table = summary(rows, ["name"])
    by_round = rows.pivot(index="round", columns="name", values="images_per_second")
    ratios = {}
    for peer in available(("PyTorch eager", "scikit-learn", "NumPy, in place", "products alone")):
        each = by_round["nnlib"] / by_round[peer]
        ratios[peer] = {"median": each.median(), "min": each.min(), "max": each.max()}
    lost = augmentation_share(WORK, 3 * steps)
    say(f"speed: one epoch of {WORK}, {CORES} threads", table)
    for peer, r in ratios.items():
        print(f"nnlib / {peer}: {r['median']:.2f} (rounds from {r['min']:.2f} to {r['max']:.2f})")
    print(f"flip and shift take {lost:.1%} of an epoch")
    return {
        "table": records(table),
        "nnlib_over": ratios,
        "augmentation_share": lost,
        "rows": records(rows),
    }


def sparse(arena: Arena, quick: bool) -> dict[str, Any]:
    """Two epochs of a wide network with thin ZCA, L2 and L1, beside its matrix products."""
    steps = 3 if quick else 22
    n_epochs = 1 if quick else 2
    cases = [
        {"name": name, "work": SPARSE_WORK, "threads": CORES, "steps": steps, "seconds": 0}
        for name in SPARSE
    ]
    parts = rounds(arena, cases, n_epochs * PARTS_OF_EPOCH, "sparse")
    table = summary(epochs(parts), ["name"]).drop(columns="gflops")
    # the ratio of each part: its contestants ran within a few seconds of each other
    by_part = parts.pivot(index="round", columns="name", values="seconds_per_step")
    ratios = {}
    for bound in ("its products", "its products but whitening"):
        each = by_part["nnlib, sparse"] / by_part[bound]
        ratios[bound] = {"median": each.median(), "min": each.min(), "max": each.max()}
    say(f"sparse: one epoch of {SPARSE_WORK}, thin ZCA with {AXES} axes, {CORES} threads", table)
    for bound, r in ratios.items():
        spread = f"parts from {r['min']:.2f} to {r['max']:.2f}"
        print(f"seconds of nnlib / seconds of {bound}: {r['median']:.2f} ({spread})")
    return {
        "sizes": SPARSE_WORK.sizes,
        "axes": AXES,
        "threads": CORES,
        "table": records(table),
        "seconds_over": ratios,
        "rows": records(parts),
    }


def memory(arena: Arena, quick: bool) -> dict[str, Any]:
    """Peak resident memory of a training process, and the time that evaluation takes."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, folder], capture_output=True, text=True, check=True
        )
    peak, seconds, alone, images = done.stdout.splitlines()[-1].split()
    unit = 1e6 if sys.platform == "darwin" else 1e3
    result = {
        "peak_resident_mb": float(peak) / unit,
        "images": int(images),
        "evaluation_seconds": float(seconds),
        "evaluation_products_seconds": float(alone),
    }
    peak_mb = result["peak_resident_mb"]
    print(f"\nmemory: a training process peaks at {peak_mb:.0f} MB resident, shared cache included")
    times = f"{float(seconds):.2f} s, its products alone {float(alone):.2f} s"
    print(f"evaluation of {int(images):,} images: {times}")
    return result


class Watch(nnlib.Callback):
    """Remembers when the validation accuracy first reached ``target``, counted from now."""

    def __init__(self, target: float, stop: bool = False) -> None:
        self.target = target
        self.stop = stop
        self.started = time.perf_counter()
        self.reached: dict[str, Any] = {}

    def on_epoch(self, trainer: Any) -> None:
        if self.reached or trainer.history[-1]["valid_accuracy"] < self.target:
            return
        seconds = time.perf_counter() - self.started
        self.reached = {"seconds": seconds, "epoch": trainer.epoch}
        if self.stop:
            trainer.stop(f"validation accuracy {self.target} reached")


def accuracy(arena: Arena, quick: bool) -> dict[str, Any]:
    """Seconds until validation accuracy reaches TARGET, beside one epoch of PyTorch.

    They include the preparation.
    """
    data = nnlib.load_dataset("auto", download=False)
    peer = (available(["PyTorch eager"]) or ["nnlib"])[0]
    rows = []
    for seed in range(1 if quick else 3):
        epoch = 176 * arena.measure(peer, WORK, CORES, 176, 0)
        hp = nnlib.Hyperparameters.recipe("fast", seed=seed)
        watch = Watch(TARGET)
        run = nnlib.train(hp, data, progress=False, callbacks=[watch])
        row = {
            "seed": seed,
            **watch.reached,
            "epochs": len(run.history),
            "best_accuracy": run.best["valid_accuracy"],
            "peer_epoch_seconds": epoch,
            "ratio": watch.reached.get("seconds", np.inf) / epoch,
        }
        rows.append(row)
    table = pd.DataFrame(rows)
    what = f"fast: seconds to a validation accuracy of {TARGET} on {data.source}"
    say(f"{what}; ratio to an epoch of {peer}", table)
    return {
        "target": TARGET,
        "data": data.source,
        "peer": peer,
        "rows": records(table),
        "classic": classic(arena, table["peer_epoch_seconds"].median()),
    }


def classic(arena: Arena, peer_epoch: float) -> dict[str, Any] | None:
    """What ``classic`` needs for the same: epochs by its shipped log, speed by this run."""
    log = ROOT / "data" / "runs" / "classic" / "history.csv"
    if not log.exists():
        return None
    history = pd.read_csv(log)
    reached = history[history["valid_accuracy"] >= TARGET]
    epoch = 176 * arena.measure("nnlib", WORK, CORES, 176, 0)
    if reached.empty:
        n, best = len(history), history["valid_accuracy"].max()
        print(f"classic: not reached in {n} epochs (best {best:.4f}), {epoch:.1f} s an epoch here")
        return {"reached": False, "epochs": n, "best_accuracy": best, "epoch_seconds": epoch}
    n = int(reached["epoch"].iloc[0])
    seconds = n * epoch
    print(f"classic: {n} epochs by its log, {epoch:.1f} s an epoch here: {seconds:.0f} s", end=" ")
    print(f"or {seconds / peer_epoch:.0f} times an epoch of the peer")
    return {"reached": True, "epochs": n, "epoch_seconds": epoch, "seconds": seconds}


def sparse_run(target: float) -> dict[str, Any]:
    """Train the recipe ``sparse`` until ``target`` is reached; return when that was."""
    data = nnlib.load_dataset("auto", download=False)
    watch = Watch(target, stop=True)
    hp = nnlib.Hyperparameters.recipe("sparse")
    run = nnlib.train(hp, data, progress=False, callbacks=[watch])
    return {
        "data": data.source,
        "seconds": watch.reached.get("seconds", np.nan),
        "epochs": len(run.history),
        "valid_accuracy": run.best["valid_accuracy"],
    }


def alone(function: Callable[..., Any], *args: Any) -> Any:
    """Call ``function`` in a process of its own, where nothing has been prepared yet."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def time_to_070(arena: Arena, quick: bool, whole: bool = False) -> dict[str, Any]:
    """Seconds until ``sparse`` reaches a validation accuracy of 0.70, beside PyTorch.

    They include the preparation. PyTorch's are its preparation and as many of its epochs as nnlib
    needed, timed over forty steps; with ``whole`` it trains until it has reached 0.70 itself.
    """
    target = 0.40 if quick else 0.70
    ours = alone(sparse_run, target)
    rows = [{"name": "nnlib", "how": "trained", **ours}]
    if available(["PyTorch eager"]):
        import torch_recipe

        if whole:
            theirs = alone(torch_recipe.train, CORES, target)
            rows.append({"name": "PyTorch", "how": "trained", "data": ours["data"], **theirs})
        else:
            theirs = alone(torch_recipe.epoch_seconds, CORES, 5 if quick else 40)
            seconds = theirs["prepare_seconds"] + ours["epochs"] * theirs["epoch_seconds"]
            how = f"{ours['epochs']} epochs, as nnlib, at the speed of some steps"
            row = {"name": "PyTorch", "how": how, "data": ours["data"], "seconds": seconds}
            rows.append({**row, "epochs": ours["epochs"], **theirs})
    table = pd.DataFrame(rows)
    say(f"sparse: seconds to a validation accuracy of {target:.2f}, {CORES} threads", table)
    return {"target": target, "threads": CORES, "rows": records(table)}


def scaling(arena: Arena, quick: bool) -> dict[str, Any]:
    """Images per second against hidden size, batch size and threads."""
    names = available(("nnlib", "PyTorch eager", "products alone"))
    threads = sorted({1, 2, CORES}) if CORES > 1 else [1]
    hidden = [128, 512, 2048] if quick else [128, 256, 512, 1024, 2048, 4096, 8192]
    batch = [16, 256] if quick else [16, 64, 256, 1024, 4096]
    works = [(Work((3072, h, max(h // 4, 10), 10)), t) for h in hidden for t in threads]
    works += [(Work(WORK.sizes, b), CORES) for b in batch if b != WORK.batch_size]
    cases = [
        {"name": name, "work": work, "threads": t, "steps": 1, "seconds": 0.4}
        for work, t in works
        for name in names
    ]
    rows = rounds(arena, cases, 3, "scaling")
    rows["hidden"] = rows["sizes"].map(lambda sizes: sizes[1])
    table = summary(rows, ["hidden", "batch_size", "threads", "name"])
    wide = table.pivot(
        index=["hidden", "batch_size", "threads"], columns="name", values="median"
    ).reset_index()
    say("scaling: images a second (medians of 3)", wide)
    exponents = {}
    for t in threads:
        of = rows[
            (rows["name"] == "nnlib")
            & (rows["batch_size"] == WORK.batch_size)
            & (rows["threads"] == t)
        ]
        medians = of.groupby("hidden")[["flops", "seconds_per_step"]].median().loc[512:]
        exponents[t] = np.polyfit(*np.log(medians.to_numpy().T), 1)[0]
        grows = f"time grows as the arithmetic to the power {exponents[t]:.2f}"
        print(f"{t} threads: {grows} (hidden 512 and more)")
    return {"table": records(table), "time_exponent": exponents, "memory": memory_growth(hidden)}


def memory_growth(hidden: list[int]) -> dict[str, Any]:
    """Bytes of a trainer's arrays after a step, against the number of its parameters."""
    import tracemalloc

    from contestants import Nnlib

    sizes, used = [], []
    for h in hidden:
        tracemalloc.start()
        contestant = Nnlib(Work((3072, h, max(h // 4, 10), 10)))
        contestant.steps(1)
        used.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        sizes.append(sum(p.size for p in contestant.trainer.model.parameters.values()))
    slope, base = np.polyfit(sizes, used, 1)
    large = np.array(sizes) > 1e6
    exponent = np.polyfit(np.log(np.array(sizes)[large]), np.log(np.array(used)[large]), 1)[0]
    bytes_used = f"{slope:.1f} bytes a parameter and {base / 1e6:.0f} MB"
    print(f"memory: {bytes_used}; it grows as parameters to {exponent:.2f}")
    return {"parameters": sizes, "bytes": used, "bytes_a_parameter": slope, "exponent": exponent}


def small(arena: Arena, quick: bool) -> dict[str, Any]:
    """Small networks and batches, each contestant at its best number of threads."""
    names = available(("nnlib", "PyTorch eager", "products alone"))
    works = [Work((d, 64, 32, 10), b) for d in (3072, 192) for b in (32, 256)]
    cases = [
        {"name": name, "work": work, "threads": t, "steps": 20, "seconds": 0.1}
        for work in works
        for t in sorted({1, CORES})
        for name in names
    ]
    rows = rounds(arena, cases, 21, "small networks")
    rows["inputs"] = rows["sizes"].map(lambda sizes: sizes[0])
    table = summary(rows, ["inputs", "batch_size", "threads", "name"])
    best = table.groupby(["inputs", "batch_size", "name"], sort=False)["median"].max().unstack()
    for peer in set(names) - {"nnlib"}:
        best[f"nnlib / {peer}"] = (best["nnlib"] / best[peer]).round(2)
    say(
        "small networks, hidden (64, 32): images a second, each at its best number of threads",
        best.reset_index(),
    )
    return {"table": records(table), "best": records(best.reset_index())}


def threads(arena: Arena, quick: bool) -> dict[str, Any]:
    """A small network's speed beside busy neighbors: with all threads, and with those chosen."""
    work = Work((3072, 64, 32, 10), 32)
    chosen = min(useful_threads(nnlib.MLP(work.sizes), work.batch_size), CORES)
    rows = []
    for neighbors in (0, 1):
        busy = [
            subprocess.Popen([sys.executable, "-c", "while True: pass"])
            for _ in range(neighbors * CORES)
        ]
        try:
            for number in range(5):
                for about, t in (("all threads", CORES), ("as the trainer chooses", chosen)):
                    seconds = arena.measure("nnlib", work, t, 20, 0.5)
                    row = {
                        "round": number,
                        "busy neighbors": len(busy),
                        "threads": f"{about}: {t}",
                    }
                    rows.append(
                        row | {"images_per_second": work.batch_size / seconds, "gflops": 0.0}
                    )
        finally:
            for process in busy:
                process.kill()
                process.wait()
    table = summary(pd.DataFrame(rows), ["busy neighbors", "threads"]).drop(columns="gflops")
    say("threads: 3072-64-32-10, batch 32", table)
    return {"table": records(table)}


def recipes(arena: Arena, quick: bool) -> dict[str, Any]:
    """Seconds of an epoch of each recipe, with as many threads as its trainer chooses."""
    data = nnlib.load_dataset("auto", download=False)
    chosen = nnlib.Hyperparameters.recipes()[: 2 if quick else None]
    seconds = {name: epoch_seconds(nnlib.Hyperparameters.recipe(name), data) for name in chosen}
    table = pd.DataFrame({"recipe": seconds.keys(), "seconds_per_epoch": seconds.values()})
    say(f"recipes: an epoch's steps on {data.source} (medians of 40 steps)", table.round(2))
    return {"data": data.source, "rows": records(table)}


def imports(arena: Arena, quick: bool) -> dict[str, Any]:
    """Seconds to import, less those of starting Python: nnlib alone, and with its trainer."""
    codes = {"python": "pass", "numpy": "import numpy", "nnlib": "import nnlib"}
    codes["nnlib.train"] = "from nnlib import train"
    times: dict[str, list[float]] = {name: [] for name in codes}
    for _ in range(9):
        for name, code in codes.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            times[name].append(time.perf_counter() - started)
    start = np.median(times.pop("python"))
    result = {name: float(np.median(t) - start) for name, t in times.items()}
    for name in ("nnlib", "nnlib.train"):
        result[f"{name} / numpy"] = result[name] / result["numpy"]
        times_numpy = result[f"{name} / numpy"]
        print(f"import of {name}: {result[name]:.3f} s, {times_numpy:.2f} times NumPy's")
    return result


PARTS = {
    part.__name__: part
    for part in (
        speed,
        sparse,
        memory,
        accuracy,
        time_to_070,
        scaling,
        small,
        threads,
        imports,
        recipes,
    )
}


# ---- output --------------------------------------------------------------------------------------


def say(title: str, table: pd.DataFrame) -> None:
    print(f"\n{title}\n{table.to_string(index=False)}")


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return json.loads(table.to_json(orient="records"))


def description() -> dict[str, Any]:
    """Return what was measured on: machine, versions, date."""
    packages = {"PyTorch eager": "torch", "scikit-learn": "scikit-learn"}
    peers = {packages[name]: version(packages[name]) for name in available(packages)}
    return {**machine(), "peers": peers, "date": time.strftime("%Y-%m-%d")}


def main() -> None:
    """Run the parts named on the command line, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(PARTS)} [default: all]")
    parser.add_argument(
        "--quick", action="store_true", help="a try that takes a minute; writes nothing"
    )
    parser.add_argument(
        "--whole", action="store_true", help="time_to_070: PyTorch trains to the end, too"
    )
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"{', '.join(unknown)}: there is no such part; {', '.join(PARTS)}")
    started = time.perf_counter()
    about = description()
    load = os.getloadavg()[0]
    peers = about["peers"] or "none installed"
    print(f"{about['cpu']}, {CORES} cores, load {load:.1f}; peers: {peers}")
    folder = ROOT / "data" / "benchmarks"
    for name in options.parts or PARTS:
        arena = Arena()
        load = os.getloadavg()[0]
        more = {"whole": options.whole} if name == "time_to_070" else {}
        result = PARTS[name](arena, options.quick, **more)
        arena.close()
        if not options.quick:
            document = {"machine": about, "load_before": load, **result}
            folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(document, indent=1, default=float) + "\n"
            (folder / f"{name}.json").write_text(text, encoding="utf-8")
    if not options.quick:
        pictures.draw(folder, ROOT / "figures")
    print(f"\n{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
