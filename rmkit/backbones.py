"""Which pretrained language model a lesson runs on, and where its weights come from (notebook 00).

`load_backbone()` is all that a notebook calls. On a CPU it gives SmolLM2-135M-Instruct, whose weights
come out of a file that pip can fetch; on a CUDA GPU with enough memory, TinyLlama-1.1B-Chat from the
Hugging Face hub; `RMKIT_BACKBONE`, or an argument, names any other model of a known family.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from rmkit.batching import render
from rmkit.smollm2 import GGUF_SHA256, SMOLLM2, BackboneUnavailable, first_line, hub_fault, smollm2_folder

transformers_logging.disable_progress_bar()  # a bar for every load, on stderr, tells a reader nothing

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # model types with `layers`, `norm` and position ids

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(@.+)?")

TINYLLAMA = "tinyllama-1.1b"
TINYLLAMA_HUB = ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "fe8a4ea1ffedaf415f4da2f062534de366a451e6")
# GPU memory, estimated and not yet measured on a card. Training a parameter takes, beyond its fp32 weight, 4 bytes of
# gradient, 8 of Adam's moments, 2 of what autocast keeps for the way back, and 4 to spare for what else works on it.
TRAINED_PARAMETER_BYTES = 18
ACTIVATION_BYTES = 2e9
TINYLLAMA_BYTES = 12e9  # two copies of the weights, as a lesson may hold, and training the last two layers
SMOLLM2_BYTES = 4e9

FIXED_DATE = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"

# For models that were never taught a chat format.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + (eos_token if message['role'] == "
    "'assistant' else '') + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
TURNS = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]


@dataclass
class Backbone:
    """A pretrained causal language model, ready to become a reward model.

    `model` keeps its language-model head; `model.base_model` is the body alone, which a RewardModel uses
    and, where it trains, changes: load the backbone again for a fresh one.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase  # its pad token never closes a turn
    revision: str | None = None  # commit on the hub, or hash of the file, that the weights come from
    autocast: torch.dtype | None = None  # the body computes in this dtype; None: in that of the weights
    trainable: str = "all"  # the largest trainable set that this machine's memory allows
    why: str = ""

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def __str__(self) -> str:
        millions = sum(p.numel() for p in self.model.parameters()) / 1e6
        precision = str(self.autocast or self.dtype).removeprefix("torch.")
        return f"{self.name}: {millions:,.0f} M parameters on {self.device.type} in {precision}. {self.why}"


@dataclass(frozen=True)
class Choice:
    """What `load_backbone` will load, decided before any weight is read."""

    source: str  # a short name, a hub id (`owner/model` or `owner/model@revision`) or a local folder
    device: str
    why: str


def load_backbone(source: str | None = None) -> Backbone:
    """Load the backbone of this machine, or the one that `source` or `RMKIT_BACKBONE` names.

    source: `"smollm2-135m"`, `"tinyllama-1.1b"`, a hub id with or without `@revision`, or a local folder.
    Raises BackboneUnavailable when the weights cannot be had, ValueError for a name, family or tokenizer
    that cannot serve.
    """
    choice = choose_backbone(source)
    if choice.source == SMOLLM2:
        folder, revision = str(smollm2_folder()), f"sha256:{GGUF_SHA256}"
        kwargs = {"local_files_only": True}
    elif Path(choice.source).is_dir():
        folder, revision, kwargs = choice.source, _hash_of_weights(Path(choice.source)), {"local_files_only": True}
    else:
        folder, _, revision = _hub_id(choice.source).partition("@")
        kwargs = {"revision": revision or None}
    model, tokenizer = _from_pretrained(choice.source, folder, **kwargs)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN_TEMPLATE
    tokenizer.chat_template = tokenizer.get_chat_template()  # of several, the default one
    separate_pad_token(tokenizer, model)
    close_chat_template(tokenizer)
    model = model.to(choice.device)
    return Backbone(
        name=choice.source if not Path(choice.source).is_dir() else Path(choice.source).name,
        model=model,
        tokenizer=tokenizer,
        revision=revision or getattr(model.config, "_commit_hash", None),
        autocast=autocast_dtype(choice.device),
        trainable=_largest_trainable(model),
        why=choice.why,
    )


def choose_backbone(source: str | None = None) -> Choice:
    """Decide which backbone this machine gets, from its GPU's free memory and what the hub or its cache answers."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if named := str(source or os.environ.get("RMKIT_BACKBONE") or ""):
        if named not in (SMOLLM2, TINYLLAMA) and not Path(named).is_dir() and not HUB_ID.fullmatch(named):
            raise ValueError(
                f"no backbone is called {named!r}: use {SMOLLM2!r}, {TINYLLAMA!r}, a hub id such as "
                f"'{TINYLLAMA_HUB[0]}', or a folder that exists"
            )
        return Choice(named, device, "Named by " + ("the notebook." if source else "RMKIT_BACKBONE."))
    if device == "cpu":
        return Choice(SMOLLM2, device, "The default without a GPU; 4-bit weights, dequantised.")
    free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()  # what this process holds, it can free
    if free < SMOLLM2_BYTES:
        return Choice(SMOLLM2, "cpu", f"Only {free / 1e9:.0f} GB of GPU memory are free.")
    if free < TINYLLAMA_BYTES:
        why = f"{free / 1e9:.0f} GB of GPU memory are free, and TinyLlama wants {TINYLLAMA_BYTES / 1e9:.0f}."
        return Choice(SMOLLM2, device, why)
    if autocast_dtype(device) is None:
        return Choice(SMOLLM2, device, "This GPU is fast in no 16-bit format, and TinyLlama in fp32 would be slow.")
    if not _hub_has(*TINYLLAMA_HUB, "model.safetensors"):
        return Choice(SMOLLM2, device, "TinyLlama is neither in the hub's cache nor to be reached.")
    return Choice(TINYLLAMA, device, "The default on a GPU of this size.")


def _largest_trainable(model: PreTrainedModel) -> str:
    """`all` where the GPU has room to train every parameter of a model that it holds already, else `last:2`."""
    if model.device.type == "cpu":
        return "all"
    free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return "all" if free > TRAINED_PARAMETER_BYTES * model.num_parameters() + ACTIVATION_BYTES else "last:2"


def autocast_dtype(device: str) -> torch.dtype | None:
    """bf16 on a GPU that computes in it, else fp16 where there are matrix units for it (from compute capability 7.0, such
    as a T4; `fit` then scales the loss); None, the dtype of the weights (fp32), on older GPUs and on a CPU."""
    if device != "cuda":
        return None
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float16 if torch.cuda.get_device_capability() >= (7, 0) else None


def _hash_of_weights(folder: Path) -> str:
    """By which a checkpoint knows the model of a folder, whatever the folder is called."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"


def separate_pad_token(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Make the pad token differ from the end of sequence and from all that the chat template writes, in all configs.

    Where padding and end of turn are the same, code that looks for the last token that is not padding skips the
    end of turn too, and reads another token (transformers#35352). Raises ValueError where there is none to spare.
    """
    written = tokenizer.encode(render(tokenizer, TURNS), add_special_tokens=False)
    taken = {tokenizer.bos_token_id, tokenizer.eos_token_id, *written}
    spare = [str(token) for _, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special]
    for token in filter(None, (tokenizer.pad_token, tokenizer.unk_token, *spare)):
        number = tokenizer.convert_tokens_to_ids(token)
        if number < model.config.vocab_size and number not in taken:
            tokenizer.pad_token = token
            for config in filter(None, (model.config, model.generation_config)):
                config.pad_token_id = tokenizer.pad_token_id
            return
    raise ValueError(
        f"the tokenizer of {tokenizer.name_or_path} has no special token, besides its end of turn, to pad with"
    )


def close_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make the chat template of an answered dialogue end in the token that closes the answer, and in nothing after it.

    That token is the one whose reward is read. Most templates write a line break behind it, which says nothing; some
    write no end of turn. Changed in the template, a saved tokenizer writes the very text that was scored. What opens
    an answer, for a model to go on from, is left as it is. A template that writes today's date gets a fixed one: a
    reward must not change overnight.
    """
    if "strftime_now" in tokenizer.chat_template and FIXED_DATE not in tokenizer.chat_template:
        tokenizer.chat_template = FIXED_DATE + tokenizer.chat_template
    whole = render(tokenizer, TURNS)
    spaces = len(whole) - len(whole.rstrip())
    unclosed = whole.rstrip().endswith("!")
    if spaces or unclosed:
        closed = f"dialogue[:-{spaces}]" if spaces else "dialogue"
        tokenizer.chat_template = (
            # Jinja drops a line break at the end of a template, and would keep it within one
            "{% set dialogue %}" + tokenizer.chat_template.removesuffix("\n") + "{% endset %}"
            "{{ dialogue if add_generation_prompt else " + closed + " + eos_token" * unclosed + " }}"
        )


def _from_pretrained(name: str, folder: str, **kwargs) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    reading = "config.json"
    try:
        if "revision" in kwargs and (fault := hub_fault(folder, kwargs["revision"], "config.json")):
            raise OSError(fault)  # else the hub's client tries for half a minute, and prints every try
        family = AutoConfig.from_pretrained(folder, **kwargs).model_type
        if family in FAMILIES:
            reading = "tokenizer"
            tokenizer = AutoTokenizer.from_pretrained(folder, **kwargs)
            reading = "weights"
            model, report = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True,
                ignore_mismatched_sizes=True, **kwargs
            )  # fmt: skip
    except Exception as error:  # each of the libraries beneath has its own, for what is missing and what is damaged
        remedy = f"If it is on the hub, run `python -m rmkit.fetch {name}` while this machine is online"
        if "local_files_only" in kwargs:
            remedy = "That folder wants a whole config.json, tokenizer and .safetensors weights: copy it anew"
        raise BackboneUnavailable(
            f"the {reading} of {name!r} could not be loaded: {first_line(error)}\n"
            f"{remedy}; `RMKIT_BACKBONE={SMOLLM2}` works without the hub."
        ) from None
    if family not in FAMILIES:
        raise ValueError(f"backbone {name!r} is of the family {family!r}; rmkit knows {', '.join(FAMILIES)}")
    if report["missing_keys"]:
        raise ValueError(f"{name!r} is no whole language model: {sorted(report['missing_keys'])[0]} is missing")
    misfits = [key for key, *_ in report["mismatched_keys"]]
    misfits += [key for key in report["unexpected_keys"] if ".layers." in key and key.endswith((".weight", ".bias"))]
    if misfits:  # transformers would draw them anew, or leave layers out, and go on
        raise ValueError(f"the weights of {name!r} do not fit its config.json: {sorted(misfits)[0]} for one")
    return model, tokenizer


def _hub_id(source: str) -> str:
    return "@".join(TINYLLAMA_HUB) if source == TINYLLAMA else source


def _hub_has(repository: str, revision: str, filename: str) -> bool:
    """Whether the file is in the hub's cache, or the hub answers for it within a few seconds."""
    return hub_fault(repository, revision, filename) is None
