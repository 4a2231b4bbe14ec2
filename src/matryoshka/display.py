"""What commands print: tables for people, on standard output."""

import re
from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from matryoshka.api import results
from matryoshka.data.tokens import SPLITS, Tokens
from matryoshka.evaluation.reconstruction import CE, CE_MEAN, CE_ZERO, DEAD, FVU, KL_MEAN, L0, SILENT
from matryoshka.evaluation.scores import Result
from matryoshka.evaluation.steering import Steered
from matryoshka.features.collect import Needs
from matryoshka.features.endpoint import Cost
from matryoshka.features.feature import FLAGS, Example, Feature, printable
from matryoshka.features.naming import LEAST_AUC, Named
from matryoshka.features.store import FeatureStore
from matryoshka.lm.sites import FAMILIES, KINDS, TRANSFORMER_LENS
from matryoshka.report.comparison import (
    Cell,
    Entry,
    cell,
    columns,
    counted,
    differences,
    numbers,
    reasons,
    shown,
    verdict,
)
from matryoshka.run import Run
from matryoshka.training.memory import Item

console = Console(highlight=False)
WORD = re.compile(" [A-Za-z]{3,}")


def _table(title: str | None, *heads: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i == 0 else "right")
    return table


def show_results(name: str, results: Result) -> None:
    """One coder's reconstruction of held-out text, a row a prefix."""
    about, measures = results.details, (FVU, CE, CE_ZERO, CE_MEAN, KL_MEAN)
    table = _table(name, "latents", *(measure.name for measure in measures))
    columns = [results.of(measure.name) for measure in measures]
    for width, *scores in zip(about["widths"], *columns, strict=True):
        table.add_row(f"first {width:,}", *(shown(each.value, each.measure) for each in scores))
    console.print(table)
    l0, dead, silent = (results.of(measure.name)[-1].value for measure in (L0, DEAD, SILENT))
    console.print(
        f"{about['read']} → {about['write']} of {about['model']}: L0 {l0:.1f},"
        f" dead {dead:.1%}, silent on these tokens {silent:.1%}\n"
        f"{about['tokens']:,} held-out tokens ({about['tokens_left_out']:,} BOS and sink positions left out);"
        f" CE clean {about['ce_clean']:.4f}, mean-ablated {about['ce_mean']:.4f},"
        f" zero-ablated {about['ce_zero']:.4f}",
        soft_wrap=True,
    )


def show_entries(entries: Sequence[Entry]) -> None:
    """What several coders scored: a row a coder or recipe; then how they differ, or of a single coder its prefixes."""
    heads = columns(entries)
    rows = {counted(entry): [_cell(cell(entry.scores(column))) for column in heads] for entry in entries}
    _show_wrapped("", [column.head for column in heads], rows)
    if len(entries) > 1:
        _show_differences(entries)
    elif len(widths := entries[0].widths()) > 1:
        _show_wrapped(
            "prefix",
            [column.head for column in heads],
            {f"first {n:,}": [Text(cell(entries[0].scores(column, n)).value) for column in heads] for n in widths},
        )
    for note in reasons(entries):
        console.print(Text(f"not measured: {note}"), soft_wrap=True)


def _cell(found: Cell) -> Text:
    lines = [Text(found.value, "bold"), *(Text(part, "dim") for part in (found.spread, found.null) if part)]
    return Text("\n").join(lines)


def _show_wrapped(corner: str, heads: Sequence[str], rows: Mapping[str, Sequence[Text]]) -> None:
    """One table, in as many blocks of columns as the terminal's width needs."""
    needs = [
        3 + max(len(line) for text in (head, *(row[i].plain for row in rows.values())) for line in text.split("\n"))
        for i, head in enumerate(heads)
    ]
    left = 4 + max(map(len, (corner, *rows)))
    start = 0
    while start < len(heads):
        end, used = start + 1, left + needs[start]
        while end < len(heads) and used + needs[end] < console.width:
            used, end = used + needs[end], end + 1
        table = _table(None, corner, *heads[start:end])
        for label, cells in rows.items():
            table.add_row(label, *cells[start:end])
        console.print(table)
        start = end


def _show_differences(entries: Sequence[Entry]) -> None:
    noise = 0
    for entry, of_entry in groupby(differences(entries), key=lambda each: each.entry):
        title = f"{entry.label}, against {entries[0].label}"
        table = _table(title, "score", "difference", "detectable", "verdict")
        for each in of_entry:
            noise += bool(each.found and each.found.inside_noise)
            difference, interval, detectable = numbers(each)
            table.add_row(each.column.head, _cell(Cell(difference, interval, "")), detectable, verdict(each))
        console.print(table)
    if noise:
        console.print(
            f"{noise} of these differences {'is' if noise == 1 else 'are'} inside the noise: zero lies in the interval."
            " `detectable` is the least difference that such a comparison finds four times in five.",
            soft_wrap=True,
        )


def show_needs(needed: Needs) -> None:
    """What collecting features takes."""
    console.print(
        f"collecting takes at most {needed.memory / 1e9:.1f} GB of memory beside the models,"
        f" and {needed.disk / 1e9:.1f} GB of disk until it is done",
        soft_wrap=True,
    )


def show_features(store: FeatureStore) -> None:
    """What a store holds: a row a ring."""
    about, columns = store.about, store.columns()
    table = _table(f"{len(store):,} features (density: median of the ring)", "ring", "features", "density", *FLAGS)
    flags, densities = np.array(columns["flags"]), np.array(columns["density"])
    for ring, (first, end) in enumerate(zip((0, *about.widths), about.widths, strict=False)):
        firing = densities[first:end][densities[first:end] > 0]
        counts = ((flags[first:end] >> bit & 1).sum() for bit in range(len(FLAGS)))
        median = f"{np.median(firing):.3%}" if len(firing) else "–"
        table.add_row(str(ring), f"{end - first:,}", median, *(f"{count:,}" for count in counts))
    console.print(table)
    split = about.split.replace("_", "-")
    console.print(
        f"{about.tokens:,} tokens of {about.documents:,} documents ({about.text}, {split} split);"
        f" left out {about.tokens_left_out:,}: {about.left_out}\nfeatures: {store.path}",
        soft_wrap=True,
    )


def show_named(name: str, named: Named) -> None:
    """What a naming by rules has found."""
    others = f"; {named.explained:,} were explained by a chat model already" if named.explained else ""
    told = (
        f"{name}: {named.by_rule:,} features named by the n-gram that tells best where they fire;"
        f" {named.without_rule:,} have none that tells well enough (AUC {LEAST_AUC}) and keep their top tokens{others}"
    )
    console.print(Text(told), soft_wrap=True)


def show_cost(model: str, cost: Cost, price: float | None) -> None:
    """What will be asked of a chat model."""
    if not cost.requests:
        told = f"0 questions to {model}: all answers are in the cache"
    else:
        money = "" if price is None else f", at most {price:,.2f} at the given prices"
        told = (
            f"{cost.requests:,} questions to {model}: about {cost.tokens_in:,} tokens, and at most"
            f" {cost.tokens_out:,} of answers{money}"
        )
    console.print(Text(told), soft_wrap=True)


def show_explained(name: str, result: Result) -> None:
    """How well a chat model's explanations tell where features fire: a row a prefix."""
    if result.reason is not None:
        console.print(Text(f"{name}: not measured: {result.reason}"), soft_wrap=True)
        return
    table = _table(
        name, "latents", "measure", "balanced accuracy", "95 % interval", "another's explanation", "features"
    )
    for each in sorted(result.scores, key=lambda each: each.width):
        null = "–" if each.null is None else f"{each.null:.3f}"
        interval = f"{each.interval.low:.3f} to {each.interval.high:.3f}"
        row = (each.measure.name, f"{each.value:.3f}", interval, null, f"{len(each.units)}")
        table.add_row(f"first {each.width:,}", *row)
    console.print(table)
    found = result.details
    left_out = [what for what in ("too few contexts", "no explanation of the right form") if found[what]]
    told = "".join(f"; {len(found[what])} with {what}" for what in left_out)
    failed = found["contexts without a judgement of the right form"]
    console.print(
        f"{len(found['features'])} of {found['features chosen']} features explained{told};"
        f" {failed} contexts without a judgement of the right form",
        soft_wrap=True,
    )


def show_telling(store: FeatureStore, n: int) -> None:
    """A few features, each from another ring, that fire on few kinds of tokens, with their strongest examples."""
    for index in _telling(store, n):
        feature = store[index]
        console.print(Text.assemble("\n", (feature.name, "bold"), f"  {_where(feature)}"))
        for example in feature.groups[0].examples[:3]:
            console.print(_in_context(example), no_wrap=True, overflow="ellipsis")


def _telling(store: FeatureStore, n: int) -> list[int]:
    """One feature in each of `n` rings, from the first to the last: of the hundred of least entropy above one bit,
    without flags and firing often enough, the one with the most whole words among its first tokens."""
    columns, rings = store.columns(), len(store.about.widths)
    names = ("entropy", "index", "ring", "count", "flags")
    often = sorted(
        (entropy, index, ring)
        for entropy, index, ring, count, flags in zip(*(columns[name] for name in names), strict=True)
        if not flags and count >= 50 and entropy > 1
    )
    found = []
    for wanted in dict.fromkeys(round(i * (rings - 1) / max(1, n - 1)) for i in range(n)):
        candidates = [index for _, index, ring in often if ring == wanted][:100]
        found += [max(candidates, key=lambda index: _whole_words(store[index]))] if candidates else []
    return found


def _whole_words(feature: Feature) -> tuple[int, float]:
    """How many of its first four tokens are whole words with a twentieth of its activation, and their share of it."""
    words = [each.share for each in feature.top_tokens[:4] if WORD.fullmatch(each.token) and each.share >= 0.05]
    return len(words), sum(words)


def _where(feature: Feature) -> str:
    return f"feature {feature.index:,}, ring {feature.ring}, fires on {feature.statistics.density:.2%} of tokens"


def _in_context(example: Example, before: int = 10, after: int = 4) -> Text:
    """An example's activation, and the tokens around its peak; those on which the feature fires stand out."""
    line = Text(f"  {example.activation:6.2f}  ")
    for i in range(max(0, example.peak - before), min(len(example.tokens), example.peak + after)):
        style = "bold reverse" if i == example.peak else "underline" if i in example.positions else ""
        line.append(printable(example.tokens[i]), style)
    return line


def show_steered(found: Steered) -> None:
    """Both continuations side by side, and how far apart the predictions are."""
    table = _table(None, "unsteered", f"feature {found.feature:,} held at {found.strength:g} × its maximum")
    for column in table.columns:
        column.justify, column.ratio = "left", 1
    table.expand = True
    prompt = (printable(found.prompt), "dim")
    table.add_row(*(Text.assemble(prompt, printable(text)) for text in (found.plain, found.steered)))
    console.print(table)
    unit, kl = found.unit, sum(found.kl) / len(found.kl)
    console.print(
        f"its maximum on {unit.tokens:,} held-out tokens is {unit.maximum:.4g}, so it is held at"
        f" {found.strength * unit.maximum:.4g} (raw units of the written site)\n"
        f"KL(unsteered ‖ steered) of the next token: {kl:.3g} nats, mean over the steered text",
        soft_wrap=True,
    )


def show_memory(items: Sequence[Item]) -> None:
    """What a run will hold in memory."""
    table = _table("Memory of this run, upper bounds", "", "GB", "")
    table.columns[-1].justify = "left"
    for item in items:
        table.add_row(item.name, f"{item.bytes / 1e9:.2f}", item.detail)
    table.add_section()
    table.add_row("in all", f"{sum(item.bytes for item in items) / 1e9:.2f}", "")
    console.print(table)


def show_run(run: Run) -> None:
    """Where a finished run lies, and its coders' measures."""
    for member in run.members():
        show_results(member.path.name, results(member))
    console.print(f"\nrun: [bold]{run.path}[/]", soft_wrap=True)


def show_tokens(tokens: Tokens) -> None:
    """What was tokenised, and where it lies."""
    table = _table(str(tokens.folder), "split", "documents", "tokens", f"windows of {tokens.context}")
    for split in SPLITS:
        counts = (tokens.meta.documents[split], tokens.meta.tokens[split], len(tokens.windows(split)))
        table.add_row(split, *(f"{count:,}" for count in counts))
    console.print(table)


def show_models() -> None:
    """The families of language models, and what their sites mean."""
    families = _table("Families of language models", "model_type", "such as")
    families.columns[1].justify = "left"
    for model_type, family in FAMILIES.items():
        families.add_row(model_type, family.examples)
    console.print(families)
    console.print("Any size: sizes come from the model's config. By hub id, local folder, GGUF file, or `bundled`.\n")
    kinds = _table("Sites, written LAYER.KIND such as 8.mlp_in", "kind", "what it is", "in TransformerLens")
    for column in kinds.columns:
        column.justify = "left"
    for kind, meaning in KINDS.items():
        names = [name for name, ours in TRANSFORMER_LENS.items() if ours == kind]
        kinds.add_row(kind, meaning, ", ".join(names))
    console.print(kinds)
