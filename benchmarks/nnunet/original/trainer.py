"""nnU-Net's own trainer with another length and with a seed. nnU-Net finds it by the variable nnUNet_extTrainer."""

import os
import random

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

EPOCH = 50  # steps


class ShortTrainer(nnUNetTrainer):
    """nnUNetTrainer for STEPS steps, a multiple of 50, from the seed SEED; it changes nothing else."""

    def __init__(self, plans, configuration, fold, dataset_json, device) -> None:  # nnU-Net reads these names
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_iterations_per_epoch = EPOCH
        self.num_epochs = int(os.environ["STEPS"]) // EPOCH
        self.num_val_iterations_per_epoch, self.save_every = 2, 2
        seed = int(os.environ["SEED"])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
