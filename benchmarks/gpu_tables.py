"""The GPU report as tables."""

from collections.abc import Iterator
from typing import Any

GIB = 2**30


def markdown(results: dict[str, Any]) -> str:
    """What has been measured so far."""
    about = results["machine"]
    lines = [
        f"# On {about['hardware']}, {about['date']}",
        "",
        f"`{results['command']}`, {results['seconds']:.0f} s; torch {about['torch']}, Triton {about['triton']},"
        f" transformers {about['transformers']}, Python {about['python']}.",
        "",
        *_floor(results),
        *_steps(results),
        *_kernels(results),
        *_text(results),
    ]
    if results["left_out"]:
        lines += ["## Left out", "", *(f"- {line}" for line in results["left_out"]), ""]
    return "\n".join(lines)


def _floor(results: dict[str, Any]) -> Iterator[str]:
    yield from ("## Floor", "", "| bare product | ms (smallest, largest) | TFLOP/s |", "|---|---|---|")
    for row in results["floor"]:
        yield f"| {row['dtype']}, {_size(row)} | {_ms(row['ms'])} | {row['teraflops']:.4g} |"
    for row in results["copy"]:
        yield ""
        yield f"A copy of {row['bytes'] / GIB:.3g} GiB moves {row['terabytes_per_second']:.3g} TB/s, read and written."
    yield ""


def _steps(results: dict[str, Any]) -> Iterator[str]:
    """One table a size: ours, then the peers'."""
    floors = {_size(row): row["ms"]["median"] for row in results["floor"] if row["dtype"] == "bfloat16"}
    rows = results["steps"] + results["peers"]
    for size in dict.fromkeys(map(_size, rows)):
        yield from (f"## One step at {size}", "")
        yield "| | launched | ms (smallest, largest) | × bare product | peak GiB | reserved GiB | dead | start, s |"
        yield "|---|---|---|---|---|---|---|---|"
        for row in rows:
            if _size(row) == size:
                ratio = f"{row['ms']['median'] / floors[size]:.2f}" if size in floors else "–"
                memory = f"{_gib(row['peak_bytes'])} | {_gib(row.get('reserved_bytes'))}"
                rest = f"{row['dead']:.1%} | {row['start_seconds']:.1f}" if "dead" in row else "– | –"
                yield f"| {row['case']} | {row['mode']} | {_ms(row['ms'])} | {ratio} | {memory} | {rest} |"
        yield ""


def _kernels(results: dict[str, Any]) -> Iterator[str]:
    for table in results["kernels"]:
        yield from (f"## Kernels of a {table['case']} step at {_size(table)}", "")
        yield f"{table['calls']:g} launches a step, {table['ms']:.2f} ms; the longest:"
        yield from ("", "| | calls | ms |", "|---|---|---|")
        for row in table["kernels"]:
            yield f"| `{row['name']}` | {row['calls']:g} | {row['ms']:.3f} |"
        yield ""


def _text(results: dict[str, Any]) -> Iterator[str]:
    if not results["text"]:
        return
    yield from ("## From text", "")
    yield "| tokens/s | lm_batch | language model alone | coder alone | end to end | of the language model |"
    yield "|---|---|---|---|---|---|"
    for row in results["text"]:
        alone, coder, both = (row["tokens_per_second"][name] for name in row["tokens_per_second"])
        name = f"{row['model']}, layer {row['layer']}, d_sae {row['d_sae']:,}"
        yield f"| {name} | {row['lm_batch']} | {alone:,.0f} | {coder:,.0f} | {both:,.0f} | {both / alone:.0%} |"
    yield ""
    for row in results["text"]:
        if row["reserved_bytes"]:
            allocated, reserved = row["allocated_bytes"], row["reserved_bytes"]
            yield (
                f"{row['model']}: after {row['chunks']} chunks {_gib(allocated)} GiB are allocated and {_gib(reserved)}"
                f" reserved ({reserved / allocated:.2f} ×; {reserved / row['peak_bytes']:.2f} × the peak of"
                f" {_gib(row['peak_bytes'])})."
            )
            yield ""


def _size(row: dict[str, Any]) -> str:
    return f"d {row['d']}, d_sae {row['d_sae']:,}, k {row['k']}, batch {row['batch']}"


def _ms(spread: dict[str, float]) -> str:
    return f"{spread['median']:.3f} ({spread['min']:.3f}, {spread['max']:.3f})"


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}" if size else "–"
