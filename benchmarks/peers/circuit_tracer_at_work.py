"""circuit-tracer: FVU and L0 of each layer of an exported set in its replacement model, and an attribution graph.

    python circuit_tracer_at_work.py FOLDER EXPORT

FOLDER holds `given.safetensors` (tokens and kept, [batch, position]; prompt [position]) and `model`, the language
model's folder. The answer is the last line of stdout, one JSON object. Nothing is replaced but the list of names by
which TransformerLens knows models: a folder stands for itself.
"""

import json
import sys
from pathlib import Path

import torch
from fvu import fvu, l0
from safetensors.torch import load_file
from transformer_lens import loading_from_pretrained

loading_from_pretrained.get_official_model_name = lambda name: name
from circuit_tracer import ReplacementModel, attribute  # noqa: E402


@torch.no_grad()
def read(model, tokens: torch.Tensor, kept: torch.Tensor) -> dict[str, torch.Tensor]:
    """{"y", "y_hat" [layer, row, d], "latents" [layer, row, F]} at the kept positions of one sequence."""
    _, latents = model.get_activations(tokens)
    reads, writes = (
        [f"blocks.{layer}.{hook}" for layer in range(model.cfg.n_layers)]
        for hook in (model.feature_input_hook, model.original_feature_output_hook)
    )
    _, seen = model.run_with_cache(tokens, names_filter=[*reads, *writes])
    x, y = (torch.stack([seen[name][0] for name in names]) for names in (reads, writes))
    parts = {"y": y, "y_hat": model.transcoders.decode(latents, x), "latents": latents}
    return {name: part[:, kept] for name, part in parts.items()}


def main() -> None:
    folder, export = map(Path, sys.argv[1:])
    given = load_file(folder / "given.safetensors")
    model = ReplacementModel.from_pretrained(
        str(folder / "model"), str(export), device=torch.device("cpu"), dtype=torch.float32
    )
    windows = [read(model, *each) for each in zip(given["tokens"], given["kept"].bool(), strict=True)]
    whole = {name: torch.cat([window[name] for window in windows], dim=1) for name in windows[0]}
    graph = attribute(given["prompt"], model, max_n_logits=3, batch_size=64)
    answer = {
        "fvu": [fvu(y, y_hat) for y, y_hat in zip(whole["y"], whole["y_hat"], strict=True)],
        "l0": [l0(latents) for latents in whole["latents"]],
        "features": [len(graph.active_features)],
    }
    print("\n" + json.dumps(answer))


if __name__ == "__main__":
    main()
