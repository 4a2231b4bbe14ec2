"""Sites are compared with the textbook's equations, written here by the modules' names, not by the table."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from tiny_models import VOCABULARY
from torch import Tensor

from matryoshka.errors import MatryoshkaError
from matryoshka.lm.model import LanguageModel, load
from matryoshka.lm.sites import FAMILIES, KINDS, Site

LAYER = 1


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-5)


def kinds(lm: LanguageModel) -> list[str]:
    return [kind for kind in KINDS if not (lm.info.parallel and kind == "resid_mid")]


def blocks(lm: LanguageModel) -> torch.nn.ModuleList:
    """Found by type, not by path: the only list of as many blocks as the language model has layers."""
    lists = [m for m in lm.model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 3]
    return lists[0]


def by_hand(lm: LanguageModel, x: Tensor, tokens_attended: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The textbook block: from the block's input `x`, each kind of activation by the family's equations."""
    block, kind = blocks(lm)[LAYER], lm.info.model_type
    if kind == "gpt2":
        norm1, norm2, mlp, after_attn, after_mlp = block.ln_1, block.ln_2, block.mlp, None, None
    elif kind.startswith("gemma"):
        norm1, norm2, mlp = block.input_layernorm, block.pre_feedforward_layernorm, block.mlp
        after_attn, after_mlp = block.post_attention_layernorm, block.post_feedforward_layernorm
    else:
        norm1, norm2, mlp = block.input_layernorm, block.post_attention_layernorm, block.mlp
        after_attn = after_mlp = None
    found = {"resid_pre": x, "attn_in": norm1(x)}
    attended = tokens_attended(found["attn_in"])
    found["attn_out"] = after_attn(attended) if after_attn else attended
    mlp_reads = x if lm.info.parallel else x + found["attn_out"]
    if kind in ("gpt2", "gpt_neox"):
        plain = torch.nn.functional.layer_norm(mlp_reads, mlp_reads.shape[-1:], eps=norm2.eps)
        found["mlp_in"] = plain * norm2.weight + norm2.bias
    else:
        plain = torch.nn.functional.rms_norm(mlp_reads, mlp_reads.shape[-1:], eps=1e-6)
        found["mlp_in"] = plain * (norm2.weight + kind.startswith("gemma"))
    found["ln2_normalized"] = plain
    found["mlp_out"] = after_mlp(mlp(found["mlp_in"])) if after_mlp else mlp(found["mlp_in"])
    found["resid_post"] = x + found["attn_out"] + found["mlp_out"]
    return found if lm.info.parallel else found | {"resid_mid": mlp_reads}


def hidden_states(lm: LanguageModel, ids: Tensor) -> list[Tensor]:
    """transformers' own record: the input of each block (the last is after the final norm)."""
    with torch.no_grad():
        return list(lm.model(input_ids=ids, output_hidden_states=True).hidden_states)


def attention_of(lm: LanguageModel, ids: Tensor) -> Tensor:
    """What the attention module itself returns at LAYER."""
    module = next(child for name, child in blocks(lm)[LAYER].named_children() if "attn" in name or name == "attention")
    seen: list[Tensor] = []
    handle = module.register_forward_hook(lambda _module, _args, output: seen.append(output[0]))
    lm.logits(ids)
    handle.remove()
    return seen[0]


def splice(lm: LanguageModel, ids: Tensor, kind: str) -> Tensor:
    """Logits with zeros at one site of LAYER: the block's equations with that term struck out."""
    block = blocks(lm)[LAYER]
    states, attended = hidden_states(lm, ids), attention_of(lm, ids)
    now = by_hand(lm, states[LAYER], lambda _: attended)
    if kind in ("resid_pre", "attn_in"):
        raise AssertionError("attention would have to be computed anew")
    zero = torch.zeros_like(now["mlp_out"])

    def mlp_of(mlp_in: Tensor) -> Tensor:
        after = getattr(block, "post_feedforward_layernorm", None)
        return after(block.mlp(mlp_in)) if after else block.mlp(mlp_in)

    norm = block.get_submodule(
        {"gpt2": "ln_2"}.get(lm.info.model_type, "")
        or ("pre_feedforward_layernorm" if "gemma" in lm.info.model_type else "post_attention_layernorm")
    )
    bias = getattr(norm, "bias", None)
    bias = zero if bias is None else zero + bias
    pre, mid = now["resid_pre"], now.get("resid_mid", now["resid_pre"] + now["attn_out"])
    post = {
        "attn_out": lambda: pre + (now["mlp_out"] if lm.info.parallel else mlp_of(norm(pre))),
        "resid_mid": lambda: mlp_of(norm(zero)),
        "ln2_normalized": lambda: mid + mlp_of(bias),
        "mlp_in": lambda: mid + mlp_of(zero),
        "mlp_out": lambda: mid,
        "resid_post": lambda: zero,
    }[kind]()
    handle = block.register_forward_hook(lambda _module, _args, _output: post)
    logits = lm.logits(ids)
    handle.remove()
    return logits


# --- reading


def test_each_site_is_what_the_equations_say(tiny: LanguageModel, ids: Tensor):
    read = tiny.read(ids, [Site(kind, LAYER) for kind in kinds(tiny)])
    expected = by_hand(tiny, hidden_states(tiny, ids)[LAYER], lambda _: attention_of(tiny, ids))
    for site, x in read.items():
        assert close(x, expected[site.kind]), site


def test_the_residual_adds_up_at_every_layer(tiny: LanguageModel, ids: Tensor):
    for layer in range(3):
        x = {site.kind: x for site, x in tiny.read(ids, [Site(kind, layer) for kind in kinds(tiny)]).items()}
        assert close(x["resid_post"], x["resid_pre"] + x["attn_out"] + x["mlp_out"])
        if not tiny.info.parallel:
            assert close(x["resid_mid"], x["resid_pre"] + x["attn_out"])
        assert x["attn_out"].abs().mean() > 0.01
        assert x["mlp_out"].abs().mean() > 0.01


def test_the_last_resid_post_is_before_the_final_norm(tiny: LanguageModel, ids: Tensor):
    last = tiny.read(ids, [Site("resid_post", 2)])[Site("resid_post", 2)]
    states = hidden_states(tiny, ids)
    assert not close(last, states[-1])
    norms = [
        module
        for name, module in tiny.model.named_modules()
        if name.split(".")[-1] in ("ln_f", "norm", "final_layer_norm")
    ]
    assert any(close(norm(last), states[-1]) for norm in norms)


@pytest.mark.parametrize("kind", KINDS)
def test_stopping_early_changes_nothing_and_saves_the_rest(tiny: LanguageModel, ids: Tensor, kind: str):
    if kind not in kinds(tiny):
        pytest.skip("no such site in a parallel block")
    site, last = Site(kind, LAYER), Site("resid_post", 2)
    full = tiny.read(ids, [site, last])[site]
    calls: list[str] = []
    watched = {
        "block 1": blocks(tiny)[1],
        "block 2": blocks(tiny)[2],
        "head": tiny.model.get_output_embeddings(),
    }
    handles = [m.register_forward_pre_hook(lambda *_, n=n: calls.append(n)) for n, m in watched.items()]
    early = tiny.read(ids, [site])[site]
    for handle in handles:
        handle.remove()
    assert torch.equal(early, full)
    assert calls == ["block 1"]


def test_what_is_read_comes_in_the_order_asked_for(tiny: LanguageModel, ids: Tensor):
    sites = [Site("mlp_out", 2), Site("attn_in", 0), Site("resid_pre", 1)]
    assert list(tiny.read(ids, [*sites, sites[0]])) == sites
    assert tiny.read(ids, []) == {}


def test_what_is_read_can_train_a_coder(tiny: LanguageModel, ids: Tensor):
    x = tiny.read(ids, [Site("mlp_in", 0)])[Site("mlp_in", 0)]
    assert not x.requires_grad
    weight = torch.ones(x.shape[-1], requires_grad=True)
    (x @ weight).sum().backward()  # tensors made under inference_mode would be refused here
    assert weight.grad is not None


def test_tokens_of_any_integer_dtype_are_read(tiny: LanguageModel, ids: Tensor):
    assert torch.equal(tiny.logits(ids.to(torch.uint16)), tiny.logits(ids))


# --- replacing


@pytest.mark.parametrize("kind", KINDS)
def test_replacing_by_itself_changes_nothing(tiny: LanguageModel, ids: Tensor, kind: str):
    if kind not in kinds(tiny):
        pytest.skip("no such site in a parallel block")
    seen = []
    with tiny.replace(Site(kind, LAYER), lambda x: seen.append(x) or x):
        assert close(tiny.logits(ids), hand_logits(tiny, ids))
    assert close(seen[0], tiny.read(ids, [Site(kind, LAYER)])[Site(kind, LAYER)])


def hand_logits(lm: LanguageModel, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return lm.model(input_ids=ids).logits


@pytest.mark.parametrize("kind", ["attn_out", "resid_mid", "ln2_normalized", "mlp_in", "mlp_out", "resid_post"])
def test_replacing_by_zeros_equals_a_splice_by_hand(tiny: LanguageModel, ids: Tensor, kind: str):
    if kind not in kinds(tiny):
        pytest.skip("no such site in a parallel block")
    with tiny.replace(Site(kind, LAYER), torch.zeros_like):
        replaced = tiny.logits(ids)
    assert close(replaced, splice(tiny, ids, kind))
    assert not close(replaced, hand_logits(tiny, ids))


def test_replacing_resid_pre_equals_replacing_the_resid_post_before_it(tiny: LanguageModel, ids: Tensor):
    with tiny.replace(Site("resid_pre", LAYER), lambda x: x.flip(-1)):
        a = tiny.logits(ids)
    with tiny.replace(Site("resid_post", LAYER - 1), lambda x: x.flip(-1)):
        b = tiny.logits(ids)
    assert torch.equal(a, b)
    assert not close(a, hand_logits(tiny, ids))


def test_replacing_attn_in_is_what_attention_reads(tiny: LanguageModel, ids: Tensor):
    module = next(m for n, m in blocks(tiny)[LAYER].named_children() if "attn" in n or n == "attention")
    read: list[Tensor] = []
    handle = module.register_forward_pre_hook(
        lambda _m, args, kwargs: read.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    with tiny.replace(Site("attn_in", LAYER), torch.zeros_like):
        replaced = tiny.logits(ids)
    handle.remove()
    assert read[0].count_nonzero() == 0
    assert not close(replaced, hand_logits(tiny, ids))


def test_replacing_resid_mid_changes_the_residual_itself(tiny: LanguageModel, ids: Tensor):
    if tiny.info.parallel:
        pytest.skip("no resid_mid in a parallel block")
    sites = [Site(kind, LAYER) for kind in ("resid_mid", "mlp_out", "resid_post")]
    with tiny.replace(sites[0], torch.ones_like):
        mid, mlp_out, post = tiny.read(ids, sites).values()
    assert close(mid, torch.ones_like(mid))
    assert close(post, 1 + mlp_out)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("pair", [("attn_out", "resid_mid"), ("ln2_normalized", "mlp_in")])
def test_replacements_compose_in_the_order_of_the_forward_pass(
    folders: dict, ids: Tensor, pair: tuple[str, str], turned: bool
):
    """The earlier site is zeroed, the later gets + 1, whichever was asked for first."""
    lm = load(str(folders["llama"]), device="cpu")
    earlier, later = (Site(kind, LAYER) for kind in pair)
    asked = [(earlier, torch.zeros_like), (later, lambda x: x + 1)]
    (first, second) = asked[::-1] if turned else asked
    with lm.replace(*first), lm.replace(*second):
        resid_pre, x = lm.read(ids, [Site("resid_pre", LAYER), later]).values()
    assert close(x, resid_pre + 1 if later.kind == "resid_mid" else torch.ones_like(x))


def test_a_replacement_is_cast_to_the_models_dtype_and_may_not_change_shape(tiny: LanguageModel, ids: Tensor):
    with tiny.replace(Site("mlp_out", 0), lambda x: x.double()):
        assert tiny.logits(ids).dtype == torch.float32
    with (
        pytest.raises(MatryoshkaError, match=r"0.mlp_out: got .*\[16\], expected \[2, 9, 16\]"),
        tiny.replace(Site("mlp_out", 0), lambda x: x[0, 0]),
    ):
        tiny.logits(ids)


def test_hooks_are_gone_after_use_and_after_errors(tiny: LanguageModel, ids: Tensor):
    before = hand_logits(tiny, ids)
    sites = [Site(kind, layer) for layer in range(3) for kind in kinds(tiny)]
    tiny.read(ids, sites)
    with pytest.raises(IndexError):
        tiny.read(ids + VOCABULARY, sites)
    for site in sites:
        with pytest.raises(ZeroDivisionError), tiny.replace(site, lambda x: 1 / 0):
            tiny.logits(ids)
    hooked = [m for m in blocks(tiny).modules() if m._forward_hooks or m._forward_pre_hooks]
    own = [
        m
        for m in hooked
        if any("matryoshka" in h.__module__ for h in [*m._forward_hooks.values(), *m._forward_pre_hooks.values()])
    ]
    assert own == []
    assert torch.equal(hand_logits(tiny, ids), before)


# --- going on from a layer


@pytest.mark.parametrize("layer", range(3))
def test_going_on_from_a_layer_gives_the_same_logits_without_the_layers_before(
    tiny: LanguageModel, ids: Tensor, layer: int
):
    expected = tiny.logits(ids)
    resid_pre = tiny.read(ids, [Site("resid_pre", layer)])[Site("resid_pre", layer)]
    ran: list[int] = []
    handles = [
        block.mlp.register_forward_hook(lambda *_, i=i: ran.append(i))  # type: ignore[union-attr]
        for i, block in enumerate(blocks(tiny))
    ]
    with tiny.resumed(layer, resid_pre):
        assert torch.equal(tiny.logits(ids), expected)
    for handle in handles:
        handle.remove()
    assert ran == list(range(layer, 3))
    assert torch.equal(tiny.logits(ids), expected)


def test_all_rows_may_go_on_from_one_window(tiny: LanguageModel, ids: Tensor):
    one = ids[:1]
    resid_pre = tiny.read(one, [Site("resid_pre", LAYER)])[Site("resid_pre", LAYER)]
    with tiny.resumed(LAYER, resid_pre):
        assert close(tiny.logits(one.expand(3, -1)), tiny.logits(one).expand(3, -1, -1))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_replaced_or_derived_is_the_same_when_going_on_from_its_layer(
    tiny: LanguageModel, ids: Tensor, kind: str
):
    if kind not in kinds(tiny):
        pytest.skip("a parallel block has no resid_mid")
    site, start = Site(kind, LAYER), Site("resid_pre", LAYER)

    def changed(x: Tensor) -> Tensor:
        return 2 * x + 1

    def derived() -> Tensor:
        return tiny.gradient(ids, [site], lambda logits: logits[..., 3].square().sum())[site]

    slope = derived()
    with tiny.replace(site, changed):
        logits = tiny.logits(ids)
    resid_pre = tiny.read(ids, [start])[start]
    with tiny.replace(site, changed), tiny.resumed(LAYER, resid_pre):
        assert torch.equal(tiny.logits(ids), logits)
    with tiny.resumed(LAYER, resid_pre), tiny.replace(site, changed):
        assert torch.equal(tiny.logits(ids), logits)
    with tiny.resumed(LAYER, resid_pre):
        assert torch.equal(derived(), slope)


def test_going_on_ends_with_its_block_even_within_another_and_after_errors(tiny: LanguageModel, ids: Tensor):
    expected = tiny.logits(ids)
    states = tiny.read(ids, [Site("resid_pre", layer) for layer in range(3)])
    first, second = (states[Site("resid_pre", layer)] for layer in (1, 2))
    with tiny.resumed(1, first + 1):
        moved = tiny.logits(ids)
        with tiny.resumed(2, second):
            assert torch.equal(tiny.logits(ids), expected)
        assert torch.equal(tiny.logits(ids), moved)
    with pytest.raises(ZeroDivisionError), tiny.resumed(2, second):
        _ = 1 / 0
    assert not any("forward" in vars(block) for block in blocks(tiny))
    assert torch.equal(tiny.logits(ids), expected)
    assert not torch.equal(moved, expected)


# --- gradients


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gradient_is_what_finite_differences_say_at_every_site(folders: dict, ids: Tensor, family: str):
    lm = load(str(folders[family]), dtype=torch.float64, device="cpu")
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(*ids.shape, lm.info.d_vocab, dtype=torch.float64, generator=generator)

    def metric(logits: Tensor) -> Tensor:
        return (logits.log_softmax(-1) * weights).sum()

    for site in (Site(kind, LAYER) for kind in kinds(lm)):
        direction = torch.randn(*ids.shape, 16, dtype=torch.float64, generator=generator)
        ends = []
        for step in (direction / 1000, -direction / 1000):  # large enough for the norms, which compute in float32
            with lm.replace(site, lambda x, step=step: x + step):
                ends.append(metric(lm.logits(ids)).item())
        slope = lm.gradient(ids, [site], metric)[site]
        assert (slope * direction).sum().item() == pytest.approx((ends[0] - ends[1]) * 500, rel=5e-3), site


def test_gradients_at_several_sites_are_those_of_a_change_at_all_of_them(tiny: LanguageModel, ids: Tensor):
    sites = [Site("mlp_out", 0), Site("mlp_out", 1)]
    together = tiny.gradient(ids, sites, lambda logits: logits[..., 3].square().sum())
    assert list(together) == sites
    for site in sites:
        alone = tiny.gradient(ids, [site], lambda logits: logits[..., 3].square().sum())[site]
        assert torch.allclose(together[site], alone, rtol=1e-4, atol=1e-6)


def test_a_gradient_leaves_nothing_behind(tiny: LanguageModel, ids: Tensor):
    site, before = Site("mlp_out", 0), tiny.logits(ids)
    slope = tiny.gradient(ids, [site], lambda logits: logits[..., 3].sum())[site]
    assert slope.shape == tiny.read(ids, [site])[site].shape
    assert slope.count_nonzero() > 0
    assert not slope.requires_grad
    assert not before.requires_grad
    assert torch.equal(tiny.logits(ids), before)
    assert all(parameter.grad is None for parameter in tiny.model.parameters())


# --- what is refused


def test_a_parallel_block_has_no_resid_mid(folders: dict, ids: Tensor):
    lm = load(str(folders["gpt_neox"]), device="cpu")
    for use in (
        lm.info.check,
        lambda site: lm.read(ids, [site]),
        lambda site: lm.replace(site, abs).__enter__(),
    ):
        with pytest.raises(MatryoshkaError, match=r"site 1.resid_mid: .*parallel"):
            use(Site("resid_mid", 1))
    assert load(str(folders["gpt_neox_sequential"]), device="cpu").info.check(Site("resid_mid", 1)) == 16


def test_a_layer_out_of_range_is_refused_with_the_number_of_layers(tiny: LanguageModel):
    assert tiny.info.check(Site("mlp_in", 2)) == 16
    with pytest.raises(MatryoshkaError, match=r"3.mlp_in: .* has 3 layers, 0 to 2"):
        tiny.info.check(Site("mlp_in", 3))


def test_too_many_positions_are_refused(tiny: LanguageModel):
    with pytest.raises(MatryoshkaError, match=r"\[1, 33\], expected .* at most 32"):
        tiny.logits(torch.zeros(1, 33, dtype=torch.long))


@pytest.mark.parametrize(
    ("family", "part", "wrong"),
    [
        ("gemma2", "attn_added", "self_attn"),
        ("gemma2", "mlp_added", "mlp"),
        ("gemma3_text", "mlp_norm", "post_attention_layernorm"),
        ("gemma2", "gain_offset", 0.0),
        ("llama", "attn_norm", "post_attention_layernorm"),
        ("llama", "gain_offset", 1.0),
        ("gpt2", "mlp", "attn"),
        ("gpt2", "attn_added", "mlp"),
        ("gpt_neox", "mlp_added", "post_attention_dropout"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_wrong_row_of_the_table_is_refused_at_load(
    folders: dict, monkeypatch: pytest.MonkeyPatch, family: str, part: str, wrong: object, dtype: str
):
    load(str(folders[family]), dtype=dtype, device="cpu")
    monkeypatch.setitem(FAMILIES, family, dataclasses.replace(FAMILIES[family], **{part: wrong}))
    with pytest.raises(MatryoshkaError, match=rf"{family}.* differs from .* by [0-9.e+-]+ \(rounding"):
        load(str(folders[family]), dtype=dtype, device="cpu")


def test_gemma2_keeps_its_soft_capping(folders: dict, ids: Tensor):
    lm = load(str(folders["gemma2"]), device="cpu")
    assert lm.model.config._attn_implementation == "eager"
    capped = lm.read(ids, [Site("attn_out", 0)])[Site("attn_out", 0)]
    lm.model.get_submodule("model.layers.0.self_attn").attn_logit_softcapping = None
    assert not close(lm.read(ids, [Site("attn_out", 0)])[Site("attn_out", 0)], capped)
    assert lm.logits(ids).abs().max() <= 2
