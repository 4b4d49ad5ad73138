"""Data that are not in memory: a run reads those of its batches, a step ahead, to the same numbers.

Oracles: the same run of data in memory, to the bit; the order of the epochs, written out; what an array was
asked for; the memory that the kernel says is taken.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import command
from numpy.lib.format import open_memmap
from small import assert_same
from support import declared
from torch import Tensor
from torch.utils.data import Dataset

import sdeflow
from sdeflow import Batch, Evaluate, Model, Save, simulate
from sdeflow.data import flip, read, reading, split
from sdeflow.engine.read_ahead import ReadAhead
from sdeflow.errors import RunError, SdeflowError
from sdeflow.model.amortised import Amortised
from sdeflow.model.energy_prior import EnergyPrior
from sdeflow.model.rows import Rows
from sdeflow.problems.decoder import Decoder
from sdeflow.seeds import generator
from sdeflow.simulation import held_out
from sdeflow.simulation.memory import data_bytes, peak_bytes

D, SIZE = 11, 3
EPOCH = D // SIZE
Y = np.random.default_rng(0).normal(size=(D, 2))
HELD = np.random.default_rng(1).normal(size=(5, 2))


class Line(Model):
    """x_i ~ N(theta, I),  y_i | x_i ~ N(x_i, I), up to a constant; of a tuple of data the first."""

    latent_shape = (2,)

    def __init__(self, data: Any, held_out: Any = None) -> None:
        self.data, self.held_out = data, held_out

    def init_theta(self, generator: torch.Generator) -> Any:
        return {"mean": torch.zeros(2)}

    def log_joint(self, theta: Any, x: Tensor, y: Any) -> Tensor:
        y = y[0] if isinstance(y, tuple) else y
        return -((x - theta["mean"]).square() + (y[:, None] - x).square()).sum(-1) / 2


class Counted:
    """An array elsewhere, of which is known who asked for what."""

    def __init__(self, values: Any = Y) -> None:
        self.values, self.asked, self.threads = values, list[list[int]](), set[str]()
        self.shape, self.dtype = values.shape, values.dtype
        self._busy = threading.Lock()

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Any) -> Any:
        assert self._busy.acquire(blocking=False), "two threads at once"
        self.asked.append(index.tolist())
        self.threads.add(threading.current_thread().name.partition("_")[0])
        assert (np.diff(index) > 0).all()
        found = self.values[index]
        self._busy.release()
        return found


class Items(Dataset[Any]):
    def __init__(self, values: Any = Y, item: Any = None) -> None:
        self.values, self.item = values, item or (lambda value: value)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, i: int) -> Any:
        return self.item(self.values[i])


def mapped(folder: Path, values: Any = Y, name: str = "y.npy") -> Path:
    np.save(folder / name, values)
    return folder / name


def run(data: Any, held_out: Any = None, system: Any = sdeflow.mpgd, **options: Any) -> Any:
    motion = {"h": 0.05, "eta": 1.0, "gamma": 1.0}
    made = system(Line(data, held_out), particles=2, theta=motion, x=motion)
    chosen = {"steps": 3 * EPOCH + 2, "batch": Batch(SIZE), "save": Save(2, "all", "all"), "dtype": "float64"}
    return simulate(made, "expint", **(chosen | options))


WAYS: dict[str, dict[str, Any]] = {
    "one": {},
    "replicas": {"replicas": 2, "dtype": "float32"},
    "catch-up": {"batch": Batch(SIZE, "substeps", 3)},
    "fused": {"engine": "fused", "noise": "philox"},
    "torch": {"engine": "eager", "noise": "torch"},
    "tuned": {"system": lambda model, particles, **_: sdeflow.mpgd(model, particles=particles), "steps": 40},
}


@pytest.mark.parametrize("way", WAYS)
def test_numbers_are_those_of_data_in_memory(way: str, tmp_path: Path) -> None:
    """To the bit, and the same in a loss on held-out data, which are read in pieces."""
    chosen = {"evaluate": Evaluate(4, 2)} | WAYS[way]
    whole = run(torch.from_numpy(Y), torch.from_numpy(HELD), **chosen)
    path, held = mapped(tmp_path), mapped(tmp_path, HELD, "held.npy")
    assert_same(run(read(path, in_memory=False), read(held, in_memory=False), **chosen), whole)
    if way == "one":
        assert_same(
            run(read(np.memmap(path, mode="r", offset=128, dtype="f8", shape=(D, 2))), read(HELD), **chosen),
            whole,
        )
        assert_same(run(read(Items(), in_memory=False), read(Items(HELD), in_memory=False), **chosen), whole)


def test_held_out_data_alone_may_be_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run without minibatches, in pieces of 2 of them: to rounding in the sum of the losses."""
    monkeypatch.setattr(held_out, "AT_ONCE", 2)
    chosen = {"batch": None, "evaluate": Evaluate(4, 2)}
    whole = run(read(Y), read(HELD), **chosen)
    found = run(read(Y), read(mapped(tmp_path, HELD), in_memory=False), **chosen)
    assert_same(found.drop_vars("held_out_loss"), whole.drop_vars("held_out_loss"))
    np.testing.assert_allclose(found.held_out_loss, whole.held_out_loss, rtol=1e-12)


@pytest.mark.parametrize("kind", ["<f4", ">f8", "u1", "i4"])
def test_kinds_of_numbers(kind: str, tmp_path: Path) -> None:
    values = (10 * Y).astype(kind)
    path = mapped(tmp_path, values)
    assert_same(run(read(path, in_memory=False)), run(read(path)))
    rows = read(path, in_memory=False)
    assert rows.shape == (D, 2)
    assert torch.equal(rows[:], read(values))
    assert rows[[3]].dtype == read(values).dtype


def test_parts_of_data_may_be_in_memory(tmp_path: Path) -> None:
    """A tuple of both, and a dataset whose items are pairs."""
    y, n = torch.from_numpy(Y), torch.arange(D)
    whole = run((y, n))
    assert_same(run((read(mapped(tmp_path), in_memory=False), n)), whole)
    pairs = read(Items(Y, lambda value: (value, 0)), in_memory=False)
    assert_same(run(pairs), whole)
    assert [tuple(v.shape) for v in pairs.meta] == [(D, 2), (D,)]
    assert [tuple(v.shape) for v in pairs[torch.zeros(2, 3, dtype=torch.long)]] == [(2, 3, 2), (2, 3)]


def test_transforms_are_of_what_was_read(tmp_path: Path) -> None:
    class Turned(Line):
        at_access = (flip((1, 1, 2)),)

    found = []
    for data in (torch.from_numpy(Y), read(mapped(tmp_path), in_memory=False)):
        system = sdeflow.pgd(Turned(data), particles=2, theta={"h": 0.1}, x={"h": 0.1})
        found.append(simulate(system, steps=9, batch=Batch(SIZE)))
    assert_same(*found)


def test_a_run_in_pieces_is_the_run(stop_before: Any, tmp_path: Path) -> None:
    path, held = mapped(tmp_path), mapped(tmp_path, HELD, "held.npy")

    def again(**options: Any) -> Any:
        data, other = (read(p, in_memory=False) for p in (path, held))
        return run(data, other, evaluate=Evaluate(4, 2), replicas=2, **options)

    whole = again()
    for n in (1, EPOCH, 7):
        stop_before(n)
        with pytest.raises(KeyboardInterrupt):
            again(out=tmp_path / "run", resume=True)
    stop_before(None)
    assert_same(again(out=tmp_path / "run", resume=True), whole)


def test_other_data_are_not_gone_on_with(stop_before: Any, tmp_path: Path) -> None:
    path = mapped(tmp_path)
    stop_before(3)
    with pytest.raises(KeyboardInterrupt):
        run(read(path, in_memory=False), out=tmp_path / "run")
    stop_before(None)
    mapped(tmp_path, Y + 1)
    with pytest.raises(SdeflowError, match="is of another run: model was"):
        run(read(path, in_memory=False), out=tmp_path / "run", resume=True)


# What is read ------------------------------------------------------------------------------------------


def test_only_the_rows_of_batches_are_read() -> None:
    """Of each step its own, in order, and one batch more than there are steps; another thread reads too."""
    array = Counted()
    rows = read(array, in_memory=False)
    steps = 2 * EPOCH
    array.asked.clear()
    run(rows, steps=steps, save=Save(steps))
    expected = []
    for n in range(steps + 1):
        epoch, place = divmod(n, EPOCH)
        order = torch.randperm(D, generator=generator(0, "epoch", epoch))
        expected.append(sorted(order[place * SIZE : (place + 1) * SIZE].tolist()))
    observed = torch.linspace(0, D - 1, SIZE).round().long().tolist()
    # datum 0 tells what data are like, the first batch is to check the model and h, two snapshots are taken
    beside = [[0], expected[0], expected[0], observed, observed]
    found = list(array.asked)
    for batch in beside:
        found.remove(batch)
    assert found == expected
    assert {"sdeflow-data"} < array.threads


def test_the_next_batch_is_read_while_a_step_is_taken() -> None:
    asked, here = threading.Event(), threading.current_thread()

    def fetch(index: Tensor) -> list[Any]:
        if int(index) == 1:
            assert threading.current_thread() is not here
            asked.set()
        return [int(index)]

    ahead = ReadAhead(fetch)
    assert ahead(0, torch.tensor) == [0]
    assert asked.wait(10)
    assert [ahead(n, torch.tensor) for n in (1, 2, 7, 3, 4)] == [[1], [2], [7], [3], [4]]


def test_its_thread_ends_with_it() -> None:
    before = threading.active_count()
    ahead = ReadAhead(lambda index: [])
    ahead(0, torch.tensor)
    (thread,) = [t for t in threading.enumerate() if t.name.startswith("sdeflow-data")][-1:]
    del ahead
    thread.join(10)
    assert not thread.is_alive()
    assert threading.active_count() <= before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_data_of_two_gigabytes_take_the_memory_of_a_batch(tmp_path: Path) -> None:
    """A file of holes; rows of 8 MB, 2 a batch: of memory that is no file's less than 30 rows at any time."""
    rows, length = 256, 10**6
    open_memmap(tmp_path / "y.npy", "w+", "f8", (rows, length)).flush()
    assert (tmp_path / "y.npy").stat().st_size > 2e9
    taken = []

    def anonymous() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    class Long(Line):
        def log_joint(self, theta: Any, x: Tensor, y: Any) -> Tensor:
            taken.append(anonymous())
            return super().log_joint(theta, x, y[:, :2])

    before = anonymous()
    data = read(tmp_path / "y.npy", in_memory=False)
    system = sdeflow.pgd(Long(data), particles=1, theta={"h": 1e-3}, x={"h": 0.1})
    simulate(system, steps=6, batch=Batch(2), save=Save(3))
    assert len(taken) > 6
    assert max(taken) - before < 30 * 8 * length


# Rows ------------------------------------------------------------------------------------------------


def test_rows_are_read_by_any_index() -> None:
    rows, y = read(Counted(), in_memory=False), torch.from_numpy(Y)
    some = [slice(2, 9, 3), slice(None), [4, 1, 4], np.array([10]), torch.tensor([[3, 1], [1, 0]]), -1]
    for index in (*some, torch.arange(D) % 3 == 0, slice(-2, None), [-1, 0]):
        assert torch.equal(rows[index], y[index]), index
    chosen = rows.select([7, 2, 9])
    assert len(chosen) == 3
    assert torch.equal(chosen[:], y[[7, 2, 9]])
    assert torch.equal(chosen.select([2, 0])[:], y[[9, 7]])
    assert read(rows, in_memory=False) is rows
    assert read({"y": rows, "n": np.arange(D)})["y"] is rows
    part = split(rows, 3, 3, seed=2)
    assert torch.equal(rows.select(part.test)[:], y[part.test])
    for index in (D, -D - 1, [0, D]):
        with pytest.raises(IndexError, match="data has 11 data, asked for"):
            rows[index]
    assert [row.tolist() for row in rows] == Y.tolist()
    with pytest.raises(
        SdeflowError, match=r"indices of some of the data were expected, given the shape \(0,\)"
    ):
        rows.select(np.arange(0))


def test_rows_for_cuda_are_read_into_page_locked_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for what locks it; as they are in the file, as the device converts them."""
    locked: list[Tensor] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: locked.append(self) or self)
    rows = read(Counted(), in_memory=False).to(torch.float32, torch.device("cuda"))
    found = rows.fetch([3, 5])
    assert locked == [found]
    assert torch.equal(found, torch.from_numpy(Y[[3, 5]]))


@pytest.mark.parametrize("wrap", [EnergyPrior, Amortised])
def test_models_around_a_model_take_them(wrap: Any, tmp_path: Path) -> None:
    plain = Decoder(latent=2, hidden=(4,), images=9)
    found = []
    for data in (plain.data, read(mapped(tmp_path, plain.data.numpy()), in_memory=False)):
        plain.data = data
        blocks: dict[str, Any] = {name: {"h": 1e-3} for name in ("alpha", "beta", "x")}
        system = (
            sdeflow.ebipla(EnergyPrior(plain, [4]), particles=2, prior_particles=3, **blocks)
            if wrap is EnergyPrior
            else sdeflow.vi(plain, particles=2, theta={"h": 1e-3})
        )
        found.append(simulate(system, steps=5, batch=Batch(4)))
    assert_same(*found)


# What is refused -----------------------------------------------------------------------------------


def test_what_they_cannot_do_is_told(tmp_path: Path) -> None:
    rows = read(mapped(tmp_path), in_memory=False)
    with pytest.raises(
        SdeflowError, match="the data of Line are not in memory, and are read by minibatches: give"
    ):
        run(rows, batch=None)
    with pytest.raises(
        SdeflowError, match="engine 'compiled' cannot take this run, for its data are not in memory"
    ):
        run(rows, engine="compiled")
    with pytest.raises(
        SdeflowError, match=r"Line.held_out must be like the data, real \[D, 2\]; given real \[D, 3\]"
    ):
        run(rows, read(mapped(tmp_path, np.zeros((4, 3)), "h.npy"), in_memory=False), evaluate=Evaluate(2))
    for name in ("a.csv", "a.npz"):
        (tmp_path / name).write_text("")
        with pytest.raises(SdeflowError, match=r"can be read whole alone: save its array by numpy.save"):
            read(tmp_path / name, in_memory=False)
    np.save(tmp_path / "text.npy", np.array(["a"]))
    with pytest.raises(SdeflowError, match=r"text.npy holds text, and real numbers were expected"):
        read(tmp_path / "text.npy", in_memory=False)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "y.npy").read_bytes()[:200])
    with pytest.raises(SdeflowError, match=r"cut.npy cannot be read as .npy"):
        read(tmp_path / "cut.npy", in_memory=False)
    with pytest.raises(SdeflowError, match=r"data has the shape \(0, 2\)"):
        read(Counted(np.zeros((0, 2))), in_memory=False)


def test_a_dataset_that_draws_is_refused() -> None:
    g = np.random.default_rng(0)
    with pytest.raises(
        SdeflowError, match=r"Items\[0\] gives other values when it is asked again: .* at_access"
    ):
        read(Items(Y, lambda value: value + g.normal()), in_memory=False)


def test_a_number_that_is_none_ends_a_run_and_is_named(tmp_path: Path) -> None:
    """At the start in a sentence; on the way what was taken is there, and it can be gone on with."""
    wrong = Y.copy()
    order = torch.randperm(D, generator=generator(0, "epoch", 0))
    late = int(order[2 * SIZE])  # of step 2
    wrong[late, 1] = np.nan
    with pytest.raises(
        RunError, match=f"failed after 2 of .* holds NaN or infinity in datum {late}: leave such"
    ):
        run(read(mapped(tmp_path, wrong), in_memory=False), out=tmp_path / "run", save=Save(1, 1))
    assert sdeflow.open_run(tmp_path / "run").attrs["steps_taken"] == 2
    first = int(order[0])
    wrong[first] = np.inf
    with pytest.raises(SdeflowError, match=r"y.npy holds NaN or infinity in datum "):
        run(read(mapped(tmp_path, wrong), in_memory=False))


def test_memory_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a file takes, and what is known only when it is read."""
    path, csv = mapped(tmp_path), tmp_path / "y.csv"
    np.savetxt(csv, Y, delimiter=",")

    def full(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(np, "loadtxt", full)
    with pytest.raises(SdeflowError, match=r"y.csv does not fit in memory: a .npy can be read by batches"):
        read(csv)
    size = path.stat().st_size
    monkeypatch.setattr(reading, "free_memory", lambda: size)
    assert torch.equal(read(path), torch.from_numpy(Y))
    monkeypatch.setattr(reading, "free_memory", lambda: size - 1)
    with pytest.raises(SdeflowError, match=r"y.npy takes 304 B, and 303 B of memory are free: read it"):
        read(path)
    assert torch.equal(read(path, in_memory=False)[:], torch.from_numpy(Y))


def test_memory_of_batches_is_counted(tmp_path: Path) -> None:
    """Three batches in the file's precision and one in the run's: of 2 replicas, 3 data, 2 numbers."""
    peaks = []
    for data in (read(Y), read(mapped(tmp_path), in_memory=False)):
        system = sdeflow.pgd(Line(data), particles=50, theta={"h": 0.1}, x={"h": 0.1})
        chosen = declared(system, "euler_maruyama", batch=Batch(SIZE), replicas=2)
        peaks.append(peak_bytes(chosen, folder=False) - data_bytes(chosen))
    assert peaks[1] - peaks[0] == 2 * SIZE * 2 * (3 * 8 + 4)


# The command line ----------------------------------------------------------------------------------

OWN = """
import torch
import sdeflow
from sdeflow.data import read, split


class Mine(sdeflow.Model):
    latent_shape = (2,)

    def __init__(self, data, in_memory=False):
        y = read(data, in_memory=in_memory)
        self.data, self.held_out = (y[:], y[:4]) if in_memory else (y, y.select(range(4)))

    def init_theta(self, generator):
        return {"w": torch.zeros(2)}

    def log_joint(self, theta, x, y):
        return -((x - theta["w"]) ** 2).sum(-1) - ((y[:, None] - x) ** 2).sum(-1)

    def log_prior(self, theta, x):
        return -((x - theta["w"]) ** 2).sum(-1) - torch.log(torch.tensor(torch.pi))

    def sample_prior(self, theta, n, generator):
        return theta["w"] + torch.randn(n, 2, generator=generator) / 2**0.5

    def sample_data(self, theta, x, generator):
        return x + torch.randn(x.shape, generator=generator, dtype=x.dtype) / 2**0.5
"""
TOML = """
model = { use = "own.py:Mine", data = "y.npy" }
system = { use = "vi", particles = 2, theta = { h = 0.01 } }
run = { steps = 6 }
batch = { size = 3 }
evaluate = { every = 3 }
save = { every = 3 }
"""


@pytest.mark.parametrize("system", ["ipla", pytest.param("vi", marks=pytest.mark.slow)])
def test_commands_take_them(system: str, tmp_path: Path) -> None:
    """Runs, samples and scores of data on the disk are those of data in memory."""
    mapped(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    toml = tmp_path / "p.toml"
    toml.write_text(
        TOML.replace("vi", system).replace("}\nrun", ", x = { h = 0.01 } }\nrun")
        if system == "ipla"
        else TOML
    )
    few = ["--temperatures", 4, "--langevin-steps", 3, "--no-pictures"]
    for name, in_memory in (("disk", "false"), ("memory", "true")):
        out = tmp_path / name
        assert command("run", toml, "-q", "--out", out, "--set", f"model.in_memory={in_memory}") == 0
        assert command("sample", out, "--n", 8) == 0
        assert command("evaluate", out, *few) == 0
    for file in ("trajectory.nc", "samples.nc", "evaluation.nc"):
        import xarray as xr

        with xr.open_dataset(tmp_path / "disk" / file) as a, xr.open_dataset(tmp_path / "memory" / file) as b:
            same = a.drop_vars([n for n in a.variables if "seconds" in str(n)])
            xr.testing.assert_equal(same, b.drop_vars([n for n in b.variables if "seconds" in str(n)]))
    assert isinstance(sdeflow.load(tmp_path / "disk").model.data, Rows) or system == "vi"


def test_a_file_that_changes_is_told(stop_before: Any, tmp_path: Path) -> None:
    mapped(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "p.toml").write_text(TOML)
    stop_before(3)
    assert command("run", tmp_path / "p.toml", "-q", "--out", tmp_path / "run") == 130
    stop_before(None)
    mapped(tmp_path, Y + 1)
    assert command("resume", tmp_path / "run", "-q") == 0
    said = sdeflow.open_run(tmp_path / "run").attrs["warnings"]
    assert "y.npy has changed since the run began" in said
