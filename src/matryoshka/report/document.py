"""A report's Markdown as one HTML file that needs nothing else: no script, no font, no address but its links'.

    headings   an id each; those of the second level are the table of contents
    tables     in a frame that scrolls by itself, on a telephone too; columns of numbers are told from columns of words
    figures    SVG files that the Markdown shows are drawn into the page, with a title; `inlined` says how

HTML in the Markdown is text: names of features come from whatever was read.
"""

import re
from collections.abc import Iterator, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

from markdown_it import MarkdownIt
from markdown_it.token import Token

from matryoshka.report.data import WEB

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
REFERENCE = re.compile(r"(^#|url\(#)")
"""In an attribute, to what has an id."""
NUMBER = re.compile(r"(?:[-−+±]?\d[^a-zA-Z(]*|–?)(?: \(.*\))?|\d[\d,]* [a-z ]+s")
"""A cell that holds one, with whatever stands in brackets behind it, or what it counts."""
PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<a class="skip" href="#content">Skip to the content</a>
<main id="content">
{head}
<nav aria-label="Contents"><ul>
{contents}
</ul></nav>
{body}
</main>
</body>
</html>
"""


def html(lines: Sequence[str], folder: Path) -> str:
    """The page of these lines of Markdown, whose first is its heading; figures lie in `folder` as they say."""
    tokens = _reader().parse("\n".join(lines))
    headings = list(_headings(tokens))
    contents = [f'<li><a href="#{id_}">{escape(text)}</a></li>' for level, id_, text in headings if level == 2]
    _lift_figures(tokens)
    _set_tables(tokens)
    end = next(i for i, token in enumerate(tokens) if token.type == "heading_close") + 1
    reader, given = _reader(), {"folder": folder}
    head, body = (reader.renderer.render(part, reader.options, given) for part in (tokens[:end], tokens[end:]))
    style = "\n".join(
        file.read_text(encoding="utf-8") for file in (WEB / "style.css", Path(__file__).with_name("report.css"))
    )
    title = escape(headings[0][2])
    return PAGE.format(title=title, style=style, head=head, contents="\n".join(contents), body=body)


def slug(heading: str) -> str:
    """What a heading is called in an address."""
    return re.sub(r"[^\w-]", "", heading.lower().replace(" ", "-"))


def _reader() -> MarkdownIt:
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    reader.add_render_rule("table_open", _open_table)
    reader.add_render_rule("table_close", lambda *_: "</table></div>\n")
    reader.add_render_rule("image", _image)
    return reader


def _headings(tokens: Sequence[Token]) -> Iterator[tuple[int, str, str]]:
    """(level, id, text) of each, in order; the id is set."""
    taken: set[str] = set()
    for token, inline in pairwise(tokens):
        if token.type == "heading_open":
            text = "".join(child.content for child in inline.children or ())
            name, number = slug(text), 1
            while name in taken:
                name, number = f"{slug(text)}-{number}", number + 1
            taken.add(name)
            token.attrSet("id", name)
            yield int(token.tag[1]), name, text


def _lift_figures(tokens: Sequence[Token]) -> None:
    """A figure is no part of a paragraph: one that is all of it stands alone."""
    for before, inline, after in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if before.type == "paragraph_open" and [child.type for child in inline.children or ()] == ["image"]:
            before.hidden = after.hidden = True


def _set_tables(tokens: Sequence[Token]) -> None:
    """Number the tables; mark the cells of columns in which all are numbers; an empty head is no head."""
    table, column, cells = 0, 0, dict[tuple[int, int], list[tuple[Token, Token]]]()
    for token, inline in pairwise(tokens):
        if token.type == "table_open":
            table += 1
            token.meta["number"] = table
        elif token.type == "tr_open":
            column = 0
        elif token.type in ("th_open", "td_open"):
            cells.setdefault((table, column), []).append((token, inline))
            column += 1
    for (_, column), [head, *others] in cells.items():
        if column and all(NUMBER.fullmatch(inline.content) for _, inline in others):
            for cell, inline in (head, *others):
                cell.attrSet("class", "number")
                inline.children = _value_first(inline) if cell.type == "td_open" else inline.children
        if not head[1].content:
            head[0].tag = tokens[tokens.index(head[1]) + 1].tag = "td"


def _value_first(inline: Token) -> list[Token] | None:
    """A cell's value, and below it what stands in brackets, a line each: how sure it is, and what chance gives."""
    value, found, besides = inline.content.removesuffix(")").partition(" (")
    if not found:
        return inline.children
    below = "".join(f"<small>{escape(part)}</small>" for part in besides.split("; "))
    return [Token("html_inline", "", 0, content=escape(value) + below)]


def _open_table(_: object, tokens: Sequence[Token], number: int, *__: object) -> str:
    label = f"Table {tokens[number].meta['number']}"
    return f'<div class="table" role="region" aria-label="{label}" tabindex="0"><table>\n'


def _image(renderer: object, tokens: Sequence[Token], number: int, options: object, given: dict[str, Path]) -> str:
    """The figure that a Markdown image shows."""
    name, shown = unquote(str(tokens[number].attrGet("src"))), tokens[number].content
    drawn = inlined((given["folder"] / name).read_bytes(), shown, slug(name.removesuffix(".svg").replace("/", "-")))
    return f"<figure>{drawn}<figcaption>{escape(shown)}</figcaption></figure>\n"


def inlined(svg: bytes, title: str, prefix: str) -> str:
    """A figure of matplotlib's as a part of a page: named for those who do not see it, as wide as there is room, its
    ids no other figure's, its style no other element's, its paper the page's."""
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
            elif parent.get("id", "").startswith("patch_"):
                child.set("style", child.get("style", "").replace("fill: #ffffff", "fill: none"))
    for element in root.iter():
        for name, value in element.items():
            element.set(name, f"{prefix}-{value}" if name == "id" else REFERENCE.sub(rf"\1{prefix}-", value))
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    # what matplotlib's own style says of every element
    root.attrib |= {"style": "stroke-linejoin: round; stroke-linecap: butt", "role": "img", "aria-label": title}
    return ElementTree.tostring(root, encoding="unicode")
