"""Checkpoints: what goes in comes out. What is damaged is refused in words; it never crashes."""

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

import nnlib
from nnlib.data.preprocessing import fit_preprocessing
from nnlib.files import write_atomically, write_text
from nnlib.network.saving import read_arrays, write_arrays

IMAGES = np.random.default_rng(0).integers(0, 256, (60, 3, 4, 4), dtype=np.uint8)


def trained(kind: str | None = "whiten", dtype="float32", sizes=(16, 12, 8, 4)) -> nnlib.MLP:
    """A network whose weights are not those of its seed."""
    fitted = kind and fit_preprocessing(kind, IMAGES, components=sizes[0])
    model = nnlib.MLP(
        sizes,
        ("leaky_relu(0.2)", "gelu"),
        seed=3,
        dtype=dtype,
        preprocessing=fitted,
        classes=["a", "b", "ç", "d"],
    )
    rng = np.random.default_rng(1)
    for p in model.parameters.values():
        p += 0.1 * rng.standard_normal(p.shape)
    model.info = {"data": "none", "best": {"epoch": 3}}
    return model


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return nnlib.save_model(nnlib.MLP((3, 2, 2)), tmp_path / "small.npz")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", [None, "standardize", "whiten"])
def test_a_loaded_model_is_the_saved_one(tmp_path, kind, dtype):
    model = trained(kind, dtype, (16 if kind == "whiten" else 48, 12, 8, 4))
    path = nnlib.save_model(model, tmp_path / "new folder" / "model.npz")
    loaded = nnlib.load_model(path)
    np.testing.assert_array_equal(loaded.predict_logits(IMAGES), model.predict_logits(IMAGES))
    for name, p in model.parameters.items():
        assert loaded.parameters[name].dtype == p.dtype
        np.testing.assert_array_equal(loaded.parameters[name], p)
    for name, p in model.initial_parameters().items():  # "before" is that of the same network
        np.testing.assert_array_equal(loaded.initial_parameters()[name], p)
    for name in ("layer_sizes", "activation", "initialization", "seed", "classes", "info"):
        assert getattr(loaded, name) == getattr(model, name)
    assert list(path.parent.iterdir()) == [path]


def test_a_folded_model_survives_too(tmp_path):
    model = trained().folded()
    loaded = nnlib.load_model(nnlib.save_model(model, tmp_path / "m.npz"))
    np.testing.assert_array_equal(loaded.predict_logits(IMAGES), model.predict_logits(IMAGES))


@pytest.mark.parametrize("kind", ["scale", "standardize", "whiten", "zca"])
def test_a_model_saved_folded_takes_raw_pixels_and_nothing_else(tmp_path, kind):
    model = trained(kind, sizes=(16 if kind == "whiten" else 48, 12, 8, 4))
    loaded = nnlib.load_model(nnlib.save_model(model, tmp_path / "m.npz", fold=True))
    np.testing.assert_allclose(loaded.predict_proba(IMAGES), model.predict_proba(IMAGES), atol=1e-4)
    raw = IMAGES.reshape(60, 48).astype(np.float32)
    np.testing.assert_allclose(loaded.forward(raw), model.predict_logits(IMAGES), atol=1e-4)
    assert model.layer_sizes[0] == (16 if kind == "whiten" else 48) and "folded" not in model.info


def test_what_float16_costs_is_measured_in_one_line(tmp_path):
    model, split = (
        trained("standardize", sizes=(48, 60, 60, 4)),
        nnlib.Split(IMAGES, np.arange(60) % 4),
    )
    half = nnlib.load_model(nnlib.save_model(model, tmp_path / "m16.npz", storage="float16"))
    whole, rounded = nnlib.evaluate(model, split), nnlib.evaluate(half, split)
    assert (
        0 < abs(rounded.loss - whole.loss) < 0.01
        and abs(rounded.accuracy - whole.accuracy) <= 1 / 60
    )


def test_float16_halves_the_file_and_rounds_to_three_digits(tmp_path):
    model = trained("standardize", sizes=(48, 60, 60, 4))
    whole = nnlib.save_model(model, tmp_path / "m32.npz")
    half = nnlib.save_model(model, tmp_path / "m16.npz", storage="float16")
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    loaded = nnlib.load_model(half)
    assert loaded.dtype == np.float32
    for name, p in model.parameters.items():
        np.testing.assert_allclose(loaded.parameters[name], p, rtol=2**-11, atol=2**-25)
    assert 0 < abs(loaded.predict_proba(IMAGES) - model.predict_proba(IMAGES)).max() < 0.01
    with pytest.raises(
        nnlib.HyperparameterError,
        match=r"^storage: 'int8' is not known\. .*float16, float32, float64",
    ):
        nnlib.save_model(model, tmp_path / "m8.npz", storage="int8")


def test_any_bit_flipped_and_any_cut_is_refused_or_harmless(small):
    raw, model = small.read_bytes(), nnlib.load_model(small)
    expected = {name: p.tobytes() for name, p in model.parameters.items()}
    refused = 0
    damaged = [raw[:n] for n in range(0, len(raw), 17)]
    flips = [(n, n * 5 % 8) for n in range(0, len(raw), 7)]  # all bits get their turn
    flips += [
        (n, 0) for n in range(raw.index(b"PK\x01\x02"), len(raw))
    ]  # the archive's table of contents
    damaged += [raw[:n] + bytes([raw[n] ^ 1 << bit]) + raw[n + 1 :] for n, bit in flips]
    for content in damaged:
        small.write_bytes(content)
        try:
            loaded = nnlib.load_model(small)
        except nnlib.CheckpointError as error:
            assert str(small) in str(error)
            refused += 1
        else:  # a date in the archive, say
            assert len(content) == len(raw)  # no cut is harmless
            assert {name: p.tobytes() for name, p in loaded.parameters.items()} == expected
            assert (loaded.layer_sizes, loaded.activation, loaded.classes) == (
                (3, 2, 2),
                ("leaky_relu",),
                ("0", "1"),
            )
    assert refused > 0.7 * len(damaged)


def rewrite(path: Path, change) -> None:
    """Let ``change(arrays, meta)`` alter a good file, which is then written as good files are."""
    arrays, meta = read_arrays(path)
    change(arrays, meta)
    write_arrays(path, arrays, meta)


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda a, m: m.update(version=2),
            "format version 2, but this nnlib reads 1; update nnlib",
        ),
        (lambda a, m: m.update(version="1"), "format version '1'"),
        (
            lambda a, m: m.update(layer_sizes=[3, 2, 2, 2]),
            r"layer_sizes are \[3, 2, 2, 2\].*\[3, 2, 2\]",
        ),
        (
            lambda a, m: m.update(layer_sizes=[3, 10**12, 2]),
            "layer_sizes are",
        ),  # before 24 TB are asked for
        (lambda a, m: m.update(layer_sizes=7), "model that can be built"),
        (lambda a, m: m.update(activation=["relu", "relu"]), "names 2 layers, but 1 are hidden"),
        (lambda a, m: m.update(activation=["rellu"]), "Did you mean 'relu'"),
        (lambda a, m: m.update(activation=5), "model that can be built"),
        (lambda a, m: m.update(dtype="complex64"), "dtype: complex64 is not allowed"),
        (lambda a, m: m.update(dtype="foo"), "model that can be built"),
        (lambda a, m: m.update(seed=-1), "model that can be built"),
        (lambda a, m: m.update(classes=["one"]), "1 names for 2 outputs"),
        (lambda a, m: m.pop("seed"), "model that can be built"),
        (lambda a, m: a.pop("b1"), r"b1 should be floats of the shape \(2,\), found nothing"),
        (lambda a, m: a.pop("W2"), "layer_sizes are"),
        (lambda a, m: a.update(W3=np.zeros((2, 2), np.float32)), "layer_sizes are"),
        (lambda a, m: a.update(W1=np.zeros((3, 3), np.float32)), "layer_sizes are"),
        (lambda a, m: a.update(W1=np.zeros(3, np.float32)), "model that can be built"),
        (
            lambda a, m: a.update(b1=np.zeros(3, np.float32)),
            r"b1 should be .* \(2,\), found float32 \(3,\)",
        ),
        (lambda a, m: a.update(b1=np.zeros(2, int)), "b1 should be floats .* found int64"),
        (lambda a, m: a.update(b1=np.zeros(2, complex)), "b1 should be floats .* found complex128"),
        (lambda a, m: a.update(b1=np.array(["x", "y"])), "b1 should be floats .* found <U1"),
    ],
)
def test_what_does_not_fit_is_refused(small, change, words):
    rewrite(small, change)
    with pytest.raises(nnlib.CheckpointError, match=words) as raised:
        nnlib.load_model(small)
    assert str(small) in str(raised.value)


def header(shape: str, descr: str = "<f4") -> bytes:
    """The start of an npy file that declares ``shape``, and four bytes of it."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(4)


@pytest.mark.parametrize(
    "content",
    [
        header("(1000000000000,)"),
        header("(-1,)"),
        header("(2,)"),
        header("(1,)") + b"x",
        header("(1,)", "|O"),
        header("()")[:9],
        b"\x93NUMPY\x09\x00",
        b"",
    ],
)
def test_arrays_that_are_not_what_they_declare_are_refused_before_memory_is_taken(small, content):
    with zipfile.ZipFile(small, "a") as archive:
        archive.writestr("W9.npy", content)
    with pytest.raises(nnlib.CheckpointError, match="not a checkpoint, or a damaged one"):
        read_arrays(small)


def test_files_that_would_fill_the_memory_are_refused(tmp_path):
    path = write_arrays(tmp_path / "bomb.npz", {"W1": np.zeros(2_000_000)}, {}, pack=True)
    assert path.stat().st_size < 50_000
    with pytest.raises(nnlib.CheckpointError, match=r"W1.npy would unpack to 160\d+ bytes"):
        read_arrays(path)
    zeros_in_between = {
        "W1": np.random.default_rng(0).normal(size=(1000, 1000)),
        "W2": np.zeros((100, 1000)),
    }
    arrays, _ = read_arrays(write_arrays(tmp_path / "good.npz", zeros_in_between, {}, pack=True))
    np.testing.assert_array_equal(arrays["W1"], zeros_in_between["W1"])


@pytest.mark.parametrize("content", [b"", b"no zip at all", b"PK\x05\x06" + bytes(18)])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(nnlib.CheckpointError, match=r"x\.npz: "):
        nnlib.load_model(tmp_path / "x.npz")


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(nnlib.CheckpointError, match=r"nothing\.npz: there is no such file"):
        nnlib.load_model(tmp_path / "nothing.npz")
    with pytest.raises(nnlib.CheckpointError):
        nnlib.load_model(tmp_path)


@pytest.mark.parametrize("meta", ["[]", "3", "{", '"text"'])
def test_odd_descriptions_are_refused(tmp_path, meta):
    np.savez(tmp_path / "x.npz", meta=np.array(meta))
    with pytest.raises(nnlib.CheckpointError, match=r"x\.npz: "):
        nnlib.load_model(tmp_path / "x.npz")


def test_pickles_are_not_run(tmp_path):
    class Harmful:
        def __reduce__(self):
            return Path.touch, (tmp_path / "harmed",)

    np.savez(
        tmp_path / "x.npz", W1=np.array([Harmful()]), meta=np.array(json.dumps({"version": 1}))
    )
    with pytest.raises(nnlib.CheckpointError):
        nnlib.load_model(tmp_path / "x.npz")
    assert not (tmp_path / "harmed").exists()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = write_text(tmp_path / "a.txt", "old ½")

    def fail(file):
        file.write(b"new")
        raise OSError("no space left on device")

    with pytest.raises(
        nnlib.CheckpointError,
        match=r"a\.txt: it cannot be written \(no space.*Make room, or name another",
    ):
        write_atomically(path, fail)
    assert path.read_text(encoding="utf-8") == "old ½" and list(tmp_path.iterdir()) == [path]


def test_data_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    events = []
    real = Path.replace

    def replace(self, target):
        events.append("rename")
        return real(self, target)

    def fsync(handle):
        events.append("fsync")

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    write_text(tmp_path / "a.txt", "x")
    assert events[:2] == ["fsync", "rename"]  # then the folder, where folders can be opened
    assert events[2:] == (["fsync"] if hasattr(os, "O_DIRECTORY") else [])
