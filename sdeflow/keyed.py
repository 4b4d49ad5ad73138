"""The `philox` noise source: every number has an address, and is computed where it is needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sdeflow.errors import SdeflowError
from sdeflow.native import kernel
from sdeflow.noise import Channel, Kind, Noise, Room, stream
from sdeflow.one_pass import Keyed, Stream


class PhiloxNoise:
    """Counter-based noise: a number is a function of (seed, block, step, substep, which normal, element).

    Replica i of a run with seed s draws what a run of one replica with seed s + i draws. W comes from the
    first normals of a step, and so does P alone, as from the source `torch`. Numbers do not depend on
    threads, and not on the device but for the last digits. See sdeflow.philox for the layout.

    fused     whether an update may draw the noise itself, in one pass over memory
    counter   what a kernel adds to every step, on its device; None where steps cannot be captured

    Raises SdeflowError where there is no kernel for the device.
    """

    name = "philox"

    def __init__(
        self,
        channels: Sequence[Channel],
        *,
        kind: Kind,
        substeps: int,
        h: float,
        seeds: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        fused: bool = False,
    ) -> None:
        found = kernel(device)
        if isinstance(found, str):
            raise SdeflowError(f"noise 'philox' needs a kernel, and {found}: give noise 'torch'")
        self._substeps = substeps
        self.counter = torch.zeros(1, dtype=torch.int64, device=device) if found.captures else None
        self._streams = [
            Stream(c, kind, h / substeps, _keys(c, seeds).to(device), dtype, found, fused, self.counter)
            for c in channels
        ]
        self._room = Room(dtype, device)

    def __call__(self, n: int) -> tuple[Noise, ...]:
        return tuple(
            {s.channel.variable: Keyed(s, n, substep) for s in self._streams}
            for substep in range(self._substeps)
        )

    def normals(self, n: int, count: int = 1) -> Iterator[tuple[Channel, Tensor]]:
        """As sdeflow.noise.NormalSource has it; the next steps reuse the tensors."""
        for s in self._streams:
            xi = self._room(s.channel.key, (count, self._substeps, s.channel.normals(s.kind), *s.shape))
            s.fill(xi, n)
            yield s.channel, xi


def _keys(channel: Channel, seeds: Sequence[int]) -> Tensor:
    """64 bits a replica, as int64."""
    keys = (stream(seed, "noise", channel.key) & 2**64 - 1 for seed in seeds)
    return torch.tensor([key - (key >> 63 << 64) for key in keys], dtype=torch.int64)
