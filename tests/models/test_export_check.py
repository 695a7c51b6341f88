"""The check of an exported program: what it lets pass, and what not."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import glasszoo
from glasszoo.common.errors import InputError
from glasszoo.models import ImageClassifier
from glasszoo.models.export_check import Program, Runner, check


@pytest.fixture
def model() -> ImageClassifier:
    torch.manual_seed(0)
    model = glasszoo.create_model("test_resnet", head="protopnet", num_classes=5).eval()
    torch.nn.init.normal_(model.get_classifier().prototypes)
    return model


def changed(program: Program, name: str, change: Callable[[Tensor], Tensor]) -> Runner:
    """The program, but for one output."""

    def run(images: Tensor) -> dict[str, Tensor]:
        outputs = program(images)
        return outputs | {name: change(outputs[name])}

    return run


def test_the_program_itself_passes(model: ImageClassifier) -> None:
    done = check(program := Program(model, 2, False), program)
    assert done.gap == 0 and done.shapes[1:] == ((3, 3, 96, 224), (2, 3, 131, 177))


@pytest.mark.parametrize("name", ["logits", "maps", "offset", "parts"])
def test_every_output_counts(model: ImageClassifier, name: str) -> None:
    program = Program(model, 2, False)
    scale = program(program.noise((1, 3, 160, 160), 0))["logits"].abs().max()
    check(program, changed(program, name, lambda tensor: tensor + 1e-6 * scale))
    with pytest.raises(InputError, match="the exported program is off by"):
        check(program, changed(program, name, lambda tensor: tensor + 10 * scale))
    with pytest.raises(InputError, match="off by inf"):
        check(program, changed(program, name, lambda tensor: tensor * torch.nan))
    with pytest.raises(InputError, match="off by inf"):
        check(program, changed(program, name, lambda tensor: tensor[..., :1]))


def test_classes_must_be_the_best_ones_up_to_ties(model: ImageClassifier) -> None:
    program = Program(model, 2, False)

    def last(images: Tensor) -> dict[str, Tensor]:
        return Program(model, lambda logits: logits.argsort(1)[:, :2], False)(images)  # type: ignore[arg-type]

    with pytest.raises(InputError, match="off by"):
        check(program, last)
    torch.nn.init.zeros_(model.get_classifier().connection.weight)
    assert check(program, last).gap == 0


def test_a_tie_between_cells_befalls_one_draw(model: ImageClassifier) -> None:
    """Maps that differ once are drawn anew; the same difference on every draw is none of rounding's."""
    program = Program(model, 1, False)
    calls: list[int] = []

    def once(images: Tensor) -> dict[str, Tensor]:
        calls.append(1)
        return changed(program, "maps", lambda maps: maps.flip(-1) if len(calls) == 1 else maps)(images)

    assert check(program, once).gap == 0
    assert len(calls) == 4


def test_what_fails_to_run_is_refused(model: ImageClassifier) -> None:
    def fails(images: Tensor) -> dict[str, Tensor]:
        raise AssertionError("Guard failed: 20\nand more")

    with pytest.raises(InputError, match=r"fails on images of shape \(1, 3, 160, 160\): Guard failed: 20$"):
        check(Program(model, 1, False), fails)
