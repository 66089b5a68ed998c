"""What a DrQ-v2 update costs with the published settings and with those for a CPU (configs/policy/)."""

from __future__ import annotations

import statistics
import time

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from tensordict import TensorDict
from torchrl.data import Bounded, Composite

from mbrl.bench import Row
