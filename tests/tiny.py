"""A TinyLlama-shaped backbone with random weights, small enough to train in a second, unlike SmolLM2 in all it can be.

python -m tests.tiny FOLDER   # then RMKIT_BACKBONE=FOLDER runs any lesson on it
"""

import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, LlamaTokenizer

from rmkit.preferences import DATA

VOCABULARY = 1500
SPECIAL = ["<unk>", "<s>", "</s>"]  # ids 0, 1, 2, as in Llama 2
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
# The turns of Zephyr, which TinyLlama speaks: the role's mark is plain text, only the end of turn is a token.
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def make_tiny_backbone(folder: str | Path) -> Path:
    """Write model and tokenizer to `folder`, the same on every call, with pad = eos as TinyLlama is shipped."""
    folder = Path(folder)
    tokenizer = _tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer() -> LlamaTokenizer:
    """BPE over ▁-words with bytes to fall back on; no merge spans a space, a line break or two digits, as in Llama 2."""
    rows = map(json.loads, (DATA / "json_vs_text.jsonl").read_text("utf-8").splitlines())
    texts = [row[column] for row in rows for column in ("prompt", "chosen", "rejected")]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", behavior="removed"),
            pre_tokenizers.Metaspace(),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    ascii = [chr(code) for code in range(33, 127)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL + BYTES, initial_alphabet=ascii, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    learned = json.loads(bpe.to_str())["model"]
    merges = [tuple(merge) for merge in learned["merges"]]
    return LlamaTokenizer(learned["vocab"], merges, pad_token="</s>", chat_template=TEMPLATE, model_max_length=512)


if __name__ == "__main__":
    print(make_tiny_backbone(sys.argv[1]))
