"""The benchmark: ``make bench``. Every figure is a ratio or a median of alternating rounds, in this one run.

Writes one file for each part to data/benchmarks/ and a picture to figures/benchmark_*.png.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pictures
from contestants import CONTESTANTS, Work, augmentation_share, epoch_seconds, measure
from tqdm.auto import tqdm

import nnlib
from nnlib.network.mlp import useful_threads
from nnlib.training.rundir import machine

ROOT = Path(__file__).parents[1]
CORES = os.cpu_count() or 1
WORK = Work()
PARTS_OF_EPOCH = 8
TARGET = 0.5752  # validation accuracy of the recipe that this project started from, its best of five runs


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
    """Measure every case ``n`` times, all of them before the next round; one row for each measurement."""
    rows = []
    for number, case in tqdm(
        [(r, case) for r in range(n) for case in cases], desc=about, disable=None
    ):
        seconds = arena.measure(*(case[k] for k in ("name", "work", "threads", "steps", "seconds")))
        work = case["work"]
        row = {
            "name": case["name"],
            "sizes": work.sizes,
            "batch_size": work.batch_size,
            "threads": case["threads"],
        }
        rows.append({"round": number, **row, "seconds_per_step": seconds, "flops": work.flops})
    return with_rates(pd.DataFrame(rows))


def epochs(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one row an epoch where ``rows`` are the parts of epochs: short parts meet the machine in the same mood."""
    keys = ["round", "name", "sizes", "batch_size", "threads", "flops"]
    whole = rows.assign(round=rows["round"] // PARTS_OF_EPOCH).groupby(
        keys, sort=False, as_index=False
    )
    return whole["seconds_per_step"].mean().pipe(with_rates)


def with_rates(rows: pd.DataFrame) -> pd.DataFrame:
    """Add images and operations a second."""
    per_second = 1 / rows["seconds_per_step"]
    return rows.assign(
        images_per_second=rows["batch_size"] * per_second, gflops=rows["flops"] * per_second / 1e9
    )


def summary(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return median, lowest and highest images per second of each case, in their order."""
    speed = rows.groupby(by, sort=False)["images_per_second"]
    table = speed.agg(["median", "min", "max"]).round(0).astype(int)
    return table.join(rows.groupby(by, sort=False)[["gflops"]].median().round(1)).reset_index()


# ---- the parts: each returns what its file holds ---------------------------------------------------------------------


def speed(arena: Arena, quick: bool) -> dict[str, Any]:
    """Three epochs of the reference work, each in eight parts, all contestants in turn at each part."""
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
    say(
        f"speed: one epoch of {'-'.join(map(str, WORK.sizes))}, batch {WORK.batch_size}, {CORES} threads",
        table,
    )
    for peer, r in ratios.items():
        print(f"nnlib / {peer}: {r['median']:.2f} (rounds from {r['min']:.2f} to {r['max']:.2f})")
    print(f"flip and shift take {lost:.1%} of an epoch")
    return {
        "table": records(table),
        "nnlib_over": ratios,
        "augmentation_share": lost,
        "rows": records(rows),
    }


def memory(arena: Arena, quick: bool) -> dict[str, Any]:
    """Peak resident memory of a training process, and the time that evaluation takes."""
    code = (
        "import sys, time, numpy as np, nnlib\n"
        "data = nnlib.load_dataset('auto', download=False)\n"
        "hp = nnlib.Hyperparameters(hidden_sizes=(1024, 256), momentum=0.9, l2=1e-3, flip=True, shift=2, epochs=1)\n"
        "model = nnlib.train(hp, data, run_dir=sys.argv[1], progress=False).model\n"
        "times = []\n"
        "for _ in range(5):\n"
        "    started = time.perf_counter(); nnlib.evaluate(model, data.test)\n"
        "    times.append(time.perf_counter() - started)\n"
        "from nnlib.network.blas import product\n"
        "x = np.ones((2500, 3072), np.float32); W = [p for p in model.parameters.values() if p.ndim == 2]\n"
        "alone = []\n"
        "for _ in range(5):\n"
        "    started = time.perf_counter()\n"
        "    for _ in range(-(-len(data.test) // 2500)):\n"
        "        a = x\n"
        "        for w in W: a = product(a, w)\n"
        "    alone.append(time.perf_counter() - started)\n"
        "peak = float('nan')\n"
        "if sys.platform != 'win32':  # which does not tell\n"
        "    import resource\n"
        "    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(peak, np.median(times), np.median(alone), len(data.test))\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", code, folder], capture_output=True, text=True, check=True
        )
    peak, seconds, alone, images = done.stdout.splitlines()[-1].split()
    unit = 1e6 if sys.platform == "darwin" else 1e3
    result = {"peak_resident_mb": float(peak) / unit, "images": int(images)}
    result |= {"evaluation_seconds": float(seconds), "evaluation_products_seconds": float(alone)}
    print(
        f"\nmemory: a training process peaks at {result['peak_resident_mb']:.0f} MB resident, shared cache included"
    )
    print(
        f"evaluation of {int(images):,} images: {float(seconds):.2f} s, its products alone {float(alone):.2f} s"
    )
    return result


def accuracy(arena: Arena, quick: bool) -> dict[str, Any]:
    """Seconds until validation accuracy reaches TARGET, preparation included, beside one epoch of PyTorch."""
    data = nnlib.load_dataset("auto", download=False)
    peer = (available(["PyTorch eager"]) or ["nnlib"])[0]
    rows = []
    for seed in range(1 if quick else 3):
        epoch = 176 * arena.measure(peer, WORK, CORES, 176, 0)
        reached: dict[str, Any] = {}
        started = time.perf_counter()

        class Watch(nnlib.Callback):
            def on_epoch(
                self, trainer: Any, reached: Any = reached, started: float = started
            ) -> None:
                if trainer.history[-1]["valid_accuracy"] >= TARGET and not reached:
                    reached |= {"seconds": time.perf_counter() - started, "epoch": trainer.epoch}

        run = nnlib.train(
            nnlib.Hyperparameters.recipe("fast", seed=seed),
            data,
            progress=False,
            callbacks=[Watch()],
        )
        row = {
            "seed": seed,
            **reached,
            "epochs": len(run.history),
            "best_accuracy": run.best["valid_accuracy"],
        }
        rows.append(
            row | {"peer_epoch_seconds": epoch, "ratio": reached.get("seconds", np.inf) / epoch}
        )
    table = pd.DataFrame(rows)
    say(
        f"fast: seconds to a validation accuracy of {TARGET} on {data.source}; ratio to an epoch of {peer}",
        table,
    )
    result = {"target": TARGET, "data": data.source, "peer": peer, "rows": records(table)}
    return result | {"classic": classic(arena, table["peer_epoch_seconds"].median())}


def classic(arena: Arena, peer_epoch: float) -> dict[str, Any] | None:
    """What the recipe ``classic`` needs for the same: epochs from its shipped log, at the speed that it has here."""
    log = ROOT / "data" / "runs" / "classic" / "history.csv"
    if not log.exists():
        return None
    history = pd.read_csv(log)
    reached = history[history["valid_accuracy"] >= TARGET]
    epoch = 176 * arena.measure("nnlib", WORK, CORES, 176, 0)
    if reached.empty:
        best = history["valid_accuracy"].max()
        print(
            f"classic: not reached in {len(history)} epochs (best {best:.4f}), {epoch:.1f} s an epoch here"
        )
        return {
            "reached": False,
            "epochs": len(history),
            "best_accuracy": best,
            "epoch_seconds": epoch,
        }
    epochs = int(reached["epoch"].iloc[0])
    print(
        f"classic: {epochs} epochs by its log, {epoch:.1f} s an epoch here: {epochs * epoch:.0f} s",
        end=" ",
    )
    print(f"or {epochs * epoch / peer_epoch:.0f} times an epoch of the peer")
    return {"reached": True, "epochs": epochs, "epoch_seconds": epoch, "seconds": epochs * epoch}


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
        print(
            f"{t} threads: time grows as the arithmetic to the power {exponents[t]:.2f} (hidden 512 and more)"
        )
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
    print(
        f"memory: {slope:.1f} bytes a parameter and {base / 1e6:.0f} MB; it grows as parameters to {exponent:.2f}"
    )
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
    """A small network's speed beside a busy neighbour, with all threads and with those that the trainer chooses."""
    work = Work((3072, 64, 32, 10), 32)
    chosen = min(useful_threads(nnlib.MLP(work.sizes), work.batch_size), CORES)
    rows = []
    for neighbours in (0, 1):
        busy = [
            subprocess.Popen([sys.executable, "-c", "while True: pass"])
            for _ in range(neighbours * CORES)
        ]
        try:
            for number in range(5):
                for about, t in (("all threads", CORES), ("as the trainer chooses", chosen)):
                    seconds = arena.measure("nnlib", work, t, 20, 0.5)
                    row = {
                        "round": number,
                        "busy neighbours": len(busy),
                        "threads": f"{about}: {t}",
                    }
                    rows.append(
                        row | {"images_per_second": work.batch_size / seconds, "gflops": 0.0}
                    )
        finally:
            for process in busy:
                process.kill()
                process.wait()
    table = summary(pd.DataFrame(rows), ["busy neighbours", "threads"]).drop(columns="gflops")
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
    """Seconds to import, less those of starting Python: nnlib alone, and with its trainer loaded."""
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
        print(
            f"import of {name}: {result[name]:.3f} s, {result[f'{name} / numpy']:.2f} times NumPy's (medians of 9)"
        )
    return result


PARTS = {
    f.__name__: f for f in (speed, memory, accuracy, scaling, small, threads, imports, recipes)
}


# ---- output ----------------------------------------------------------------------------------------------------------


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
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"{', '.join(unknown)}: there is no such part; {', '.join(PARTS)}")
    started, about = time.perf_counter(), description()
    print(
        f"{about['cpu']}, {CORES} cores, load {os.getloadavg()[0]:.1f}; peers: {about['peers'] or 'none installed'}"
    )
    for name in options.parts or PARTS:
        arena = Arena()
        result = PARTS[name](arena, options.quick)
        arena.close()
        if not options.quick:
            document = {"machine": about, "load_before": os.getloadavg()[0], **result}
            path = ROOT / "data" / "benchmarks" / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(document, indent=1, default=float) + "\n", encoding="utf-8")
    if not options.quick:
        pictures.draw(ROOT / "data" / "benchmarks", ROOT / "figures")
    print(f"\n{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
