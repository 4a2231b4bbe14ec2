"""SAELens as a contender: `SAETrainer.fit` on our batches, as its runner builds it, without logging.

Default: its configuration classes' own defaults. With a learning rate that is set, also the decay of its documentation:
linear, over the last fifth of the steps. Best: the fastest of its options that keep float32 weights, found by
timing them in alternating rounds against the default (2 cores with AVX-512 bfloat16, d_sae 12,288, batch 2048):

    autocast=True                           1.5 to 1.7 × as fast: its documentation's first tip; products in bfloat16
    rescale_acts_by_decoder_norm=False      1.05 to 1.1 ×: selects by the bare pre-activations
    use_sparse_activations=True             for TopK alone (BatchTopK and Matryoshka ignore it): some 2 × with the two
                                            above; on a CPU its backward pass fails unless the rescaling is off

Left out: compile_sae=True, 0.9 to 1.05 × and in need of a C++ compiler; dtype="bfloat16", 1.1 ×, where Adam works on
bfloat16 weights and moments.
"""

from typing import Any

import torch
from canonical import Canonical
from job import Batches, Job
from sae_lens import BatchTopKTrainingSAEConfig, MatryoshkaBatchTopKTrainingSAEConfig, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE
from sae_lens.saes.matryoshka_batchtopk_sae import MatryoshkaBatchTopKTrainingSAE
from sae_lens.saes.topk_sae import TopKTrainingSAE
from sae_lens.training.sae_trainer import SAETrainer
from worker import run


def build(job: Job) -> TopKTrainingSAE:
    """The autoencoder; the other two architectures are its subclasses."""
    options: dict[str, Any] = {"d_in": job.d, "d_sae": job.d_sae, "k": job.k, "device": job.device}
    if job.best:
        options["rescale_acts_by_decoder_norm"] = False
    match job.architecture:
        case "matryoshka":
            config = MatryoshkaBatchTopKTrainingSAEConfig(**options, matryoshka_widths=job.widths)
            return MatryoshkaBatchTopKTrainingSAE(config)
        case "batchtopk":
            return BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**options))
        case _:
            return TopKTrainingSAE(TopKTrainingSAEConfig(**options, use_sparse_activations=job.best))


def canonical(sae: TopKTrainingSAE) -> Canonical:
    """With the decoder rows' norms, which it selects by, and the bias that it takes off its input folded."""
    norms = sae.W_dec.norm(dim=1) if sae.cfg.rescale_acts_by_decoder_norm else torch.ones_like(sae.b_enc)
    b_in = sae.b_dec * sae.cfg.apply_b_dec_to_input
    b_enc = (sae.b_enc - b_in @ sae.W_enc) * norms
    threshold = sae.topk_threshold if isinstance(sae, BatchTopKTrainingSAE) else None
    return Canonical(sae.W_enc * norms, b_enc, sae.W_dec / norms[:, None], sae.b_dec, threshold)


def train(job: Job, batches: Batches) -> Canonical:
    sae = build(job)
    chosen = {} if job.lr is None else {"lr": job.lr, "lr_decay_steps": job.steps // 5}
    config = SAETrainerConfig(
        total_training_samples=job.steps * job.batch,
        train_batch_size_samples=job.batch,
        lr_end=3e-5,  # its runner's configuration fills in some value; the constant schedule never reads it
        device=job.device,
        autocast=job.best,
        **chosen,
    )
    batches.reconstruct = sae
    SAETrainer(config, sae, batches).fit()
    with torch.no_grad():
        return canonical(sae)


if __name__ == "__main__":
    run(train)
