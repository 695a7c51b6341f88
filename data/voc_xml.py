"""Objects and boxes from the XML files of Pascal VOC, which Oxford-IIIT Pet and ImageNet use as well."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import torch
from PIL import Image
from torchvision import tv_tensors

from ..common.errors import InputError

Box = tuple[float, float, float, float]

_EDGES = ("xmin", "ymin", "xmax", "ymax")


class BoxedObject(NamedTuple):
    """One object of an image: the name of its class, its box, and whether it is marked as hard to recognise."""

    name: str
    box: Box  # x1 y1 x2 y2 in pixels from 0, x2 and y2 exclusive
    is_difficult: bool


class Annotation(NamedTuple):
    """What one XML file says of its image."""

    objects: list[BoxedObject]  # in the order of the file
    size: tuple[int, int] | None  # width and height of the image that the boxes were drawn on; None where not stated


def read_annotation(path: Path, first_pixel: int = 1, has_swapped_edges: bool = False) -> Annotation:
    """The content of one XML file.

    Args:
        path: A file in the format of Pascal VOC (Everingham et al., 2010).
        first_pixel: How the file numbers the first pixel of a row or column, 1 (Pascal VOC) or 0.
        has_swapped_edges: Whether a box may have its last row or column before its first, which is put right then.

    Raises:
        InputError: The file is missing or no XML, or an object lacks its name or has no box of at least one pixel.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: each image of this layout has such a file") from None
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        raise InputError(f"{path} is not readable as XML ({error})") from None
    objects = []
    # Only the objects themselves: the parts of a person (head, hand, foot) lie inside one, with boxes of their own.
    for number, element in enumerate(root.findall("object"), 1):
        name = (element.findtext("name") or "").strip()
        edges = [element.findtext(f"bndbox/{edge}") or "" for edge in _EDGES]
        if not name:
            raise InputError(f"{path}: object {number} has no name")
        try:
            box = inclusive_box(edges, first_pixel, has_swapped_edges)
        except ValueError:
            raise InputError(f"{path}: the box of object {number} is {','.join(edges)}, not a box in pixels") from None
        objects.append(BoxedObject(name, box, (element.findtext("difficult") or "").strip() == "1"))
    return Annotation(objects, _size(root))


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    try:
        width, height = (int(root.findtext(f"size/{side}") or 0) for side in ("width", "height"))
    except ValueError:
        return None
    return (width, height) if width > 0 and height > 0 else None


def inclusive_box(edges: Sequence[str | float], first_pixel: int, has_swapped_edges: bool = False) -> Box:
    """Four edges of which the last pixel belongs to the box, as x1 y1 x2 y2 from 0 with x2 and y2 exclusive.

    Raises:
        ValueError: Not four finite numbers, or a last pixel before the first, unless `has_swapped_edges`.
    """
    x1, y1, x2, y2 = (float(edge) - first_pixel for edge in edges)
    if has_swapped_edges:
        x1, x2, y1, y2 = *sorted((x1, x2)), *sorted((y1, y2))
    if not (all(map(math.isfinite, (x1, y1, x2, y2))) and x1 <= x2 and y1 <= y2):
        raise ValueError("no box")
    return x1, y1, x2 + 1, y2 + 1


def boxes_within(boxes: Sequence[Box], image: Image.Image) -> tv_tensors.BoundingBoxes | None:
    """`boxes` (n 4) as a sample has them, cut at the image's edges; None where none has a pixel inside the image.

    Published boxes now and then begin a pixel before the image or end a pixel after it.
    """
    width, height = image.size
    limit = torch.tensor([width, height, width, height], dtype=torch.float32)
    edges = torch.minimum(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4).clamp(min=0), limit)
    edges = edges[(edges[:, 2:] > edges[:, :2]).all(1)]
    return tv_tensors.BoundingBoxes(edges, format="XYXY", canvas_size=(height, width)) if len(edges) else None
