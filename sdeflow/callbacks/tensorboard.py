"""What a run observes, for TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdeflow.callbacks.callback import About
from sdeflow.callbacks.log import PlacedLog, Row, scalars
from sdeflow.errors import SdeflowError


@dataclass(eq=False)
class TensorBoard(PlacedLog):
    """What is observed, for TensorBoard.

    A scalar for each observable, by name, of several replicas 'loss/0', 'loss/1', ...; NaN is left out.
    `tensorboard --logdir runs` shows those of all runs. Where a run is resumed all are written anew from the
    record, and TensorBoard hides what the folder held before. Needs `pip install "sdeflow[tensorboard]"`.

    path   the folder; without one tensorboard/ in the run folder
    """

    path: str | Path | None = None
    usual = "tensorboard"

    def begin(self, run: About) -> None:
        super().begin(run)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise SdeflowError(
                f'TensorBoard needs a package that is not here ({error}): pip install "sdeflow[tensorboard]"'
            ) from error
        self._writer: Any = None
        self._make: Any = SummaryWriter

    def write(self, rows: Sequence[Row]) -> None:
        if self._writer is None:
            self._writer = self._make(str(self.place), purge_step=0)
        for row in rows:
            for name, value in scalars(row):
                self._writer.add_scalar(name, value, row.step)
        self._writer.flush()

    def end(self, retcode: str) -> None:
        super().end(retcode)
        if self._writer is not None:
            self._writer.close()
