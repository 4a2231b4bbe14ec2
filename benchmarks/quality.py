"""Does the fast step learn what the plain one learns? Held-out FVU of both, on the same tokens.

    python benchmarks/quality.py [--d-sae 3072] [--k 24] [--tokens 400000] [--seeds 3]

1. one stream of activations of the bundled language model, one coder a seed, copied
2. ours: `Trainee`, its encoder product in bfloat16 and in float32
3. dense reference: the same loss written out with autograd in float32: dense latents, every prefix decoded anew, a flat
   top-k of the batch, plain Adam; the same start, batches, learning rates, clipping and unit decoder rows
4. held-out FVU of every prefix, at inference, of all three
"""

import argparse
import copy
import itertools
import statistics

import torch
from torch import Tensor

from matryoshka.coder.coder import SparseCoder
from matryoshka.config import merged
from matryoshka.data.stream import Batch
from matryoshka.data.tokens import tokenise
from matryoshka.lm.model import load
from matryoshka.study.hooked import HookedCoder
from matryoshka.study.watch import activation_metrics
from matryoshka.training.plan import check
from matryoshka.training.recipe import Config
from matryoshka.training.session import calibrate, new_trainees, open_stream
from matryoshka.training.supply import TextSupply
from matryoshka.training.trainee import Trainee


class Dense:
    """A BatchTopK coder in training as the papers write it, at six dense products a step."""

    def __init__(self, trainee: Trainee) -> None:
        self.coder: SparseCoder = copy.deepcopy(trainee.coder)
        self.plan, self.section, self.schedule = trainee.plan, trainee.section, trainee.schedule
        self.scaling, self.silent = trainee.scaling, trainee.dead.tokens_since_fired.clone()
        self.adam = torch.optim.Adam(self.coder.parameters(), betas=self.section.betas, fused=False)

    def step(self, batch: Batch, step: int) -> None:
        coder = self.coder
        x, y = batch.of(self.plan.wiring)
        x, y = self.scaling.x(x), self.scaling.y(y)
        pre = x @ coder.W_enc + coder.b_enc
        values = pre.relu().flatten()
        chosen = values.topk(coder.config.k * len(x))
        latents = torch.zeros_like(values).scatter(0, chosen.indices, chosen.values).view_as(pre)
        y_hat = torch.stack([latents[:, :n] @ coder.W_dec[:n] + coder.b_dec for n in coder.widths])
        spread = (y - y.mean(0)).square().sum()
        loss = (y - y_hat).square().sum((1, 2)).mean() / spread
        loss = loss + self._aux(pre, (y - y_hat[-1]).detach())
        self.adam.zero_grad()
        loss.backward()
        self._update(step)
        with torch.no_grad():
            self.silent += len(x)
            self.silent[(latents > 0).any(0)] = 0
            coder.activation._track(chosen.values)

    def _aux(self, pre: Tensor, residual: Tensor) -> Tensor | float:
        dead = self.silent >= self.section.dead_after_tokens
        if not dead.any():
            return 0.0
        candidates = torch.where(dead, pre, 0).relu()
        top = candidates.topk(min(self.coder.config.d_out // 2, int(dead.sum())), dim=1)
        r_hat = torch.zeros_like(pre).scatter(1, top.indices, top.values) @ self.coder.W_dec
        return (residual - r_hat).square().sum() / (residual - residual.mean(0)).square().sum() / 32

    @torch.no_grad()
    def _update(self, step: int) -> None:
        W_dec = self.coder.W_dec
        W_dec.grad -= (W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec
        torch.nn.utils.clip_grad_norm_(self.coder.parameters(), self.section.clip)
        self.adam.param_groups[0]["lr"] = self.schedule.rate(step)
        if moments := self.adam.state.get(W_enc := self.coder.W_enc):  # momentum rests where a latent does
            moments["exp_avg"].masked_fill_(W_enc.grad == 0, 0)
        self.adam.step()
        W_dec /= W_dec.norm(dim=1, keepdim=True)


def compare(config: Config, seeds: int) -> dict[str, list[list[float]]]:
    """Held-out FVU of every prefix, for each seed: {"bfloat16": …, "float32": …, "dense": …}."""
    low, full = (
        Config.build(merged(config.model_dump(), {"training": {"select": precision}}))
        for precision in ("bfloat16", "float32")
    )
    _, plans = check(config)
    lm = load(**config.model.model_dump())
    tokens = tokenise(config.text, *lm.vocabulary)
    results: dict[str, list[list[float]]] = {"bfloat16": [], "float32": [], "dense": []}
    for seed in range(seeds):
        plan = plans[0]._replace(section=plans[0].section.model_copy(update={"seed": seed}))
        stream = open_stream(config, TextSupply(config, lm, tokens), [plan])
        learners = [new_trainees(one, [plan], lm.device)[0] for one in (low, full)]
        calibrate(learners, stream)
        dense = Dense(learners[1])
        for step, batch in enumerate(itertools.islice(stream, config.steps)):
            for learner in learners:
                learner.step(batch, step, measure=False)
            dense.step(batch, step)
        folded = [*(learner.folded() for learner in learners), dense.scaling.fold(dense.coder)]
        hooked = [HookedCoder(coder, plan.wiring, stream.chunks.keep) for coder in folded]
        measured = activation_metrics(lm, tokens.windows("held_out"), hooked, config.evaluation.tokens)
        for name, metrics in zip(results, measured, strict=True):
            results[name].append(metrics["fvu"])
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--d-sae", type=int, default=3072)
    parser.add_argument("--k", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=400_000)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    coder = {"read": "2.mlp_in", "write": "2.mlp_out", "d_sae": given.d_sae, "k": given.k}
    training = {"tokens": given.tokens, "batch": 2048, "lr": 1e-3, "dead_after_tokens": 50_000}
    config = Config.build({"coder": coder, "training": training})
    results = compare(config, given.seeds)
    print(f"held-out FVU, {given.tokens:,} tokens, d_sae {given.d_sae}, k {given.k}, {given.seeds} seeds")
    for name, runs in results.items():
        ratios = [ours[-1] / dense[-1] for ours, dense in zip(runs, results["dense"], strict=True)]
        means = "  ".join(f"{statistics.mean(each):.4f}" for each in zip(*runs, strict=True))
        print(f"{name:9} {means}   last over dense {min(ratios):.4f} to {max(ratios):.4f}")


if __name__ == "__main__":
    main()
