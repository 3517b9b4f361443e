"""The page of ``whet inspect`` in a browser: what a person sees and can do. Skipped where there is no Chromium."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.browser import Page, browser, find_browser
from tests.e2e.conftest import CONFIG, chat, write_rows
from tests.models import save_tiny_model

from whet.cli.main import run_command

SCRIPT = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> &amp; <b>b</b>"
OVERRIDE = "a\u202eb\x00c"
SMILE = "\U0001f642"
SEQUENCE_LEN = 256
MORE = "excess_length_strategy: truncate\nval_set_size: 4\n"
ROWS = [
    chat(SCRIPT, "Safe."),
    chat("Which way? " + OVERRIDE, "\u0645\u0631\u062d\u0628\u0627"),
    chat("Smile " + SMILE, "Two  spaces"),
    chat("Count.", "one two three " * 60),
    *(chat(f"What is {n} + 1?", f"It is {n + 1}.") for n in range(30)),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page of these rows, made by the command."""
    folder = tmp_path_factory.mktemp("inspect")
    save_tiny_model(folder / "model")
    write_rows(folder / "rows.jsonl", ROWS)
    (folder / "my.yaml").write_text(CONFIG.replace("sequence_len: 128", f"sequence_len: {SEQUENCE_LEN}") + MORE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run_command(["inspect", "my.yaml"]) == 0
    return (folder / "out" / "inspect-my.html").as_uri()


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    command = find_browser()
    if command is None:
        pytest.skip("NOT TESTED IN A BROWSER: no chromium or google-chrome is installed (apt-get install chromium)")
    with browser(command, tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(tab: Page) -> Iterator[Page]:
    """The tab, which must end without an error in its console and without a request to the network."""
    tab.errors.clear()
    yield tab
    assert tab.errors == []
    assert [request for request in tab.requests if not request.startswith(("file:", "data:"))] == []


def texts(page: Page, selector: str) -> list[str]:
    found: list[str] = page.evaluate(f"[...document.querySelectorAll({selector!r})].map(each => each.textContent)")
    return found


def places(page: Page) -> list[str]:
    return [place.removeprefix("rows.jsonl:") for place in texts(page, "#rows .place")]


def row_number(page: Page, place: int) -> int:
    number: int = page.evaluate(f"DATA.rows.findIndex(row => row.at === 'rows.jsonl:{place}')")
    return number


def test_a_row_is_shown_as_its_text_and_cannot_run(page: Page, address: str) -> None:
    page.open(f"{address}#search=onerror")
    assert places(page) == ["1"]
    assert SCRIPT in "".join(texts(page, "#rows .tok"))
    assert page.evaluate("document.title") == "my: whet inspect"
    assert page.evaluate("document.querySelectorAll('img, #rows b').length") == 0


def test_what_would_hide_or_turn_text_is_a_sign(page: Page, address: str) -> None:
    page.open(f"{address}#search=Which")
    shown = "".join(texts(page, "#rows .tok"))
    assert "a‹U+202E›b‹NUL›c" in shown
    assert "\u0645\u0631\u062d\u0628\u0627" in shown
    assert not set(shown) & {"\u202e", "\x00"}


def test_trained_tokens_look_different_and_are_the_answer(page: Page, address: str) -> None:
    page.open(f"{address}#search=Safe.")
    assert "".join(texts(page, "#rows .tok.sup")) == "Safe.<|im_end|>"
    colours = page.evaluate(
        "['sup', 'spec'].map(name => getComputedStyle(document.querySelector(`#rows .tok.${name}`)).backgroundColor)"
    )
    plain = page.evaluate("getComputedStyle(document.querySelector('#rows .tok:not(.sup):not(.spec)')).backgroundColor")
    assert len({*colours, plain}) == 3


def test_filters_and_search_agree_with_the_data(page: Page, address: str) -> None:
    page.open(f"{address}#split=validation")
    assert len(places(page)) == 4
    assert page.evaluate("document.getElementById('count').textContent") == f"4 of {len(ROWS)} rows"
    page.open(f"{address}#warning=cut")
    assert places(page) == ["4"]
    page.open(f"{address}#min=60&sort=longest")
    lengths = page.evaluate("chosenRows().map(row => row.len)")
    assert lengths == sorted(lengths, reverse=True)
    assert min(lengths) >= 60
    page.open(f"{address}#search=nothing+like+this")
    assert texts(page, "#rows .none") == ["No row passes these filters."]


def test_typing_a_search_narrows_the_list_and_show_all_widens_it(page: Page, address: str) -> None:
    page.open(address)
    page.evaluate("{ const box = document.querySelector('[name=search]'); box.value = 'it is 7.';"
             "box.dispatchEvent(new Event('input', {bubbles: true})); }")  # fmt: skip
    page.wait("location.hash.includes('search=it+is+7.')")
    assert places(page) == ["11"]
    assert "".join(texts(page, "#rows .hit")).lower().strip() == "it is 7."
    page.evaluate("document.getElementById('reset').click()")
    assert len(places(page)) >= 20


def test_more_rows_come_when_they_are_asked_for(page: Page, address: str) -> None:
    page.open(address)
    page.evaluate("document.getElementById('more').click()")
    assert len(places(page)) == len(ROWS)


def test_white_space_is_shown_on_demand(page: Page, address: str) -> None:
    page.open(f"{address}#search=Two")
    assert "Two  spaces" in "".join(texts(page, "#rows .tok"))
    page.evaluate("document.getElementById('whitespace').click()")
    assert "Two··spaces" in "".join(texts(page, "#rows .tok"))
    assert any("↵" in text for text in texts(page, "#rows .tok"))


def test_what_was_cut_away_is_shown_as_such(page: Page, address: str) -> None:
    page.open(f"{address}#warning=cut")
    assert "".join(texts(page, "#rows .tok")).count("three") == 60
    assert texts(page, "#rows .cutmark")[0].startswith("cut here:")
    kept = page.evaluate("document.querySelectorAll('#rows .tok:not(.cut)').length")
    assert kept == SEQUENCE_LEN


def test_a_token_tells_its_id_label_place_and_bytes(page: Page, address: str) -> None:
    page.open(f"{address}#search=Smile")
    page.evaluate(
        f"[...document.querySelectorAll('#rows .tok')].find(each => each.textContent.includes('{SMILE}')).click()"
    )
    tip = "".join(texts(page, "#tip"))
    assert not page.evaluate("document.getElementById('tip').hidden")
    assert "-100 (not trained)" in tip
    assert "f0 | 9f | 99 | 82" in tip
    assert "4 tokens of one character" in tip
    assert "roleuser" in tip


def test_arrow_keys_go_from_token_to_token(page: Page, address: str) -> None:
    page.open(f"{address}#search=Safe.")
    page.evaluate("document.querySelector('#rows .tok[tabindex=\"0\"]').focus()")
    focused = "document.activeElement.dataset.at"
    assert page.evaluate(focused) == "0"
    page.press("ArrowRight")
    page.press("ArrowRight")
    assert page.evaluate(focused) == "2"
    assert "position2" in "".join(texts(page, "#tip"))
    page.press("End")
    assert page.evaluate("document.activeElement.textContent") == "\n"
    page.press("Escape")
    assert page.evaluate("document.getElementById('tip').hidden")
    assert page.evaluate("document.querySelectorAll('#rows .tok[tabindex=\"0\"]').length") == 1


def test_a_link_leads_to_a_row_and_a_token(page: Page, address: str) -> None:
    page.open(address)
    page.open(f"{address}#row={row_number(page, 3)}&token=3")
    assert places(page) == ["3"]
    assert page.evaluate("document.activeElement.dataset.at") == "3"


def test_packs_show_their_documents_and_the_borders_between_them(page: Page, address: str) -> None:
    page.open(f"{address}#view=packs")
    packs = page.evaluate("DATA.packs.first")
    assert page.evaluate("document.querySelectorAll('.pack').length") == len(packs)
    number = next(number for number, members in enumerate(packs) if len(members) > 1)
    page.evaluate(f"document.querySelectorAll('.pack')[{number}].open = true")
    page.wait("document.querySelector('.pack[open] .tok')")
    assert len(texts(page, ".pack[open] .border")) == len(packs[number])
    tokens = page.evaluate(
        "[...document.querySelectorAll('.pack[open] .tok:not(.cut)')].map(each => Number(each.dataset.position))"
    )
    assert tokens.count(0) == len(packs[number])


def test_figures_count_every_sample_and_a_bar_shows_its_rows(page: Page, address: str) -> None:
    page.open(f"{address}#view=figures")
    page.wait("document.querySelectorAll('#figures svg').length === 3")
    bar = "document.querySelector('#figures .bin[role=button]')"
    page.evaluate(f"{bar}.dispatchEvent(new KeyboardEvent('keydown', {{key: 'Enter'}}))")
    assert page.evaluate("currentView()") == "rows"
    low, high = (int(page.evaluate(f"state.get('{name}')")) for name in ("min", "max"))
    lengths = page.evaluate("DATA.rows.map(row => row.len)")
    assert len(page.evaluate("chosenRows()")) == sum(low <= length <= high for length in lengths) > 0


@pytest.mark.parametrize("view", ["rows", "packs", "figures", "account"])
@pytest.mark.parametrize("width", [400, 768, 1280])
def test_no_view_is_wider_than_its_window(page: Page, address: str, view: str, width: int) -> None:
    page.open(f"{address}#view={view}", width=width)
    if view == "packs":
        page.evaluate("document.querySelector('.pack').open = true")
        page.wait("document.querySelector('.pack[open] .tok')")
    if view == "figures":
        page.wait("document.querySelector('#figures svg')")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_light_and_dark_follow_the_system_and_the_switch(page: Page, address: str) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    page.open(address, dark=False)
    light = page.evaluate(ground)
    page.open(address, dark=True)
    dark = page.evaluate(ground)
    assert light != dark
    page.evaluate("document.getElementById('theme').click(); document.getElementById('theme').click()")
    assert page.evaluate(ground) == light


def test_everything_that_can_be_used_has_a_name(page: Page, address: str) -> None:
    for view in ("rows", "packs", "figures", "account"):
        page.open(f"{address}#view={view}")
        if view == "figures":
            page.wait("document.querySelector('#figures svg')")
        nameless = page.evaluate(
            """[...document.querySelectorAll('button, input, select, a, svg, summary, [role=button], [role=img]')]
                .filter(each => each.checkVisibility())
                .filter(each => !(each.textContent.trim() || each.ariaLabel || [...each.labels ?? []].length))
                .map(each => each.outerHTML)"""
        )
        assert nameless == []
