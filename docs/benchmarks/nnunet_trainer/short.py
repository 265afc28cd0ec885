"""nnU-Net's own trainer, shortened: epochs and iterations are those of the environment.

nnU-Net finds this folder by `nnUNet_extTrainer`. It runs where nnU-Net is installed, which need not be where lrls is.
"""

import os

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerShort(nnUNetTrainer):
    """LRLS_NNUNET_EPOCHS epochs of LRLS_NNUNET_ITERATIONS iterations, with a tenth as many for validation."""

    # nnU-Net asks the signature for the names of what it keeps, so they are spelled out.
    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = int(os.environ["LRLS_NNUNET_EPOCHS"])
        self.num_iterations_per_epoch = int(os.environ["LRLS_NNUNET_ITERATIONS"])
        self.num_val_iterations_per_epoch = max(1, self.num_iterations_per_epoch // 10)
        # `-device cpu` takes all of the machine's cores, also those that this process may not use.
        torch.set_num_threads(len(os.sched_getaffinity(0)))

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Left out: all cases are in training, and would only be answered once more."""
