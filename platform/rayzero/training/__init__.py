"""Pretraining: a DeepSpeed loop inside Ray Train, fed by Ray Data."""

import os

import torch

# Before anything here imports DeepSpeed: without an accelerator it would probe, warn, and pick the CPU all the same.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
