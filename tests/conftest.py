"""Settings for all tests: one torch thread, since every system here is small."""

import torch

torch.set_num_threads(1)
