"""Which data a process has, what it refuses, and how much it sends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from processes import D, deep, energy, toy
from support import declared, doubles, needs_kernel
from torch import Tensor

import sdeflow
from sdeflow import Batch, Parallel, SdeflowError
from sdeflow.engine.minibatch import MiniBatches
from sdeflow.integrators.baoab import BAOAB
from sdeflow.integrators.expint import ExpInt
from sdeflow.parallel.field import sharded
from sdeflow.parallel.ranks import Ranks
from sdeflow.parallel.shard import Shard
from sdeflow.system.system import initial_state


@dataclass(frozen=True)
class Counting(Ranks):
    """One of several that sends nothing, and counts what it would."""

    sent: list[int] = field(default_factory=list)

    def sum(self, parts: Sequence[Tensor]) -> list[Tensor]:
        self.sent.append(sum(p.numel() for p in parts))
        return list(parts)

    def each(self, thing: Any) -> list[Any]:
        return [thing] * self.size


@pytest.mark.parametrize("data", [1, 7, 24, 100])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_shards_are_all_data_once(data: int, size: int) -> None:
    """In order, and none more than one larger than another."""
    if size > data:
        return
    shards = [Shard.of(data, rank, size) for rank in range(size)]
    assert [i for s in shards for i in range(data)[s.rows]] == [*range(data)]
    assert max(s.count for s in shards) - min(s.count for s in shards) <= 1
    pieces = [i for s in shards for piece in s.pieces for i in range(s.count)[piece]]
    assert pieces == [i for s in shards for i in range(s.count)]


def test_strata_do_not_depend_on_who_has_them() -> None:
    strata = [p for r in range(3) for p in Shard.of(26, r, 3, 6).pieces]
    alone = Shard.of(26, 0, 1, 6).pieces
    assert [p.stop - p.start for p in strata] == [p.stop - p.start for p in alone]


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_processes_have_parts_of_the_same_minibatches(size: int) -> None:
    """Each step's data are those of one process with as many strata, and an epoch sees each datum once."""
    engine = declared(toy(), "expint", noise="torch", engine="eager").engine

    def order(rank: int, of: int) -> MiniBatches:
        shard = Shard.of(D, rank, of, 6)
        system = sharded(toy(), shard, Ranks(rank, of), fixed=False) if of > 1 else toy()
        return MiniBatches(system, ExpInt(), Batch(size=12), doubles([3, 4]), engine, shard=shard)

    whole, parts = order(0, 1), [order(rank, size) for rank in range(size)]
    seen = []
    for n in range(4):
        own = [p.index(n) + Shard.of(D, r, size, 6).first for r, p in enumerate(parts)]
        assert torch.equal(torch.cat(own, 1), whole.index(n))
        seen.append(whole.index(n))
    for epoch in (seen[:2], seen[2:]):
        assert torch.equal(torch.cat(epoch, 1).sort(1).values, torch.arange(D).expand(2, D))
    assert not torch.equal(seen[0], seen[2])


@pytest.mark.parametrize(("scheme", "evaluations"), [(ExpInt(), 2), (BAOAB(), 1)])
def test_a_step_reduces_once(scheme: Any, evaluations: int) -> None:
    """Also where particles are evaluated at other parameters; theta's force is all that is sent."""
    ranks = Counting(0, 2)
    system = sharded(deep(), Shard.of(D, 0, 2), ranks, fixed=False)
    z = {k: v[:, :12] if k in ("X", "U") else v for k, v in initial_state(deep(), doubles()).items()}
    z |= scheme.init(system, z)
    engine = declared(deep(), "expint", noise="torch", engine="eager").engine
    noise = engine.source(system.channels, scheme.noise_spec(system.h), doubles())
    ranks.sent.clear()
    scheme.step(system, 0.0, z, system.h, noise(0))
    assert scheme.evaluations == evaluations
    assert ranks.sent == [z["theta"].numel()]


def test_both_networks_of_an_energy_prior_are_sent_at_once() -> None:
    ranks, system = Counting(0, 2), energy()
    part = sharded(system, Shard.of(D, 0, 2), ranks, fixed=False)
    z = initial_state(system, doubles())
    part.forces(0.0, z | {"X": z["X"][:, :12]}, part.blocks)
    assert ranks.sent == [z["alpha"].numel() + z["beta"].numel()]


@needs_kernel
@pytest.mark.parametrize(
    ("size", "system", "more", "words"),
    [
        (25, toy, {}, r"25 processes cannot share 24 data, of which each needs one at least"),
        (2, toy, {"parallel": Parallel(strata=3)}, r"2 processes cannot share parallel.strata = 3 evenly"),
        (1, toy, {"parallel": Parallel(strata=30)}, r"parallel.strata = 30 cannot share 24 data"),
        (2, toy, {"batch": Batch(size=5)}, r"2 strata.*batch.size = 5, is no multiple of that"),
        (5, toy, {"batch": Batch(size=5)}, r"5 strata.*the data, D = 24, is no multiple of that"),
        (2, toy, {"noise": "torch"}, r"noise 'torch' has none: give --noise philox"),
        (2, lambda: toy(theta={"h": "auto"}), {}, r"'auto' for h of block 'theta' takes one process"),
    ],
)
def test_what_cannot_be_shared_is_refused(size: int, system: Any, more: Any, words: str) -> None:
    run = declared(system(), "expint", **({"noise": "philox"} | more))
    with pytest.raises(SdeflowError, match=words):
        run.shared(Counting(0, size))


@needs_kernel
def test_a_plain_sde_is_not_shared() -> None:
    from sdeflow.problems.generic import DoubleWell

    run = declared(sdeflow.SDESystem(DoubleWell(), h=0.1), "euler_maruyama", noise="philox")
    with pytest.raises(SdeflowError, match="share the data of a model, and this system has none"):
        run.shared(Counting(0, 2))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"reduction": "quick", "strata": 2}, "unknown parallel.reduction 'quick'"),
        ({"reduction": "fixed"}, "give parallel.strata"),
        ({"strata": 0}, "parallel.strata must be at least 1"),
    ],
)
def test_options_that_do_not_fit(given: dict[str, Any], words: str) -> None:
    with pytest.raises(SdeflowError, match=words):
        Parallel(**given)


@needs_kernel
def test_strata_of_minibatches_are_written_down() -> None:
    """So that a run goes on with the same data on another number of processes."""
    run = declared(toy(), "expint", noise="philox", batch=Batch(size=12)).shared(Counting(0, 2))
    assert run.parallel == Parallel(strata=2)
    assert declared(toy(), "expint", noise="philox").shared(Counting(0, 2)).parallel == Parallel()
