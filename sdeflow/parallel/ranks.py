"""The processes of a run, as torchrun starts them: what they add up, agree upon and hand to each other.

All of them take the same steps. What each sees alone (a signal, a clock, a disk, a number that is not
finite) counts for all or for none, since a process that goes another way leaves the others waiting. Where
one is gone the others raise Gone as soon as they need it.
"""

from __future__ import annotations

import atexit
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

from sdeflow.errors import Elsewhere, RunError, SdeflowError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


class Gone(RunError):
    """A process of the run that does not answer."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of its run; alone, nothing is sent.

    rank, size   which it is, and how many there are
    """

    rank: int = 0
    size: int = 1

    @property
    def several(self) -> bool:
        return self.size > 1

    @property
    def here(self) -> int:
        """How many of them this machine has."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if self.several else 1

    @property
    def leads(self) -> bool:
        """Whether it is the one that writes files and talks to the user."""
        return self.rank == 0

    # Tensors ---------------------------------------------------------------------------------------

    def sum(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """The sums over all processes of tensors [R, n_i], in one reduction; the same bits on each of them.

        A lone tensor may be changed in place.
        """
        if not self.several:
            return list(parts)
        import torch

        whole = parts[0].contiguous() if len(parts) == 1 else torch.cat(list(parts), -1)
        if torch.compiler.is_compiling():
            from torch.distributed import _functional_collectives as traced

            whole = traced.all_reduce(whole, "sum", _world())
        else:
            with _answered():
                torch.distributed.all_reduce(whole)
        return [whole] if len(parts) == 1 else list(whole.split([p.shape[-1] for p in parts], -1))

    def stacked(self, part: Tensor) -> Tensor:
        """Tensors of all processes [n, ...], of the same shape, as [size n, ...]."""
        if not self.several:
            return part
        import torch

        if torch.compiler.is_compiling():
            from torch.distributed import _functional_collectives as traced

            return traced.all_gather_tensor(part, 0, _world())
        found = part.new_empty((self.size * len(part), *part.shape[1:]))
        with _answered():
            torch.distributed.all_gather(list(found.chunk(self.size)), part.contiguous())
        return found

    def joined(self, part: Tensor) -> Tensor:
        """Tensors [R, n_r, ...] of all processes, one after the other along the second axis, for each."""
        if not self.several:
            return part
        import torch

        counts = self.each(part.shape[1])
        most = max(counts)
        padded = part.new_zeros((most, len(part), *part.shape[2:]))
        padded[: part.shape[1]] = part.transpose(0, 1)
        found = self.stacked(padded).view(self.size, most, len(part), *part.shape[2:])
        rows = torch.cat([found[r, :n] for r, n in enumerate(counts)])
        return rows.transpose(0, 1).contiguous()

    # What outlives a restart -----------------------------------------------------------------------

    def note(self, name: str) -> None:
        """Leaves a name for those whom torchrun starts after these processes."""
        if self.several:
            _STORES[-1].set(f"noted/{name}", "1")

    def noted(self, name: str) -> bool:
        """Whether this torchrun has started processes before which left a name, as the leading one knows."""
        return self.several and self.of_first(self.leads and bool(_STORES[-1].check([f"noted/{name}"])))

    # Agreement -------------------------------------------------------------------------------------

    def most(self, *values: int) -> list[int]:
        """The largest of each value among all processes."""
        if not self.several:
            return list(values)
        import torch

        found = torch.tensor(values, dtype=torch.int64)
        with _answered():
            torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
        return cast("list[int]", found.tolist())

    def each(self, thing: T) -> list[T]:
        """What all processes have."""
        if not self.several:
            return [thing]
        import torch

        found: list[Any] = [None] * self.size
        with _answered():
            torch.distributed.all_gather_object(found, thing)
        return found

    def of_first(self, thing: T) -> T:
        """What the process that leads has."""
        if not self.several:
            return thing
        import torch

        found = [thing]
        with _answered():
            torch.distributed.broadcast_object_list(found, 0)
        return found[0]

    def lead(self, function: Callable[[], T]) -> T | None:
        """What a function gives in the process that leads, None in the others, which wait for it.

        Raises what it raises, Elsewhere in the others.
        """
        if not self.several:
            return function()
        found, error = None, None
        if self.leads:
            try:
                found = function()
            except (SdeflowError, KeyboardInterrupt) as raised:
                error = raised
        code = self.of_first(None if error is None else getattr(error, "exit_code", 130))
        if error is not None:
            raise error
        if code is not None:
            raise Elsewhere(code)
        return found

    def alike(self, function: Callable[[], T]) -> T:
        """What a function gives in each process, where it fails in none.

        Raises its error in the first in which it does, Elsewhere in the others.
        """
        if not self.several:
            return function()
        found, error = None, None
        try:
            found = function()
        except SdeflowError as raised:
            error = raised
        codes = self.each(0 if error is None else error.exit_code)
        failed = [rank for rank, code in enumerate(codes) if code]
        if not failed:
            return cast(T, found)
        if error is not None and self.rank == failed[0]:
            raise error
        raise Elsewhere(codes[failed[0]])


ALONE = Ranks()

PATIENCE = timedelta(hours=12)
"""How long processes wait for one that does something else; one that is gone they see at once."""

_STORES: list[Any] = []
"""torchrun's store, which is there for all whom it starts."""


def started() -> Ranks:
    """This process among those that torchrun started with it; alone where it did not.

    gloo reduces on the host, nccl on CUDA. Restarted processes meet under a name of their own, since the
    addresses of those before them are still in torchrun's store.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1" or not {"RANK", "MASTER_ADDR"} <= os.environ.keys():
        return ALONE
    import torch
    from torch import distributed

    if not distributed.is_initialized():
        store, rank, size = next(distributed.rendezvous("env://"))
        run, count = (os.environ.get(f"TORCHELASTIC_{name}", "0") for name in ("RUN_ID", "RESTART_COUNT"))
        backend, local = "gloo", int(os.environ.get("LOCAL_RANK", "0"))
        if torch.cuda.is_available():
            if local >= torch.cuda.device_count():
                raise SdeflowError(
                    f"this machine has {torch.cuda.device_count()} GPU(s): give --nproc-per-node that many"
                )
            torch.cuda.set_device(local)
            backend = "cpu:gloo,cuda:nccl"
        _STORES.append(distributed.PrefixStore(f"sdeflow/{run}", store))
        own = distributed.PrefixStore(count, _STORES[-1])
        with _answered():
            distributed.init_process_group(backend, timeout=PATIENCE, world_size=size, rank=rank, store=own)
        atexit.register(distributed.destroy_process_group)  # its threads must not outlive the interpreter
    return Ranks(distributed.get_rank(), distributed.get_world_size())


def _world() -> Any:
    """The group of all processes, for collectives that are traced."""
    from torch import distributed

    return distributed.group.WORLD


@contextmanager
def _answered() -> Iterator[None]:
    """Raises Gone where the other processes do not answer."""
    try:
        yield
    except RuntimeError as error:
        reason = re.sub(r"\[[^]]*/[^]]*\] *", "", str(error)).partition(". ")[0]  # no path of a source
        raise Gone(
            "another process of the run has ended or cannot be reached, so this one ends too; steps that a "
            f"checkpoint covers are safe ({reason})"
        ) from error
