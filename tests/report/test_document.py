"""A report's page: names stay text whatever they hold, figures are drawn into it, tables and headings are told."""

from html.parser import HTMLParser
from pathlib import Path

import pytest

from matryoshka.report.chapters import linked
from matryoshka.report.document import html, inlined
from matryoshka.report.markdown import plain

NASTY = (
    "</td><script>alert(1)</script> [x](javascript:alert(2)) ![y](http://a.b/c.png) `*_|&lt; <img src=x onerror=z> 1. #"
)
SVG = b"""<?xml version="1.0"?><!DOCTYPE svg><svg xmlns:xlink="http://www.w3.org/1999/xlink" width="3pt" height="2pt"
 viewBox="0 0 3 2" xmlns="http://www.w3.org/2000/svg"><metadata>when</metadata><defs>
 <style type="text/css">*{fill: red}</style></defs>
<g id="patch_1"><path d="M0 0" style="fill: #ffffff"/></g><g id="dots"><path id="dot" d="M0 0"/><use xlink:href="#dot"
 clip-path="url(#frame)" style="fill: #ffffff"/></g></svg>"""


class Read(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def page(tmp_path: Path) -> Read:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "a b.svg").write_bytes(SVG)
    (tmp_path / "figures" / "c.svg").write_bytes(SVG)
    name = plain(NASTY)
    lines = ["# Findings: <it>", "", "## One", "", f"- {name}", "", "|  | name | value |", "| --- | --- | --- |"]
    lines += [f"| 3 | {name.replace('|', chr(92) + '|')} | 1.50 % (1.0 % – 2.0 %; null –) |", "", "## One", ""]
    lines += [
        "Of others' reports: <b onclick=x>bold</b>",
        "",
        "![first: y against x](<figures/a b.svg>)",
        "",
        "![second](figures/c.svg)",
    ]
    return Read(html(lines, tmp_path))


def test_what_names_hold_is_text(page: Read) -> None:
    assert page.text.count(NASTY) == 2, "in a list and in a table"
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"b", "script", "img", "iframe", "link", "object"}
    assert [link["href"] for link in page.of("a")] == ["#content", "#one", "#one-1"]
    assert "default-src 'none'" in str(page.of("meta"))
    given = [item for _, attributes in page.elements for item in attributes.items() if not item[0].startswith("xmlns")]
    assert not [value for _, value in given if "://" in (value or "")]


def test_headings_are_found_and_numbers_stand_in_columns(page: Read) -> None:
    assert [heading["id"] for heading in page.of("h2")] == ["one", "one-1"]
    assert page.of("td")[0] == {}, "an empty head is none"
    assert [cell.get("class") for cell in page.of("td")[1:]] == [None, None, "number"]
    assert [cell.get("class") for cell in page.of("th")] == [None, "number"]
    assert len(page.of("small")) == 2, "the interval, and what chance gives"
    assert "1.0 % – 2.0 %null –" in page.text
    assert page.of("div")[0]["aria-label"] == "Table 1"


def test_figures_are_in_the_page_and_do_not_meet(page: Read) -> None:
    assert [svg["aria-label"] for svg in page.of("svg")] == ["first: y against x", "second"]
    assert len(page.of("figcaption")) == 2
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for tag, attributes in page.elements:
        if tag == "use":
            assert (attributes["xlink:href"] or "")[1:] in ids
    assert len(page.of("p")) == 1, "that of the text: a figure stands in no paragraph"


def test_a_drawing_takes_the_paper_it_is_on_and_gives_no_other_a_style() -> None:
    drawn = inlined(SVG, 'what "it" shows', "fig")
    assert "metadata" not in drawn
    assert "*{fill" not in drawn
    assert drawn.count("fill: none") == 1, "the frame's paper, and not what is white in it"
    assert 'clip-path="url(#fig-frame)"' in drawn
    assert 'aria-label="what &quot;it&quot; shows"' in drawn
    assert " width=" not in drawn.partition(">")[0]


def test_features_are_linked_where_they_are_named() -> None:
    lines = [
        "Of feature 12 and features 13.",
        "",
        "| ring | feature | n |",
        "| --- | --- | --- |",
        "| 4 | 7 | 7 |",
        "",
        "| n |",
        "| 7 |",
    ]
    assert linked(lines, "page#/0/") == [
        "Of [feature 12](page#/0/12) and features 13.",
        *lines[1:4],
        "| 4 | [7](page#/0/7) | 7 |",
        *lines[5:],
    ]


@pytest.mark.parametrize(
    "name", ["# no heading", "- none", "1. 2) first", "---", "=", "*a* _b_ ~~c~~ &lt;", "2.mlp_in", "\\"]
)
def test_a_name_alone_on_a_line_is_itself(name: str, tmp_path: Path) -> None:
    for prefix in ("", "- "):
        page = Read(html(["# Heading", "", f"{prefix}{plain(name)}", "", "end"], tmp_path))
        assert name in page.text
        assert not {"h2", "hr", "em", "s", "ol"} & {tag for tag, _ in page.elements}
        assert len(page.of("h1")) == 1
        assert len(page.of("li")) == len(prefix) // 2
