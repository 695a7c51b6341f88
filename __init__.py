"""glasszoo: any timm CNN, with a head whose explanation map is part of the computation.

model = glasszoo.create_model("resnet50.a1_in1k", head="cam", pretrained=True).eval()
out = model(images)                     # one forward pass
out.logits, out.maps                    # maps.sum((-2, -1)) + offset == the explained logits
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .heads import Explained, list_heads
    from .models import create_model, list_backbones, list_pretrained, load_pretrained, wrap

__version__ = "0.1.0"

__all__ = ["Explained", "create_model", "list_backbones", "list_heads", "list_pretrained", "load_pretrained", "wrap"]

_HOMES = {
    "Explained": "heads",
    "list_heads": "heads",
    "create_model": "models",
    "list_backbones": "models",
    "list_pretrained": "models",
    "load_pretrained": "models",
    "wrap": "models",
}
_PACKAGES = ("data", "evaluation", "heads", "models", "training")


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first used.

    torch and timm take seconds to import, and timm imports wandb wherever that is installed; neither `import glasszoo`
    nor `glasszoo --help` shall wait for them.
    """
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    if name in _PACKAGES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, *_PACKAGES])
