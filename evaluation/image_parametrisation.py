"""Pictures that an optimizer draws: frequencies and uncorrelated colours in place of pixels.

Gradients of pixels are full of high frequencies that no photograph has. In the Fourier basis, each frequency scaled by
1 / f as natural images have it, and in colours without correlation, the same descent goes along directions that
pictures have. Olah, Mordvintsev and Schubert, "Feature Visualization", Distill 2017.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

# Principal components of ImageNet's colours (Krizhevsky et al. 2012): eigenvalues, and eigenvectors as columns.
_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
_CONTRAST = 0.25  # of a spectrum of normal numbers, before colours and sigmoid
_START = 0.1  # standard deviation of the first spectrum: a pale cloud


def first_spectrum(seed: int, size: tuple[int, int]) -> Tensor:
    """Where a picture begins: `3 h (w // 2 + 1) 2`, real and imaginary parts, small normal numbers by `seed`."""
    height, width = size
    generator = torch.Generator().manual_seed(seed)
    return _START * torch.randn(3, height, width // 2 + 1, 2, generator=generator)


def picture_of(spectrum: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures `b 3 h w` in 0..1 of spectra `b 3 h (w // 2 + 1) 2`."""
    height, width = size
    vertical = torch.fft.fftfreq(height, device=spectrum.device)[:, None]
    horizontal = torch.fft.rfftfreq(width, device=spectrum.device)
    frequency = (vertical.square() + horizontal.square()).sqrt().clamp(min=1 / max(height, width))
    scaled = torch.view_as_complex(spectrum.contiguous()) * (math.sqrt(height * width) / frequency)
    uncorrelated = _CONTRAST * torch.fft.irfft2(scaled, s=size, norm="ortho") / math.sqrt(height * width)
    return torch.einsum("rc, b c h w -> b r h w", colour_root().to(spectrum), uncorrelated).sigmoid()


def colour_root() -> Tensor:
    """A root of the covariance of ImageNet's colours, `3 3`, its largest column of length 1: uncorrelated → RGB."""
    root = torch.tensor(_EIGENVECTORS) * torch.tensor(_EIGENVALUES).sqrt()
    return root / root.norm(dim=0).max()


def jittered(pictures: Tensor, generators: list[torch.Generator]) -> Tensor:
    """The pictures `b c h w`, each turned by up to 10°, scaled by up to 10 % and moved by up to a sixteenth, at random.

    What survives that is no pattern of single pixels. Each picture has a generator of its own, so that its draws do not
    depend on its batch.
    """
    drawn = torch.stack([2 * torch.rand(4, generator=own) - 1 for own in generators]).to(pictures)
    angle, scale = drawn[:, 0] * math.radians(10), 1 + 0.1 * drawn[:, 1]
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    turned = torch.stack([torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)], 1)
    moved = torch.cat([turned, drawn[:, 2:, None] / 8], 2)
    grid = functional.affine_grid(moved, list(pictures.shape), align_corners=False)
    return functional.grid_sample(pictures, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
