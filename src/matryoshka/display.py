"""What commands print: tables for people, on standard output."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from matryoshka.data.tokens import SPLITS, Tokens
from matryoshka.evaluation.examples import Example
from matryoshka.lm.sites import FAMILIES, KINDS, TRANSFORMER_LENS
from matryoshka.run import Run
from matryoshka.training.memory import Item

console = Console(highlight=False)


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


def show_examples(examples: Sequence[Example]) -> None:
    """A few latents and the tokens that make up most of their activation."""
    table = _table("What some latents fire on", "latent", "ring", "density", "top tokens (share of its activation)")
    table.columns[-1].justify = "left"
    for example in examples:
        tokens = "  ".join(f"{word!r} {share:.0%}" for word, share in example.tokens)
        row = (f"{example.latent:,}", str(example.ring + 1), f"{example.density:.2%}", Text(tokens))
        table.add_row(*row)
    console.print(table)


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
