"""SAELens' SynthSAEBench on features, samples and coders that we hand over.

    python with_synthetic.py draw FOLDER      draws samples of our features, and sums what they are like
    python with_synthetic.py scores FOLDER    scores our coder on our samples

FOLDER holds `given.safetensors` and `given.json`; the answer is `answer.safetensors` and one JSON object, the last line
of stdout. Features, propensities, loadings and the hierarchy are put into its own classes; for `scores` a generator
that gives out our samples one after another stands in for its own, and nothing else is replaced.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.synthetic import (
    ActivationGenerator,
    FeatureDictionary,
    Hierarchy,
    LowRankCorrelationMatrix,
    eval_sae_on_synthetic_data,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

BATCH = 1024


def dictionary(given: dict[str, Tensor]) -> FeatureDictionary:
    features, d = given["directions"].shape
    made = FeatureDictionary(features, d, bias=True, initializer=None)
    made.feature_vectors.data, made.bias.data = given["directions"], given["bias"]
    return made


def generator(given: dict[str, Tensor], about: dict[str, Any]) -> ActivationGenerator:
    loadings = given["loadings"]
    roots = about["hierarchy"]["roots"]
    return ActivationGenerator(
        len(loadings),
        given["propensities"],
        std_firing_magnitudes=given["deviations"],
        mean_firing_magnitudes=given["means"],
        modify_activations=Hierarchy.from_dict(about["hierarchy"]).modifier if roots else None,
        correlation_matrix=LowRankCorrelationMatrix(loadings, 1 - loadings.square().sum(1)),
        use_sparse_tensors=about["sparse"],
    )


@torch.no_grad()
def draw(given: dict[str, Tensor], about: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The sums of `about["samples"]` samples that `synthetic.Sums` takes of ours; and its seconds for drawing them."""
    torch.manual_seed(1)
    drawer, features = generator(given, about), dictionary(given)
    count, pairs = len(given["means"]), given["pairs"]
    sums = {name: torch.zeros(count, dtype=torch.float64) for name in ("on", "magnitude", "square")}
    sums |= {"pairs": torch.zeros(len(pairs), dtype=torch.float64)}
    sums |= {name: torch.zeros(features.hidden_dim, dtype=torch.float64) for name in ("x", "x_square")}
    wall = processor = 0.0
    for _ in range(about["samples"] // BATCH):
        started, used = time.perf_counter(), time.process_time()
        values = drawer.sample(BATCH)
        x = features(values).double()
        wall, processor = wall + time.perf_counter() - started, processor + time.process_time() - used
        values = values.to_dense().double()
        on = values > 0
        for name, part in (("on", on), ("magnitude", values), ("square", values.square())):
            sums[name] += part.sum(0)
        sums["pairs"] += (on[:, pairs[:, 0]] & on[:, pairs[:, 1]]).sum(0)
        sums["x"] += x.sum(0)
        sums["x_square"] += x.square().sum(0)
    return sums, {"seconds": wall, "processor_seconds": processor}


class Replayed:
    """Gives out the samples that were handed over, in order."""

    def __init__(self, given: dict[str, Tensor], samples: int, features: int) -> None:
        self.given, self.samples, self.features, self.place = given, samples, features, 0

    def sample(self, count: int) -> Tensor:
        first, self.place = self.place, self.place + count
        rows = self.given["rows"]
        inside = (rows >= first) & (rows < self.place)
        values = torch.zeros(count, self.features)
        values[rows[inside] - first, self.given["features"][inside]] = self.given["magnitudes"][inside]
        return values


def scores(given: dict[str, Tensor], about: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Its whole evaluation of the coder."""
    d_sae, d = given["W_dec"].shape
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=d, d_sae=d_sae, apply_b_dec_to_input=False))
    sae.load_state_dict({name: given[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")})
    features = dictionary(given)
    replayed: Any = Replayed(given, about["samples"], len(features.feature_vectors))
    result = eval_sae_on_synthetic_data(sae, features, replayed, about["samples"], batch_size=BATCH)
    return {}, result.to_dict()


def main() -> None:
    _, what, folder = sys.argv
    given = load_file(Path(folder) / "given.safetensors")
    about = json.loads((Path(folder) / "given.json").read_text())
    tensors, answer = {"draw": draw, "scores": scores}[what](given, about)
    save_file(tensors, Path(folder) / "answer.safetensors")
    print("\n" + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
