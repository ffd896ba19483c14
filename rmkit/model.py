"""The reward model: a language model's body, a pooled hidden state, a head that turns it into one number (notebook 01)."""

from __future__ import annotations

import copy
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer

from rmkit.backbones import Backbone, autocast_dtype
from rmkit.batching import Batch, Encoded, collate, encode
from rmkit.preferences import Preference, PreferenceError

LORA_RANK = 8
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SETTINGS = "rmkit.json"


class RewardModel(nn.Module):
    """A backbone's body with a scalar head: `model(batch)` gives rewards [B, K] in fp32.

    backbone: from `load_backbone()`. Its body is used, not copied: what trains, trains there, so one body serves
        one model at a time. Load the backbone again for another.
    pooling: `"last"`, the hidden state of the end-of-turn token that closes the completion, or `"mean"`,
        the mean over the completion's tokens.
    head: `"linear"` (H → 1, without bias, which no comparison could see) or `"mlp"` (H → H → 1).
    dropout: on what enters the head, while training.
    trainable: `"head"`; `"last:n"`, the last n layers, the final norm and the head; `"lora"`, adapters of
        rank 8 on every matrix of the body, and the head; `"all"`.
    Raises ValueError for a setting that does not exist.
    """

    def __init__(
        self,
        backbone: Backbone,
        pooling: str = "last",
        head: str = "linear",
        dropout: float = 0.0,
        trainable: str = "all",
    ):
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling is one of {', '.join(POOLINGS)}: got {pooling!r}")
        if head not in ("linear", "mlp"):
            raise ValueError(f"head is 'linear' or 'mlp': got {head!r}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is a share, at least 0 and less than 1: got {dropout}")
        self.settings = {"pooling": pooling, "head": head, "dropout": dropout, "trainable": trainable}
        self.backbone_name, self.revision = backbone.name, backbone.revision
        self.tokenizer, self.autocast = backbone.tokenizer, backbone.autocast
        self.body = backbone.model.base_model
        if any(isinstance(module, LoraLayer) for module in self.body.modules()):
            raise ValueError("this backbone has LoRA adapters of an earlier model: load it again")
        hidden = self.body.config.hidden_size
        self.dropout = nn.Dropout(dropout)
        last = nn.Linear(hidden, 1, bias=False)
        nn.init.normal_(last.weight, std=1 / math.sqrt(hidden + 1))  # Stiennon et al. 2020, appendix B
        self.head = last if head == "linear" else nn.Sequential(nn.Linear(hidden, hidden), nn.GELU(), last)
        self.head.to(self.device)
        _set_trainable(self, trainable)

    @property
    def device(self) -> torch.device:
        return self.body.device

    def forward(self, batch: Batch) -> torch.Tensor:
        """Rewards [B, K]; 0 where a preference has fewer than K completions."""
        pooled = self.pooled(batch)
        with torch.autocast(self.device.type, enabled=False):  # bf16 rewards between 4 and 8 are 0.03 apart: false ties
            rewards = self.head(self.dropout(pooled)).squeeze(-1)  # (B, K)
        return rewards.masked_fill(batch.ranks < 0, 0.0)

    def pooled(self, batch: Batch) -> torch.Tensor:
        """What the head reads: one hidden state a completion, [B, K, H] in fp32."""
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            hidden = self.body(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
                use_cache=False,
            ).last_hidden_state  # (N, T, H)
        return POOLINGS[self.settings["pooling"]](hidden, batch).float()

    def encode(self, preferences: Sequence[Preference]) -> list[Encoded]:
        """Token ids of all preferences. Raises PreferenceError with every one that cannot be encoded, by its index."""
        encoded, problems = [], []
        for i, preference in enumerate(preferences):
            try:
                encoded.append(encode(preference, self.tokenizer, self.body.config.max_position_embeddings))
            except ValueError as error:
                problems.append(f"preference {i}: {error}")
        if problems:
            raise PreferenceError(problems)
        return encoded

    def collate(self, encoded: Sequence[Encoded]) -> Batch:
        return collate(encoded, self.tokenizer.pad_token_id).to(self.device)

    @torch.no_grad()
    def rewards(self, preferences: Sequence[Preference] | Sequence[Encoded], batch_size: int = 8) -> torch.Tensor:
        """Rewards [N, K] on the CPU, of any number of preferences, `batch_size` at a time, without dropout."""
        if not preferences:
            return torch.zeros(0, 0)
        encoded = preferences if isinstance(preferences[0], Encoded) else self.encode(preferences)
        order = sorted(range(len(encoded)), key=lambda i: encoded[i].length)  # rows of like length need little padding
        rewards = torch.zeros(len(encoded), max(len(e.completions) for e in encoded))
        training = self.training
        self.eval()
        for start in range(0, len(order), batch_size):
            chunk = order[start : start + batch_size]
            scored = self(self.collate([encoded[i] for i in chunk])).cpu()
            rewards[chunk, : scored.shape[1]] = scored
        self.train(training)
        return rewards

    def score(self, prompt: str, completions: Sequence[str]) -> torch.Tensor:
        """The reward of every completion, [K]. Only differences between completions of one prompt mean anything."""
        if isinstance(completions, str):
            raise TypeError("completions is a list of texts: for a single one, pass [text]")
        if not completions:
            return torch.zeros(0)
        rows = [completions[i : i + 2] for i in range(0, len(completions), 2)]
        pairs = [Preference(prompt, (row[0], row[-1])) for row in rows]  # an odd last one beside itself
        return self.rewards(pairs).flatten()[: len(completions)]

    def trainable_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def save(self, folder: str | Path) -> Path:
        """Write body, head, tokenizer and settings to a folder, as safetensors. LoRA adapters are merged in.

        With last-token pooling, the linear head is `score.weight` and the body `model.*`, as in transformers'
        sequence classifiers.
        The folder appears whole or not at all; one that is already there is replaced if it is a reward model.
        """
        folder = Path(folder)
        if folder.exists() and not (folder / SETTINGS).is_file():
            raise FileExistsError(f"{folder} exists and is not a saved reward model: give another folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as work:
            new = Path(work) / "new"
            new.mkdir()
            head = {f"head.{k}": v for k, v in self.head.state_dict().items()}
            exportable = self.settings["head"] == "linear" and self.settings["pooling"] == "last"
            if exportable:  # transformers would read another token of the others, and not say so
                head = {"score.weight": head["head.weight"]}
            weights = {f"model.{k}": v for k, v in _merged(self.body).items()} | head
            save_file(
                {k: v.detach().cpu().contiguous() for k, v in weights.items()},
                new / "model.safetensors",
                {"format": "pt"},
            )
            config = copy.deepcopy(self.body.config)
            config.num_labels, config.problem_type = 1, "regression"
            if exportable:
                config.architectures = [type(self.body).__name__.replace("Model", "ForSequenceClassification")]
            config.save_pretrained(new)
            self.tokenizer.save_pretrained(new)
            settings = self.settings | {"backbone": self.backbone_name, "revision": self.revision}
            (new / SETTINGS).write_text(json.dumps(settings, indent=1))
            old = Path(work) / "old"
            if folder.exists():
                folder.rename(old)
            try:
                new.rename(folder)
            except BaseException:  # leaving `with` would delete the old model too
                if old.exists():
                    old.rename(folder)
                raise
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> RewardModel:
        """Read what `save` wrote, on the GPU where there is one. Raises FileNotFoundError, or ValueError for a damaged folder."""
        folder = Path(folder)
        if not (folder / SETTINGS).is_file():
            raise FileNotFoundError(f"{folder} holds no saved reward model: {SETTINGS} is not there")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            settings = json.loads((folder / SETTINGS).read_text())
            weights = load_file(folder / "model.safetensors")
            body = AutoModel.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
            body.load_state_dict({k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.")})
            backbone = Backbone(
                name=settings.pop("backbone"),
                model=body.to(device),
                tokenizer=AutoTokenizer.from_pretrained(folder),
                revision=settings.pop("revision"),
                autocast=autocast_dtype(device),
            )
            model = cls(backbone, **settings)
            head = {k.removeprefix("head."): v for k, v in weights.items() if k.startswith("head.")}
            model.head.load_state_dict(head or {"weight": weights["score.weight"]})
        except Exception as error:
            raise ValueError(f"the reward model in {folder} is damaged: {error}") from error
        return model.eval()


def pool_last(hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
    """hidden [N, T, H] → [B, K, H], at the token that closes each completion, wherever padding begins."""
    return hidden[batch.row, batch.last_positions()]


def pool_mean(hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
    """hidden [N, T, H] → [B, K, H], the mean over each completion's tokens."""
    mask = batch.completion_masks().float()  # (N, S, T)
    mean = mask @ hidden.float() / mask.sum(-1, keepdim=True).clamp(min=1)  # (N, S, H), where no bf16 sum can round
    return mean[batch.row, batch.slot - 1]


POOLINGS = {"last": pool_last, "mean": pool_mean}


def _set_trainable(model: RewardModel, trainable: str) -> None:
    """Freeze what `trainable` does not name; the head always trains."""
    body, layers = model.body, len(model.body.layers)
    body.requires_grad_(trainable == "all")
    match trainable.split(":"):
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


def _merged(body: nn.Module) -> dict[str, torch.Tensor]:
    """The body's weights under the names they have without adapters, LoRA's products added in."""
    state = {k.replace(".base_layer.", "."): v for k, v in body.state_dict().items() if ".lora_" not in k}
    for name, module in body.named_modules():
        if isinstance(module, LoraLayer):
            state[f"{name}.weight"] = state[f"{name}.weight"] + module.get_delta_weight("default")
    return state
