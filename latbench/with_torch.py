"""torch for those modules that need it, or the one error that names the extra to install."""

from __future__ import annotations

from latbench.errors import NotInstalledError

try:
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn
except ModuleNotFoundError as e:
    raise NotInstalledError("torch", "pip install 'latbench[search]'", "modules and gradients need it") from e

__all__ = ["F", "Tensor", "nn", "torch"]
