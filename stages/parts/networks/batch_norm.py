"""BatchNorm over a whole batch, whose samples may lie on several processes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stages.parts.together import is_shared, summed


class BatchNorm3d(nn.BatchNorm3d):
    """As torch's, with mean and variance of the whole batch where processes share it; see `parts.together`.

    torch's own SyncBatchNorm does the same on GPUs alone.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, D, H, W) -> the same; running statistics move by the momentum."""
        if not (self.training and is_shared()):
            return super().forward(x)
        over, column = (0, 2, 3, 4), (1, -1, 1, 1, 1)
        wide = x.float()
        count = float(summed(torch.tensor(float(x.numel() // x.shape[1]), device=x.device)))
        mean = summed(wide.sum(over)) / count
        centred = wide - mean.view(column)
        variance = summed(centred.square().sum(over)) / count
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        result = centred * (variance + self.eps).rsqrt().view(column)
        return (result * self.weight.view(column) + self.bias.view(column)).to(x.dtype)
