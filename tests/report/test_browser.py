"""The page in a real browser: a server of its own process, Debian's Chromium, a real run.

Screenshots of every view lie in build/screenshots afterwards.
"""

import dataclasses
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from matryoshka import api
from matryoshka.features.feature import Histogram
from matryoshka.run import Run

CHROMIUM = shutil.which("chromium")
SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
NASTY = "<script>alert(1)</script> \u202eRTL\u202c zero\u200bwidth 🙂🏽 <img src=x onerror=alert(2)>"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def run(featured: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("served") / "run"
    shutil.copytree(featured.path, folder)
    return Run(folder)


@pytest.fixture(scope="module")
def address(run: Run, featured: Run) -> Iterator[str]:
    """Two runs on one page."""
    command = [sys.executable, "-m", "matryoshka", "serve", str(run.path), str(featured.path), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert server.stdout is not None
    yield server.stdout.readline().split()[0]
    server.send_signal(signal.SIGINT)
    _, said = server.communicate(timeout=20)
    assert "Traceback" not in said


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """Anything on the console, an alert or a failed request is a failure."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
    # a reload aborts what is still loading
    page.on("requestfailed", lambda each: each.failure == "net::ERR_ABORTED" or faults.append(each.url))
    page.set_default_timeout(15_000)
    yield page
    page.close()
    assert not faults


def shown(page: Page, name: str) -> None:
    page.wait_for_timeout(150)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def test_the_list_opens_with_the_runs_facts(page: Page, address: str, run: Run) -> None:
    page.goto(address)
    expect(page.get_by_role("heading", level=1)).to_contain_text("1.mlp_in")
    expect(page.locator("#count")).to_have_text("256 features")
    body = page.locator("main")
    expect(body).to_contain_text(f"{api.store(run).about.tokens:,} tokens")
    expect(body).to_contain_text("BOS, the first token of each window, and attention sinks")
    expect(page.get_by_role("grid", name="Features")).to_have_attribute("aria-rowcount", "257")
    assert page.locator(".rows .row").count() < 100, "only visible rows are in the page"
    shown(page, "list")


def test_searching_sorting_and_filtering(page: Page, address: str, run: Run) -> None:
    columns = api.store(run).columns()
    word = max(
        api.store(run)[api.store(run).ranking("count")[3]].top_tokens, key=lambda each: len(each.token)
    ).token.strip()
    page.goto(address)
    page.get_by_role("searchbox").fill(word)
    texts = ["\n".join(parts).casefold() for parts in zip(columns["tokens"], columns["summary"], strict=True)]
    expected = sum(word.casefold() in text for text in texts)
    assert 0 < expected < 256
    expect(page.locator("#count")).to_have_text(re.compile(rf"^{expected} of 256 features"))
    page.get_by_role("searchbox").fill("")
    expect(page.locator("#count")).to_have_text("256 features")
    page.get_by_role("columnheader", name="Density").get_by_role("button").click()
    expect(page.get_by_role("columnheader", name="Density")).to_have_attribute("aria-sort", "descending")
    first = int(page.locator(".rows .row").first.locator(".c-index").inner_text())
    assert columns["density"][first] == pytest.approx(max(columns["density"]), rel=1e-3)
    page.get_by_role("checkbox", name=re.compile("Ring 1")).check()
    expect(page.locator("#count")).to_have_text(re.compile("^64 of 256"))
    dense = sum(bits >> 2 & 1 for bits in columns["flags"][32:96])
    page.get_by_role("button", name="Hide dense features").click()
    expect(page.locator("#count")).to_have_text(re.compile(f"^{64 - dense} of 256"))
    address_with_query = page.url
    page.reload()
    expect(page.locator("#count")).to_have_text(re.compile(f"^{64 - dense} of 256"))
    assert page.url == address_with_query
    shown(page, "filtered")


def test_a_feature_shows_its_evidence(page: Page, address: str, run: Run) -> None:
    index = api.store(run).ranking("count")[0]
    feature = api.store(run)[index]
    page.goto(f"{address}#/0/{index}")
    card = page.locator("article.card")
    expect(card).to_contain_text(f"{feature.statistics.count:,}")
    groups = card.locator("details.group")
    expect(groups).to_have_count(len(feature.groups))
    first = groups.first.locator("li.example").first
    expect(first).to_contain_text(f"document {feature.groups[0].examples[0].document}")
    assert first.locator("mark").count() >= 1
    first.locator("mark.peak").hover()
    expect(page.get_by_role("tooltip")).to_contain_text("position")
    first.get_by_role("button", name="whole window", exact=True).click()
    whole = "".join(feature.groups[0].examples[0].tokens)
    text = first.inner_text()
    assert all(word in text for word in whole.split()[2:12])
    for part in ("Activations", "Tokens", "Direct logit effect", "Neighbours"):
        expect(card.get_by_role("heading", name=part, exact=True)).to_be_visible()
    neighbour = feature.cosine[0].index
    card.locator(f'a[href*="#/0/{neighbour}"]').first.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text(api.store(run)[neighbour].summary)
    page.go_back()
    expect(page).to_have_url(re.compile(f"#/0/{index}"))
    shown(page, "feature")


def test_the_keyboard_reaches_everything(page: Page, address: str, run: Run) -> None:
    page.goto(address)
    expect(page.locator("#count")).to_have_text("256 features")
    page.keyboard.press("/")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.press("Escape")
    page.locator("h1").focus()
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"#/0/1\b"))
    expect(page.get_by_role("article", name="Feature 1")).to_be_visible()
    page.keyboard.press("n")
    expect(page.get_by_role("article", name="Feature 2")).to_be_visible()
    page.keyboard.press("p")
    expect(page).to_have_url(re.compile(r"#/0/1\b"))
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.keyboard.press("t")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before


def test_labels_and_notes_are_kept_and_are_only_text(page: Page, address: str, run: Run) -> None:
    page.goto(f"{address}#/0/7")
    page.get_by_role("button", name="Add a label").click()
    page.get_by_role("textbox", name="Label").fill(NASTY)
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("<script>alert(1)</script>")
    note = page.get_by_role("textbox", name="Note")
    note.fill("two\nlines")
    note.press("Control+Enter")
    expect(page.locator(".note-field .state")).to_contain_text("saved", ignore_case=True)
    page.reload()
    expect(page.get_by_role("heading", level=1)).to_contain_text("<script>alert(1)</script>")
    expect(page.get_by_role("textbox", name="Note")).to_have_value("two\nlines")
    assert (api.store(run)[7].label, api.store(run)[7].note) == (NASTY, "two\nlines")
    page.goto(f"{address}#/0?q=onerror")
    expect(page.locator("#count")).to_have_text(re.compile("^1 of 256"))
    shown(page, "labelled")


def test_an_explanation_is_a_name_until_there_is_a_label(page: Page, address: str, run: Run) -> None:
    api.store(run).explain({11: (f"fires on {NASTY}", "gpt-x"), 12: ("the token “of” (AUC 0.91)", "rule")})
    page.goto(f"{address}#/0/11")
    expect(page.locator("h1")).to_contain_text("fires on <script>alert(1)</script>")
    expect(page.locator(".explained")).to_have_text("Named by gpt-x")
    page.goto(f"{address}#/0/12")
    expect(page.locator(".explained")).to_have_text("Named by the rule that tells best where it fires")
    api.store(run).annotate(12, "mine")
    page.goto(f"{address}#/0?q=0.91")
    page.reload()
    expect(page.locator(".rows .row")).to_have_count(1)
    expect(page.locator(".rows .row a")).to_have_text("mine")
    page.goto(f"{address}#/0/12")
    expect(page.locator("h1")).to_contain_text("mine")
    expect(page.locator(".explained")).to_have_text(
        "the token “of” (AUC 0.91) (the rule that tells best where it fires)"
    )
    shown(page, "explained")


def test_a_text_of_ones_own(page: Page, address: str) -> None:
    page.goto(f"{address}#/0/try")
    page.get_by_role("textbox", name="Text").fill(f"The people of the United States {NASTY}")
    page.get_by_role("button", name="Show its features").click()
    firing = page.locator("ol.firing li")
    expect(firing.first).to_be_visible(timeout=60_000)
    expect(page.locator(".own")).to_contain_text("🙂")
    count = firing.count()
    assert count > 5
    page.locator(".own [role=button]").nth(3).click()
    page.wait_for_timeout(200)
    assert 0 < firing.count() < count
    shown(page, "try")
    firing.first.get_by_role("link").first.click()
    expect(page.locator("article.card")).to_be_visible()


def test_two_runs_side_by_side(page: Page, address: str) -> None:
    page.goto(f"{address}#/0/3/vs/1/5")
    expect(page.locator("article.card")).to_have_count(2)
    expect(page.get_by_role("region", name="Left feature")).to_contain_text("Feature 3")
    expect(page.get_by_role("region", name="Right feature")).to_contain_text("Feature 5")
    shown(page, "compare")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", ["0", "0/3", "0/3/vs/1/5", "0/try"])
def test_axe_finds_no_serious_violation(browser: Browser, address: str, view: str, scheme: str) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)  # pyright: ignore[reportArgumentType]
    page.goto(f"{address}#/{view}")
    page.wait_for_selector("h1")
    page.wait_for_timeout(300)
    shown(page, f"{view.replace('/', '-')}-{scheme}")
    context = browser.new_context(bypass_csp=True, color_scheme=scheme)  # pyright: ignore[reportArgumentType]
    page.close()
    page = context.new_page()
    page.goto(f"{address}#/{view}")
    page.wait_for_selector("h1")
    page.wait_for_timeout(300)
    found = Axe().run(page).response["violations"]
    context.close()
    assert [each["id"] for each in found if each["impact"] in ("serious", "critical")] == []


def test_on_a_telephone_nothing_is_cut_off(browser: Browser, address: str) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    for view in ("0", "0/3"):
        page.goto(f"{address}#/{view}")
        page.wait_for_selector("h1")
        page.wait_for_timeout(300)
        shown(page, f"{view.replace('/', '-')}-narrow")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


def test_the_exported_folder_opens_without_a_server(page: Page, run: Run, tmp_path: Path) -> None:
    busy = api.store(run).ranking("count")[0]
    api.store(run).annotate(busy, label="mine")
    index = api.export_page(run.path, tmp_path / "page")
    page.goto(index.as_uri())
    expect(page.locator("#count")).to_have_text("256 features")
    expect(page.get_by_role("link", name="Try a text")).to_have_count(0)
    page.goto(f"{index.as_uri()}#/0/{busy}")
    expect(page.get_by_role("heading", level=1)).to_contain_text("mine")
    expect(page.get_by_role("button", name="Edit label")).to_have_count(0)
    assert page.locator("li.example mark").count() > 3
    page.goto(f"{index.as_uri()}#/0/200")  # in another shard
    expect(page.locator("article.card")).to_contain_text("Feature 200")
    shown(page, "exported")


def test_a_notebook_shows_the_same_card(page: Page, run: Run, tmp_path: Path) -> None:
    index = api.store(run).ranking("count")[1]
    html = api.feature(run, index)._repr_html_()
    (tmp_path / "notebook.html").write_text(f"<!doctype html><meta charset=utf-8>{html}", encoding="utf-8")
    page.goto((tmp_path / "notebook.html").as_uri())
    card = page.frame_locator("iframe").locator("article.card")
    expect(card).to_contain_text(f"Feature {index}")
    assert card.locator("mark").count() > 3
    shown(page, "notebook")


def test_a_feature_of_a_single_activation_is_drawn(
    page: Page, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = api.store(run)
    feature = store[store.ranking("count")[1]]
    histogram = Histogram([0.597] * len(feature.histogram.edges), [7, *feature.histogram.counts[1:]])
    monkeypatch.setattr(type(store), "__getitem__", lambda *_: dataclasses.replace(feature, histogram=histogram))
    html = api.feature(run, feature.index)._repr_html_()
    (tmp_path / "notebook.html").write_text(f"<!doctype html><meta charset=utf-8>{html}", encoding="utf-8")
    page.goto((tmp_path / "notebook.html").as_uri())
    card = page.frame_locator("iframe").locator("article.card")
    bars = card.locator("svg.histogram rect.bar")
    expect(bars).to_have_count(1)
    assert float(bars.get_attribute("width") or "nan") > 5
    box, frame = card.locator("svg.histogram text").all(), card.locator("svg.histogram").bounding_box()
    assert frame is not None
    for label in box:
        inside = label.bounding_box()
        assert inside is not None
        assert frame["x"] <= inside["x"]
        assert inside["x"] + inside["width"] <= frame["x"] + frame["width"] + 0.5


def test_a_server_that_has_gone_away_is_one_clear_line(browser: Browser, run: Run) -> None:
    command = [sys.executable, "-m", "matryoshka", "serve", str(run.path), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    address = server.stdout.readline().split()[0]
    page = browser.new_page()
    page.goto(address)
    page.wait_for_selector(".rows .row")
    server.kill()
    server.communicate()
    page.goto(f"{address}#/0/11")
    expect(page.get_by_role("alert")).to_contain_text("server does not answer")
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    page.close()
