"""Compiled steps that are kept: found in the cache folder by what they compute, loaded without tracing.

A step is compiled by another process (sdeflow.engine.ahead), ahead of time or beside a run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdeflow.engine.ahead import LIBRARY, MADE, STALE, TAPE
from sdeflow.engine.tape import Tape, Unkeepable
from sdeflow.machine import cache_folder
from sdeflow.state import State

Function = Callable[[State, Sequence[Tensor]], State]
"""Several steps at once, by the state and what was drawn for them, [count, ...] each."""

MAKERS = ("ahead.py", "tape.py", "products.py")
"""Files of this folder that say how a tape is compiled."""

AGAIN = 24 * 3600
"""Seconds after which it is tried again to compile a step that torch could not compile, or not load."""


def used() -> bool:
    """Whether steps are kept at all: not where SDEFLOW_KEPT_STEPS is 0, or torch cannot load them."""
    return os.environ.get("SDEFLOW_KEPT_STEPS", "1") != "0" and hasattr(torch._C, "_aoti")


class KeptStep:
    """A function of `count` steps that a tape says, kept under a key of what its bits depend on.

    The key is SHA-256 of the tape, so of every operation of model, scheme and system with its shapes and
    dtypes, of torch's version, threads and default dtype, of the processor, and of the code that compiles.
    It does not know the files of a model: a changed one has another key where it computes something else.
    Nor the C++ compiler: after another was installed, what is kept is still taken, so that a run goes on to
    the same bits; what is compiled anew may have other last digits.
    Data of the model and numbers that scale a tensor, as of h, eta and gamma, are arguments of the function,
    and in no key.
    """

    def __init__(self, tape: Tape, count: int) -> None:
        self._tape, self._count = tape, count
        own = tape.text(
            count=count,
            made_by=_makers(),
            threads=torch.get_num_threads(),
            default_dtype=str(torch.get_default_dtype()).removeprefix("torch."),
            torch=f"{torch.__version__} {torch.version.git_version}",
            processor=_processor(),
        )
        self.key = hashlib.sha256(own.encode()).hexdigest()
        self._recorded = json.loads(own)

    @property
    def folder(self) -> Path:
        """Of this user alone, for what is in it is run."""
        user = f"-{os.getuid()}" if hasattr(os, "getuid") else ""
        return cache_folder() / f"steps{user}" / self.key

    def load(self) -> Function | None:
        """The function, None where it is not kept. What is damaged is removed, and a warning says so.

        Raises Unkeepable where torch could not compile it, not long ago, or cannot load what it made.
        """
        return self._load(self.folder)

    def make(self) -> Function:
        """Compiles the function, which takes up to a minute, and keeps it where the cache can be written.

        Raises Unkeepable where it cannot be compiled.
        """
        try:
            self.folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            work = self._work(self.folder.parent, self.folder)
        except OSError:  # a cache that cannot be written
            work = self._work(None, None)
        process = None
        try:
            process = _process([work], beside=False)
            code = process.wait()
            found = self._load(work) if (work / MADE).exists() else self.load()
            if found is None:
                raise Unkeepable(f"the process that was to compile the step ended with code {code}")
            return found
        finally:
            if process is not None and process.poll() is None:  # Ctrl-C, say
                _kill(process)
            shutil.rmtree(work, ignore_errors=True)

    def _load(self, folder: Path) -> Function | None:
        try:
            made = json.loads((folder / MADE).read_text(encoding="utf-8"))
            if "failed" in made:
                _not_now(folder, f"torch could not compile the step, {made['failed']}")
                return None
            library = folder / LIBRARY
            if hasattr(os, "getuid") and library.stat().st_uid not in (os.getuid(), 0):
                return None  # another user's code is not run
            if hashlib.sha256(library.read_bytes()).hexdigest() != made["sha256"]:
                raise ValueError("its checksum is another")
            try:
                runner = torch._C._aoti.AOTIModelContainerRunnerCpu(str(library), 1)
            except RuntimeError as error:  # of a disk from which no code may be run, say
                _not_now(folder, f"the compiled step in {folder} cannot be loaded, {_first_line(error)}")
                return None
        except (FileNotFoundError, NotADirectoryError):
            if not folder.exists():
                return None
            _damaged(folder, "a file is missing")
            return None
        except PermissionError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            _damaged(folder, _first_line(error))
            return None
        with suppress(OSError):
            os.utime(folder)  # it was used
        return self._function(runner)

    def _function(self, runner: Any) -> Function:
        constants = self._tape.constants

        def steps(z: State, draws: Sequence[Tensor]) -> State:
            return dict(zip(z, runner.run([*z.values(), *draws, *constants]), strict=True))

        return steps

    @property
    def _prefix(self) -> str:
        """Of the names of folders in which it is compiled."""
        return f".{self.key[:16]}-"

    def _under_way(self) -> bool:
        """Whether a process compiles it, or is to."""
        for work in self.folder.parent.glob(f"{self._prefix}*"):
            with suppress(OSError):  # moved or removed by now
                if time.time() - work.stat().st_mtime < STALE:
                    return True
        return False

    def _work(self, parent: Path | None, folder: Path | None) -> Path:
        """A new folder in which the step can be compiled, to be moved to `folder` then."""
        work = Path(tempfile.mkdtemp(prefix=self._prefix, dir=parent))
        recorded = self._recorded | {"folder": "" if folder is None else str(folder)}
        (work / TAPE).write_text(json.dumps(recorded), encoding="utf-8")
        return work


def make_beside(steps: Sequence[KeptStep]) -> bool:
    """Has a process with little priority compile functions for later runs; whether that is under way.

    It goes on where this one ends, waits half an hour at most for those that were begun before, and compiles
    for half an hour at most. None is begun for what another compiles already.
    """
    works: list[Path] = []
    try:
        for step in steps:
            step.folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not step._under_way():
                works.append(step._work(step.folder.parent, step.folder))
        if not works:
            return True
        process = _process(works, beside=True)
    except (OSError, Unkeepable):
        for work in works:
            shutil.rmtree(work, ignore_errors=True)
        return False
    # so that none is left that nobody waited for
    threading.Thread(target=process.wait, name="sdeflow-compile", daemon=True).start()
    return True


def _not_now(folder: Path, why: str) -> None:
    """Raises Unkeepable where the step was compiled not long ago; else removes it, to be compiled again."""
    if time.time() - (folder / MADE).stat().st_mtime <= AGAIN:
        raise Unkeepable(why)
    shutil.rmtree(folder, ignore_errors=True)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _damaged(folder: Path, why: str) -> None:
    warnings.warn(f"the compiled step in {folder} is damaged ({why}), and is made anew", stacklevel=3)
    shutil.rmtree(folder, ignore_errors=True)


def _process(works: Sequence[Path], *, beside: bool) -> subprocess.Popen[bytes]:
    """The process that compiles, in a session of its own, which Ctrl-C does not reach."""
    if not sys.executable or shutil.which(os.environ.get("CXX", "g++")) is None:
        raise Unkeepable("a step is compiled by Python and a C++ compiler, which are not there")
    # -P: not from the working folder, where a user may have files by the names of modules
    module = [sys.executable, "-P", "-m", "sdeflow.engine.ahead", *(["--beside"] if beside else [])]
    lowest = ["nice", "-n", "19"] if beside and shutil.which("nice") else []
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    return subprocess.Popen(
        [*lowest, *module, *map(str, works)],
        env=os.environ | {"PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _kill(process: subprocess.Popen[bytes]) -> None:
    """With the compiler that it has called."""
    with suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@cache
def _makers() -> str:
    own = hashlib.sha256()
    for name in MAKERS:
        own.update(Path(__file__).with_name(name).read_bytes())
    return own.hexdigest()


@cache
def _processor() -> str:
    """What compiled code depends on besides torch: the processor's kind, and what it can."""
    import platform

    can = ""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        can = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {can}"
