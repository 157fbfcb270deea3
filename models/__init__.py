"""The networks by name: `build("cae_convnext_tiny", img_size=224, …)`."""

import timm
from torch import nn

from models.convnext_cae import SIZES
from util.settings import nearest

NAMES = [f"{family}_convnext_{size}" for family in ("cae", "restorer") for size in SIZES]


def build(name: str, **settings) -> nn.Module:
    """Returns the untrained network `name`; `settings` are those of `ConvNeXtCAE`. ValueError for a name not in `NAMES`."""
    if name not in NAMES:
        raise ValueError(f"no model '{name}'{nearest(name, NAMES)}")
    return timm.create_model(name, **settings)
