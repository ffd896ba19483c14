"""What every reward model shares: a language model's body, what of it trains, and the road from preferences to rewards."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PretrainedConfig

from rmkit.backbones import Backbone
from rmkit.batching import SHARED_ROW, Batch, Encoded, collate, encode, in_parts, micro_batches, sharing_pays
from rmkit.preferences import Preference, PreferenceError, require_preferences

if TYPE_CHECKING:
    from rmkit.trunk import Trunk

# Small enough that little is padding, large enough that the matrix products are as fast as they get: measured for
# SmolLM2-135M on two CPU cores (tests/benchmarks); a GPU wants more to work on at a time.
MICRO_BATCH_TOKENS = {"cpu": 512, "cuda": 16384}
LORA_RANK = 8
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class BaseRewardModel(nn.Module):
    """A backbone's body and a way to read rewards off it: `model(batch)` gives rewards [B, K] in fp32.

    RewardModel reads them with a head (notebook 01), ImplicitRewardModel off the language model's probabilities (06);
    each has `forward(batch)` and, for rows of one completion, `rewards_by_token(batch)` [N, T]. Whatever scores
    or trains a reward model takes either; what looks at its head (`features`, `save`) does not.

    settings: `trainable`, `max_length` and whatever else makes the model; a checkpoint goes on with no other.
    Raises TypeError for what is no backbone; ValueError for a max_length beyond it, or one that has adapters already.
    """

    def __init__(self, backbone: Backbone, **settings):
        super().__init__()
        if not isinstance(backbone, Backbone):
            raise TypeError(f"backbone is what load_backbone() gives: got {type(backbone).__name__}")
        context, max_length = _context(backbone.model.config), settings["max_length"]
        if max_length is not None and not (isinstance(max_length, int) and 2 <= max_length <= context):
            raise ValueError(f"max_length is a number of tokens from 2 to the backbone's {context}: got {max_length!r}")
        self.settings, self.max_length = settings, max_length or context
        self.backbone_name, self.revision = backbone.name, backbone.revision
        self.tokenizer, self.autocast = backbone.tokenizer, backbone.autocast
        self.body = backbone.model.base_model
        self._no_split_modules = self.body._no_split_modules  # by which accelerate finds the layers that FSDP shards
        if any(isinstance(module, LoraLayer) for module in self.body.modules()):
            raise ValueError("this backbone has LoRA adapters of an earlier model: load it again")
        self.rewards_when_loaded: list[float] | None = None  # of two texts: two saved models of one backbone differ
        self.trunk: Trunk | None = None  # set while `computed_once`

    @property
    def device(self) -> torch.device:
        return self.body.device

    def identity(self) -> dict:
        """What makes this model, beside settings, backbone and frozen weights: a checkpoint goes on with no other."""
        return {}

    def hidden_states(self, batch: Batch) -> torch.Tensor:
        """What the body gives for every token, [N, T, H], in the precision that it computes in.

        ValueError for a batch of `computed_once` that has ended, or that holds only what the head reads.
        """
        if batch.hidden is None:
            return self.run(self.body, batch)
        if self.trunk is None:
            raise ValueError(
                "this batch was made within computed_once, which has ended: make it again with model.batch"
            )
        if self.trunk.whole:
            raise ValueError("this batch holds what the head reads, and no other token: use model.collate or lay_out")
        return self.run(self.trunk.top, batch)

    def run(self, layers: nn.Module, batch: Batch) -> torch.Tensor:
        """The hidden states [N, T, H] that the body, or a part of it, gives for a batch."""
        text = {"input_ids": batch.input_ids} if batch.hidden is None else {"inputs_embeds": batch.hidden}
        if batch.is_shared:  # else causal attention is enough: padding stands on the right, where no token looks
            text |= {"attention_mask": batch.attention_mask, "position_ids": batch.position_ids}
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            return layers(**text, use_cache=False).last_hidden_state

    def encode(self, preferences: Sequence[Preference], called: str = "preference") -> list[Encoded]:
        """Token ids of all preferences. Raises PreferenceError with every one that cannot be encoded, by its index.

        Warns of rows that are cut to `max_length`, and of preferences whose completions are the same tokens.
        called: what a message calls one of them.
        """
        require_preferences(preferences)
        encoded, problems = [], []
        for i, preference in enumerate(preferences):
            try:
                encoded.append(encode(preference, self.tokenizer, self.max_length))
            except ValueError as error:
                problems.append(f"{called} {i}: {error}")
        if problems:
            raise PreferenceError(problems)
        if cut := [i for i, e in enumerate(encoded) if e.cut]:
            most = max(e.cut for e in encoded)
            warnings.warn(
                f"{len(cut)} of {len(encoded)} {called}s have rows of more than {self.max_length} tokens, and lost their "
                f"oldest ones, up to {most}: {some_of(cut)}",
                stacklevel=2,
            )
        if blurred := [i for i, e in enumerate(encoded) if e.is_blurred]:
            warnings.warn(
                f"{len(blurred)} of {len(encoded)} {called}s have completions of the same tokens that were judged "
                f"differently, and nothing can be learned from that: {some_of(blurred)}",
                stacklevel=2,
            )
        return encoded

    def collate(self, encoded: Sequence[Encoded]) -> Batch:
        """The simple batch: a row for every completion, its prompt repeated in front."""
        return collate(encoded, self.tokenizer.pad_token_id).to(self.device)

    def lay_out(self, encoded: Sequence[Encoded]) -> Batch:
        """The batch that computes least: completions share a row with their prompt where that pays."""
        per_row = SHARED_ROW if self.may_share and sharing_pays(encoded) else 1
        return collate(encoded, self.tokenizer.pad_token_id, per_row).to(self.device)

    @property
    def may_share(self) -> bool:
        """Whether completions may share a row: this implementation of attention alone reads its mask as it is meant."""
        return self.body.config._attn_implementation == "sdpa"

    def micro_batches(
        self, encoded: Sequence[Encoded], tokens: int | None = None, processes: int = 1
    ) -> list[list[int]]:
        """Which of the preferences to compute together, in the order of their width: see `batching.micro_batches`.

        tokens: in memory at a time, padding counted; None: MICRO_BATCH_TOKENS of the device.
        """
        if tokens is not None and not (isinstance(tokens, int) and tokens >= 1):
            raise ValueError(f"micro_batch_tokens is a whole number from 1 up, or None: got {tokens!r}")
        return micro_batches(encoded, tokens or MICRO_BATCH_TOKENS[self.device.type], self.may_share, processes)

    def batch(self, encoded: Sequence[Encoded]) -> Batch:
        """What `fit` and `rewards` compute with: `lay_out`, with what the frozen layers gave, where that is kept."""
        batch = self.lay_out(encoded)
        return replace(batch, hidden=self.trunk.hidden(encoded, batch).to(self.device)) if self.trunk else batch

    @torch.no_grad()
    def rewards(
        self,
        preferences: Sequence[Preference] | Sequence[Encoded],
        micro_batch_tokens: int | None = None,
        accelerator: Accelerator | None = None,
    ) -> torch.Tensor:
        """Rewards [N, K] on the CPU, of any number of preferences, without dropout.

        micro_batch_tokens: as in `micro_batches`; the rewards do not depend on it.
        accelerator: of several processes, each of which scores its share, and gets all.
        """
        require_preferences(preferences, Encoded)
        if not preferences:
            return torch.zeros(0, 0)
        encoded = preferences if isinstance(preferences[0], Encoded) else self.encode(preferences)
        rewards = torch.zeros(len(encoded), max(len(e.completions) for e in encoded), device=self.device)
        with evaluating(self):
            for micro, counts in share(self, encoded, micro_batch_tokens, accelerator):
                scored = self(self.batch([encoded[i] for i in micro]))
                if counts:
                    rewards[micro, : scored.shape[1]] = scored
        return (accelerator.reduce(rewards) if accelerator else rewards).cpu()

    def score(self, prompt: str, completions: Sequence[str]) -> torch.Tensor:
        """The reward of every completion, [K]. Only differences between completions of one prompt mean anything."""
        if isinstance(completions, str) or not isinstance(completions, Sequence):
            raise TypeError(f"completions is a list of texts; for a single one, pass [text]: got {completions!r:.80}")
        if not completions:
            return torch.zeros(0)
        texts = tuple(completions) if len(completions) > 1 else (*completions, *completions)  # a lone one beside itself
        (whole,) = self.encode([Preference(prompt, texts, (0,) * len(texts))])  # at once: one cut for all
        parts = in_parts(whole.completions, SHARED_ROW)
        rows = [replace(whole, completions=part, ranks=(0,) * len(part)) for part in parts]
        rewards = self.rewards(rows)
        return torch.cat([r[: len(part)] for r, part in zip(rewards, parts, strict=True)])[: len(completions)]

    @torch.no_grad()
    def token_rewards(self, prompt: str, completion: str) -> list[tuple[str, float]]:
        """(token, reward) after every token of a completion, as the text grows; the last one is its reward.

        A token sees only what stands before it, so one pass gives them all. Of what stands before the last, which closes
        the answer, training never read a reward. Raises ValueError for a model that reads no single token.
        """
        (encoded,) = self.encode([Preference(prompt, (completion, completion), (0, 0))])
        batch = self.collate([replace(encoded, completions=encoded.completions[:1], ranks=(0,))])
        with evaluating(self):
            rewards = self.rewards_by_token(batch)[0, len(encoded.prompt) :].tolist()  # (C)
        return [(self.tokenizer.decode([i]), r) for i, r in zip(encoded.completions[0], rewards, strict=True)]

    def trainable_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within it the model does not drop at random; after it, it is as it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def share(
    model: BaseRewardModel, encoded: Sequence[Encoded], tokens: int | None, accelerator: Accelerator | None
) -> list[tuple[list[int], bool]]:
    """This process's micro-batches, and whether they count. Every process gets as many: one too few is filled with another's."""
    processes, rank = (accelerator.num_processes, accelerator.process_index) if accelerator else (1, 0)
    micro = model.micro_batches(encoded, tokens, processes)
    rounds = [micro[i : i + processes] for i in range(0, len(micro), processes)]  # of like width, for like time
    return [(r[min(rank, len(r) - 1)], rank < len(r)) for r in rounds]


def set_trainable(body: nn.Module, trainable: str) -> None:
    """Freeze what `trainable` does not name: see RewardModel. Raises ValueError for what is none of its names."""
    layers = len(body.layers)
    body.requires_grad_(trainable == "all")
    match str(trainable).split(":"):
        case ["all"] | ["head"]:
            pass
        case ["lora"]:
            config = LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules=LORA_TARGETS)
            inject_adapter_in_model(config, body)
        case ["last", n] if n.isdecimal() and 1 <= int(n) <= layers:
            for module in (*body.layers[-int(n) :], body.norm):
                module.requires_grad_(True)
        case _:
            raise ValueError(
                f"trainable is 'head', 'last:n' with n from 1 to {layers}, 'lora' or 'all': got {trainable!r}"
            )


def merged_weights(body: nn.Module) -> dict[str, torch.Tensor]:
    """The body's weights under the names they have without adapters, LoRA's products added in."""
    state = {k.replace(".base_layer.", "."): v for k, v in body.state_dict().items() if ".lora_" not in k}
    for name, module in body.named_modules():
        if isinstance(module, LoraLayer):
            state[f"{name}.weight"] = state[f"{name}.weight"] + module.get_delta_weight("default")
    return state


def _context(config: PretrainedConfig) -> int:
    """Tokens a row at most, such that no token's state depends on the length of another row.

    Where layers look back only so far, no further than that. Where `longrope` (arXiv:2402.13753) turns all tokens of a
    batch otherwise once a row of it is long, no further than where that begins.
    """
    limits = [config.max_position_embeddings, getattr(config, "sliding_window", None)]
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        limits.append(rope.get("original_max_position_embeddings"))
    return min(limit for limit in limits if limit)


def some_of(indices: Sequence[int]) -> str:
    """The first few, and how many more."""
    return ", ".join(map(str, indices[:10])) + (f" and {len(indices) - 10} more" if len(indices) > 10 else "")
