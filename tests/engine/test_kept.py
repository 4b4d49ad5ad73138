"""Compiled steps that are kept: when they are taken, and what becomes of those that cannot be.

Most tests have a stand-in for the compiler, which copies what a slow one compiles, or nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from light import decoder, energy, toy
from small import LIGHT, assert_same

from sdeflow import Average, Batch, Evaluate, Save, mpgd, simulate
from sdeflow.engine import ahead, kept
from sdeflow.engine.kept import KeptStep, make_beside
from sdeflow.engine.products import QuickProducts
from sdeflow.engine.tape import Tape, Unkeepable, graph_of, record
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.simulation.prepare import prepare
from sdeflow.simulation.resume import resume

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="a step is compiled by a C++ compiler")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; runs of 4 steps look for steps that are kept, those of 6 have them compiled beside."""
    monkeypatch.setenv("SDEFLOW_KEPT_STEPS", "1")
    monkeypatch.setenv("SDEFLOW_DATA", str(tmp_path / "cache"))
    for name, steps in (("LOOK", 4), ("BESIDE", 6)):
        monkeypatch.setattr(f"sdeflow.engine.engine.{name}", steps)
    monkeypatch.setattr("sdeflow.simulation.solve.BESIDE", 6)
    return KeptStep(small_tape(), 1).folder.parent


class Interpreted:
    """A stand-in for the compiler: a step is kept when it was asked for, and replayed by torch.

    asked    keys of what was to be compiled beside a run
    taken    how often a function was called
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.kept: set[str] = set()
        self.taken = 0

    def load(self, step: KeptStep) -> Any:
        if step.key not in self.kept:
            return None
        graph = graph_of(step._recorded, step._recorded["count"])

        def function(z: Any, draws: Any) -> Any:
            self.taken += 1
            return dict(zip(z, graph(*z.values(), *draws, *step._tape.constants), strict=True))

        return function

    def make(self, step: KeptStep) -> Any:
        self.kept.add(step.key)
        return self.load(step)

    def beside(self, steps: Any) -> bool:
        self.asked += [step.key for step in steps]
        self.kept |= {step.key for step in steps}
        return True


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Interpreted:
    found = Interpreted()
    monkeypatch.setattr(KeptStep, "load", lambda step: found.load(step))
    monkeypatch.setattr(KeptStep, "make", lambda step: found.make(step))
    monkeypatch.setattr("sdeflow.engine.compiled.make_beside", found.beside)
    monkeypatch.setattr("sdeflow.engine.engine.shutil.which", lambda name: "/usr/bin/g++")
    return found


def run(system: Any = None, steps: int = 10, **options: Any) -> Any:
    return simulate(toy() if system is None else system, "expint", steps=steps, dtype="float64", **options)


def log(folder: Path) -> str:
    return (folder / "run.log").read_text()


def test_the_second_run_takes_what_was_compiled_beside_the_first(
    compiler: Interpreted, tmp_path: Path
) -> None:
    first = run(out=tmp_path / "first")
    assert first.attrs["engine"] != "compiled"
    assert "a compiled step is being made beside this run, for the next one" in log(tmp_path / "first")
    assert (len(compiler.asked), compiler.taken) == (1, 0)
    second = run(out=tmp_path / "second", seed=3)
    assert second.attrs["engine"] == "compiled"
    assert "engine compiled, noise" in log(tmp_path / "second")
    assert "its compiled step was kept" in log(tmp_path / "second")
    assert (len(compiler.asked), compiler.taken) == (1, 2)  # 10 steps are 2 strides
    eager = run(seed=3, engine="eager", noise=second.attrs["noise_source"])
    np.testing.assert_allclose(second["X"], eager["X"], rtol=0, atol=1e-12 * float(abs(eager["X"]).max()))


@pytest.mark.parametrize(("steps", "looks", "beside"), [(3, False, False), (5, True, False), (6, True, True)])
def test_how_long_a_run_is(
    steps: int, looks: bool, beside: bool, compiler: Interpreted, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []
    monkeypatch.setattr(KeptStep, "load", lambda step: looked.append(step))
    run(steps=steps)
    assert (bool(looked), bool(compiler.asked)) == (looks, beside)


def test_an_engine_that_was_asked_for_is_taken(compiler: Interpreted) -> None:
    """Nothing is compiled beside it; 'compiled' by name takes what is kept, or compiles it first."""
    run(engine="eager")
    assert not compiler.asked
    assert run(engine="compiled").attrs["engine"] == "compiled"
    assert len(compiler.kept) == 1
    run(engine="compiled")
    assert len(compiler.kept) == 1
    assert compiler.taken == 4


def test_nothing_is_kept_where_the_user_says_so(
    compiler: Interpreted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDEFLOW_KEPT_STEPS", "0")
    assert run().attrs["engine"] != "compiled"
    assert not compiler.asked


def test_what_a_run_needs_is_compiled(compiler: Interpreted) -> None:
    """Strides where they fill the way to a snapshot, single steps where they do not."""
    for every, functions in ((5, 1), (7, 2), (1, 1)):
        compiler.asked.clear()
        compiler.kept.clear()
        run(steps=14 if every == 7 else 10, save=Save(every=every), batch=Batch(3))
        assert len(compiler.asked) == functions


@pytest.mark.parametrize(
    "options", [{"evaluate": Evaluate(10)}, {"batch": Batch(2), "average": Average(decay=0.9)}]
)
def test_a_run_without_a_kept_step_is_prepared_once(
    options: dict[str, Any], compiler: Interpreted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And has the numbers of the engine that it falls back on, to the bit."""
    prepared: list[Any] = []

    def counted(*given: Any) -> Any:
        prepared.append(given)
        return prepare(*given)

    monkeypatch.setattr("sdeflow.simulation.solve.prepare", counted)
    model = Hierarchical(data=6)
    model.held_out = torch.linspace(-1, 3, 4, dtype=torch.float64)[:, None]
    system = mpgd(model, particles=4, theta=LIGHT, x=LIGHT)
    found = run(system, **options)
    assert len(prepared) == 1
    assert found.attrs["engine"] != "compiled"
    assert_same(run(system, engine=found.attrs["engine"], **options), found)


@pytest.mark.parametrize("first", ["fused", "compiled"])
def test_a_run_goes_on_by_the_engine_that_it_was_begun_by(
    first: str, compiler: Interpreted, tmp_path: Path
) -> None:
    """To the bit, also where a compiled step has come to be kept after it was begun."""
    if first == "compiled":
        run(steps=20)
    out, options = tmp_path / "run", {"save": Save(every=5)}
    begun = run(out=out, steps=10, **options)
    taken, kept = compiler.taken, set(compiler.kept)
    again = run(out=out, steps=20, resume=True, **options)
    assert compiler.kept == kept  # one step serves both parts
    assert (begun.attrs["engine"] == "compiled") == (again.attrs["engine"] == "compiled") == (taken > 0)
    whole = run(steps=20, engine=begun.attrs["engine"], **options)
    assert_same(again, whole)


def test_the_command_resumes_by_the_engine_in_the_folder(
    compiler: Interpreted, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    for name, engines in (("first", ("fused", "eager")), ("second", ("compiled",))):
        out = tmp_path / name
        done = cli("run", "hierarchical", "--steps", 10, "--out", out, "--set", "model.data=4")
        assert done.code == 0, done.err
        engine = tomllib.loads((out / "config.toml").read_text())["run"]["engine"]
        assert engine in engines
        assert resume(out, steps=10).dataset.attrs["engine"] == engine


FILE = """
import helper, sdeflow, torch
class Own(sdeflow.Model):
    latent_shape = (1,)
    data = torch.zeros(4, dtype=torch.float64)
    def init_theta(self, generator):
        return {"a": torch.zeros(1)}
    def log_joint(self, theta, x, y):
        return -helper.of(x - theta["a"]).sum(-1)
"""


def test_a_changed_file_is_another_step(
    compiler: Interpreted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever file the change is in: here a square, then a fourth power, in a file that a model imports."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own.py").write_text(FILE)
    engines = []
    for power in (2, 2, 4, 4):
        (tmp_path / "helper.py").write_text(f"def of(x):\n    return x**{power}\n")
        for name in ("helper", "own"):
            sys.modules.pop(name, None)
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        import own  # type: ignore[import-not-found]

        engines.append(run(mpgd(own.Own(), particles=3, theta=LIGHT, x=LIGHT)).attrs["engine"])
    assert [engine == "compiled" for engine in engines] == [False, True, False, True]
    assert len(set(compiler.asked)) == 2


def test_the_key_has_all_that_bits_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    tape = small_tape()
    keys = [KeptStep(tape, 1).key, KeptStep(tape, 2).key]
    for name, value in (
        ("torch.get_num_threads", lambda: 7),
        ("torch.get_default_dtype", lambda: torch.float64),
        ("torch.__version__", "2.0"),
        ("sdeflow.engine.kept._processor", lambda: "another"),
        ("sdeflow.engine.kept._makers", lambda: "another"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(name, value)
            keys.append(KeptStep(tape, 1).key)
    assert len(set(keys)) == 7
    assert KeptStep(small_tape(), 1).key == keys[0]


def wait_for(what: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end:
        time.sleep(0.1)
    assert what()


# What is on the disk ---------------------------------------------------------------------------------


def small_tape() -> Tape:
    """x y + 2 x, and another variable that stays as it is."""

    def step(z: Any, draws: Any) -> Any:
        return {"x": z["x"] * draws[0] + 2.5 * z["x"], "still": z["still"]}

    return record(step, {"x": torch.ones(3), "still": torch.ones(2)}, [torch.ones(3)])


def write(step: KeptStep, made: dict[str, Any] | str, library: bytes | None = b"no library") -> Path:
    step.folder.mkdir(parents=True)
    text = made if isinstance(made, str) else json.dumps(made)
    (step.folder / ahead.MADE).write_text(text)
    if library is not None:
        (step.folder / ahead.LIBRARY).write_bytes(library)
    return step.folder


@pytest.mark.parametrize(
    ("made", "library", "why"),
    [
        ({"sha256": "0" * 64}, b"no library", "its checksum is another"),
        ({"sha256": "0" * 64}, None, "a file is missing"),
        ("{", b"", "Expecting property name"),
        ({}, b"", "sha256"),
    ],
)
def test_what_is_damaged_is_said_and_removed(made: Any, library: bytes | None, why: str) -> None:
    step = KeptStep(small_tape(), 1)
    folder = write(step, made, library)
    with pytest.warns(UserWarning, match=f"the compiled step in .* is damaged .*({why}).*made anew"):
        assert step.load() is None
    assert not folder.exists()
    assert step.load() is None  # now without a word


def test_a_run_goes_on_without_a_damaged_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[KeptStep] = []
    monkeypatch.setattr("sdeflow.engine.compiled.make_beside", lambda steps: not asked.extend(steps))
    expected = run()
    write(asked[0], {"sha256": "0" * 64})
    with pytest.warns(UserWarning, match="is damaged"):
        assert_same(run(), expected)


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (
            {"failed": "Unsupported: of that kind"},
            "torch could not compile the step, Unsupported: of that kind",
        ),
        (
            {"sha256": hashlib.sha256(b"no library").hexdigest()},
            "the compiled step in .* cannot be loaded, .*",
        ),
    ],
)
def test_what_cannot_be_compiled_or_loaded_is_not_tried_again_that_day(made: Any, why: str) -> None:
    """It may be that no code can be run from that disk; what is on it is as it was written."""
    step = KeptStep(small_tape(), 1)
    folder = write(step, made)
    with pytest.raises(Unkeepable, match=why):
        step.load()
    past = time.time() - kept.AGAIN - 1
    os.utime(folder / ahead.MADE, (past, past))
    assert step.load() is None
    assert not folder.exists()


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="files have no owners")
def test_another_users_code_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    step = KeptStep(small_tape(), 1)
    folder = write(step, {"sha256": "0" * 64})
    os.chown(folder / ahead.LIBRARY, 12345, -1) if os.getuid() == 0 else monkeypatch.setattr(
        "os.getuid", lambda: 12345
    )
    assert step.load() is None
    assert folder.exists()


def test_room_is_kept_for_what_was_used_last(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of five steps of 100 bytes three fit; what killed processes left goes, and what is under way stays."""
    monkeypatch.setattr(ahead, "MOST", 350)
    now = time.time()
    for name, age in (("a", 1), ("b", 5), ("c", 2), ("d", 4), ("e", 3), (".old", 1e6), (".new", 6)):
        (cache / name).mkdir(parents=True)
        (cache / name / ahead.LIBRARY).write_bytes(b"." * 100)
        os.utime(cache / name, (now - age, now - age))
    (cache / ".lock").touch()
    ahead.tidy(cache)
    assert sorted(path.name for path in cache.iterdir()) == [".lock", ".new", "a", "c", "e"]


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a run nothing is begun; what was asked for is compiled elsewhere, and nothing is left there."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("SDEFLOW_DATA", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    step = KeptStep(small_tape(), 1)
    assert not make_beside([step])
    works: list[Path] = []

    def process(found: list[Path], *, beside: bool) -> Any:
        works.extend(found)
        return subprocess.Popen(["true"])

    monkeypatch.setattr(kept, "_process", process)
    with pytest.raises(Unkeepable, match="ended with code 0"):
        step.make()
    assert works[0].parent == tmp_path / "elsewhere"
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs to see processes")
def test_a_run_that_is_stopped_stops_its_compiler(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the processes that it called, and leaves no folder."""
    called = tmp_path / "called"
    begun: list[subprocess.Popen[bytes]] = []

    class Stopped(subprocess.Popen[bytes]):
        def wait(self, timeout: float | None = None) -> int:
            if len(begun) == 1:
                begun.append(self)
                raise KeyboardInterrupt
            return super().wait(timeout)

    def process(works: list[Path], *, beside: bool) -> Any:
        begun.append(Stopped(["sh", "-c", f"sleep 60 & echo $! > {called}; wait"], start_new_session=True))
        wait_for(lambda: called.is_file() and called.read_text().endswith("\n"), 10)
        return begun[0]

    monkeypatch.setattr(kept, "_process", process)
    with pytest.raises(KeyboardInterrupt):
        KeptStep(small_tape(), 1).make()
    assert begun[0].returncode == -9
    of_called = Path("/proc", called.read_text().strip(), "stat")
    wait_for(lambda: not of_called.exists() or of_called.read_text().split()[2] == "Z", 10)
    assert not list(cache.iterdir())


def test_without_a_compiler_nothing_is_begun(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept.shutil, "which", lambda name: None)
    assert not make_beside([KeptStep(small_tape(), 1)])
    with pytest.raises(Unkeepable, match="a C\\+\\+ compiler, which are not there"):
        KeptStep(small_tape(), 1).make()
    assert not list(cache.iterdir())


# The process that compiles ---------------------------------------------------------------------------


@pytest.fixture
def compile_by(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., KeptStep]:
    """Calls what the process does, in this one and by a stand-in for torch's compiler."""

    def call(how: Callable[[Path], object], *, beside: bool = True) -> KeptStep:
        step = KeptStep(small_tape(), 2)
        cache.mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr(ahead, "_compile", lambda recorded, library: how(library))
        monkeypatch.setattr(ahead.signal, "alarm", lambda seconds: None)
        ahead.main([str(step._work(cache, step.folder))], beside=beside)
        return step

    return call


def left(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.name != ".lock")


def test_a_step_is_there_whole_or_not_at_all(compile_by: Callable[..., KeptStep], cache: Path) -> None:
    """While it is compiled it is not found; then its folder has all, and nothing else is left."""

    def compiled(library: Path) -> None:
        assert not KeptStep(small_tape(), 2).folder.exists()
        library.write_bytes(b"a library")
        (library.parent / "kernel.cpp").touch()
        (library.parent / "folder").mkdir()

    step = compile_by(compiled)
    assert sorted(path.name for path in step.folder.iterdir()) == [ahead.MADE, ahead.LIBRARY, ahead.TAPE]
    assert left(cache) == [step.key]


def test_one_process_compiles_after_another(
    compile_by: Callable[..., KeptStep], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside runs: it waits, but not for ever, and does nothing where its step has come to be kept."""
    cache.mkdir(parents=True)
    lock = FileLock(cache / ".lock", thread_local=False)
    with lock, monkeypatch.context() as patched:
        patched.setattr(ahead, "LIMIT", 0)
        compile_by(lambda library: pytest.fail("it compiles"))
    assert left(cache) == []
    lock.acquire()
    threading.Timer(0.2, lock.release).start()
    step = compile_by(lambda library: library.write_bytes(str(lock.is_locked).encode()))
    assert (step.folder / ahead.LIBRARY).read_bytes() == b"False"
    compile_by(lambda library: pytest.fail("it compiles"))
    assert left(cache) == [step.key]


def test_none_is_begun_for_what_is_under_way(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made for the next run then too; but not where its process was killed long ago."""
    begun: list[list[Path]] = []

    def process(works: list[Path], *, beside: bool) -> Any:
        begun.append(works)
        return subprocess.Popen(["true"])

    monkeypatch.setattr(kept, "_process", process)
    one, other = (KeptStep(small_tape(), count) for count in (1, 2))
    assert make_beside([one])
    assert make_beside([one, other])
    assert make_beside([one, other])
    assert [len(works) for works in begun] == [1, 1]
    os.utime(begun[0][0], (1, 1))
    assert make_beside([one, other])
    assert len(begun[2]) == 1


@needs_compiler
def test_modules_are_not_taken_from_the_working_folder(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a tape the process fails; by the file of the user it would before it removes its folder."""
    (tmp_path / "filelock.py").write_text("raise RuntimeError('a file of the user')\n")
    monkeypatch.chdir(tmp_path)
    work = cache / ".work"
    work.mkdir(parents=True)
    kept._process([work], beside=True).wait()
    assert not work.exists()


def test_of_two_that_compile_the_first_is_kept(compile_by: Callable[..., KeptStep], cache: Path) -> None:
    """Of those that were asked to compile first, and do not wait."""
    cache.mkdir(parents=True)

    def slower(library: Path) -> None:
        compile_by(lambda other: other.write_bytes(b"first"), beside=False)
        library.write_bytes(b"second")

    with FileLock(cache / ".lock"):
        step = compile_by(slower, beside=False)
    assert (step.folder / ahead.LIBRARY).read_bytes() == b"first"


def failing(error: Exception) -> Callable[[Path], None]:
    def compiled(library: Path) -> None:
        raise error

    return compiled


def test_why_it_failed_is_kept_where_the_step_is_at_fault(
    compile_by: Callable[..., KeptStep], cache: Path
) -> None:
    with pytest.raises(OSError, match="No space"):
        compile_by(failing(OSError(28, "No space left on device")))
    assert left(cache) == []
    step = compile_by(failing(NotImplementedError("such a thing\nand more")))
    with pytest.raises(Unkeepable, match=r"not compile the step, NotImplementedError: such a thing$"):
        step.load()


# What is compiled ------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.slow
def test_compiled_beside_a_run(cache: Path) -> None:
    """A step as torch compiles it, to rounding; one that was cut is not taken, and nothing is left."""
    tape = small_tape()
    step = KeptStep(tape, 3)
    assert make_beside([step])
    wait_for(step.folder.exists, 300)
    wait_for(lambda: [path.name for path in cache.iterdir() if path.name != ".lock"] == [step.key], 10)
    function = step.load()
    assert function is not None
    x, xi = torch.linspace(-1, 1, 3), torch.linspace(0.5, 3, 9).view(3, 3)
    after = function({"x": x, "still": torch.ones(2)}, [xi])
    torch.testing.assert_close(after["x"], x * (xi + 2.5).prod(0))
    assert torch.equal(after["still"], torch.ones(2))
    assert torch.equal(x, torch.linspace(-1, 1, 3))
    assert torch.equal(step.make()({"x": x, "still": torch.ones(2)}, [xi])["x"], after["x"])
    library = step.folder / ahead.LIBRARY
    cut = library.read_bytes()[:-1]
    library.unlink()  # as it is mapped into memory
    library.write_bytes(cut)
    with pytest.warns(UserWarning, match="is damaged"):
        assert step.load() is None


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("system", "options"),
    [
        (decoder, {"batch": Batch(4)}),
        (energy, {}),
        (decoder, {"batch": Batch(4), "dtype": "float32", "precision": "bf16"}),
    ],
)
def test_the_engine_compiled_by_torch(
    system: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strides of 2 steps against the eager engine, and again from what is kept, to the bit.

    In float64 every variable to 1e-12 of its size. In bf16 to a quarter of what the eager engine's full
    precision changes in 8 steps, for a number may be rounded the other way.
    """

    def not_kept(self: Any, count: int) -> Any:
        raise AssertionError("it is compiled in this process")

    monkeypatch.setattr("sdeflow.engine.compiled.GRADIENTS", 2)
    monkeypatch.setattr("sdeflow.engine.compiled.CompiledSteps._compile", not_kept)
    common: dict[str, Any] = {"steps": 8, "dtype": "float64", "save": Save(every=4)} | options
    eager = simulate(system(), "expint", engine="eager", **common)
    common["noise"] = eager.attrs["noise_source"]
    full = simulate(system(), "expint", engine="eager", **common | {"precision": "full"})
    compiled = simulate(system(), "expint", engine="compiled", **common)
    for name in (block for block in ("theta", "beta", "X", "U", "V") if block in eager):
        size = float(abs(full[name] - eager[name]).max()) / 4
        size = size if "precision" in options else 1e-12 * float(abs(eager[name]).max())
        assert size > 0
        np.testing.assert_allclose(compiled[name], eager[name], rtol=0, atol=size, err_msg=name)
    began = time.perf_counter()
    again = simulate(system(), "expint", **common)
    assert again.attrs["engine"] == "compiled"
    assert_same(again, compiled)
    assert time.perf_counter() - began < 5


def test_products_are_put_so_that_they_are_quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where torch compiles ahead of time, and the library is written where it is looked for."""
    called: list[dict[str, Any]] = []
    monkeypatch.setattr("torch._inductor.aot_compile", lambda graph, inputs, options: called.append(options))
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    ahead._compile(KeptStep(small_tape(), 2)._recorded, tmp_path / ahead.LIBRARY)
    (options,) = called
    assert isinstance(options["post_grad_custom_post_pass"], QuickProducts)
    assert options["aot_inductor.output_path"] == str(tmp_path / ahead.LIBRARY)
