"""The direct effect of a direction on the logits: past all later layers, through the final norm and the unembedding.

The final residual r becomes logits = W_U (gain ⊙ centre(r) / scale(r) + bias), where LayerNorm centres (subtracts the
mean over the model's dimensions) and RMSNorm does not. With the scale held fixed this is linear in r.

resid = lm.read(tokens, [last := Site("resid_post", lm.info.n_layers - 1)])[last]
effects = direct_logits(lm, W_dec, typical_scale(lm, resid[:, 1:].flatten(0, 1)))     # without BOS
"""

import torch
from jaxtyping import Float
from torch import Tensor

from matryoshka.errors import MatryoshkaError
from matryoshka.lm.hooks import centred, epsilon
from matryoshka.lm.model import LanguageModel

ROWS = 16384
"""Of W_U that are float32 at once: of a large vocabulary in bfloat16 there is never a whole copy."""


@torch.no_grad()
def direct_logits(lm: LanguageModel, directions: Float[Tensor, "n d_model"], scale: float) -> Float[Tensor, "n vocab"]:
    """By how much the logits change for each unit of a direction added to the final residual.

    W_U (gain ⊙ centre(direction)) / scale, minus each row's mean over the vocabulary, which softmax ignores; in float32
    on the model's device. It holds for directions that are added to the residual stream (`Site.in_residual`) and leaves
    out what later layers make of them. Soft-capping of the final logits (Gemma-2) is left out: it is monotone, so no
    change turns round, but those of large logits become smaller.

    `directions`: in the residual's own units, one a row. `scale`: what the final norm divides by, held fixed;
    `typical_scale` of some tokens. Not positive and finite, or rows of another width: MatryoshkaError.
    """
    if directions.shape[-1] != lm.info.d_model:
        raise MatryoshkaError(
            f"{lm.info.name}: got directions of width {directions.shape[-1]}, expected {lm.info.d_model}"
        )
    if not 0 < scale < float("inf"):
        raise MatryoshkaError(f"scale of the final norm: got {scale}, expected a positive number")
    norm = lm.final_norm
    gain = lm.info.family.gain_offset + norm.get_parameter("weight").float()
    scaled = gain * centred(norm, directions.to(lm.device).float()) / scale
    unembedding: Tensor = lm.model.get_output_embeddings().weight
    logits = torch.cat([scaled @ rows.float().T for rows in unembedding.split(ROWS)], dim=-1)
    return logits.sub_(logits.mean(-1, keepdim=True))


@torch.no_grad()
def final_scale(lm: LanguageModel, resid: Float[Tensor, "*token d_model"]) -> Float[Tensor, "*token"]:
    """What the final norm divides each token's last resid_post by: √(mean(centre(r)²) + eps), in float32."""
    return (centred(lm.final_norm, resid.float()).square().mean(-1) + epsilon(lm.final_norm)).sqrt()


def typical_scale(lm: LanguageModel, resid: Float[Tensor, "token d_model"]) -> float:
    """The root mean square of what the final norm divides by, over the last resid_post of at least one token; without
    BOS and attention sinks, whose huge norms would be all that counts."""
    if not len(resid):
        raise MatryoshkaError("typical scale of the final norm: got no tokens, expected at least one")
    return final_scale(lm, resid).double().square().mean().sqrt().item()
