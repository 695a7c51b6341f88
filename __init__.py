"""glasszoo: any timm CNN, with a head whose explanation map is part of the computation.

model = glasszoo.create_model("resnet50.a1_in1k", head="cam", pretrained=True).eval()
out = model(images)                     # one forward pass
out.logits, out.maps                    # maps.sum((-2, -1)) + offset == the explained logits
"""

from .heads import Explained, list_heads
from .models import create_model, list_backbones, load_pretrained

__version__ = "0.1.0"

__all__ = ["Explained", "create_model", "list_backbones", "list_heads", "load_pretrained"]
