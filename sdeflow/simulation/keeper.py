"""What is kept of a run while it goes and when it ends: in memory, or in a run folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from sdeflow.callbacks.callback import About
from sdeflow.errors import RunError, SdeflowError
from sdeflow.simulation.memory import room_beside
from sdeflow.simulation.onlookers import Onlookers
from sdeflow.system.average import AVERAGE, averaged
from sdeflow.terminal import human
from sdeflow.trajectory import shards
from sdeflow.trajectory.dataset import Contents, contents, final_state
from sdeflow.trajectory.durable import DiskFull
from sdeflow.trajectory.layout import TRAJECTORY, resuming
from sdeflow.trajectory.opening import open_run
from sdeflow.trajectory.provenance import provenance
from sdeflow.trajectory.record import BUFFER, Recorder
from sdeflow.trajectory.segments import Piece, free_space
from sdeflow.trajectory.stored import MOMENTA, momenta

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

    from sdeflow.config.run import Run
    from sdeflow.simulation.ending import Stop
    from sdeflow.simulation.prepare import Prepared
    from sdeflow.state import State
    from sdeflow.trajectory.checkpoint import Metadata
    from sdeflow.trajectory.folder import RunFolder

    Opened = Callable[[], xr.Dataset]


Safe = tuple[Path, int] | None
"""A run folder and a step up to which all is on the disk."""


class Keeper:
    """Keeps the snapshots of a run and, in a folder, its checkpoints; makes the dataset at the end.

    What is kept while steps are taken a thread writes beside them: of a run on one process, where memory has
    room for it.

    folder   None keeps everything in memory; of several processes the one that leads has it, and all are
             called alike
    taken    snapshots that are in the folder already
    """

    def __init__(self, run: Run, prepared: Prepared, folder: RunFolder | None, *, taken: int = 0) -> None:
        self.run, self.folder = run, folder
        self._prepared, self._ranks = prepared, prepared.ranks
        self._moments = run.save.moments(run.steps)
        self._stored = prepared.ranks.of_first(folder is not None)
        self._beside = not prepared.ranks.several and room_beside(run)
        self.recorder = Recorder(
            prepared.whole,
            run.save,
            axes=run.axes,
            observe=lambda t, z: prepared.observe(t, z),
            replicas=run.all_replicas.count,
            steps=run.steps,
            buffer=BUFFER if self._stored else None,
            taken=taken,
            rows=prepared.sharing.rows if prepared.ranks.several else None,
        )

    def onlookers(
        self, meta: Metadata, record: Mapping[str, NDArray[Any]] = MappingProxyType({})
    ) -> Onlookers:
        """The callbacks of the run from `meta.step` on; `record` is what was observed before."""
        run, folder = self.run, self.folder
        name = "" if folder is None else sha256(f"{meta.history[0]} {folder.path}".encode()).hexdigest()[:16]
        path, there = (None, bool) if folder is None else (folder.path, lambda: not folder.new)
        about = About(meta.step, self.attributes(meta), name, path, there)
        several = run.replica_count > 1 or run.grid is not None
        callbacks = run.callbacks if self._ranks.leads else ()
        return Onlookers(callbacks, about, run.steps, record, several=several)

    def require_room(self) -> None:
        """Raises SdeflowError where the disk has no room for the snapshots to come."""

        def require() -> None:
            if self.folder is not None:
                kept = sum(value.nbytes for value in self._parameters(self._prepared.state).values())
                size = 2 * self.recorder.bytes_left  # segments, then trajectory.nc
                _refuse_full_disk(self.folder.path, size + len(self._moments) * kept)

        self._ranks.lead(require)

    def log(self, line: str) -> None:
        """Adds a line to the folder's log."""
        if self.folder is not None:
            self.folder.log(line)

    def due(self, step: int) -> bool:
        """Whether it is time for a checkpoint after so many steps: their parameters may be to be kept."""
        folder = self.folder
        if folder is None:
            return False
        if not folder.writer.busy:
            self.wait()  # so that a full disk is told as soon as it is met
        return step in self._moments or folder.due(self.run.save.checkpoint)

    def wait(self) -> None:
        """Until all that was to be kept is on the disk; raises RunError where that does not take it."""
        if self.folder is None:
            return
        with self._naming_the_safe_step(self._safe):
            try:
                self.folder.writer.wait()
            except RunError:
                raise
            except Exception as error:
                what = f"{type(error).__name__}: {error}"
                raise RunError(f"{self.folder.path} could not be written: {what}") from error

    @property
    def replaces(self) -> bool:
        """Whether the first `keep` puts the run in the place of another."""
        return self.folder is not None and self.folder.new and self.folder.path.exists()

    def withdraw(self) -> None:
        """Removes the folder of a run that was begun here and whose first step fails."""
        if self.folder is not None:
            self.folder.withdraw()

    def keep(self, meta: Metadata, state: State) -> None:
        """Puts snapshots and state on the disk, where there is a folder; then `meta.step` is acknowledged.

        All but the first, which makes the folder, may be on the disk later, but before what is kept next.
        Raises RunError where the disk does not take it, or did not take what was kept before.
        """
        if self._stored:
            meta, common = self._sharded(meta, state)
            self._ranks.lead(lambda: self._write(meta, common, beside=self._beside))
            self.recorder.clear()

    def _sharded(self, meta: Metadata, state: State) -> tuple[Metadata, State]:
        """Puts what each process alone has on the disk; gives what names it all, and what all have."""
        ranks, folder, sharing = self._ranks, self.folder, self._prepared.sharing
        if not ranks.several:
            return replace(meta, shards=()), state
        root = ranks.lead(lambda: cast("RunFolder", folder).begin())
        root, safe = cast("tuple[Path, Safe]", ranks.of_first((root, self._safe)))
        with self._naming_the_safe_step(safe):
            own = ranks.alike(lambda: shards.write(root, meta.step, ranks.rank, sharing.own(state)))
        return replace(meta, shards=tuple(ranks.each(own))), sharing.common(state)

    def _write(self, meta: Metadata, state: State, *, beside: bool = False) -> None:
        folder = self.folder
        assert folder is not None
        self.wait()  # one thing at a time, so that memory stays bounded
        piece = Piece.of(self._snapshots(meta)) if self.recorder.steps else None
        beside = beside and not folder.new
        if beside:  # steps go on, and those of a user may change a state in place
            state = {name: value.to("cpu", copy=True) for name, value in state.items()}
        kept = (self._parameters(state) if meta.step in self._moments else {}) or None
        if beside:
            folder.writer(lambda: folder.keep(piece, meta, state, kept))
            return
        with self._naming_the_safe_step(self._safe):
            folder.keep(piece, meta, state, kept)
            self._ranks.note(str(folder.path))

    def finish(self, meta: Metadata, state: State, stop: Stop) -> tuple[Opened, State, Metadata]:
        """What gives the trajectory of a run that has ended, the state that is kept and what is known of it.

        Where all replicas diverged that is the last checkpoint's state, if there is one. Of several processes
        none has the state, and where there is a folder the one that leads has the trajectory.
        """
        if not self._stored:
            return self._snapshots(meta).dataset, state, meta
        covered, common = self._sharded(meta, state)
        found = self._ranks.lead(lambda: self._finish(covered, common, stop))
        meta = self._ranks.of_first(meta if found is None else found[2])
        return (self._nothing(meta), {}, meta) if found is None else found

    def _finish(self, meta: Metadata, state: State, stop: Stop) -> tuple[Opened, State, Metadata]:
        folder = self.folder
        assert folder is not None
        self.log(f"{meta.retcode}: {meta.message}")
        whole = state | shards.read(folder.begin(), meta.shards, {})
        attrs, final = self.attributes(meta), final_state(self._prepared.whole, whole)
        if meta.all_diverged(self.recorder.replicas) and not folder.new:
            meta = replace(meta, step=folder.meta.step, shards=folder.meta.shards)
            state = folder.common()
        self._write(meta, state)
        self.recorder.clear()
        try:
            with self._naming_the_safe_step(self._safe), stop.joining():
                folder.finish(meta, state, attrs, final)
        except KeyboardInterrupt:
            message = f"{TRAJECTORY} was not finished; to finish it: {resuming(folder.path)}"
            meta = replace(meta, retcode="interrupted", message=message)
        return partial(open_run, folder.path), state, meta

    def join(self, meta: Metadata) -> Opened:
        """Finishes a run in a folder that took all its steps and was kept from joining its segments."""

        def join() -> Opened:
            folder = self.folder
            assert folder is not None
            lost = meta.all_diverged(self.recorder.replicas)
            final = None if lost else final_state(self._prepared.whole, folder.state())
            folder.finish(meta, folder.common(), self.attributes(meta), final)
            return partial(open_run, folder.path)

        found = self._ranks.lead(join)
        return self._nothing(meta) if found is None else found

    def _parameters(self, state: State) -> State:
        """The parameters and their average, of a system that has any."""
        names = [kept for name in averaged(self._prepared.system) for kept in (name, AVERAGE + name)]
        return {name: state[name] for name in names if name in state}

    def attributes(self, meta: Metadata) -> dict[str, Any]:
        """What a dataset says of the run that made it."""
        run, environment = self.run, meta.environment
        attrs = {
            "title": run.title or f"{run.integrator.name}, {run.steps} steps",
            **provenance(run.device),
            "history": "\n".join(meta.history),
            "system": str(self._prepared.whole),
            MOMENTA: momenta(self._prepared.system),
            "save": str(run.save),
            "threads": environment["threads"],
            "config": run.toml,
            "integrator": run.integrator.name,
            "engine": environment["engine"],
            "noise_source": environment["noise_source"],
            "gradient_evaluations_per_step": run.gradient_evaluations,
            "dtype": str(run.dtype).removeprefix("torch."),
            "precision": run.precision,
            "seed": run.seed,
            "replicas": run.all_replicas.count,
            "grid": "" if run.grid is None else str(run.grid),
            "average": "" if run.average is None else str(run.average),
            "steps": run.steps,
            "steps_taken": meta.last,
            "seconds": round(meta.seconds, 3),
            "evaluate": "" if (held_out := self._prepared.held_out) is None else held_out.cost(run.steps),
            "evaluate_seconds": round(meta.evaluate_seconds, 3),
            "warnings": "; ".join(meta.warnings),
            "retcode": meta.retcode,
            "message": meta.message,
        }
        attrs |= {f"start_{key}": value for key, value in meta.start.items()}
        if (batch := run.batch) is not None:
            attrs["batch"] = f"{batch.size} data a step, catch-up {batch.catch_up}, cap {batch.cap}"
        return attrs

    def _nothing(self, meta: Metadata) -> Opened:
        return Contents({}, {}, self.attributes(meta)).dataset

    def _snapshots(self, meta: Metadata) -> Contents:
        run = self.run
        return contents(
            self.recorder,
            seeds=run.all_replicas.seeds,
            attrs=self.attributes(meta),
            batch=run.batch.size if run.batch else None,
            along={} if run.grid is None else run.grid.coordinates(run.replicas),
        )

    @contextmanager
    def _naming_the_safe_step(self, safe: Safe) -> Iterator[None]:
        """Adds to the error of a full disk up to which step all is on it."""
        try:
            yield
        except DiskFull as error:
            if safe is None:
                raise
            path, step = safe
            self.log(f"{error}; acknowledged: step {step:,}")
            raise DiskFull(
                f"{error}. Steps up to {step:,} are safe: make room, then {resuming(path)}"
            ) from error

    @property
    def _safe(self) -> Safe:
        """The folder, and the step that its checkpoint covers; None before there is one."""
        return None if self.folder is None or self.folder.new else (self.folder.path, self.folder.meta.step)


def _refuse_full_disk(folder: Path, size: int) -> None:
    """Raises SdeflowError where a folder's disk has no room for so many bytes."""
    if size > (free := free_space(folder)):
        raise SdeflowError(
            f"the trajectory would take {human(size)} of disk until it is finished, and {folder.parent} has "
            f"{human(free)} left: save less often (save.every), of fewer data (save.data) or of fewer "
            "particles (save.particles)"
        )
