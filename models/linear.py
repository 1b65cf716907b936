"""The linear layers. Classes of their own so that quantised formats can stand in their place."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import Hidden, Operators


class Module(nn.Module):
    """Has its weights and parts as plain attributes too.

    PyTorch's look-up is a call of a function, and a step looks up some hundreds: 3% of it on a CPU.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if isinstance(value, nn.Parameter | nn.Module):
            self.__dict__[name] = value


class Embedding(Module):
    """A table of rows [rows, size].

    Unlike PyTorch's it does not draw them: on the meta device that imports the compiler, for a second.
    """

    def __init__(self, rows: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, size), requires_grad=False)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [T] int64 -> [T, size]."""
        return F.embedding(ids, self.weight)


class Norm(Module):
    """Holds the weight [size] and the epsilon of an RMSNorm; the operators do the arithmetic."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size), requires_grad=False)
        self.eps = eps


class Linear(Module):
    """y = x W^T (+ b) with a dense weight [outputs, inputs], fused with its neighbours."""

    def __init__(self, inputs: int, outputs: int, bias: bool, ops: Operators) -> None:
        super().__init__()
        self.ops = ops
        self.weight = nn.Parameter(torch.empty(outputs, inputs), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(outputs), requires_grad=False) if bias else None

    def after_norm(self, hidden: Hidden, norm: Norm) -> Tensor:
        """Partial sums [S, T, outputs] of the normalised stream's product."""
        return self.ops.linear.norm_linear(hidden, norm.weight, norm.eps, self.weight, self.bias)

    def added_to(self, hidden: Hidden, x: Tensor, norm: Norm) -> Hidden:
        """The stream with the product of x [T, inputs] added; `norm` reads it next."""
        return self.ops.linear.linear_add(x, self.weight, self.bias, hidden, norm.weight, norm.eps)

    def gated_after_norm(self, hidden: Hidden, norm: Norm) -> Tensor:
        """SwiGLU of the normalised stream's product, whose first half is the gate: [T, outputs / 2]."""
        return self.ops.linear.norm_gate_up(hidden, norm.weight, norm.eps, self.weight, self.bias)

    def logits_after_norm(self, hidden: Hidden, norm: Norm) -> Tensor:
        """The normalised stream's product in fp32 [T, outputs]."""
        return self.ops.linear.norm_logits(hidden, norm.weight, norm.eps, self.weight)
