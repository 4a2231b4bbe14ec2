"""Splicing coders into the language model: the measures against closed forms and hand-written splices."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from coders import hooked_at, subject
from torch import Tensor

from matryoshka.coder.architecture import CoderConfig
from matryoshka.coder.coder import SparseCoder
from matryoshka.data.rowfilter import RowFilter
from matryoshka.data.tokens import Tokens, Windows
from matryoshka.evaluation.reconstruction import evaluate
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site, Wiring
from matryoshka.scores.result import Result
from matryoshka.study.hooked import HookedCoder
from matryoshka.study.watch import activation_metrics

READ, WRITE = Site("mlp_in", 2), Site("mlp_out", 2)
TOKENS = 64 * 12


def spread(windows: Windows) -> Tensor:
    """The 12 windows that the measures take: evenly over the split, not one document at its head."""
    return torch.from_numpy(windows[np.arange(12) * len(windows) // 12])


def coder(d_sae: int = 32, **fields: object) -> SparseCoder:
    config = {
        "reads": (192,),
        "writes": (192,),
        "d_sae": d_sae,
        "widths": (8, d_sae),
        "activation": {"kind": "topk", "k": 4},
        **fields,
    }
    return SparseCoder(CoderConfig.model_validate(config)).initialise(0, tied=False).eval()


def perfect() -> SparseCoder:
    """Reconstructs what it reads: a skip connection that is the identity."""
    made = coder(skip=True)
    with torch.no_grad():
        assert made.W_skip is not None
        made.W_skip.copy_(torch.eye(192))
        made.W_dec.zero_()
    return made


def constant(value: Tensor) -> SparseCoder:
    made = coder()
    with torch.no_grad():
        made.W_dec.zero_()
        made.b_dec.copy_(value)
    return made


def coder_at(lm: LanguageModel, tokens: Tokens, coder: SparseCoder, read: Site, write: Site) -> HookedCoder:
    return hooked_at(coder, lm, tokens.windows("held_out"), read, write)


def measured(lm: LanguageModel, tokens: Tokens, hooked: HookedCoder) -> Result:
    return evaluate(subject(lm, tokens.windows("held_out"), hooked, TOKENS))


def kept_rows(lm: LanguageModel, tokens: Tokens, site: Site) -> Tensor:
    windows = tokens.windows("held_out")
    batch = spread(windows)
    read = lm.read(batch, [site])
    return read[site][RowFilter.measure(lm, windows, [site])(batch, read)]


def test_a_perfect_coder_recovers_everything(lm: LanguageModel, tokens: Tokens) -> None:
    results = measured(lm, tokens, coder_at(lm, tokens, perfect(), WRITE, WRITE))
    assert results.values("FVU") == pytest.approx([0, 0], abs=1e-10)
    for name in ("CE recovered", "CE recovered (zero)", "KL recovered", "KL recovered (zero)"):
        assert results.values(name) == pytest.approx([1, 1], abs=1e-4)
        assert results.of(name)[-1].null < 0.5, "what another token's reconstruction recovers is far from it"
    assert results.values("cosine") == pytest.approx([1, 1], abs=1e-5)


def test_a_coder_of_several_sites_is_spliced_in_at_all_of_them(lm: LanguageModel, tokens: Tokens) -> None:
    """Perfect at both, all is recovered; zeros stand at both."""
    sites, windows = [Site("mlp_out", 1), WRITE], tokens.windows("held_out")
    config = CoderConfig(
        reads=(384,), writes=(384,), d_sae=32, widths=(8, 32), activation={"kind": "topk", "k": 4}, skip=True
    )
    made = SparseCoder(config).eval()
    assert made.W_skip is not None
    wiring = Wiring.of(sites, sites)
    hooked = HookedCoder(made, wiring, RowFilter.measure(lm, windows, wiring.sites))
    made.W_skip.data = torch.eye(384)
    result = measured(lm, tokens, hooked)
    assert result.values("CE recovered (zero)")[-1] == pytest.approx(1, abs=1e-4)
    assert result.details["write"] == "1.mlp_out + 2.mlp_out"

    batch = spread(windows)
    kept = hooked.keep(batch, lm.read(batch, sites))

    def zeroed(y: Tensor) -> Tensor:
        return torch.where(kept[..., None], 0, y)

    with lm.replace(sites[0], zeroed), lm.replace(sites[1], zeroed):
        logits = lm.logits(batch)[:, :-1]
    scored = kept[:, :-1]
    expected = F.cross_entropy(logits[scored], batch[:, 1:][scored]).item()
    assert result.details["ce_zero"] == pytest.approx(expected, rel=1e-5)


def test_a_coder_that_writes_the_mean_has_fvu_1_and_recovers_nothing(lm: LanguageModel, tokens: Tokens) -> None:
    mean = kept_rows(lm, tokens, WRITE).double().mean(0).float()
    results = measured(lm, tokens, coder_at(lm, tokens, constant(mean), WRITE, WRITE))
    assert results.values("FVU") == pytest.approx([1, 1], abs=1e-5)
    assert results.values("CE recovered") == pytest.approx([0, 0], abs=1e-3)
    assert results.values("KL recovered") == pytest.approx([0, 0], abs=1e-3)


def test_a_coder_that_writes_zeros_equals_zero_ablation(lm: LanguageModel, tokens: Tokens) -> None:
    results = measured(lm, tokens, coder_at(lm, tokens, constant(torch.zeros(192)), WRITE, WRITE))
    assert results.values("CE") == pytest.approx([results.details["ce_zero"]] * 2, rel=1e-5)
    assert results.values("CE recovered (zero)") == pytest.approx([0, 0], abs=1e-3)
    assert results.details["ce_zero"] > results.details["ce_clean"]


def test_a_transcoder_is_spliced_in_at_the_site_it_writes(lm: LanguageModel, tokens: Tokens) -> None:
    """Against a splice by hand, with a plain hook on the module."""
    windows = tokens.windows("held_out")
    hooked = coder_at(lm, tokens, coder(), READ, WRITE)
    results = measured(lm, tokens, hooked)
    batch = spread(windows)
    read = lm.read(batch, [READ, WRITE])
    kept = RowFilter.measure(lm, windows, [READ, WRITE])(batch, read)
    y_hat = hooked.coder.decode(hooked.coder.encode(read[READ][kept]))[-1]

    def hook(_module: object, _args: object, output: Tensor) -> Tensor:
        output = output.clone()
        output[kept] = y_hat
        return output

    handle = lm.model.transformer.h[2].mlp.register_forward_hook(hook)
    with torch.no_grad():
        logits = lm.model(batch).logits
    handle.remove()
    scored = kept[:, :-1]
    expected = F.cross_entropy(logits[:, :-1][scored], batch[:, 1:][scored]).item()
    assert results.values("CE")[-1] == pytest.approx(expected, rel=1e-5)
    with torch.no_grad():
        clean = F.cross_entropy(lm.model(batch).logits[:, :-1][scored], batch[:, 1:][scored]).item()
    assert results.details["ce_clean"] == pytest.approx(clean, rel=1e-5)


def test_fvu_is_of_the_target_site_and_not_an_average_of_batches(lm: LanguageModel, tokens: Tokens) -> None:
    windows = tokens.windows("held_out")
    hooked = coder_at(lm, tokens, coder(), READ, WRITE)
    results = activation_metrics(lm, windows, [hooked], TOKENS)[0]
    evaluated = measured(lm, tokens, hooked)
    batch = spread(windows)
    read = lm.read(batch, [READ, WRITE])
    kept = RowFilter.measure(lm, windows, [READ, WRITE])(batch, read)
    x, y = read[READ][kept], read[WRITE][kept].double()
    latents = hooked.coder.encode(x)
    for m, y_hat in enumerate(hooked.coder.decode(latents).double()):
        expected = (y - y_hat).square().sum() / (y - y.mean(0)).square().sum()
        assert results["fvu"][m] == pytest.approx(expected.item(), rel=1e-5)
        assert evaluated.values("FVU")[m] == pytest.approx(expected.item(), rel=1e-5)
    assert results["l0"] == 4
    assert results["silent"] == pytest.approx((latents.fired() == 0).double().mean().item())
    assert evaluated.values("silent")[-1] == pytest.approx(results["silent"])
    first = (latents.dense()[:, :8] > 0).sum(1).double().mean().item()
    assert evaluated.values("L0") == pytest.approx([first, 4])


def test_sums_are_apart_by_document_position_and_frequency(lm: LanguageModel, tokens: Tokens) -> None:
    """Each breakdown against a loop over rows."""
    windows = tokens.windows("held_out")
    hooked = coder_at(lm, tokens, coder(), READ, WRITE)
    results = measured(lm, tokens, hooked)
    batch = spread(windows)
    read = lm.read(batch, [READ, WRITE])
    kept = RowFilter.measure(lm, windows, [READ, WRITE])(batch, read)
    x, y = read[READ][kept], read[WRITE][kept].double()
    error = (y - hooked.coder.decode(hooked.coder.encode(x))[-1]).square().sum(1)
    scatter = (y - y.mean(0)).square().sum(1)
    document = torch.from_numpy(windows.documents(np.arange(12) * len(windows) // 12))[kept]
    position = torch.arange(64).expand(12, 64)[kept]
    train = np.bincount(tokens.windows("train")[:].reshape(-1), minlength=4096)
    per_million = torch.from_numpy(1e6 * train / train.sum())[batch][kept]

    fvu = results.of("FVU")[-1]
    for unit, above, below in zip(fvu.units, fvu.numerator, fvu.denominator, strict=True):
        mine = document == int(unit.split("/")[-1])
        assert above == pytest.approx(error[mine].sum().item(), rel=1e-5)
        assert below == pytest.approx(scatter[mine].sum().item(), rel=1e-5)
    for name, values in (("position", position), ("per_million", per_million)):
        bins = results.details["by_position" if name == "position" else "by_frequency"]
        assert sum(each["tokens"] for each in bins) == len(y)
        for each in bins:
            mine = (values >= each[f"{name}_from"]) & (values < (each[f"{name}_to"] or np.inf))
            assert each["tokens"] == int(mine.sum())
            assert each["fvu"] == pytest.approx((error[mine].sum() / scatter[mine].sum()).item(), rel=1e-5)


def test_histograms_count_every_token_and_every_latent(lm: LanguageModel, tokens: Tokens) -> None:
    results = measured(lm, tokens, coder_at(lm, tokens, coder(), READ, WRITE))
    histogram = results.details["l0_histogram"]
    assert sum(histogram) == results.details["tokens"]
    mean = sum(i * count for i, count in enumerate(histogram)) / sum(histogram)
    assert mean == pytest.approx(results.values("L0")[-1])
    rings = results.details["density_histogram"]["rings"]
    assert [sum(ring) for ring in rings] == [8, 24]
    assert sum(ring[0] for ring in rings) == round(32 * results.values("silent")[-1])


def test_uncentred_explained_variance_is_fooled_by_a_mean(lm: LanguageModel, tokens: Tokens) -> None:
    """A coder that writes the mean alone explains nothing, and yet most of resid_post's square."""
    site = Site("resid_post", 3)
    mean = kept_rows(lm, tokens, site).double().mean(0).float()
    results = measured(lm, tokens, coder_at(lm, tokens, constant(mean), site, site))
    y = kept_rows(lm, tokens, site).double()
    expected = 1 - ((y - y.mean(0)).square().sum() / y.square().sum()).item()
    assert results.values("uncentred explained variance")[-1] == pytest.approx(expected, abs=1e-4)
    assert results.values("FVU")[-1] == pytest.approx(1, abs=1e-4)
    assert expected > 0.02


def test_what_is_left_out_is_neither_rehooked_nor_scored(lm: LanguageModel, tokens: Tokens) -> None:
    results = measured(lm, tokens, coder_at(lm, tokens, coder(), READ, WRITE))
    rows = len(kept_rows(lm, tokens, WRITE))
    assert results.details["tokens"] <= rows < TOKENS
    assert results.details["tokens"] + results.details["tokens_left_out"] == TOKENS


def test_measuring_does_not_disturb_training(lm: LanguageModel, tokens: Tokens) -> None:
    training = coder(activation={"kind": "batchtopk", "k": 4}).train()
    before = {name: value.clone() for name, value in training.state_dict().items()}
    activation_metrics(lm, tokens.windows("held_out"), [coder_at(lm, tokens, training, READ, WRITE)], TOKENS)
    assert training.training
    assert all(before[name].equal(value) for name, value in training.state_dict().items())
