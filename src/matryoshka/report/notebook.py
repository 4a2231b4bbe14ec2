"""A feature's card inside a notebook: the page's own, in a frame that nothing of the notebook reaches."""

from dataclasses import dataclass
from functools import cached_property
from html import escape

from matryoshka.features.feature import Feature, printable
from matryoshka.features.store import FeatureStore
from matryoshka.report import data
from matryoshka.report.data import WEB

SCRIPTS = ("dom.js", "tip.js", "examples.js", "card.js")
"""All that a card needs of the page."""
FRAME = """\
<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Feature {index}</title><style>{style}</style></head>
<body><main id="main"></main><script>{script}</script>
<script>document.getElementById("main").append(matryoshka.card({card}, {facts}));</script></body></html>"""


@dataclass(frozen=True)
class FeatureCard:
    """A feature for people: the page's card in a notebook, a few lines of text elsewhere. `feature` has the numbers."""

    store: FeatureStore
    index: int

    def __post_init__(self) -> None:
        """Raises MatryoshkaError if there is no such feature."""
        self.store.brief([self.index])

    @cached_property
    def feature(self) -> Feature:
        """All of its evidence."""
        return self.store[self.index]

    def _repr_html_(self) -> str:
        frame = FRAME.format(
            index=self.index,
            style=(WEB / "style.css").read_text(encoding="utf-8"),
            script="".join((WEB / name).read_text(encoding="utf-8") for name in SCRIPTS),
            card=_inline(data.card(self.store, self.index)),
            facts=_inline(data.facts(self.store, "0", "")),
        )
        return (
            f'<iframe title="Feature {self.index}" sandbox="allow-scripts" srcdoc="{escape(frame)}"'
            ' style="width: 100%; height: 720px; border: 0; resize: vertical"></iframe>'
        )

    def __repr__(self) -> str:
        feature = self.feature
        name = printable(feature.name) or "never fires"
        lines = [f"feature {self.index}, ring {feature.ring}: {name} (density {feature.statistics.density:.3%})"]
        for example in (example for group in feature.groups[:1] for example in group.examples[:5]):
            marked = [f"«{token}»" if i in example.positions else token for i, token in enumerate(example.tokens)]
            around = "".join(marked[max(0, example.peak - 12) : example.peak + 6]).strip()
            lines.append(f"  {example.activation:7.3g}  {around!r}")
        return "\n".join(lines)


def _inline(value: object) -> str:
    """JSON for a script element: nothing in it can end the element."""
    return data.to_json(value).replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
