"""A tiny, randomly initialised model of each family, to be saved as users' models are."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 50
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
GPT2 = {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 32, "vocab_size": VOCABULARY}
GPT2 |= {"bos_token_id": 0, "eos_token_id": 0}
NEOX = {name: size for name, size in SIZES.items() if name not in ("num_key_value_heads", "head_dim")}
GEMMA = SIZES | {"query_pre_attn_scalar": 8, "sliding_window": 4}
VISION = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
VISION |= {"image_size": 8, "patch_size": 4}

CONFIGS: dict[str, Any] = {
    "gpt2": lambda: transformers.GPT2Config(**GPT2),
    # soft-capping so tight that leaving it out would show
    "gemma2": lambda: transformers.Gemma2Config(**GEMMA, attn_logit_softcapping=0.5, final_logit_softcapping=2.0),
    "gemma3_text": lambda: transformers.Gemma3TextConfig(**GEMMA),
    "gemma3": lambda: transformers.Gemma3Config(text_config=GEMMA, vision_config=VISION, mm_tokens_per_image=4),
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**NEOX, use_parallel_residual=True),
    "gpt_neox_sequential": lambda: transformers.GPTNeoXConfig(**NEOX, use_parallel_residual=False),
}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    words = {"<bos>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, VOCABULARY)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>")


def save_tiny(config: Any, folder: Path) -> Path:
    """A model with this config in `folder`; no gain is 1 and no bias 0, so that leaving one out shows."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.3, 0.4) if parameter.ndim == 1 else parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
