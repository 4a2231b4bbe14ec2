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
from planted_analyses import BLOBS, ROOTS, plant
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
    run = Run(folder)
    plant(run, api.store(run))
    return run


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


WATCHED = """() => {
    const { place } = matryoshka.Points.prototype;
    matryoshka.Points.prototype.place = function (...at) { window.points = this; place.apply(this, at); };
}"""
POINTS = """async () => {
    const box = points.canvas.getBoundingClientRect(), { features } = await matryoshka.source.map("0");
    const bytes = Uint8Array.from(atob(features), (character) => character.charCodeAt(0));
    const at = Array.from(points.x, (_, i) => points.on(i)).map(([x, y]) => [x + box.left, y + box.top]);
    return [at, [...new Uint32Array(bytes.buffer)]];
}"""
"""Where each point of the map lies in the window, and which feature it is."""


def open_map(page: Page, address: str) -> None:
    """The map, whose points the page's own functions then tell."""
    page.goto(address)
    expect(page.locator(".doors")).to_be_visible()
    page.evaluate(WATCHED)
    page.keyboard.press("m")
    expect(page.locator(".community")).to_have_count(BLOBS)
    page.wait_for_timeout(150)


def colours(page: Page) -> list[str]:
    return page.evaluate("points.groups.map(({colour}) => colour)")


def faint(page: Page) -> list[int]:
    """Of each point, whether it recedes."""
    return page.evaluate("[...points.faint]")


def shown(page: Page, name: str) -> None:
    page.wait_for_timeout(150)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def test_the_overview_comes_first(page: Page, address: str, run: Run) -> None:
    page.goto(address)
    expect(page.get_by_role("heading", level=1)).to_contain_text("1.mlp_in")
    body = page.locator("main")
    expect(body).to_contain_text(f"{api.store(run).about.tokens:,} tokens")
    expect(body).to_contain_text("BOS, the first token of each window, and attention sinks")
    fvu = api.results(run).of("FVU")
    curves, prefixes = page.get_by_role("img").all()
    expect(curves).to_have_attribute("aria-label", re.compile("over training, one curve for each prefix"))
    assert curves.locator("path[stroke-width='2.2']").count() == len(fvu)
    assert prefixes.locator("circle").count() == len(fvu)
    row = page.get_by_role("row").filter(has=page.get_by_role("button", name="FVU ↓", exact=True))
    expect(row).to_contain_text(f"{fvu[-1].value:.3f}")
    expect(row).to_contain_text(f"{fvu[-1].interval.low:.3f} – {fvu[-1].interval.high:.3f}")
    assert fvu[-1].null is not None
    expect(row).to_contain_text(f"{fvu[-1].null:.2f}")
    density = api.store(run).columns()["density"][:32]
    ring = page.get_by_role("row").filter(has=page.get_by_role("link", name="Ring 0"))
    firings = [round(x * api.store(run).about.tokens) for x in density]
    expect(ring.locator("td").nth(1)).to_have_text(str(sum(n >= 10 for n in firings)))
    expect(ring.locator("td").nth(3)).to_have_text(str(sum(n == 0 for n in firings)))
    expect(body).to_contain_text(
        "Not there yet: absorption, splitting, probing, monosemanticity, intervention. matryoshka eval RUN"
    )
    shown(page, "overview")
    ring.get_by_role("link").click()
    expect(page.locator("#count")).to_have_text("32 of 256 features")


def test_a_score_says_what_it_means_by_hover_and_by_key(page: Page, address: str) -> None:
    page.goto(address)
    page.get_by_role("button", name="CE recovered ↑", exact=True).hover()
    expect(page.get_by_role("tooltip")).to_contain_text("what replacing the site by its mean activation costs")
    page.mouse.move(0, 0)
    expect(page.get_by_role("tooltip")).to_have_count(0)
    page.get_by_role("link", name="Ring 2").focus()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="FVU ↓", exact=True)).to_be_focused()
    expect(page.get_by_role("tooltip")).to_contain_text("Fraction of variance unexplained")
    expect(page.get_by_role("tooltip")).to_contain_text("Lower is better. Chance: the reconstruction of another token")
    page.keyboard.press("Escape")
    expect(page.get_by_role("tooltip")).to_have_count(0)


def test_the_list_has_every_feature(page: Page, address: str) -> None:
    page.goto(address)
    page.locator(".doors").get_by_role("link", name="Features").click()
    expect(page.locator("#count")).to_have_text("256 features")
    expect(page.get_by_role("grid", name="Features")).to_have_attribute("aria-rowcount", "257")
    assert page.locator(".rows .row").count() < 100, "only visible rows are in the page"
    shown(page, "list")


def test_the_map_is_moved_and_read(page: Page, address: str, run: Run) -> None:
    open_map(page, address)
    stage, preview = page.get_by_role("application"), page.locator(".preview")
    at, features = page.evaluate(POINTS)
    assert len(at) == len(features) > 200
    point = at[10]
    page.mouse.move(*point)
    expect(preview.get_by_role("link")).to_contain_text(str(features[10]))
    expect(preview.locator("mark").first).to_be_visible()
    stage.focus()
    page.keyboard.press("+")
    page.keyboard.press("ArrowLeft")
    page.wait_for_timeout(150)
    moved, _ = page.evaluate(POINTS)
    assert abs(moved[10][0] - moved[40][0]) == pytest.approx(1.5 * abs(at[10][0] - at[40][0]), rel=0.01)
    page.keyboard.press("0")
    page.wait_for_timeout(150)
    assert page.evaluate(POINTS)[0] == at
    page.mouse.move(*point)
    page.mouse.wheel(0, -400)
    page.wait_for_timeout(150)
    assert page.evaluate(POINTS)[0][10] == pytest.approx(point, abs=2), "what is under the pointer stays there"
    shown(page, "map")
    page.mouse.click(*point)
    expect(page).to_have_url(f"{address}#/0/{features[10]}")
    page.get_by_role("link", name="On the map").click()
    expect(page).to_have_url(f"{address}#/0/map?feature={features[10]}")
    expect(preview.get_by_role("link")).to_contain_text(str(features[10]))


def test_the_map_is_coloured_searched_and_listed(page: Page, address: str, run: Run) -> None:
    open_map(page, address)
    before = colours(page)
    page.get_by_role("combobox", name="Colour").select_option("rings")
    expect(page.locator(".map-key")).to_have_text("Ring 0Ring 1Ring 2")
    page.wait_for_timeout(100)
    assert colours(page) != before
    expect(page).to_have_url(re.compile("colour=ring"))
    name = next(name for name in api.store(run).columns()["summary"] if name)
    word = name.split("’")[0].strip("‘")
    page.get_by_role("searchbox", name="Search the map").fill(word)
    found = page.locator(".map-found")
    expect(found.get_by_role("heading")).to_have_text(re.compile(r"^\d+ found$"))
    receding = faint(page)
    assert 0 < sum(receding) < len(receding)
    assert found.get_by_role("link").count() == min(30, len(receding) - sum(receding))
    page.get_by_role("searchbox").fill("")
    community = page.locator(".community").first
    community.locator("summary").focus()
    page.keyboard.press("Enter")
    page.wait_for_timeout(100)
    size = int(community.locator(".count").inner_text())
    assert faint(page).count(0) == size
    expect(page.locator(".dense-list summary")).to_have_text("2 dense features, set apart")
    community.get_by_role("link").first.click()
    expect(page.locator("article.card")).to_be_visible()


def test_the_tree_is_walked(page: Page, address: str, run: Run) -> None:
    page.goto(f"{address}#/0/tree")
    expect(page.locator(".lead")).to_contain_text("45 pairs")
    expect(page.locator(".lead")).to_contain_text("36 stand")
    roots = page.locator(".roots li")
    assert roots.count() >= ROOTS
    expect(roots.first).to_contain_text("3 children, 9 below")
    shown(page, "tree")
    roots.first.get_by_role("link").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Feature 0 in the tree")
    child = page.locator(".pair-list").first.locator(".pair-line").first
    expect(child).to_contain_text("gain 0.12 chance 0.030")
    child.locator("summary").click()
    expect(child.get_by_role("heading", name="Both fire")).to_be_visible()
    expect(child.locator(".passages li")).to_contain_text("parent")
    assert child.locator("mark").count() >= 2, "parent and child at their strongest"
    suspects = page.locator("section").filter(has=page.get_by_role("heading", name="Where it should have fired"))
    expect(suspects.locator(".pair-line")).to_have_count(2)
    suspects.locator("summary").first.click()
    expect(suspects.locator(".passages li").first).to_contain_text("parent –, child 2.50")
    shown(page, "tree-of-a-feature")
    page.locator(".family .children a").first.click()
    expect(page.locator(".family .parents a")).to_have_attribute("href", "#/0/tree/0")
    page.keyboard.press("Escape")
    expect(page.get_by_role("heading", level=1)).to_have_text("Tree of features")


def test_a_features_page_shows_its_family(page: Page, address: str) -> None:
    page.goto(f"{address}#/0/32")
    family = page.locator(".family")
    expect(family.get_by_role("list", name="Parents").get_by_role("link")).to_have_attribute("href", "#/0/0")
    expect(family.get_by_role("list", name="Children").get_by_role("link")).to_have_count(2)
    family.get_by_role("list", name="Parents").get_by_role("link").click()
    expect(page.get_by_role("article", name="Feature 0")).to_be_visible()


def test_what_is_not_there_yet_is_said_with_its_command(page: Page, address: str) -> None:
    page.goto(f"{address}#/1/map")  # the second run, where nothing was analysed
    for kind in ("map", "clusters"):
        expect(page.locator("main")).to_contain_text(
            f"Not looked for yet; find it with: matryoshka analyze RUN --only {kind}"
        )
    page.goto(f"{address}#/1/tree")
    expect(page.locator("main")).to_contain_text("matryoshka analyze RUN --only hierarchy")
    page.goto(f"{address}#/1")
    expect(page.locator(".doors .closed")).to_have_count(3)


def test_a_damaged_file_is_a_line_and_never_a_broken_view(page: Page, address: str, run: Run) -> None:
    for name in ("map", "clusters", "hierarchy"):
        file = run.analysis / f"{name}.json"
        whole = file.read_text()
        file.write_text(whole.replace('"details"', '"detail"'))
        try:
            page.goto("about:blank")
            page.goto(f"{address}#/0/{'tree' if name == 'hierarchy' else 'map'}")
            expect(page.locator("main .problem")).to_have_text(
                f"analysis/{name}.json: damaged (details: Field required)"
            )
            page.goto(f"{address}#/0")
            expect(page.locator(".score-groups")).to_contain_text(f"analysis/{name}.json: damaged")
        finally:
            file.write_text(whole)
    page.goto("about:blank")
    page.goto(f"{address}#/0/32")
    expect(page.locator(".family")).to_be_visible()


def test_searching_sorting_and_filtering(page: Page, address: str, run: Run) -> None:
    columns = api.store(run).columns()
    word = max(
        api.store(run)[api.store(run).ranking("count")[3]].top_tokens, key=lambda each: len(each.token)
    ).token.strip()
    page.goto(f"{address}#/0/features")
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
    expect(page.locator(".doors")).to_be_visible()
    for key, there in (("m", ".stage"), ("h", ".roots"), ("o", ".doors"), ("l", ".rows")):
        page.keyboard.press(key)
        expect(page.locator(there)).to_be_visible()
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
    page.goto(f"{address}#/0/features?q=onerror")
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
    page.goto(f"{address}#/0/features?q=0.91")
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
@pytest.mark.parametrize("view", ["0", "0/features", "0/map", "0/tree", "0/tree/0", "0/32", "0/3/vs/1/5", "0/try"])
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
    for view in ("0", "0/features", "0/map", "0/tree", "0/tree/0", "0/32"):
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
    expect(page.locator(".doors")).to_be_visible()
    page.keyboard.press("l")
    expect(page.locator("#count")).to_have_text("256 features")
    expect(page.get_by_role("link", name="Try a text")).to_have_count(0)
    page.goto(f"{index.as_uri()}#/0/{busy}")
    expect(page.get_by_role("heading", level=1)).to_contain_text("mine")
    expect(page.get_by_role("button", name="Edit label")).to_have_count(0)
    assert page.locator("li.example mark").count() > 3
    page.goto(f"{index.as_uri()}#/0/200")  # in another shard
    expect(page.locator("article.card")).to_contain_text("Feature 200")
    shown(page, "exported")
    page.goto(f"{index.as_uri()}#/0/map")
    expect(page.locator(".community")).to_have_count(BLOBS)
    page.goto(f"{index.as_uri()}#/0/tree/0")
    page.locator(".pair-line summary").first.click()
    expect(page.locator(".passages li").first).to_contain_text("parent")


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
    page.wait_for_selector(".doors")
    server.kill()
    server.communicate()
    page.goto(f"{address}#/0/11")
    expect(page.get_by_role("alert")).to_contain_text("server does not answer")
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    page.close()
