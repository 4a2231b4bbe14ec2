"""Cases for the errors of nested prefixes: rows without entries, empty rings, one latent on all rows."""

import torch
from hypothesis import strategies as st

from matryoshka.coder.latents import Pattern


@st.composite
def nested(draw, dtype=torch.float64, device="cpu"):
    """(W_dec, values, pattern, target, widths, scale): no latent twice on a row, entries of a row in any order."""
    batch, d_sae, d = draw(st.integers(1, 9)), draw(st.integers(1, 20)), draw(st.integers(1, 40))
    widths = (*sorted(draw(st.sets(st.integers(1, d_sae - 1), max_size=7))), d_sae) if d_sae > 1 else (1,)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).to(device)

    active = torch.rand(batch, d_sae, generator=generator) < draw(st.sampled_from([0.0, 0.1, 0.4, 1.0]))
    active[:, 0] |= draw(st.booleans())
    active[0] &= draw(st.booleans())
    row, latent = active.nonzero().T
    shuffled = torch.rand(len(row), generator=generator).argsort()
    shuffled = shuffled[row[shuffled].argsort(stable=True)]
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), active.sum(1).cumsum(0)])
    pattern = Pattern(latent[shuffled].to(device), offsets.to(device), d_sae)
    values = normal(len(row))
    return normal(d_sae, d), values, pattern, normal(batch, d), torch.tensor(widths, device=device), normal(1)[0]
