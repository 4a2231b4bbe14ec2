"""Coders of other programs, in and out. One file a format, all with the same face:

    recognises(folder) → bool                     whether the files there are of this format, by what lies there
    read(folder) → Iterator[Foreign]              its coders, one after another, in our convention
    FILES                                         patterns of the files that it writes (formats of WRITTEN)
    arrange(coders) → {place: Ours}               where in the folder each goes; refuses what it cannot hold
    write(arranged, folder)                       ours in its files, one after another

`importing` makes runs of what is read, `exporting` folders of runs; `conventions` holds the arithmetic that several
formats need. A new format is a file here and a line in FORMATS. What is not exactly our function is refused by name.
"""

FORMATS = {
    "saelens": "saelens",
    "circuit-tracer": "circuit_tracer",
    "sparsify": "sparsify",
    "dictionary-learning": "dictionary_learning",
    "openmoss": "openmoss",
    "gemma-scope": "gemma_scope",
    "llama-scope": "llama_scope",
    "qwen-scope": "qwen_scope",
}
"""Formats that are read, and their files here, in the order in which a folder is tried."""

WRITTEN = {
    "saelens": "saelens",
    "circuit-tracer": "circuit_tracer",
    "sparsify": "sparsify",
    "saebench": "saebench",
    "neuronpedia": "neuronpedia",
}
"""Formats that are written, and their files here."""
