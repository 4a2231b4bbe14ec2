"""SAEBench's own functions on activations, coders and labels that we hand over.

    python with_saebench.py absorption FOLDER
    python with_saebench.py core FOLDER

FOLDER holds `given.safetensors` and `given.json`; the answer is one JSON object, the last line of stdout.

SAEBench reads activations from a TransformerLens model while it evaluates. Here a model that answers each word with
the row that was handed over stands in, so that both sides see the same numbers; for `core`, the language model itself
as transformers loads it, with plain hooks. Nothing else is replaced, but that its list of letters is cut to those that
there are words of: it trains a probe of all 26 and fails where one has no word.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sae_bench.custom_saes.jumprelu_sae import JumpReluSAE
from sae_bench.evals.absorption import feature_absorption, k_sparse_probing
from sae_bench.evals.absorption.eval_config import AbsorptionEvalConfig
from sae_bench.evals.absorption.feature_absorption_calculator import FeatureAbsorptionCalculator
from sae_bench.evals.absorption.main import _aggregate_results_df
from sae_bench.evals.absorption.probing import train_linear_probe_for_task
from sae_bench.evals.core import main as core_eval
from sae_bench.sae_bench_utils import general_utils
from sae_lens import SAE
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

LAYER = 0
"""Of the model that stands in; it only names things."""


class StandIn:
    """What SAEBench asks of a model, for prompts that are one word: its row."""

    tokenizer = "unused, but not None"

    def __init__(self, rows: dict[str, Tensor]) -> None:
        self.rows = rows

    def run_with_cache(self, prompts: Sequence[str], names_filter: Sequence[str]) -> tuple[None, dict[str, Tensor]]:
        return None, {names_filter[0]: torch.stack([self.rows[prompt] for prompt in prompts])[:, None]}

    def to_tokens(self, prompt: str) -> Tensor:
        return torch.zeros(1, 1)


def absorption(given: dict[str, Tensor], about: dict[str, Any]) -> dict[str, Any]:
    """`definition`: of the probes, main latents and rows that were handed over, fraction and full absorption of each
    word. `own`: its whole evaluation of each letter, with probes and main latents of its own; and the same with the
    projection of x − b_dec in place of that of x."""
    torch.manual_seed(0)
    words, letters = about["words"], about["letters"]
    x, sae = given["x"], _sae(given)
    # it loops over this constant, by which numbers of letters are indexed too
    k_sparse_probing.LETTERS = feature_absorption.LETTERS = "".join(letters)
    calculator = _calculator(StandIn(dict(zip(words, x, strict=True))))
    definition = {}
    for letter, direction in zip(letters, given["directions"], strict=True):
        if about["rows"].get(letter):
            found = calculator.calculate_absorption(
                sae, about["rows"][letter], direction, about["main"][letter], LAYER, show_progress=False
            )
            for each in found.word_results:
                definition[each.word] = [float(each.absorption_fraction), bool(each.is_full_absorption)]
    test = given["test"].bool()
    y = torch.tensor([letters.index(letter) for letter in about["letter"]])
    latents = sae.encode(x)
    return {
        "definition": definition,
        "own": _own(sae, x, y, words, test, letters),
        "l0": float((latents > 0).sum(1).float().mean()),
        "latents": float(latents.double().sum()),
    }


def _sae(given: dict[str, Tensor]) -> JumpReluSAE:
    d_in, d_sae = given["W_enc"].shape
    sae = JumpReluSAE(d_in, d_sae, "stand-in", LAYER, torch.device("cpu"), torch.float32)
    sae.load_state_dict({name: given[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")})
    assert sae.check_decoder_norms()
    return sae.requires_grad_(False)


def _calculator(model: StandIn) -> FeatureAbsorptionCalculator:
    """With its evaluation's own thresholds, and prompts that are the bare word."""
    return FeatureAbsorptionCalculator(
        model=model,
        icl_word_list=[],
        max_icl_examples=0,
        base_template="{word}",
        example_separator="",
        prepend_separator_to_first_example=False,
        word_token_pos=-1,
        full_absorption_probe_cos_sim_threshold=feature_absorption.FULL_ABSORPTION_PROBE_COS_THRESHOLD,
        absorption_fraction_probe_cos_sim_threshold=feature_absorption.ABSORPTION_FRACTION_PROBE_COS_THRESHOLD,
        probe_projection_proportion_threshold=feature_absorption.ABSORPTION_PROBE_PROJECTION_PROPORTION_THRESHOLD,
        absorption_fraction_max_absorbing_latents=feature_absorption.ABSORPTION_FRACTION_MAX_ABSORBING_LATENTS,
    )


class Centred(JumpReluSAE):
    """The same SAE, for activations that its b_dec has been taken from."""

    def encode(self, x: Tensor) -> Tensor:
        return super().encode(x + self.b_dec)


def _own(
    sae: JumpReluSAE, x: Tensor, y: Tensor, words: Sequence[str], test: Tensor, letters: Sequence[str]
) -> dict[str, Any]:
    """The steps of its `run_eval` after the activations are there, each by its own function and settings."""
    config, y_all = AbsorptionEvalConfig(), y.numpy()
    train_df, test_df = (pd.DataFrame({"answer_class": y_all[part.numpy()]}) for part in (~test, test))
    probe, _ = train_linear_probe_for_task(
        train_df,
        test_df,
        torch.device("cpu"),
        x[~test].numpy(),
        x[test].numpy(),
        num_classes=len(letters),
        batch_size=64,
        num_epochs=50,
        lr=1e-2,
    )
    labelled = list(zip(words, y.tolist(), strict=True))
    train_labels = [each for each, held in zip(labelled, test, strict=True) if not held]
    test_labels = [each for each, held in zip(labelled, test, strict=True) if held]
    k_probes = k_sparse_probing.train_k_sparse_probes(
        sae,
        train_labels,
        x[~test],
        ks=list(range(1, config.max_k_value + 1)),
        l1_decay=config.k_sparse_probe_l1_decay,
        batch_size=config.k_sparse_probe_batch_size,
        num_epochs=config.k_sparse_probe_num_epochs,
        precalc_sae_acts=True,
    )
    raw = k_sparse_probing.eval_probe_and_sae_k_sparse_raw_scores(sae, probe, k_probes, test_labels, x[test])
    about = k_sparse_probing.sae_k_sparse_metadata(sae, probe, k_probes, "sae", LAYER)
    metrics = k_sparse_probing.build_metrics_df(raw, about, config.max_k_value)
    k_sparse_probing.add_feature_splits_to_metrics_df(metrics, config.max_k_value, config.f1_jump_threshold)
    with tempfile.TemporaryDirectory() as folder:
        raw.to_parquet(Path(folder) / k_sparse_probing.get_sparse_probing_raw_results_filename("sae", LAYER))
        rows = feature_absorption.get_stats_and_likely_false_negative_tokens(metrics, "sae", LAYER, Path(folder))
    result = {
        row["letter"]: {
            "probe_f1": float(row["f1_probe"]),
            "main": [int(latent) for latent in row["split_feats"]],
            "main_f1": float(row[f"f1_sparse_sae_{len(row['split_feats'])}"]),
        }
        for _, row in metrics.iterrows()
    }
    centred = Centred(sae.cfg.d_in, sae.cfg.d_sae, "stand-in", LAYER, sae.device, sae.dtype)
    centred.load_state_dict(sae.state_dict())
    for suffix, one, activations in (("", sae, x), ("_less_b_dec", centred.requires_grad_(False), x - sae.b_dec)):
        calculator = _calculator(StandIn(dict(zip(words, activations, strict=True))))
        found = feature_absorption.calculate_projection_and_cos_sims(calculator, one, probe, LAYER, rows)
        for _, row in _aggregate_results_df(found).iterrows():
            result[row["letter"]] |= {
                "rows": int(row["num_probe_true_positives"]),
                f"fraction{suffix}": float(row["mean_absorption_fraction"]),
                f"full{suffix}": float(row["full_absorption_rate"]),
            }
    return result


# --- core: explained variance, cross-entropy, KL


class Hooked:
    """What SAEBench asks of a language model, answered by one of transformers': a block's output read or replaced."""

    def __init__(self, folder: str, blocks: str, layer: int) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.block = self.model.get_submodule(blocks)[layer]

    def __call__(self, tokens: Tensor, return_type: str, loss_per_token: bool) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            logits = self.model(tokens, use_cache=False).logits
        losses = -logits[:, :-1].log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0]
        return logits, losses

    def run_with_hooks(
        self, tokens: Tensor, return_type: str, fwd_hooks: list[tuple[str, Any]], loss_per_token: bool
    ) -> tuple[Tensor, Tensor]:
        [(_, change)] = fwd_hooks
        return self._hooked(lambda output: change(output, hook=None), tokens)

    def run_with_cache(self, tokens: Tensor, names_filter: Sequence[str], **_: Any) -> tuple[None, dict[str, Tensor]]:
        seen: dict[str, Tensor] = {}

        def keep(output: Tensor) -> Tensor:
            seen[names_filter[0]] = output
            return output

        self._hooked(keep, tokens)
        return None, seen

    def _hooked(self, change: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
        def hook(_module: Any, _inputs: Any, output: Any) -> Any:
            return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

        handle = self.block.register_forward_hook(hook)
        try:
            return self(tokens, "both", True)
        finally:
            handle.remove()


class Store:
    """Gives out the windows that were handed over, in order."""

    def __init__(self, windows: Tensor) -> None:
        self.windows, self.place = windows, 0

    def get_batch_tokens(self, size: int) -> Tensor:
        self.place += size
        return self.windows[self.place - size : self.place]


def _exported(folder: str) -> SAE:
    """What an export is to its evaluations: loaded by SAELens, its decoder rows brought to norm 1."""
    sae = SAE.load_from_disk(folder, device="cpu", dtype="float32")
    sae.fold_W_dec_norm()
    return general_utils.load_and_format_sae("export", sae, "cpu")[1]


def core(given: dict[str, Tensor], about: dict[str, Any]) -> dict[str, Any]:
    """The numbers of its core evaluation, with BOS left out of everything as its evaluation of published SAEs does."""
    sae, windows = _exported(about["export"]) if about["export"] else _sae(given), given["windows"]
    sae.cfg.hook_head_index = None  # its own runs set it, as SAEs of SAELens have it
    model = Hooked(about["folder"], about["blocks"], about["layer"])
    common = {
        "n_batches": len(windows) // about["batch"],
        "eval_batch_size_prompts": about["batch"],
        "ignore_tokens": {about["bos"]},
    }
    with torch.no_grad():
        spliced = core_eval.get_downstream_reconstruction_metrics(
            sae,
            model,
            Store(windows),
            compute_kl=True,
            compute_ce_loss=True,
            exclude_special_tokens_from_reconstruction=True,
            **common,
        )
        variance, _ = core_eval.get_sparsity_and_variance_metrics(
            sae,
            model,
            Store(windows),
            compute_l2_norms=False,
            compute_sparsity_metrics=True,
            compute_variance_metrics=True,
            compute_featurewise_density_statistics=False,
            model_kwargs={},
            **common,
        )
    return spliced | variance


def main() -> None:
    _, what, folder = sys.argv
    given = load_file(Path(folder) / "given.safetensors")
    about = json.loads((Path(folder) / "given.json").read_text())
    np.random.seed(0)
    answer = {"absorption": absorption, "core": core}[what](given, about)
    print("\n" + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
