"""The fault harness: runs that are killed, run out of disk or find a byte flipped, and are resumed.

    python tests/faults.py --faults 1000

A parent that has imported everything forks the runs, so that a fault is quick. Every fault is followed by
a resumption, which may meet a fault of its own, until the run has ended. Then

  - no acknowledged step is lost: a resumption starts at or after the last step whose checkpoint had its name
    when the fault came, as the run itself reported through a pipe;
  - every value of trajectory.nc and final.safetensors is, to the bit, that of the run in one piece.

Faults come at a chosen operation (a step, half a write, a sync, a rename, a piece of the joining), at a
random moment, as SIGTERM, as a full disk (acted, and real: a small file system filled up to a few bytes), as
a limit on the size of files, or as flipped bytes in files at rest. The report is one line of JSON on standard
output; the exit code is 1 where anything was lost or differs.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from safetensors.torch import load_file
from support import declared

import sdeflow
from sdeflow import Batch, Evaluate, Save
from sdeflow.config.run import Run
from sdeflow.errors import SdeflowError
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.simulation import resume as resuming
from sdeflow.simulation import solve as solving
from sdeflow.simulation import time_loop
from sdeflow.simulation.resume import resume_from
from sdeflow.simulation.solve import solve
from sdeflow.trajectory import checkpoint, durable, folder, segments
from sdeflow.trajectory.checkpoint import Damaged
from sdeflow.trajectory.durable import DiskFull
from sdeflow.trajectory.layout import kept_files

STEPS, SHORT = 18, 10
"""Steps of a run, and of one that ends before it goes on."""

SAVE = Save(every=4, data="all", particles="all", checkpoint=0.0, keep=3)
FINISHED = {".lock", "checkpoint", "checkpoint.prev", "checkpoint.damaged", "run.log"}
FINISHED |= {"final.safetensors", "trajectory.nc", "kept", "log.csv"}
SHORTER = tuple(f"kept {step} " for step in SAVE.moments(SHORT) - SAVE.moments(STEPS))
"""What a run that had ended, and goes on, has kept besides."""

DONE, STOPPED, FULL, DAMAGED, BROKEN = 0, 130, 1, 4, 99


def _run(declaration: Any, scheme: str, *, rmsprop: bool = False, **options: Any) -> Run:
    model = Hierarchical(data=6, theta_true=2.0)
    model.held_out = torch.linspace(-1.0, 1.0, 4)[:, None]
    motion = {"eta": 20.0, "gamma": 0.5}
    theta = {"h": 1e-3, **motion} | ({"precondition": "rmsprop"} if rmsprop else {})
    system = declaration(model, particles=3, theta=theta, x={"h": 1e-2, **motion})
    common: dict[str, Any] = {"save": SAVE, "dtype": "float64", "device": "cpu", "seed": 3}
    return declared(system, scheme, **(common | options))


RUNS: dict[str, Callable[[int], Run]] = {
    "expint": lambda steps: _run(sdeflow.mpgd, "expint", steps=steps),
    "obabo, replicas, a log": lambda steps: _run(
        sdeflow.kiplmc, "obabo", steps=steps, replicas=2, callbacks=sdeflow.CSV()
    ),
    "minibatches, catch-up, RMSProp, held-out": lambda steps: _run(
        sdeflow.mpgd,
        "expint",
        rmsprop=True,
        batch=Batch(2, "substeps", 3),
        evaluate=Evaluate(8, 2),
        replicas=2,
        steps=steps,
    ),
    "torchsde": lambda steps: _run(sdeflow.mpgd, "torchsde:srk", steps=steps),
}


@dataclass
class Fault:
    """What goes wrong in one child, and when: at the `at`-th operation, or after so many seconds."""

    kind: str
    at: float


class Ticks:
    """Counts operations; at the chosen one the fault comes."""

    def __init__(self, strike: Callable[[], None] | None, at: float) -> None:
        self.count, self.at, self.strike = 0, at, strike

    def __call__(self, *, disk: bool = True) -> None:
        self.count += 1
        if self.strike is not None and self.count >= self.at and (disk or self.strike is die):
            strike, self.strike = self.strike, None
            strike()


def instrument(tick: Ticks) -> None:
    """Puts a tick before each operation of the run in this process, and in the middle of each write."""
    fsync, replace, slabs, prepare = os.fsync, Path.replace, segments._slabs, solving.prepare

    class System:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def fsync(self, descriptor: int) -> None:
            tick()
            fsync(descriptor)

    def ticking_replace(path: Path, target: Path) -> Path:
        tick()
        return replace(path, target)

    def ticking_slabs(*args: Any) -> Iterator[Any]:
        for slab in slabs(*args):
            tick(disk=False)
            yield slab

    def ticking_prepare(*given: Any, **named: Any) -> Any:
        ready = prepare(*given, **named)
        step = ready.stepper

        class Ticking:
            stride = 1

            def __call__(self, z: Any, n: int, count: int = 1) -> Any:
                tick(disk=False)
                return step(z, n, count)

        ready.stepper = Ticking()
        return ready

    unlink, copyfile, rmtree = Path.unlink, shutil.copyfile, shutil.rmtree

    def ticking_unlink(path: Path, missing_ok: bool = False) -> None:
        tick(disk=False)
        unlink(path, missing_ok)

    def ticking_copyfile(*args: Any, **options: Any) -> Any:
        tick(disk=False)
        return copyfile(*args, **options)

    def ticking_rmtree(*args: Any, **options: Any) -> None:
        tick(disk=False)
        rmtree(*args, **options)

    Path.unlink = ticking_unlink  # type: ignore[method-assign]
    shutil.copyfile = ticking_copyfile
    shutil.rmtree = ticking_rmtree  # type: ignore[assignment]
    write = durable.write

    def write_in_two(path: Path, data: Any) -> str:
        with suppress(OSError):
            durable.temporary_name(path).write_bytes(bytes(data[: len(data) // 2]))
        tick(disk=False)
        return write(path, data)

    durable.os = System()  # type: ignore[assignment]
    durable.write = write_in_two
    Path.replace = ticking_replace  # type: ignore[assignment,method-assign]
    segments._slabs = ticking_slabs
    solving.prepare = resuming.prepare = ticking_prepare


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def no_room() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def child(run: Run, out: Path, resumed: bool, fault: Fault | None, pipe: int) -> int:
    """Runs or resumes in this process; reports acknowledged steps, the start and the number of operations."""
    time_loop._CHUNK_SECONDS = 0.0
    strike = None
    if fault is not None:
        strike = {"kill": die, "full": no_room}.get(fault.kind)
        if fault.kind == "limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(fault.at), resource.RLIM_INFINITY))
    tick = Ticks(strike, fault.at if fault else 0)
    put = folder.RunFolder._checkpoint

    def acknowledged(self: Any, root: Path, meta: Any, state: Any) -> None:
        put(self, root, meta, state)
        if root == self.path:
            os.write(pipe, f"a{meta.step}\n".encode())

    folder.RunFolder._checkpoint = acknowledged  # type: ignore[method-assign]
    instrument(tick)
    try:
        if resumed:
            reopen = folder.RunFolder.reopen.__func__  # type: ignore[attr-defined]

            def reported(cls: Any, path: Path) -> Any:
                found = reopen(cls, path)
                os.write(pipe, f"s{found.meta.step}\n".encode())
                return found

            folder.RunFolder.reopen = classmethod(reported)  # type: ignore[assignment,method-assign]
            solution = resume_from(lambda _: run, out)
        else:
            solution = solve(run, out=out)
        os.write(pipe, f"n{tick.count}\n".encode())
        return {"success": DONE, "interrupted": STOPPED}.get(solution.retcode, BROKEN)
    except DiskFull:
        return FULL
    except Damaged as error:
        os.write(pipe, f"d{error}\n".encode())
        return DAMAGED
    except SdeflowError as error:
        if "of disk until it is finished" in str(error) or "callback 'CSV': " in str(error):
            return FULL
        raise


@dataclass
class Outcome:
    """How a child ended (its exit code, or minus its signal), and what it had reported."""

    code: int
    acknowledged: int
    started: int
    operations: int
    damaged: str
    seconds: float


def fork(name: str, out: Path, resumed: bool, fault: Fault | None, steps: int = STEPS) -> Outcome:
    read, write = os.pipe()
    sys.stdout.flush()
    ballast = out.parent / "ballast"
    if fault is not None and fault.kind == "disk":
        room = os.statvfs(out.parent)
        ballast.write_bytes(bytes(max(0, room.f_bavail * room.f_frsize - int(fault.at))))
    pid = os.fork()
    if pid == 0:
        code = BROKEN
        try:
            os.close(read)
            code = child(RUNS[name](steps), out, resumed, fault, write)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(write)
    began = time.monotonic()
    if fault is not None and fault.kind in ("sudden", "term"):
        time.sleep(fault.at)
        os.kill(pid, signal.SIGKILL if fault.kind == "sudden" else signal.SIGTERM)
    lines = b""
    while chunk := os.read(read, 1 << 16):
        lines += chunk
    os.close(read)
    _, status = os.waitpid(pid, 0)
    ballast.unlink(missing_ok=True)
    told: dict[str, list[str]] = {}
    for line in lines.decode().splitlines():
        told.setdefault(line[0], []).append(line[1:])
    return Outcome(
        code=os.waitstatus_to_exitcode(status),
        acknowledged=int(told.get("a", ["-1"])[-1]),
        started=int(told.get("s", ["-1"])[-1]),
        operations=int(told.get("n", ["0"])[-1]),
        damaged=told.get("d", [""])[-1],
        seconds=time.monotonic() - began,
    )


def contents(out: Path) -> dict[str, bytes]:
    """Every value of a finished run, and of what it has kept of its moments; its log."""
    with xr.open_dataset(out / "trajectory.nc") as dataset:
        assert dataset.attrs["retcode"] == "success", dataset.attrs["message"]
        values = {str(name): dataset[name].values for name in dataset.variables}
    state = {f"final {name}": value.numpy() for name, value in load_file(out / "final.safetensors").items()}
    for step, path in kept_files(out).items():
        meta, kept = checkpoint.decode(path)
        assert meta.step == step, path
        state |= {f"kept {step} {name}": value.numpy() for name, value in kept.items()}
    found = {k: np.ascontiguousarray(v).tobytes() for k, v in (values | state).items() if v.dtype.kind != "O"}
    return found | {path.name: path.read_bytes() for path in out.glob("*.csv")}


class Harness:
    """Draws faults, lets them happen and counts what came of them."""

    def __init__(self, root: Path, seed: int, disk: Path | None) -> None:
        self.disk = disk
        self.root, self.random, self.counts = root, random.Random(seed), Counter[str]()
        self.problems: list[str] = []
        self.whole: dict[str, dict[str, bytes]] = {}
        self.operations: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        self.size: dict[str, int] = {}
        self.slowest_stop = 0.0
        for make in RUNS.values():  # so that a fork finds imported what a run imports on its way
            _ = solve(make(1), out=root / "warm", overwrite=True).dataset
        for name in RUNS:
            out = root / "whole"
            outcome = fork(name, out, False, None)
            assert outcome.code == DONE, f"{name} does not run: {outcome}"
            self.operations[name], self.seconds[name] = outcome.operations, outcome.seconds
            self.whole[name] = contents(out)
            self.size[name] = (out / "trajectory.nc").stat().st_size
            shutil.rmtree(out)

    def draw(self, kind: str, name: str) -> Fault:
        if kind in ("kill", "full"):
            return Fault(kind, self.random.randint(1, self.operations[name]))
        if kind == "disk":
            return Fault(kind, self.random.randint(1, 4 * self.size[name]))
        if kind == "limit":
            return Fault(kind, self.random.randint(1, int(1.2 * self.size[name])))
        return Fault(kind, self.random.uniform(0, self.seconds[name]))

    def one(self, number: int, kinds: list[str], at: float | None = None) -> None:
        """One run through up to three faults of the given kinds and to its end, and the comparison."""
        name = list(RUNS)[number % len(RUNS)]
        out = (self.disk if "disk" in kinds and self.disk else self.root) / f"run{number}"
        acknowledged, resumed = -1, False
        if number % 3 == 2:  # one that had ended, and goes on
            first = fork(name, out, False, None, SHORT)
            acknowledged, resumed = first.acknowledged, True
            self.counts["runs extended"] += 1
        for kind in kinds:
            fault = self.draw(kind, name) if at is None else Fault(kind, at)
            outcome = fork(name, out, resumed, fault)
            expected = {
                "kill": (DONE, -signal.SIGKILL),
                "sudden": (DONE, -signal.SIGKILL),
                "term": (DONE, STOPPED, -signal.SIGTERM),
                "full": (DONE, FULL),
                "limit": (DONE, FULL),
                "disk": (DONE, FULL),
            }[kind]
            self.counts[kind if outcome.code != DONE else f"{kind} too late"] += 1
            if kind == "term":
                self.slowest_stop = max(self.slowest_stop, outcome.seconds - fault.at)
            if outcome.code not in expected:
                self.problems.append(f"run {number} ({name}): {fault} ended with {outcome}")
            self.check_start(number, name, fault, acknowledged, outcome, resumed)
            acknowledged = max(acknowledged, outcome.acknowledged)
            resumed = out.exists()
        outcome = fork(name, out, resumed, None)
        self.check_start(number, name, None, acknowledged, outcome, resumed)
        if (out / "checkpoint.damaged").exists():
            self.problems.append(f"run {number} ({name}): a checkpoint was found damaged")
        self.compare(number, name, out, outcome)

    def check_start(
        self, number: int, name: str, fault: Fault | None, acknowledged: int, outcome: Outcome, resumed: bool
    ) -> None:
        if acknowledged >= 0 and not resumed:
            self.counts["steps lost"] += acknowledged
            self.problems.append(f"run {number} ({name}): the folder is gone")
        elif resumed and outcome.started >= 0:
            self.counts["resumptions"] += 1
            if outcome.started < acknowledged:
                self.counts["steps lost"] += acknowledged - outcome.started
                self.problems.append(
                    f"run {number} ({name}): {acknowledged} was acknowledged, resumed at {outcome}"
                )

    def compare(self, number: int, name: str, out: Path, outcome: Outcome) -> None:
        if outcome.code != DONE:
            self.problems.append(f"run {number} ({name}): could not be resumed: {outcome}")
            return
        found, whole = contents(out), self.whole[name]
        for key in whole.keys() | {key for key in found if not key.startswith(SHORTER)}:
            a, b = whole.get(key, b""), found.get(key, b"")
            differing = abs(len(a) - len(b)) + sum(x != y for x, y in zip(a, b, strict=False))
            self.counts["bytes compared"] += len(a)
            self.counts["bytes differing"] += differing
            if differing:
                self.problems.append(f"run {number} ({name}): {differing} bytes of {key} differ")
        left = {path.name for path in out.iterdir()} - FINISHED
        left |= {path.name for path in (out / "kept").iterdir() if not path.name.isdecimal()}
        if left:
            self.problems.append(f"run {number} ({name}): left behind {left}")
        shutil.rmtree(out)

    def flip(self, number: int, what: str) -> None:
        """One byte flipped in files at rest: the run goes on from what is sound, or names the file."""
        name = list(RUNS)[number % len(RUNS)]
        out = self.root / f"flip{number}"
        fork(name, out, False, Fault("kill", self.operations[name] // 2))
        segments = sorted((out / "segments").glob("*.nc"))
        victims = {
            "last segment": [segments[-1]],
            "first segment": [segments[0]],
            "checkpoint": [out / "checkpoint"],
            "segment and checkpoint": [segments[-1], out / "checkpoint"],
            "both checkpoints": [out / "checkpoint", out / "checkpoint.prev"],
        }[what]
        for victim in victims:
            data = bytearray(victim.read_bytes())
            data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
            victim.write_bytes(data)
        self.counts[f"byte flipped in {what}"] += 1
        outcome = fork(name, out, True, None)
        if outcome.code == DAMAGED and any(str(victim) in outcome.damaged for victim in victims):
            self.counts["refused by name"] += 1
            shutil.rmtree(out)
        elif what in ("first segment", "both checkpoints") and outcome.code != DONE:
            self.problems.append(f"flip {number} ({what}): {outcome}")
        else:
            self.compare(number, name, out, outcome)

    def report(self) -> dict[str, Any]:
        zeros = {"steps lost": 0, "bytes differing": 0}
        return {
            **zeros,
            **self.counts,
            "slowest stop, s": round(self.slowest_stop, 2),
            "problems": self.problems,
        }


def own_mounts() -> bool:
    """Whether this process may mount; where it can, it starts again in a name space of its own, and may."""
    if os.environ.get("SDEFLOW_FAULTS_MOUNTS"):
        return True
    unshare = ["unshare", "--map-root-user", "--mount"]
    try:
        subprocess.run([*unshare, "mount", "-t", "tmpfs", "none", "/mnt"], check=True, capture_output=True)
    except (OSError, subprocess.SubprocessError):
        return False
    os.environ["SDEFLOW_FAULTS_MOUNTS"] = "1"
    return bool(os.execvp(unshare[0], [*unshare, sys.executable, *sys.argv]))


def small_disk(root: Path) -> Path:
    """A file system of 4 MiB of its own."""
    disk = root / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(disk)], check=True)
    return disk


FLIPS = ("last segment", "first segment", "checkpoint", "segment and checkpoint", "both checkpoints")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", type=int, default=100, help="how many faults, about")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, help="where the runs are written (default: a temporary folder)"
    )
    parser.add_argument("--kinds", default="kill,sudden,term,full,limit,disk", help="kinds to draw from")
    options = parser.parse_args()
    kinds = options.kinds.split(",")
    if "disk" in kinds and not own_mounts():
        print("no file system can be mounted here: full disks are only acted", file=sys.stderr)
        kinds.remove("disk")
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=options.folder) as root:
        disk = small_disk(Path(root)) if "disk" in kinds else None
        harness = Harness(Path(root), options.seed, disk)
        done = number = 0
        while done < 0.9 * options.faults:
            # half of the runs are killed, each kill at the next of a sweep through all operations
            if number % 2 == 0 and "kill" in kinds:
                name = list(RUNS)[number % len(RUNS)]
                at = 1 + number * 7919 // 2 % harness.operations[name]
                harness.one(number, ["kill"], at)
                done += 1
            else:
                chain = [harness.random.choice(kinds) for _ in range(harness.random.randint(1, 3))]
                harness.one(number, chain)
                done += len(chain)
            number += 1
            if sys.stderr.isatty():
                print(f"\r{done} of {options.faults} faults", end="", file=sys.stderr)
        for number in range(max(len(FLIPS), options.faults - done)):
            harness.flip(number, FLIPS[number % len(FLIPS)])
        report = harness.report() | {"seconds": round(time.monotonic() - began, 1)}
        if disk is not None:
            subprocess.run(["umount", str(disk)], check=True)
    print(json.dumps(report))
    return 1 if report["problems"] or report["steps lost"] or report["bytes differing"] else 0


if __name__ == "__main__":
    sys.exit(main())
