"""The reward model: a language model's body, a pooled hidden state, a head that turns it into one number (notebook 01)."""

from __future__ import annotations

import copy
import json
import math
import re
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PretrainedConfig

from rmkit.backbones import Backbone, autocast_dtype
from rmkit.batching import SHARED_ROW, Batch, Encoded, collate, encode, sharing_pays
from rmkit.preferences import Preference, PreferenceError, require_preferences

if TYPE_CHECKING:
    from rmkit.trunk import Trunk

LORA_RANK = 8
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SETTINGS = "rmkit.json"
OWN_WEIGHTS = "rmkit.safetensors"  # of models that transformers has no class for
PROBE = ("What is tea?", ["A drink made of leaves.", "No idea!"])  # scored when saving and again when loading


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
    max_length: tokens a row; longer ones lose their oldest (`encode`), and are counted. None: what the backbone reads.
    Raises ValueError for a setting that does not exist.
    """

    def __init__(
        self,
        backbone: Backbone,
        pooling: str = "last",
        head: str = "linear",
        dropout: float = 0.0,
        trainable: str = "all",
        max_length: int | None = None,
    ):
        super().__init__()
        if not isinstance(backbone, Backbone):
            raise TypeError(f"backbone is what load_backbone() gives: got {type(backbone).__name__}")
        if pooling not in POOLINGS:
            raise ValueError(f"pooling is one of {', '.join(POOLINGS)}: got {pooling!r}")
        if head not in ("linear", "mlp"):
            raise ValueError(f"head is 'linear' or 'mlp': got {head!r}")
        if not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
            raise ValueError(f"dropout is a share, at least 0 and less than 1: got {dropout!r}")
        context = _context(backbone.model.config)
        if max_length is not None and not (isinstance(max_length, int) and 2 <= max_length <= context):
            raise ValueError(f"max_length is a number of tokens from 2 to the backbone's {context}: got {max_length!r}")
        self.settings = {
            "pooling": pooling, "head": head, "dropout": dropout, "trainable": trainable, "max_length": max_length
        }  # fmt: skip
        self.max_length = max_length or context
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
        self.fresh_head = last.weight.detach().clone()  # by which `diagnose` knows one never trained, or lost
        self.head.to(self.device)
        self.rewards_when_loaded: list[float] | None = None  # of two texts: two saved models of one backbone differ
        self.trunk: Trunk | None = None  # set while `computed_once`
        _set_trainable(self, trainable)

    @property
    def device(self) -> torch.device:
        return self.body.device

    @property
    def last_layer(self) -> nn.Linear:
        """Of the head: what gives the reward."""
        return self.head[-1] if isinstance(self.head, nn.Sequential) else self.head

    def forward(self, batch: Batch) -> torch.Tensor:
        """Rewards [B, K]; 0 where a preference has fewer than K completions."""
        pooled = self.pooled(batch)
        with torch.autocast(self.device.type, enabled=False):  # bf16 rewards between 4 and 8 are 0.03 apart: false ties
            rewards = self.head(self.dropout(pooled)).squeeze(-1)  # (B, K)
        return rewards.masked_fill(batch.ranks < 0, 0.0)

    def pooled(self, batch: Batch) -> torch.Tensor:
        """What the head reads: one hidden state a completion, [B, K, H] in fp32."""
        if self.trunk and self.trunk.whole and batch.hidden is not None:
            return batch.hidden
        return POOLINGS[self.settings["pooling"]](self.hidden_states(batch), batch).float()

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
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            return layers(
                **text, attention_mask=batch.attention_mask, position_ids=batch.position_ids, use_cache=False
            ).last_hidden_state

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
                f"oldest ones, up to {most}: {_some(cut)}",
                stacklevel=2,
            )
        if blurred := [i for i, e in enumerate(encoded) if e.is_blurred]:
            warnings.warn(
                f"{len(blurred)} of {len(encoded)} {called}s have completions of the same tokens that were judged "
                f"differently, and nothing can be learned from that: {_some(blurred)}",
                stacklevel=2,
            )
        return encoded

    def collate(self, encoded: Sequence[Encoded]) -> Batch:
        """The simple batch: a row for every completion, its prompt repeated in front."""
        return collate(encoded, self.tokenizer.pad_token_id).to(self.device)

    def lay_out(self, encoded: Sequence[Encoded]) -> Batch:
        """The batch that computes least: completions share a row with their prompt where that pays."""
        # the mask of a shared row is read as it is meant by this implementation of attention alone
        sharing = sharing_pays(encoded) and self.body.config._attn_implementation == "sdpa"
        per_row = SHARED_ROW if sharing else 1
        return collate(encoded, self.tokenizer.pad_token_id, per_row).to(self.device)

    def batch(self, encoded: Sequence[Encoded]) -> Batch:
        """What `fit` and `rewards` compute with: `lay_out`, with what the frozen layers gave, where that is kept."""
        batch = self.lay_out(encoded)
        return replace(batch, hidden=self.trunk.hidden(encoded, batch).to(self.device)) if self.trunk else batch

    @torch.no_grad()
    def rewards(self, preferences: Sequence[Preference] | Sequence[Encoded], batch_size: int = 8) -> torch.Tensor:
        """Rewards [N, K] on the CPU, of any number of preferences, `batch_size` at a time, without dropout."""
        require_preferences(preferences, Encoded)
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size is a whole number from 1 up: got {batch_size!r}")
        if not preferences:
            return torch.zeros(0, 0)
        encoded = preferences if isinstance(preferences[0], Encoded) else self.encode(preferences)
        order = sorted(range(len(encoded)), key=lambda i: encoded[i].length)  # rows of like length need little padding
        rewards = torch.zeros(len(encoded), max(len(e.completions) for e in encoded))
        training = self.training
        self.eval()
        try:
            for start in range(0, len(order), batch_size):
                chunk = order[start : start + batch_size]
                scored = self(self.batch([encoded[i] for i in chunk])).cpu()
                rewards[chunk, : scored.shape[1]] = scored
        finally:
            self.train(training)
        return rewards

    def score(self, prompt: str, completions: Sequence[str]) -> torch.Tensor:
        """The reward of every completion, [K]. Only differences between completions of one prompt mean anything."""
        if isinstance(completions, str) or not isinstance(completions, Sequence):
            raise TypeError(f"completions is a list of texts; for a single one, pass [text]: got {completions!r:.80}")
        if not completions:
            return torch.zeros(0)
        texts = tuple(completions) if len(completions) > 1 else (*completions, *completions)  # a lone one beside itself
        (whole,) = self.encode([Preference(prompt, texts, (0,) * len(texts))])  # at once: one cut for all
        chunks = [whole.completions[i : i + SHARED_ROW] for i in range(0, len(completions), SHARED_ROW)]
        rows = [replace(whole, completions=chunk, ranks=(0,) * len(chunk)) for chunk in chunks]
        return self.rewards(rows, batch_size=1).flatten()[: len(completions)]

    @torch.no_grad()
    def token_rewards(self, prompt: str, completion: str) -> list[tuple[str, float]]:
        """(token, reward) after every token of a completion, as the text grows; the last one is its reward.

        A token sees only what stands before it, so one pass gives them all. Before the last, which closes the answer,
        training never read a reward. Raises ValueError for mean pooling, which reads no single token.
        """
        if self.settings["pooling"] != "last":
            raise ValueError("token_rewards wants a model that reads the last token: this one takes the mean of all")
        (encoded,) = self.encode([Preference(prompt, (completion, completion), (0, 0))])
        batch = self.collate([replace(encoded, completions=encoded.completions[:1], ranks=(0,))])
        training = self.training
        self.eval()
        try:
            hidden = self.hidden_states(batch)[0, len(encoded.prompt) :].float()  # (C, H)
            with torch.autocast(self.device.type, enabled=False):
                rewards = self.head(hidden)[:, 0].tolist()
        finally:
            self.train(training)
        return [(self.tokenizer.decode([i]), r) for i, r in zip(encoded.completions[0], rewards, strict=True)]

    def trainable_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def save(self, folder: str | Path) -> Path:
        """Write body, head, tokenizer and settings to a folder, as safetensors. LoRA adapters are merged in.

        With last-token pooling and a linear head, `AutoModelForSequenceClassification.from_pretrained(folder)` gives
        the same scores, in fp32 as the weights are: of the text that the saved tokenizer's chat template writes for a
        dialogue, alone or padded on either side. (Where a completion begins with a line break that would merge with the
        prompt's, or a row is cut, for which rmkit looks at all completions of a prompt, pass the ids of `encode`.)
        Other settings warn that only rmkit loads them, and transformers finds no weights to load.
        The folder appears whole or not at all; one that is already there is replaced if it is a reward model.

        Raises FileExistsError for a folder that holds anything else, ValueError for a model whose rewards are not finite.
        """
        folder = Path(folder)
        taken = next((path for path in (folder, *folder.parents) if path.is_file()), None)
        if taken or (folder.is_dir() and any(folder.iterdir()) and not (folder / SETTINGS).is_file()):
            raise FileExistsError(f"{taken or folder} exists and is not a saved reward model: give another folder")
        _recover(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as work:
            new, old = Path(work) / "new", Path(work) / "old"
            new.mkdir()
            self._write(new)
            if folder.exists():
                folder.rename(old)
            try:
                new.rename(folder)
            except BaseException:  # leaving `with` would delete the old model too
                if old.exists():
                    old.rename(folder)
                raise
        return folder

    def _write(self, folder: Path) -> None:
        config = copy.deepcopy(self.body.config)
        config.num_labels, config.problem_type = 1, "regression"
        if self.settings["head"] == "linear" and self.settings["pooling"] == "last":
            head, name = {"score.weight": self.head.weight}, "model.safetensors"
            config.architectures = [type(self.body).__name__.replace("Model", "ForSequenceClassification")]
        else:  # transformers would read another token, or draw a head anew: let it find no file that it knows
            head, name = {f"head.{k}": v for k, v in self.head.state_dict().items()}, OWN_WEIGHTS
            warnings.warn(
                f"{self.settings['pooling']}-pooling with the head {self.settings['head']!r} is no "
                "AutoModelForSequenceClassification of transformers: only rmkit loads this folder",
                stacklevel=3,
            )
        weights = {f"model.{k}": v for k, v in _merged(self.body).items()} | head
        save_file({k: v.detach().cpu().contiguous() for k, v in weights.items()}, folder / name, {"format": "pt"})
        config.save_pretrained(folder)
        (folder / name).chmod((folder / "config.json").stat().st_mode)  # safetensors lets nobody else read it
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.model_max_length = self.max_length
        for side, where in (("padding_side", "right"), ("truncation_side", "left")):
            setattr(tokenizer, side, where)
            tokenizer.init_kwargs[side] = where  # without which it is not written
        if tokenizer("a")["input_ids"] != tokenizer("a", add_special_tokens=False)["input_ids"]:
            tokenizer.add_bos_token = False  # the template has written all special tokens that there are
        tokenizer.save_pretrained(folder)
        settings = {**self.settings, "backbone": self.backbone_name, "revision": self.revision}
        untrained = torch.equal(self.last_layer.weight.cpu(), self.fresh_head)
        settings |= {"probe": self._probe(), "untrained": untrained}
        (folder / SETTINGS).write_text(json.dumps(settings, indent=1), "utf-8")

    def _probe(self) -> list[float]:
        """The rewards of two texts, computed in fp32, so that every machine finds them again."""
        before, precision = (self.autocast, self.trunk), torch.get_float32_matmul_precision()
        self.autocast = self.trunk = None
        torch.set_float32_matmul_precision("highest")  # a GPU may be set to round more
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a max_length that is shorter than this text
                rewards = self.score(*PROBE)
        finally:
            self.autocast, self.trunk = before
            torch.set_float32_matmul_precision(precision)
        if not rewards.isfinite().all():
            raise ValueError(f"this model gives a text the rewards {rewards.tolist()}: it is not worth keeping")
        return rewards.tolist()

    @classmethod
    def load(cls, folder: str | Path) -> RewardModel:
        """Read what `save` wrote, on the GPU where there is one.

        Raises FileNotFoundError, or ValueError for a damaged folder: one where a file or the head is missing, or
        that no longer gives a text the rewards that it gave when it was saved.
        """
        folder = Path(folder)
        _recover(folder)
        if not (folder / SETTINGS).is_file():
            raise FileNotFoundError(f"{folder} holds no saved reward model: {SETTINGS} is not there")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        reading = SETTINGS
        try:
            settings = dict(json.loads((folder / SETTINGS).read_text("utf-8")))
            fields = ("probe", "untrained", "backbone", "revision")
            probe, untrained, name, revision = (settings.pop(field) for field in fields)
            reading = "config.json"
            body = AutoModel.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32).to(device)
            reading = OWN_WEIGHTS if (folder / OWN_WEIGHTS).is_file() else "model.safetensors"
            weights = load_file(folder / reading)
            _fill(body, weights, "model.")
            reading = "the tokenizer"
            tokenizer = AutoTokenizer.from_pretrained(folder)
            reading = SETTINGS
            model = cls(Backbone(name, body, tokenizer, revision, autocast_dtype(device)), **settings)
            reading = "the head"
            linear = settings["head"] == "linear" and settings["pooling"] == "last"
            _fill(model.head, weights, "score." if linear else "head.")
            reading = "its scores"
            model.eval()
            now = model._probe()
            if not all(math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-3) for a, b in zip(probe, now, strict=True)):
                raise ValueError(f"a text that it gave the rewards {probe} when it was saved gets {now}")
            model.rewards_when_loaded = probe
            if untrained:
                model.fresh_head = model.last_layer.weight.detach().cpu().clone()
        except Exception as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
            raise ValueError(f"the reward model in {folder} is damaged: {reading}: {what:.300}") from error
        return model


def _recover(folder: Path) -> None:
    """Bring back the model that `save` was replacing when its process died between taking one away and putting one there."""
    if not folder.exists() and folder.parent.is_dir():
        # of this name and no longer one: tempfile's endings have eight letters
        name = re.compile(re.escape(f".{folder.name}-") + "[a-z0-9_]{8}")
        left = [path for path in folder.parent.iterdir() if name.fullmatch(path.name)]
        for model in (path / side for side in ("new", "old") for path in left):
            if (model / SETTINGS).is_file():  # the settings are written last: where they are, all is
                model.rename(folder)
                return


def _fill(module: nn.Module, weights: dict[str, torch.Tensor], prefix: str) -> None:
    """Load the weights whose names begin in `prefix`. Raises ValueError with the first that does not fit."""
    own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    there, wanted = ({k: list(v.shape) for k, v in state.items()} for state in (own, module.state_dict()))
    if differ := sorted(k for k in there.keys() | wanted.keys() if there.get(k) != wanted.get(k)):
        name = differ[0]
        raise ValueError(
            f"{prefix}{name} is {there.get(name, 'missing')}, where the model has {wanted.get(name, 'none')}"
        )
    module.load_state_dict(own)


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


def _some(indices: Sequence[int]) -> str:
    """The first few, and how many more."""
    return ", ".join(map(str, indices[:10])) + (f" and {len(indices) - 10} more" if len(indices) > 10 else "")


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


def _merged(body: nn.Module) -> dict[str, torch.Tensor]:
    """The body's weights under the names they have without adapters, LoRA's products added in."""
    state = {k.replace(".base_layer.", "."): v for k, v in body.state_dict().items() if ".lora_" not in k}
    for name, module in body.named_modules():
        if isinstance(module, LoraLayer):
            state[f"{name}.weight"] = state[f"{name}.weight"] + module.get_delta_weight("default")
    return state
