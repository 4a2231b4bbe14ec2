"""Tables for people, on standard output: what several verbs print alike."""

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from matryoshka.features.store import FeatureStore
    from matryoshka.run import Run
    from matryoshka.scores.result import Result

console = Console(highlight=False, markup=False)  # a name may hold brackets


def new_table(title: str | None, *heads: str) -> Table:
    """An empty table; its first column is text, the others are numbers."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i == 0 else "right")
    return table


def show_run(run: "Run") -> None:
    """Where a finished run lies, and its coders' measures."""
    from matryoshka.api import results
    from matryoshka.study.opening import is_synthetic

    for member in run.members():
        show = _show_recovery if is_synthetic(member.coder) else _show_results
        show(member.path.name, results(member))
    console.print(Text.assemble("\nrun: ", (str(run.path), "bold")), soft_wrap=True)


def _show_results(name: str, results: "Result") -> None:
    """One coder's reconstruction of held-out text, a row a prefix."""
    from matryoshka.evaluation.reconstruction import CE, CE_MEAN, CE_ZERO, DEAD, FVU, KL_MEAN, L0, SILENT
    from matryoshka.report.cells import shown

    about, measures = results.details, (FVU, CE, CE_ZERO, CE_MEAN, KL_MEAN)
    table = new_table(name, "latents", *(measure.name for measure in measures))
    columns = [results.of(measure.name) for measure in measures]
    for width, *scores in zip(about["widths"], *columns, strict=True):
        table.add_row(f"first {width:,}", *(shown(score.value, score.measure) for score in scores))
    console.print(table)
    l0, silent = (results.of(measure.name)[-1].value for measure in (L0, SILENT))
    dead = [score.value for score in results.scores if score.measure == DEAD]
    console.print(
        f"{about['read']} → {about['write']} of {about['model']}: L0 {l0:.1f},"
        f"{f' dead {dead[-1]:.1%},' if dead else ''} silent on these tokens {silent:.1%}\n"
        f"{about['tokens']:,} held-out tokens ({about['tokens_left_out']:,} BOS and sink positions left out);"
        f" CE clean {about['ce_clean']:.4f}, mean-ablated {about['ce_mean']:.4f},"
        f" zero-ablated {about['ce_zero']:.4f}",
        soft_wrap=True,
    )


def _show_recovery(name: str, results: "Result") -> None:
    """How well one coder recovers known features, a row a prefix."""
    from matryoshka.evaluation.recovery import ABSORBED, EXPLAINED, F1, L0, MCC, SILENT, UNIQUENESS
    from matryoshka.report.cells import shown

    about, measures = results.details, (F1, MCC, UNIQUENESS, EXPLAINED, ABSORBED, L0, SILENT)
    table = new_table(name, "latents", *(measure.name for measure in measures))
    for width in about["widths"]:
        of_prefix = {score.measure: score.value for score in results.scores if score.width == width}
        cells = (shown(of_prefix[measure], measure) if measure in of_prefix else "–" for measure in measures)
        table.add_row(f"first {width:,}", *cells)
    console.print(table)
    console.print(
        f"{about['samples']:,} fresh samples of {about['model']}, with {about['true_l0']:.1f} features on in each",
        soft_wrap=True,
    )


def show_imported(run: "Run") -> None:
    """The coders of a run that was not trained here, where they belong, and what can be done with them."""
    from matryoshka.coder import io
    from matryoshka.study.hooked import wiring_of
    from matryoshka.study.opening import read_card

    table = new_table(None, "coder", "activation", "latents", "prefixes", "reads → writes", "model")
    for member in run.members():
        config, card = io.load_card(member.coder)[0], read_card(member.coder)
        prefixes = ", ".join(f"{width:,}" for width in config.widths[:-1]) or "–"
        sizes = (f"{config.d_sae:,}", prefixes)
        table.add_row(member.path.name, config.activation.kind, *sizes, str(wiring_of(card)), card.model.name)
    console.print(table)
    console.print(f"run: {run.path}\nmeasure it with: matryoshka eval {run.path} --text SOURCE", soft_wrap=True)


def show_features(store: "FeatureStore") -> None:
    """What a store holds: a row a ring."""
    import numpy as np

    from matryoshka.features.feature import FLAGS

    about, columns = store.about, store.columns()
    table = new_table(f"{len(store):,} features (density: median of the ring)", "ring", "features", "density", *FLAGS)
    flags, densities = np.array(columns["flags"]), np.array(columns["density"])
    for ring, (first, end) in enumerate(zip((0, *about.widths), about.widths, strict=False)):
        firing = densities[first:end][densities[first:end] > 0]
        counts = ((flags[first:end] >> bit & 1).sum() for bit in range(len(FLAGS)))
        median = f"{np.median(firing):.3%}" if len(firing) else "–"
        table.add_row(str(ring), f"{end - first:,}", median, *(f"{count:,}" for count in counts))
    console.print(table)
    split = about.split.replace("_", "-")
    bad = f"; {about.tokens_not_finite:,} were NaN or Inf" if about.tokens_not_finite else ""
    console.print(
        f"{about.tokens:,} tokens of {about.documents:,} documents ({about.text}, {split} split);"
        f" left out {about.tokens_left_out:,}: {about.left_out}{bad}\nfeatures: {store.path}",
        soft_wrap=True,
    )
