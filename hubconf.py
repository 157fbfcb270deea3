"""For torch.hub, with a clone of this repository: `restorer = torch.hub.load("path/to/clone", "restorer", source="local")`.

`restorer` takes the arguments of `restoring.load_restorer` and gives a `restoring.Restorer`; `network` takes a name of
`models.NAMES` and settings, and gives an untrained network.
"""

from models import build as network
from restoring import load_restorer as restorer

dependencies = ["torch", "timm", "numpy", "PIL", "safetensors", "openvino"]

__all__ = ["dependencies", "network", "restorer"]
