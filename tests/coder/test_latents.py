"""The sparse type agrees with the dense tensor that it stands for."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matryoshka.coder.latents import from_mask


@settings(max_examples=40)
@given(batch=st.integers(0, 5), d_sae=st.integers(1, 8), data=st.data())
def test_what_a_mask_keeps_is_what_dense_gives_back(batch, d_sae, data):
    count = batch * d_sae
    values = torch.tensor(data.draw(st.lists(st.integers(-2, 3), min_size=count, max_size=count)))
    kept = torch.tensor(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)), dtype=torch.bool)
    pre, kept = values.float().view(batch, d_sae), kept.view(batch, d_sae)
    latents = from_mask(pre, kept.flatten().nonzero().squeeze(1))
    assert torch.equal(latents.dense(), pre * kept)
    assert torch.equal(latents.offsets.diff(), kept.sum(1))
    assert torch.equal(latents.rows, kept.nonzero()[:, 0])
    assert torch.equal(latents.fired(), ((pre > 0) & kept).sum(0))


def test_gradients_flow_to_the_kept_entries():
    pre = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    latents = from_mask(pre, torch.tensor([1, 2]))
    (latents.dense() * torch.tensor([[5.0, 6.0], [7.0, 8.0]])).sum().backward()
    assert pre.grad.tolist() == [[0, 6], [7, 0]]
