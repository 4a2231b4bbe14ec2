"""What the language model's final norm divides by on a text: the scale of direct effects on its logits."""

import torch

from matryoshka.data.rowfilter import SAMPLE, RowFilter
from matryoshka.data.tokens import Windows
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site
from matryoshka.lm.unembed import typical_scale


def final_scale(lm: LanguageModel, windows: Windows) -> float:
    """What the final norm typically divides by, on the first windows."""
    last = Site("resid_post", lm.info.n_layers - 1)
    tokens = torch.from_numpy(windows[:SAMPLE]).to(lm.device)
    activations = lm.read(tokens, [last])
    return typical_scale(lm, activations[last][RowFilter.of(lm.bos, activations)(tokens, activations)])
