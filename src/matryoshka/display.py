"""What commands print: tables for people, on standard output."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from matryoshka.data.tokens import SPLITS, Tokens
from matryoshka.features.collect import Needs
from matryoshka.features.feature import FLAGS, Example, Feature, printable
from matryoshka.features.store import FeatureStore
from matryoshka.lm.sites import FAMILIES, KINDS, TRANSFORMER_LENS
from matryoshka.run import Run
from matryoshka.training.memory import Item

console = Console(highlight=False)
WORD = re.compile(" [A-Za-z]{3,}")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    return table


def show_results(name: str, results: Mapping[str, Any]) -> None:
    """One coder's measures on held-out text, a row a prefix."""
    table = _table(name, "latents", "FVU", "CE", "CE recovered (zero)", "CE recovered (mean)", "KL recovered (mean)")
    for m, width in enumerate(results["widths"]):
        shares = [results[key][m] for key in ("ce_recovered_zero", "ce_recovered_mean", "kl_recovered_mean")]
        ce = f"{results['ce'][m]:.4f}"
        table.add_row(f"first {width:,}", f"{results['fvu'][m]:.4f}", ce, *(f"{share:.1%}" for share in shares))
    console.print(table)
    console.print(
        f"{results['read']} → {results['write']} of {results['model']}: L0 {results['l0']:.1f},"
        f" dead {results['dead']:.1%}, silent on these tokens {results['silent']:.1%}\n"
        f"{results['tokens']:,} held-out tokens ({results['tokens_left_out']:,} BOS and sink positions left out);"
        f" CE clean {results['ce_clean']:.4f}, mean-ablated {results['ce_mean']:.4f},"
        f" zero-ablated {results['ce_zero']:.4f}",
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


def show_telling(store: FeatureStore, n: int) -> None:
    """A few features, each from another ring, that fire on few kinds of tokens, with their strongest examples."""
    for index in _telling(store, n):
        feature = store[index]
        console.print(Text.assemble("\n", (feature.label or feature.summary, "bold"), f"  {_where(feature)}"))
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
        show_results(member.path.name, member.results())
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
