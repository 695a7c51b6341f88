"""Heads by name."""

from collections.abc import Iterator

import pytest
import torch

from glasszoo.common.errors import InputError
from glasszoo.heads import CAM, create_head, head_class, list_heads, register_head, registry


@pytest.fixture
def own_head() -> Iterator[type[CAM]]:
    """A head of the user's own, known for the length of a test."""

    @register_head("own_cam")
    class OwnCAM(CAM):
        def __init__(self, num_features: int, num_classes: int, *, scale: float = 1.0) -> None:
            super().__init__(num_features, num_classes)
            self.scale = scale

    yield OwnCAM
    del registry._HEADS["own_cam"]


def test_a_registered_head_is_found_listed_and_built(own_head: type[CAM]) -> None:
    assert head_class("own_cam") is own_head
    assert "own_cam" in list_heads() and list_heads("own*") == ["own_cam"]
    head = create_head("own_cam", 4, 3, scale=2.0)
    assert isinstance(head, own_head) and head.scale == 2.0


def test_a_taken_name_is_refused(own_head: type[CAM]) -> None:
    with pytest.raises(ValueError, match="'own_cam' is taken by"):
        register_head("own_cam")(CAM)


def test_unknown_names_list_the_nearest(own_head: type[CAM]) -> None:
    with pytest.raises(InputError, match="unknown head 'camm': did you mean 'cam'"):
        create_head("camm", 4, 3)
    with pytest.raises(InputError, match="unknown option of head 'own_cam' 'scael': did you mean 'scale'"):
        create_head("own_cam", 4, 3, scael=1)


def test_zero_classes_are_refused() -> None:
    with pytest.raises(InputError, match="num_classes=0: a head needs at least one class"):
        create_head("cam", 4, 0)


def test_cam_is_the_classifier_laid_over_each_cell() -> None:
    """The second, independent computation: one classifier call a cell."""
    torch.manual_seed(0)
    head = create_head("cam", 5, 3).double()
    features = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    explained = head(features, "all")
    for row in range(3):
        for column in range(4):
            cell = head.classifier(features[:, :, row, column]) - head.classifier.bias
            torch.testing.assert_close(explained.maps[:, :, row, column], cell / 12)
