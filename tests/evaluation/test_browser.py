"""The page of a comparison, used as a reader does, in headless Chromium."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from chromium import EXECUTABLE, Page, chromium
from judged import judged, method, small_model

from glasszoo.data import create_dataset
from glasszoo.evaluation.browser import side_of_maps, write_browser
from glasszoo.evaluation.exhibits import Exhibit, exhibit, shown_classes, spread_places
from glasszoo.evaluation.sheet import Sheet
from glasszoo.models import Preprocessing

CLASSES = ("horned </script><b>fan", "rust", "phoma")
needs_chromium = pytest.mark.skipif(EXECUTABLE is None, reason="Chromium is not installed (.ci/run installs Debian's)")


def some_sheet() -> Sheet:
    cam = [
        method("built-in", {"insertion": 0.7, "deletion": 0.2}, "built-in"),
        method("grad-cam", {"insertion": 0.6, "deletion": 0.4}),
        method("random", {"insertion": 0.3, "deletion": 0.3}, "control"),
    ]
    for way in cam[:2]:
        way.curves = {"insertion": torch.linspace(0, 1, 5), "deletion": torch.linspace(1, 0, 5)}
    dark = [method("grad-cam", {"insertion": 0.8, "deletion": torch.nan})]
    with_names = {"class_names": CLASSES}
    seen = small_model("black_box")
    seen.config = replace(seen.config, preprocessing=Preprocessing((3, 96, 96)))  # two views of each image
    return Sheet(
        [
            ("a_rather_long_name_of_a_model.with_a_tag", judged(cam, **with_names)),
            ("dark", judged(dark, 2, model=seen, **with_names)),
        ]
    )


def some_exhibits(sheet: Sheet) -> dict[str, Exhibit]:
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(4, 64, 64, dtype=torch.bool)
    masks[:3, 10:30, 10:30] = True
    exhibits = {}
    for name, evaluation in sheet.evaluations.items():
        shown = [way.name for way in evaluation.methods if way.kind != "control"]
        maps = {way: torch.randn(4, 3, 5, 6, generator=generator) for way in shown}
        maps["grad-cam"][3, 0] = torch.nan  # a broken map must not break the page
        pictures = torch.randint(0, 255, (4, 64, 64, 3), generator=generator, dtype=torch.uint8)
        units = dict.fromkeys(shown, "units of its own") | {"built-in": "logits"}
        exhibits[name] = Exhibit(sheet.first.ids, pictures, masks, maps, units, 32)
    return exhibits


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sheet = some_sheet()
    classes = shown_classes(list(sheet.evaluations.values()))
    path = tmp_path_factory.mktemp("page") / "sheet.html"
    dataset = create_dataset("critters", "test", count=4)
    write_browser(path, sheet, "Two models", some_exhibits(sheet), classes, dataset, command="glasszoo compare …")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium() as page:
        yield page


def opened(browser: Page, file: Path, fragment: str = "", width: int = 1280) -> None:
    browser.troubles.clear()
    browser.requests.clear()
    browser.open(file.as_uri() + fragment, width)
    browser.wait_for("document.getElementById('browser').dataset.shown !== undefined")


def column(browser: Page, place: int) -> list[str]:
    return browser.evaluate(f"[...document.querySelectorAll('#sheet tbody tr')].map(r => r.cells[{place}].textContent)")


def canvases(browser: Page) -> list[Any]:
    return browser.evaluate("[...document.querySelectorAll('#maps canvas')].map(canvas => canvas.toDataURL())")


@needs_chromium
def test_the_table_is_sorted_by_a_heading(browser: Page, page_file: Path) -> None:
    opened(browser, page_file)
    title = "insertion ↑"
    press = f"[...document.querySelectorAll('#sheet th button')].find(b => b.textContent === '{title}')"
    place = browser.evaluate(f"[...document.querySelectorAll('#sheet th')].indexOf({press}.parentNode)")
    assert [cell[:5] for cell in column(browser, place)] == ["0.700", "0.600", "0.300", "0.800"]
    browser.evaluate(f"{press}.click()")
    assert [cell[:5] for cell in column(browser, place)] == ["0.800", "0.700", "0.600", "0.300"], "the best first"
    assert browser.evaluate(f"{press}.parentNode.getAttribute('aria-sort')") == "descending"
    # By the keyboard, and in reverse.
    browser.evaluate(f"{press}.focus()")
    for kind in ("keyDown", "keyUp"):
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
        browser.command("Input.dispatchKeyEvent", type=kind, **key)
    assert [cell[:5] for cell in column(browser, place)] == ["0.300", "0.600", "0.700", "0.800"]
    # Without a number a row stays at the end, either way.
    press = press.replace(title, "deletion ↓")
    for first in ("0.200", "0.400"):
        browser.evaluate(f"{press}.click()")
        cells = column(browser, place + 1)
        assert cells[0].startswith(first) and cells[-1] == "–"


@needs_chromium
def test_front_plots_and_correlations_are_there(browser: Page, page_file: Path) -> None:
    opened(browser, page_file)
    assert browser.evaluate("[...document.querySelectorAll('tr.front td:first-child')].map(c => c.textContent)") == [
        "1 ◆", "4 ◆",
    ]  # fmt: skip
    assert browser.evaluate("document.querySelectorAll('#scatter circle').length") == 4
    assert browser.evaluate("document.querySelectorAll('#curves svg').length") == 2
    before = browser.evaluate("document.getElementById('curves').innerHTML")
    select = "const s = document.getElementById('curves-of'); s.selectedIndex = s.options.length - 1;"
    browser.evaluate(f"(() => {{{select} s.dispatchEvent(new Event('change'))}})()")
    assert browser.evaluate("document.getElementById('curves').innerHTML") != before
    assert "Spearman" in browser.evaluate("document.body.textContent")


@needs_chromium
def test_image_class_and_scale_change_what_is_drawn(browser: Page, page_file: Path) -> None:
    opened(browser, page_file)
    first = canvases(browser)
    assert len(first) == 2 + 3, "two views of the image, three maps, no control"
    for chosen, shown in (
        ("document.querySelectorAll('#images button')[2].click()", "2,0,view"),
        ("const c = document.getElementById('class'); c.value = 1; c.dispatchEvent(new Event('change'))", "2,1,view"),
        (
            "const s = document.getElementById('scale'); s.value = 'map'; s.dispatchEvent(new Event('change'))",
            "2,1,map",
        ),
        ("const o = document.getElementById('outline'); o.click()", "2,1,map"),
    ):
        browser.evaluate("document.getElementById('browser').removeAttribute('data-shown')")
        browser.evaluate(f"(() => {{{chosen}}})()")
        browser.wait_for(f"document.getElementById('browser').dataset.shown === '{shown}'")
        now = canvases(browser)
        changed = [old != new for old, new in zip(first, now, strict=True)]
        # By a map's own scale at least one looks different: on a common one only the strongest is at the limit.
        assert all(changed[2:]) if not shown.endswith("map") else any(changed), shown
        first = now
    assert browser.evaluate("location.hash") == "#image=2&class=1&scale=map"


@needs_chromium
def test_a_link_opens_its_image_and_class(browser: Page, page_file: Path) -> None:
    opened(browser, page_file)
    default = canvases(browser)
    opened(browser, page_file, "#image=1&class=2&scale=page")
    assert browser.evaluate("document.getElementById('browser').dataset.shown") == "1,2,page"
    assert canvases(browser)[2:] != default[2:]
    opened(browser, page_file, "#image=99&class=-4&scale=nonsense")
    assert browser.evaluate("document.getElementById('browser').dataset.shown") == "3,0,view"
    assert "not finite" in browser.evaluate("document.getElementById('maps').textContent"), "the broken map is named"


@needs_chromium
def test_a_colour_is_what_the_map_says(browser: Page, page_file: Path) -> None:
    """Red where the strongest cell speaks for the class, by the palette of all our pictures."""
    sheet = some_sheet()
    maps = next(iter(some_exhibits(sheet).values())).maps["built-in"]
    opened(browser, page_file, "#image=0&class=0&scale=map")
    cells = maps[0, 0]
    row, place = divmod(int(cells.abs().argmax()), cells.shape[1])
    at = (
        f"[0, 1, 2, 3].map(c => p[4 * (Math.round(({row} + .5) / 5 * h) * w + Math.round(({place} + .5) / 6 * w)) + c])"
    )
    pixel = browser.evaluate(
        "(() => {const c = document.querySelector('canvas[data-method=built-in]'), w = c.width, h = c.height,"
        f"p = c.getContext('2d').getImageData(0, 0, w, h).data; return {at}}})()"
    )
    assert pixel[3] == 255 and (pixel[0] > pixel[2] + 40) == bool(cells[row, place] > 0)
    assert abs(pixel[0] - pixel[2]) > 40


@needs_chromium
@pytest.mark.parametrize("width", [1280, 400])
def test_no_errors_no_requests_no_overflow(browser: Page, page_file: Path, width: int) -> None:
    opened(browser, page_file, width=width)
    browser.evaluate("document.querySelectorAll('#images button')[1].click()")
    browser.wait_for("document.getElementById('browser').dataset.shown.startsWith('1,')")
    assert browser.troubles == []
    assert {address.partition(":")[0] for address in browser.requests} <= {"file", "data", "about"}
    assert {address for address in browser.requests if address.startswith("file:")} == {page_file.as_uri()}
    assert browser.evaluate("document.documentElement.scrollWidth") <= width


@needs_chromium
def test_the_client_would_notice(browser: Page, tmp_path: Path) -> None:
    """What the test above relies on: errors, requests and overflow do come through."""
    wrong = "<script>console.error('oh'); undefinedThing()</script><img src='http://127.0.0.1:9/x.png'>"
    wrong += "<div style='width:999px'>wide</div>"
    (tmp_path / "wrong.html").write_text(
        f"<!doctype html><meta name=viewport content='width=device-width, initial-scale=1'>{wrong}"
    )
    browser.troubles.clear()
    browser.requests.clear()
    browser.open((tmp_path / "wrong.html").as_uri(), 400)
    browser.wait_for("document.readyState === 'complete'")
    assert len(browser.troubles) >= 2 and any(address.startswith("http:") for address in browser.requests)
    assert browser.evaluate("document.documentElement.scrollWidth") > 400


def test_the_page_names_nothing_outside_itself(page_file: Path) -> None:
    text = page_file.read_text()
    assert not re.search(r"""(src|href)=["']?(?!data:)\w|@import|fetch\(|XMLHttp""", text)
    assert "</script><b>" not in text, "names cannot break out of the data"


def test_maps_fit_into_the_page() -> None:
    many = [judged([method(str(number), {}) for number in range(10)])] * 10
    assert side_of_maps(many[:1], 16, 4) == 32
    side = side_of_maps(many, 16, 4)
    assert side < 32 and 16 * 4 * 100 * side**2 * 4 / 3 <= 5e6


def test_exhibits_hold_the_models_own_maps() -> None:
    dataset = create_dataset("critters", "test", count=6, size=64)
    model = small_model()
    ids = [f"test/{number}" for number in range(6)]
    evaluation = judged(
        [method("built-in", {}, "built-in"), method("random", {}, "control")],
        ids=ids, labels=torch.arange(6) % 3, logits=torch.randn(6, 3),
    )  # fmt: skip
    classes = shown_classes([evaluation])
    assert list(classes) == ids and [own[0] for own in classes.values()] == [0, 1, 2, 0, 1, 2]
    assert all(len(set(own)) == 3 for own in classes.values())
    places = spread_places(dataset, 4)
    assert places == [0, 1, 3, 4]
    full = exhibit(evaluation, dataset, places, classes, side=32, progress=False)
    assert full.ids == [ids[place] for place in places] and list(full.maps) == ["built-in"]
    images = torch.stack([model.preprocess(dataset[place])["image"] for place in places])
    with torch.no_grad():
        out = model(images, torch.tensor([classes[identifier] for identifier in full.ids]))
    cells = out.maps.shape[-2] * out.maps.shape[-1]
    torch.testing.assert_close(full.maps["built-in"], out.maps * cells)
    small = exhibit(evaluation, dataset, places, classes, side=2, progress=False)
    assert small.maps["built-in"].shape[-2:] == (2, 2)
    torch.testing.assert_close(small.maps["built-in"].mean((-2, -1)), full.maps["built-in"].mean((-2, -1)))
