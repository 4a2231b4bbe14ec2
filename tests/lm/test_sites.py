import pytest

from matryoshka.errors import MatryoshkaError
from matryoshka.lm.sites import FAMILIES, KINDS, Site


@pytest.mark.parametrize("kind", KINDS)
def test_a_site_reads_back_as_it_is_written(kind: str):
    assert str(Site(kind, 8)) == f"8.{kind}"
    assert Site.parse(f"8.{kind}") == Site(kind, 8)


@pytest.mark.parametrize(
    ("lens", "kind"),
    [
        ("hook_resid_pre", "resid_pre"),
        ("hook_resid_mid", "resid_mid"),
        ("hook_resid_post", "resid_post"),
        ("hook_attn_out", "attn_out"),
        ("hook_mlp_out", "mlp_out"),
        ("ln2.hook_normalized", "ln2_normalized"),
    ],
)
def test_transformer_lens_names_are_sites(lens: str, kind: str):
    assert Site.parse(f"blocks.12.{lens}") == Site(kind, 12)


def test_hook_mlp_in_is_before_the_norm_so_never_mlp_in():
    assert Site.parse("blocks.8.hook_mlp_in") == Site("resid_mid", 8)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("8.mpl_in", "8.mlp_in"),
        ("mlp_in", "0.mlp_in"),
        ("8.hook_mlp_out", "8.mlp_out"),
        ("blocks.8.hook_resid_pst", "blocks.8.hook_resid_post"),
        ("blocks.3.mlp_out", "blocks.3.hook_mlp_out"),
    ],
)
def test_an_unknown_site_is_refused_with_the_nearest_spelling(wrong: str, right: str):
    with pytest.raises(MatryoshkaError, match=f"unknown site '{wrong}' .did you mean '{right}'") as caught:
        Site.parse(wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "8", "-1.mlp_in", "8.mlp_in ", "8.8.mlp_in", "x.8.mlp_in", "²x.mlp_in"])
def test_what_is_nearly_a_site_is_refused(text: str):
    with pytest.raises(MatryoshkaError, match="unknown site"):
        Site.parse(text)


def test_a_site_cannot_be_made_wrong():
    with pytest.raises(MatryoshkaError, match=r"'mlp_inn'.*'mlp_in'"):
        Site("mlp_inn", 0)
    with pytest.raises(MatryoshkaError, match="count from 0"):
        Site("mlp_in", -1)


def test_sites_are_ordered_as_the_forward_pass_meets_them():
    order = [Site(kind, layer) for layer in (2, 10) for kind in KINDS]
    mixed = order[::-1]
    assert sorted(mixed) == order
    assert Site("resid_post", 2) < Site("resid_pre", 10)
    assert max(Site("attn_out", 3), Site("mlp_out", 3)) == Site("mlp_out", 3)


def test_the_named_families_are_supported():
    families = {"gpt2", "gemma2", "gemma3", "gemma3_text", "llama", "qwen2", "qwen3", "gpt_neox"}
    assert set(FAMILIES) == families


def test_what_is_added_to_the_residual_or_is_it_has_a_direct_path():
    direct = {kind for kind in KINDS if Site(kind, 0).in_residual}
    assert direct == {"resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"}


def test_a_hook_that_is_no_site_is_not_taken_for_another():
    with pytest.raises(MatryoshkaError, match=r"hook_z' \(one of: blocks\.2\.hook_resid_pre"):
        Site.parse("blocks.2.attn.hook_z")
