"""A linear map that is quick on a CPU for the few rows of a decoding step too.

PyTorch asks the CPU's BLAS for `x Wᵀ` with the rows of x as the rows of the product. With few of them, MKL reads the
weights at a third of the memory's rate. Asked for `W xᵀ`, the same numbers, it reads them at up to the full rate,
unless x is one row alone, for which it takes the slow way again: that row goes in twice.
"""

import torch
from torch import nn

FEW_ROWS = 16  # above, both ways are bound by arithmetic


class Linear(nn.Linear):
    """`nn.Linear`, the other way round where few rows are mapped on a CPU in single precision."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`[..., in_features]` to `[..., out_features]`."""
        if torch.compiler.is_compiling() or self.bias is not None:
            return super().forward(input)
        num_rows = input.numel() // self.in_features
        if input.device.type != "cpu" or input.dtype != torch.float32 or not 0 < num_rows <= FEW_ROWS:
            return super().forward(input)
        rows = input.reshape(num_rows, self.in_features)
        if num_rows == 1:
            rows = torch.cat((rows, rows))
        product = self.weight @ rows.T  # [out, rows]
        return product.T[:num_rows].contiguous().view(*input.shape[:-1], self.out_features)
