"""QuickGELU (https://github.com/hendrycks/GELUs), the activation of CLIP's and Qwen2-VL's vision towers.

transformers writes it as three operators, each of which reads and writes the widest tensor of the tower.
"""

import torch
from torch import Tensor, nn


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), in one kernel on a GPU."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Any shape, same shape out."""
        if hidden_states.is_cuda:
            from sttm.models import kernels

            return kernels.quick_gelu(hidden_states)
        return hidden_states * torch.sigmoid(1.702 * hidden_states)


def replace_quick_gelu(tower: nn.Module) -> None:
    """Put it in the place of transformers' own in all of a loaded tower."""
    from transformers.activations import QuickGELUActivation

    for module in list(tower.modules()):
        for name, child in module.named_children():
            if isinstance(child, QuickGELUActivation):
                setattr(module, name, QuickGELU())
