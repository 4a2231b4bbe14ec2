"""What each active latent adds to the reconstruction of its token, from one more pass over the recorded text.

    left     ‖y − ŷ‖²                                                     what the whole dictionary leaves
    added    ‖y − ŷ + a_f d_f‖² − ‖y − ŷ‖² = a_f (2 ⟨y − ŷ, d_f⟩ + a_f ‖d_f‖²)    how much more, were latent f not there

a_f are the recorded latents, d_f decoder rows, y the written sites side by side. Nothing is encoded again: the latents
are those of the recording, whatever device it was made on.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from matryoshka.analysis.corpus import Corpus
from matryoshka.analysis.observed import Observed
from matryoshka.coder.latents import Latents, Pattern
from matryoshka.progress import Progress, silent
from matryoshka.study.recording import RecordedCoder


class Contributions(NamedTuple):
    """In the units of the written sites, squared."""

    left: Float[np.ndarray, " rows"]
    added: Float[np.ndarray, " entries"]
    """float32, one for each entry of the recording."""


@torch.no_grad()
def contributions(observed: Observed, corpus: Corpus, progress: Progress = silent) -> Contributions:
    """Of a coder's recorded latents; `progress` counts tokens."""
    (hooked, recorded), coder = observed[1:], observed.hooked.coder
    squares = coder.decoder_rows().square().sum(1)
    left, added = np.empty(recorded.rows), np.empty(len(recorded.values), np.float32)
    place = row = 0
    for rows in corpus.rows([hooked]):
        places = slice(place, place + rows.text.tokens.size)
        kept = torch.from_numpy(recorded.kept[places].reshape(rows.text.tokens.shape)).to(coder.device)
        x, y = (rows.at(sites, kept) for sites in (hooked.wiring.reads, hooked.wiring.writes))
        latents = _latents(recorded, places, coder.device)
        error = y.to(coder.dtype) - coder.decode(latents, x, widths=[recorded.d_sae])[-1]
        of_entries = 2 * coder.contribution(latents, error) + latents.values**2 * squares[latents.indices]
        added[recorded.offsets[places.start] : recorded.offsets[places.stop]] = of_entries.float().cpu().numpy()
        left[row : row + len(error)] = error.double().square().sum(1).cpu().numpy()
        place, row = places.stop, row + len(error)
        progress(place, len(recorded.counts))
    return Contributions(left, added)


def _latents(recorded: RecordedCoder, places: slice, device: torch.device) -> Latents:
    """What is recorded of the rows at these places."""
    counts = recorded.counts[places]
    offsets = np.concatenate([[0], np.cumsum(counts[counts >= 0], dtype=np.int64)])
    start, end = recorded.offsets[[places.start, places.stop]].tolist()
    features = recorded.features_of(torch.arange(start, end)).long()
    pattern = Pattern(features.to(device), torch.from_numpy(offsets).to(device), recorded.d_sae)
    return Latents(pattern, torch.from_numpy(recorded.values[start:end]).to(device))
