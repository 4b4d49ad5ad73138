"""What looks on between the steps of a run: it may stop it, or tell others what is observed."""

from sdeflow.callbacks.callback import About as About
from sdeflow.callbacks.callback import Callback as Callback
from sdeflow.callbacks.callback import Snapshot as Snapshot
from sdeflow.callbacks.csv import CSV as CSV
from sdeflow.callbacks.early_stopping import EarlyStopping as EarlyStopping
from sdeflow.callbacks.tensorboard import TensorBoard as TensorBoard
from sdeflow.callbacks.wandb import WandB as WandB
