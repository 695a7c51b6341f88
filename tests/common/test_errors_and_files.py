"""Errors name the nearest; files survive what goes wrong while writing."""

import stat
from pathlib import Path

import pytest

from glasszoo.common.errors import unknown_name
from glasszoo.common.files import replacing, write_text


@pytest.mark.parametrize(
    ("name", "known", "message"),
    [
        ("restnet50", ["resnet50", "vgg16"], "unknown x 'restnet50': did you mean 'resnet50'?"),
        ("CAM", ["cam", "gmp"], "unknown x 'CAM': did you mean 'cam'?"),
        ("zzz", ["b", "a"], "unknown x 'zzz': known: a, b"),
        ("zzz", [], "unknown x 'zzz': none is known"),
    ],
)
def test_unknown_names(name: str, known: list[str], message: str) -> None:
    assert str(unknown_name("x", name, known)) == message


def test_a_replaced_file_is_whole_and_readable(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.txt"
    write_text(target, "one")
    write_text(target, "two")
    assert target.read_text() == "two"
    assert [path.name for path in target.parent.iterdir()] == ["file.txt"]
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_error_while_writing_keeps_the_old_file(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "file.txt"
    write_text(target, "old")
    with pytest.raises(type(error)), replacing(target) as temporary:
        temporary.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
