"""What SAEBench is given: an object with its face, and SAELens' folder of unit rows."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from written_coders import inputs, ours, random_coder, saelens, saved

from matryoshka.coder.coder import SparseCoder
from matryoshka.errors import MatryoshkaError
from matryoshka.interop.exporting import export
from matryoshka.interop.importing import import_coder
from matryoshka.interop.saebench import saebench_object
from matryoshka.run import Run


@pytest.mark.parametrize("kind", ["sae", "topk sae", "jumprelu sae"])
def test_a_trained_coder_has_the_face_that_evaluations_use(kind: str, kinds: dict[str, Run]) -> None:
    given, coder = saebench_object(kinds[kind]), SparseCoder.load(kinds[kind].path)
    x = inputs(192)
    latents, y = ours(coder, x)
    cube = torch.stack([x, x.flip(0)])  # [batch, position, d], as evaluations pass
    got = given.encode(cube)
    assert got.layout == torch.strided
    np.testing.assert_allclose(got[0], latents * coder.decoder_rows().norm(dim=1).numpy(), atol=1e-4, rtol=1e-5)
    np.testing.assert_allclose(got[1].flip(0), got[0])
    np.testing.assert_allclose(given(cube)[0], y, atol=1e-4, rtol=1e-5)
    np.testing.assert_allclose(given.decode(got)[0], y, atol=1e-4, rtol=1e-5)
    assert (given.W_enc.shape, given.W_dec.shape) == ((192, 256), (256, 192))
    assert (given.b_enc.shape, given.b_dec.shape) == ((256,), (192,))
    torch.testing.assert_close(given.W_dec.norm(dim=1), torch.ones(256), atol=1e-3, rtol=0)
    assert (given.dtype, given.device) == (torch.float32, torch.device("cpu"))
    assert (given.cfg.model_name, given.cfg.hook_name, given.cfg.hook_layer) == (
        "bundled",
        "blocks.2.hook_resid_post",
        2,
    )
    assert (given.cfg.d_in, given.cfg.d_sae, given.cfg.dtype, given.cfg.training_tokens) == (192, 256, "float32", 4096)
    given.cfg.architecture_str = "theirs"  # type: ignore[attr-defined]  # it writes onto it
    assert json.loads(json.dumps(given.cfg.to_dict()))["context_size"] == 64


def test_it_moves_between_dtypes(kinds: dict[str, Run]) -> None:
    given = saebench_object(kinds["sae"], 96, "gpt2-small", "bfloat16")
    assert (given.dtype, given.W_enc.dtype, given.cfg.dtype) == (torch.bfloat16, torch.bfloat16, "bfloat16")
    assert (given.cfg.model_name, given.cfg.d_sae, given.W_enc.shape) == ("gpt2-small", 96, (192, 96))
    assert given.encode(inputs(192)).dtype == given(inputs(192)).dtype == torch.bfloat16
    moved = given.to(device="cpu", dtype=torch.float32)
    assert moved is given
    assert moved.dtype == moved(inputs(192)).dtype == torch.float32
    with pytest.raises(MatryoshkaError, match=r"unknown dtype 'float23' \(did you mean 'float32'\?\)"):
        saebench_object(kinds["sae"], dtype="float23")


@settings(max_examples=40)
@given(
    kind=st.sampled_from(["relu", "batchtopk", "jumprelu"]),
    prefix=st.sampled_from([None, 5]),
    seed=st.integers(0, 10_000),
)
def test_unit_rows_are_the_same_function(kind: str, prefix: int | None, seed: int) -> None:
    coder, x = random_coder(kind, seed=seed), inputs(6)
    with TemporaryDirectory() as parent:
        run = saved(coder, Path(parent) / "run")
        folder, given = export(run, Path(parent) / "out", "saebench", prefix), saebench_object(run, prefix)
        latents, y = ours(coder if prefix is None else coder.prefix(prefix), x)
        norms = coder.decoder_rows().norm(dim=1)[:prefix].numpy()
        for got in (saelens(folder, x), ours(import_coder(folder), x), (given.encode(x), given(x))):
            np.testing.assert_allclose(got[0], latents * norms, atol=1e-5, rtol=1e-5)
            np.testing.assert_allclose(got[1], y, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(import_coder(folder).decoder_rows().norm(dim=1), torch.ones(len(norms)))


def test_what_it_would_measure_wrongly_is_refused(kinds: dict[str, Run], tmp_path: Path) -> None:
    run = saved(random_coder("topk"), tmp_path / "run")
    with pytest.raises(MatryoshkaError, match=r"a TopK whose decoder rows have norms up to .* away from 1"):
        saebench_object(run)
    with pytest.raises(MatryoshkaError, match="a TopK whose decoder rows"):
        export(run, tmp_path / "out", "saebench")
    for wrong in (kinds["layer 1"], saved(random_coder("relu", skip=True), tmp_path / "skip")):
        with pytest.raises(
            MatryoshkaError, match="puts what a coder writes in place of what it reads; expected an SAE"
        ):
            saebench_object(wrong)
        with pytest.raises(MatryoshkaError, match="expected an SAE"):
            export(wrong, tmp_path / "out", "saebench")
    assert not (tmp_path / "out").exists()
