"""Qwen-Scope: TopK SAEs that only the name of their folder says more of."""

from pathlib import Path

import pytest
import torch
from foreign_files import D, F, compare, draw, inputs, top

from matryoshka.errors import MatryoshkaError
from matryoshka.interop.importing import foreign_coders, import_coder


def write(folder: Path, layers: tuple[int, ...] = (10, 2)) -> list[dict[str, torch.Tensor]]:
    folder.mkdir(parents=True)
    states = []
    for layer in layers:
        arrays = {"W_enc": draw(F, D, seed=layer), "W_dec": draw(D, F, seed=9), "b_enc": draw(F), "b_dec": draw(D)}
        states.append({name: torch.from_numpy(array) for name, array in arrays.items()})
        torch.save(states[-1], folder / f"layer{layer}.sae.pt")
    return states


@pytest.mark.parametrize(
    "above", ["SAE-Res-Qwen3-8B-Base-W64K-L0_5", "models--Qwen--SAE-Res-Qwen3-8B-Base-W64K-L0_5/snapshots/a"]
)
def test_a_coder_for_each_layer(tmp_path: Path, above: str) -> None:
    states, x = write(tmp_path / above), inputs()
    second, first = states
    coders = list(foreign_coders(tmp_path / above))
    assert [foreign.label for foreign in coders] == ["layer2.sae", "layer10.sae"]
    assert [str(foreign.facts.read) for foreign in coders] == ["2.resid_post", "10.resid_post"]
    assert {foreign.facts.model for foreign in coders} == {"Qwen/Qwen3-8B-Base"}
    for state, foreign in zip((first, second), coders, strict=True):
        t = {name: tensor.numpy() for name, tensor in state.items()}
        latents = top(x @ t["W_enc"].T + t["b_enc"], 5)
        compare(foreign.coder, x, latents, latents @ t["W_dec"].T + t["b_dec"])


@pytest.mark.parametrize("name", ["somewhere", "SAE-Res-Qwen3-8B-Base-W64K-L0_17", "SAE-Res-Qwen3-8B-Base-W64K-L0_0"])
def test_a_folder_that_does_not_say_how_many_are_active(tmp_path: Path, name: str) -> None:
    write(tmp_path / name)
    with pytest.raises(MatryoshkaError, match=r"L0_"):
        import_coder(tmp_path / name, part="layer2.sae")
