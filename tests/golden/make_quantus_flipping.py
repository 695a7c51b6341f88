"""Golden numbers of Quantus's PixelFlipping: `pip install quantus==0.6.0`, then `python make_quantus_flipping.py`.

Quantus flips channel by channel, so three of its steps of 56 features are one of ours of 56 pixels; its "black" is the
lowest value of each image over all channels. Its images are 28 × 28, its model a small convolution with a softmax.
"""

from pathlib import Path

import numpy as np
import quantus
import torch
from torch import nn

STEP = 56


def main() -> None:
    """Write quantus_flipping.npz beside this file."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 5, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 12 * 12, 4)).eval()
    images, maps, classes = torch.randn(3, 3, 28, 28), torch.rand(3, 28, 28), torch.tensor([0, 3, 1])
    metric = quantus.PixelFlipping(features_in_step=STEP, disable_warnings=True, perturb_baseline="black")
    curves = metric(
        model=model,
        x_batch=images.numpy(),
        y_batch=classes.numpy(),
        a_batch=maps[:, None].numpy(),
        softmax=True,
        device="cpu",
    )
    weights = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    np.savez_compressed(
        Path(__file__).with_name("quantus_flipping.npz"),
        images=images.numpy(),
        maps=maps.numpy(),
        classes=classes.numpy(),
        curves=np.array(curves),
        step=STEP,
        **weights,
    )
    print(np.array(curves).shape)


if __name__ == "__main__":
    main()
