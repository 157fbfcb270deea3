"""For torch.hub, from a clone of this repository: `restorer = torch.hub.load("path/to/clone", "restorer", source="local")`.

`restorer` is `restoration.pipeline.load_restorer`, `network` is `models.build`.
"""

from models import build as network
from restoration.pipeline import load_restorer as restorer

dependencies = ["torch", "timm", "numpy", "PIL", "safetensors", "yaml", "tqdm", "openvino", "onnx", "onnxscript"]

__all__ = ["dependencies", "network", "restorer"]
