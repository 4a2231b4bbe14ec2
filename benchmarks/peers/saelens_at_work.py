"""SAELens: FVU and L0 of an exported coder, on the language model as TransformerLens' bridge loads it.

    python saelens_at_work.py FOLDER EXPORT

FOLDER holds `given.safetensors` (tokens and kept, [batch, position]) and `model`, the language model's folder. Read and
written are the hooks that the export's own metadata names. The answer is the last line of stdout, one JSON object.
"""

import json
import sys
from pathlib import Path

import torch
from fvu import fvu, l0
from sae_lens import SAE
from safetensors.torch import load_file
from transformer_lens.model_bridge import TransformerBridge


@torch.no_grad()
def main() -> None:
    folder, export = map(Path, sys.argv[1:])
    given = load_file(folder / "given.safetensors")
    kept = given["kept"].bool()
    model = TransformerBridge.boot_transformers(str(folder / "model"), device="cpu", dtype=torch.float32)
    coder = SAE.load_from_disk(export, device="cpu", dtype="float32")
    read = coder.cfg.metadata.hook_name
    written = coder.cfg.metadata.hook_name_out or read
    _, seen = model.run_with_cache(given["tokens"], names_filter=[read, written])
    x, y = seen[read][kept], seen[written][kept]
    print("\n" + json.dumps({"fvu": [fvu(y, coder(x))], "l0": [l0(coder.encode(x))]}))


if __name__ == "__main__":
    main()
