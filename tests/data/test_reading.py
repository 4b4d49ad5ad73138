"""Reading data of a user's, and splitting them.

Oracles: the numbers that were written; NumPy's own reading; sets, and counts of indices by pairs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from commands import command
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset
from valid import Refused

import sdeflow
from sdeflow.config.build import build
from sdeflow.config.schema import load_config, override
from sdeflow.data import read, split
from sdeflow.data.splitting import fold
from sdeflow.errors import SdeflowError
from sdeflow.model.forces import ModelForces
from sdeflow.problems.ppca import PPCA

TABLE = np.array([[1.5, -2.0], [0.25, 1e-300], [3.0, 0.1]])


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "source",
    [
        TABLE,
        TABLE.tolist(),
        torch.from_numpy(TABLE),
        pd.DataFrame(TABLE, columns=["a", "b"]),
        pd.DataFrame({"a": TABLE[:, 0], "b": TABLE[:, 1]}).astype({"a": "Float64"}),
        TABLE.astype(">f8"),
        TABLE[::-1][::-1],
        np.asfortranarray(TABLE),
        np.ma.array(TABLE),
    ],
)
def test_tables_in_memory(source: Any) -> None:
    found = read(source)
    assert found.dtype == torch.float64
    np.testing.assert_array_equal(found.numpy(), TABLE)


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        ("f2", torch.float16),
        ("f4", torch.float32),
        ("u1", torch.uint8),
        ("u2", torch.int64),
        ("u4", torch.int64),
        ("i4", torch.int32),
        ("?", torch.bool),
    ],
)
def test_kinds_of_numbers_are_kept(given: str, dtype: torch.dtype) -> None:
    array = np.array([0, 1, 1]).astype(given)
    found = read(array)
    assert found.dtype == dtype
    assert found.tolist() == array.tolist()
    series = pd.Series(array)
    assert read(series).tolist() == array.tolist()


def test_an_array_is_shared_and_a_read_only_one_copied() -> None:
    array = TABLE.copy()
    assert read(array).data_ptr() == array.ctypes.data
    array.flags.writeable = False
    assert read(array).data_ptr() != array.ctypes.data


def test_files(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", TABLE)
    np.savez(tmp_path / "one.npz", y=TABLE)
    np.savez_compressed(tmp_path / "two.npz", x=-TABLE, y=TABLE)
    for name in ("a.npy", "one.npz", "one.npz:y", "two.npz:y"):
        np.testing.assert_array_equal(read(f"{tmp_path}/{name}"), TABLE)
    np.testing.assert_array_equal(read(tmp_path / "a.npy"), TABLE)


@pytest.mark.parametrize(
    "text",
    [
        "1.5,-2\n0.25,1e-300\n3,0.1\n",
        "a,b\n1.5,-2\n0.25,1e-300\n3,0.1",
        '\ufeff"height, in cm",b\r\n1.5,-2.0\r\n0.25,1E-300\r\n\r\n3, 0.1\r\n',
        "a;b\n1.5;-2\n0.25;1e-300\n3;0.1\n",
        "1.5\t-2\n0.25\t1e-300\n3\t0.1\n",
        '"1.5","-2"\n"0.25","1e-300"\n"3","0.1"\n',
    ],
)
def test_csv(tmp_path: Path, text: str) -> None:
    found = read(written(tmp_path, "a.csv", text))
    assert found.dtype == torch.float64
    np.testing.assert_array_equal(found, TABLE)


def test_csv_that_pandas_and_numpy_write(tmp_path: Path) -> None:
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(50, 3)), columns=["x", "y", "z"])
    frame.to_csv(tmp_path / "a.csv", index=False)
    np.testing.assert_array_equal(read(tmp_path / "a.csv"), frame.to_numpy())
    np.savetxt(tmp_path / "b.csv", frame, delimiter=",", fmt="%.17g")
    np.testing.assert_array_equal(read(tmp_path / "b.csv"), frame.to_numpy())


def test_names_that_are_numbers_are_to_be_said(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "2019,2020\n1,2\n")
    assert read(path).tolist() == [[2019, 2020], [1, 2]]
    assert read(path, header=True).tolist() == [[1, 2]]
    assert read(written(tmp_path, "b.csv", "id,2020\n1,2\n"), header=True).tolist() == [[1, 2]]
    assert read(written(tmp_path, "c.csv", "1\n2\n")).tolist() == [[1], [2]]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a,b\n1,2\n3,x\n", r"a.csv, line 3: column 2 \(b\) is 'x', and a number was expected$"),
        ("1,2\n\n3,\n", r"a.csv, line 3: column 2 is empty, and a number was expected$"),
        ("a,b\n1,2\n3\n", r"a.csv, line 3 has 1 cells, and those before it 2: mend that line$"),
        ("1,2,x\n1,2,3\n", r"line 1: column 3 is 'x' and no number, though others .*header=True\) or False$"),
        ("a,b\n1,nan\n", r"line 2: column 2 \(b\) is nan: leave such rows out, or give read finite=False"),
        ("a,b\n1_0,2\n", r"line 2: column 1 \(a\) is '1_0'"),
        ("a,b\n", "holds no numbers: rows of them were expected$"),
        ("", "holds no numbers"),
    ],
)
def test_csv_with_a_mistake(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(SdeflowError, match=sentence):
        read(written(tmp_path, "a.csv", text))


def test_files_with_a_mistake(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", x=TABLE, y=TABLE)
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    written(tmp_path, "text.npy", "hello")
    written(tmp_path, "text.npz", "hello")
    whole = (tmp_path / "two.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:300])
    (tmp_path / "latin.csv").write_bytes("größe\n1\n".encode("latin-1"))
    for name, sentence in {
        "none.npy": "there is no file .*none.npy$",
        "a.parquet": r"a.parquet is no path that ends in .csv, .npy, .npz: read it by its own package",
        "two.npz": "holds x, y: give one of them, as 'two.npz:KEY'$",
        "two.npz:z": "two.npz holds no 'z'",
        "objects.npy": "cannot be read as .npy: it holds Python objects",
        "text.npy": "text.npy cannot be read as .npy: it holds Python objects, or is of another format$",
        "text.npz": "text.npz cannot be read as .npz",
        "cut.npz": "cut.npz cannot be read as .npz",
        "latin.csv": "latin.csv cannot be read as text",
    }.items():
        with pytest.raises(SdeflowError, match=sentence):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (2.5, "data is a float, and an array, a table, a path or a dataset with len and .i. was expected$"),
        (None, "data is a NoneType"),
        (np.float64(2), r"data has the shape \(\): at least one datum"),
        (np.zeros((0, 2)), r"data has the shape \(0, 2\)"),
        (np.array(["a"]), "data holds text, and real numbers were expected"),
        (np.array([1j]), "data holds complex numbers"),
        (np.array(["2020-01-01"], "M8[s]"), r"data holds datetime64\[s\], and real numbers"),
        (torch.zeros(2, dtype=torch.complex64), "a torch.strided tensor of torch.complex64: dense reals"),
        (torch.zeros(2, 2).to_sparse(), "a torch.sparse_coo tensor of torch.float32: dense reals"),
        ([[1.0], [1.0, 2.0]], "data is a list of no array's shape"),
        (np.ma.array([1.0, 2.0], mask=[False, True]), "data has masked entries"),
        (pd.DataFrame({"a": [1.0], "b": ["x"]}), "data: column 'b' holds what are no numbers"),
        (
            pd.DataFrame({"a": [1.0], "b": pd.to_datetime(["2020-01-01"])}),
            "data: column 'b' holds what are no",
        ),
        (
            pd.DataFrame({"a": [1.0, 2.0], "b": [1.0, np.inf]}),
            r"1 entries .* at \[1, 1\] \(column 'b'\): leave",
        ),
        (
            np.array([[1.0, np.nan], [np.nan, 0]]),
            r"data holds 2 entries .* the first at \[0, 1\]: leave such",
        ),
        ((TABLE, TABLE[:2]), r"the parts of the data have lengths \[3, 2\]"),
        ({}, r"the parts of the data have lengths \[\]"),
        ({"y": TABLE, "n": "x"}, "x is no path"),
        ((TABLE, None), r"data\[1\] is a NoneType"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused(source: Any, sentence: str) -> None:
    with pytest.raises(SdeflowError, match=sentence):
        read(source)


def test_missing_values_where_a_model_knows_of_them() -> None:
    given = np.array([[1.0, np.nan]])
    np.testing.assert_array_equal(read(given, finite=False), given)
    frame = pd.DataFrame({"a": pd.array([1, None], dtype="Int64"), "b": [True, False]})
    with pytest.raises(SdeflowError, match="column 'a' holds what are no numbers"):
        read(frame)
    found = read(frame.astype(float), finite=False)
    np.testing.assert_array_equal(found, [[1, 1], [np.nan, 0]])


def test_columns_of_several_kinds_and_of_one_name() -> None:
    frame = pd.DataFrame([[1, True, 2.5], [3, False, 4.5]], columns=["a", "a", "b"])
    assert read(frame).tolist() == [[1, 1, 2.5], [3, 0, 4.5]]


def test_tuples_and_dicts_have_parts() -> None:
    x, (y, z) = read((TABLE, ({"n": [1, 2, 3]}, TABLE[:, 0])))
    np.testing.assert_array_equal(x, TABLE)
    assert y["n"].tolist() == [1, 2, 3]
    assert z.tolist() == TABLE[:, 0].tolist()


class Items(Dataset[Any]):
    def __init__(self, item: Any, count: int = 4) -> None:
        self.item, self.count = item, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Any:
        return self.item(i)


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(range(3))


def test_map_style_datasets() -> None:
    whole = torch.arange(24.0).view(12, 2)
    (found,) = read(TensorDataset(whole))
    assert torch.equal(found, whole)
    x, y = read(Subset(TensorDataset(whole, torch.arange(12)), [5, 2, 7]))
    assert torch.equal(x, whole[[5, 2, 7]])
    assert y.tolist() == [5, 2, 7]
    named = read(Items(lambda i: {"x": np.full(2, i, np.float32), "y": float(i), "n": i}, 2500))
    assert {k: v.dtype for k, v in named.items()} == {
        "x": torch.float32,
        "y": torch.float64,
        "n": torch.int64,
    }
    assert named["n"].tolist() == list(range(2500))
    assert torch.equal(named["x"][:, 1], torch.arange(2500.0))


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (Endless(), "data is a Endless, and an array, a table, a path or a dataset"),
        (
            Items(lambda i: "x"),
            r"items of Items hold (list|str), and tensors, arrays or numbers were expected",
        ),
        (Items(lambda i: torch.zeros(i + 1)), "joining items of Items fails with RuntimeError"),
        (Items(lambda i: 1 / (i - 2)), r"Items\[2\] fails with ZeroDivisionError: .*\(test_reading.py"),
        (Items(lambda i: i, 0), "Items, is empty"),
        (Items(lambda i: float("nan")), r"data, of Items, holds 4 entries that are NaN .* first at \[0\]"),
    ],
)
def test_datasets_with_a_mistake(source: Any, sentence: str) -> None:
    with pytest.raises(SdeflowError, match=sentence):
        read(source)


# A model's argument ----------------------------------------------------------------------------------

OWN = """
import torch
import sdeflow
from sdeflow.data import read, split


class Mine(sdeflow.Model):
    latent_shape = (2,)

    def __init__(self, data, held_out=0):
        y = read(data)
        parts = split(y, validation=0, test=held_out)
        self.data, self.held_out = y[parts.train], y[parts.test]

    def init_theta(self, generator):
        return {"w": torch.zeros(2)}

    def log_joint(self, theta, x, y):
        return -((x - theta["w"]) ** 2).sum(-1) - ((y[:, None] - x) ** 2).sum(-1)
"""
TOML = """
model = { use = "own.py:Mine", data = "in/a.csv", held_out = 1 }
system = { use = "ipla", particles = 2, theta = { h = 0.01 }, x = { h = 0.01 } }
run = { steps = 2 }
evaluate = { every = 10 }
"""


def test_a_path_is_from_the_folder_of_the_toml_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the run's own folder, from elsewhere, and one under --set from the working directory."""
    (tmp_path / "problem" / "in").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    written(tmp_path / "problem", "own.py", OWN)
    written(tmp_path / "problem" / "in", "a.csv", "a,b\n1,2\n3,4\n5,6\n")
    np.savez(tmp_path / "here" / "b.npz", y=TABLE[:2], z=TABLE)
    toml = written(tmp_path / "problem", "p.toml", TOML)
    monkeypatch.chdir(tmp_path / "here")
    assert command("run", toml, "-q", "--out", "run") == 0
    monkeypatch.chdir(tmp_path)
    for path in (toml, tmp_path / "here" / "run" / "config.toml"):
        forces = build(load_config(path)).system.model_forces
        assert forces is not None
        assert len(forces.model.data) == 2
        assert sorted([*forces.model.data.tolist(), *forces.model.held_out.tolist()]) == [
            [1, 2],
            [3, 4],
            [5, 6],
        ]
    monkeypatch.chdir(tmp_path / "here")
    forces = build(load_config(toml, overrides=[override("model.data=b.npz:y")])).system.model_forces
    assert forces is not None
    assert len(forces.model.data) == 1
    assert command("resume", "run", "--steps", 1) == 0


def test_a_mistake_in_the_data_is_a_sentence(refused: Refused) -> None:
    problem = {"problem.toml": TOML.replace("in/", ""), "own.py": OWN}
    assert "there is no file" in refused(files=problem)
    said = refused(files=problem | {"a.csv": "a,b\n1,2\n3,4\nx,2\n"})
    assert "a.csv, line 4: column 1 (a) is 'x', and a number was expected" in said


def test_a_packaged_model_of_own_data(tmp_path: Path) -> None:
    """The same MLE as of these data made by the model, by any door; a part is held out."""
    y = PPCA(40).data
    frame = pd.DataFrame(y.numpy(), columns=list("abcdefgh")[: y.shape[1]])
    frame.to_csv(tmp_path / "y.csv", index=False)
    for source in (y, frame, tmp_path / "y.csv"):
        found = PPCA(source)
        assert torch.equal(found.data, y)
        assert found.minimum == PPCA(40).minimum
    held = PPCA(y, held_out=0.25, data_seed=3)
    parts = split(40, validation=0, test=0.25, seed=3)
    assert torch.equal(held.data, y[parts.train])
    assert torch.equal(held.held_out, y[parts.test])
    assert len(parts.test) == 10
    with pytest.raises(SdeflowError, match=r"a table \[D, p\] was expected, .* given \(40,\)"):
        PPCA(y[:, 0])
    with pytest.raises(SdeflowError, match="data is a float"):
        PPCA(2.5)


def test_data_without_noise_are_told() -> None:
    with pytest.raises(SdeflowError, match="the data lie in 2 dimensions and leave no noise"):
        ModelForces(PPCA(torch.zeros(9, 4)), particles=1)


# Splits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "validation", "test"), [(10, 0.1, 0.1), (97, 0.25, 7), (5, 0, 3), (4, 2, 1)])
def test_every_datum_is_in_one_part(n: int, validation: float, test: float) -> None:
    parts = split(n, validation, test, seed=3)
    assert sorted(np.concatenate(parts).tolist()) == list(range(n))
    assert all((np.diff(part) > 0).all() for part in parts)
    wanted = [int(v) if v >= 1 else round(v * n) for v in (validation, test)]
    assert [len(parts.validation), len(parts.test)] == wanted
    assert all(np.array_equal(a, b) for a, b in zip(parts, split(n, validation, test, seed=3), strict=True))


def test_a_split_is_the_same_on_any_machine() -> None:
    """Written down once; PCG64's stream is NumPy's promise, and the key is BLAKE2's."""
    parts = split(20, 0.2, 0.2, seed=7)
    assert parts.validation.tolist() == [6, 7, 14, 19]
    assert parts.test.tolist() == [9, 12, 13, 15]


def test_seeds_split_otherwise_and_evenly() -> None:
    """In 4,000 seeds each datum of 8, and each pair, is as often in the part of 2 as another: 5 errors."""
    count = np.zeros((8, 8))
    seeds = 4000
    for seed in range(seeds):
        i, j = split(8, 2, 0, seed).validation
        count[i, j] += 1
    single, pair = 2 / 8, 2 / (8 * 7)
    found = count.sum(0) + count.sum(1)
    assert np.abs(found - seeds * single).max() < 5 * (seeds * single * (1 - single)) ** 0.5
    pairs = count[np.triu_indices(8, 1)]
    assert np.abs(pairs - seeds * pair).max() < 5 * (seeds * pair * (1 - pair)) ** 0.5


def test_a_split_takes_what_has_a_length() -> None:
    for data in (9, np.int64(9), torch.zeros(9, 2), (torch.zeros(9), torch.ones(9)), {"y": np.zeros(9)}):
        assert np.array_equal(split(data, 3, 3, 1).test, split(9, 3, 3, 1).test)


@pytest.mark.parametrize(("validation", "test"), [(3, 3), (4, 3)])
def test_folds_of_held_out_data_are_validation_and_test(validation: int, test: int) -> None:
    parts = split(20, validation, test)
    held = parts.held_out
    assert np.array_equal(held[fold(len(held), "validation")], parts.validation)
    assert np.array_equal(held[fold(len(held), "test")], parts.test)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: split(3, 2, 1), "of 3 data 2 to validate and 1 to test leave none to learn"),
        (lambda: split(3, 0.1, 0), "validation = 0.1 of 3 data are none: take a larger share"),
        (lambda: split(3, 0, 1.5), "test must be a share below 1 or a whole number, given 1.5"),
        (lambda: split(3, -0.1, 0), "validation must be a share"),
        (lambda: split(30, "all", 0), "validation must be a share"),
        (lambda: split(30, seed=-1), "seed must be a whole number of at least 0, given -1"),
        (lambda: split(0), "data, or how many there are, were expected, given 0"),
        (lambda: split(2.5), "data, or how many there are"),
        (lambda: split(None), "data, or how many there are"),
        (lambda: split(20, 4, 2).held_out, "validation and test in turns, given 4 and 2"),
        (lambda: fold(4, "tets"), "fold cannot be 'tets': did you mean 'test'"),
    ],
)
def test_what_cannot_be_split(call: Any, sentence: str) -> None:
    with pytest.raises(SdeflowError, match=sentence):
        call()


def test_evaluate_scores_the_validation_data_of_a_split(tmp_path: Path) -> None:
    """The subject of `sdeflow evaluate --fold` holds the very data that `split` set aside."""
    from sdeflow.analysis.samples import learned
    from sdeflow.analysis.scores import Options, Subject

    y = np.random.default_rng(0).normal(size=(40, 3))
    np.savetxt(tmp_path / "a.csv", y, delimiter=",", fmt="%.17g")
    text = OWN.replace("latent_shape = (2,)", "latent_shape = (3,)").replace("zeros(2)", "zeros(3)")
    text = text.replace("validation=0, test=held_out", "validation=held_out, test=held_out")
    text = text.replace("parts.test]", "parts.held_out]") + PRIOR
    written(tmp_path, "own.py", text)
    toml = written(tmp_path, "p.toml", TOML.replace("in/", "").replace("held_out = 1", "held_out = 5"))
    assert command("run", toml, "-q", "--out", tmp_path / "run") == 0
    for name in ("validation", "test"):
        subject = Subject(learned(tmp_path / "run"), Options(fold=name, dtype="float64"))
        expected = y[getattr(split(40, 5, 5), name)].astype(np.float32)
        np.testing.assert_array_equal(subject.y, expected)


PRIOR = """
    def log_prior(self, theta, x):
        return -((x - theta["w"]) ** 2).sum(-1) - 1.5 * torch.log(torch.tensor(torch.pi))

    def sample_prior(self, theta, n, generator):
        return theta["w"] + torch.randn(n, 3, generator=generator) / 2**0.5
"""


def test_public_names() -> None:
    from sdeflow import data

    assert data.read is read
    assert sdeflow.data.split is split  # type: ignore[attr-defined]
