"""Train the bundled language model and its tokenizer: `src/matryoshka/lm/bundled/`.

    python scripts/bundled_model.py                 # under an hour on two CPU cores; a GPU is used where there is one

A GPT-2 of 4 layers (d = 192, context 256) with a byte-level BPE of 4,096 tokens, on the training documents of the
bundled corpus (`data/bundled/text.jsonl.gz`). Held-out documents (the split of `data/tokens.py`, 5 %) are seen by
neither the tokenizer nor the model. Prints and saves the held-out loss beside the unigram and bigram baselines.
"""

import argparse
import gzip
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from matryoshka.data.tokens import is_held_out

ROOM = Path(__file__).parents[1] / "src/matryoshka"
TEXT, OUT = ROOM / "data/bundled/text.jsonl.gz", ROOM / "lm/bundled"
HELD_OUT, VOCABULARY, CONTEXT, BOS = 0.05, 4096, 256, "<|endoftext|>"


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE as GPT-2's, which begins every text with `<|endoftext|>` (id 0)."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[BOS], initial_alphabet=alphabet)
    )
    bpe.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=BOS, eos_token=BOS, unk_token=BOS, model_max_length=CONTEXT
    )


def pack(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """Texts, each begun by BOS, end to end, cut into windows of CONTEXT tokens that each begin with BOS."""
    flat = np.concatenate([np.array(ids, dtype=np.int64) for ids in tokenizer(texts)["input_ids"]])
    rows = len(flat) // (CONTEXT - 1)
    windows = torch.from_numpy(flat[: rows * (CONTEXT - 1)]).view(rows, CONTEXT - 1)
    return torch.cat([torch.zeros(rows, 1, dtype=torch.long), windows], dim=1)


def baselines(train: torch.Tensor, test: torch.Tensor) -> dict[str, float]:
    """Held-out cross-entropy (nats a token) of an add-one unigram and of a bigram interpolated with it."""
    counts = torch.bincount(train[:, 1:].flatten(), minlength=VOCABULARY).double() + 1
    unigram = counts / counts.sum()
    pairs = torch.bincount((train[:, :-1] * VOCABULARY + train[:, 1:]).flatten(), minlength=VOCABULARY**2)
    pairs = pairs.view(VOCABULARY, VOCABULARY).double()
    bigram = (pairs + 100 * unigram) / (pairs.sum(1, keepdim=True) + 100)
    before, after = test[:, :-1].flatten(), test[:, 1:].flatten()
    return {
        "unigram": -unigram[after].log().mean().item(),
        "bigram": -bigram[before, after].log().mean().item(),
    }


@torch.no_grad()
def held_out_loss(model: GPT2LMHeadModel, windows: torch.Tensor) -> float:
    model.eval()
    losses = [model(input_ids=batch, labels=batch).loss.item() * len(batch) for batch in windows.split(32)]
    model.train()
    return sum(losses) / len(windows)


def train(model: GPT2LMHeadModel, windows: torch.Tensor, test: torch.Tensor, given: argparse.Namespace) -> None:
    """AdamW, linear warm-up over 100 steps, cosine decay to a tenth; `given.minutes` bounds the wall time."""
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    plain = [p for p in model.parameters() if p.dim() < 2]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
        lr=given.lr, betas=(0.9, 0.95), fused=True,
    )  # fmt: skip
    device, order = next(model.parameters()).device, torch.Generator().manual_seed(0)
    started, step, progress = time.monotonic(), 0, 0.0
    while progress < 1:
        for rows in torch.randperm(len(windows), generator=order).split(given.batch):
            progress = max(
                step * given.batch / (given.epochs * len(windows)),
                (time.monotonic() - started) / (60 * given.minutes),
            )
            if progress >= 1:
                return
            rate = min(1, (step + 1) / 100) * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))
            for group in optimiser.param_groups:
                group["lr"] = given.lr * rate
            batch = windows[rows].to(device)
            with torch.autocast(device.type, dtype=torch.bfloat16):
                loss = model(input_ids=batch, labels=batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
            step += 1
            if step % 50 == 0:
                speed = step * given.batch * CONTEXT / (time.monotonic() - started)
                print(
                    f"{progress:6.1%}  step {step:5}  loss {loss.item():.3f}  {speed:,.0f} tokens/s",
                    flush=True,
                )
            if step % 500 == 0:
                print(f"held-out loss {held_out_loss(model, test[:64].to(device)):.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--minutes", type=float, default=55, help="the schedule ends at the latest after so long")
    parser.add_argument("--batch", type=int, default=16, help="windows of 256 tokens a step")
    parser.add_argument("--lr", type=float, default=2e-3)
    given = parser.parse_args()

    with gzip.open(TEXT, "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    train_texts = [text for text in texts if not is_held_out(text, HELD_OUT)]
    tokenizer = train_tokenizer(train_texts)
    windows = pack(tokenizer, train_texts)
    test = pack(tokenizer, [text for text in texts if is_held_out(text, HELD_OUT)])
    facts: dict[str, float] = baselines(windows, test)
    print(f"{windows.numel():,} training tokens, {test.numel():,} held out; {facts}", flush=True)

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=192, n_layer=4, n_head=6,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = GPT2LMHeadModel(config).to(device).train()
    started = time.monotonic()
    train(model, windows, test, given)
    facts |= {
        "minutes": (time.monotonic() - started) / 60,
        "training_tokens": windows.numel(),
        "held_out_tokens": test.numel(),
    }

    model = model.half().cpu()  # stored in half precision, read back as float32
    model.save_pretrained(OUT)
    tokenizer.save_pretrained(OUT)
    facts["model"] = held_out_loss(GPT2LMHeadModel.from_pretrained(OUT, dtype=torch.float32), test)
    (OUT / "training.json").write_text(json.dumps({**vars(given), **facts}, indent=2) + "\n")
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
