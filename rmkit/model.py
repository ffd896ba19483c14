"""The reward model: a language model's body, a pooled hidden state, a head that turns it into one number (notebook 01)."""

from __future__ import annotations

import copy
import json
import math
import re
import tempfile
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer

from rmkit.backbones import Backbone, autocast_dtype
from rmkit.base import BaseRewardModel, merged_weights, set_trainable
from rmkit.batching import Batch

SETTINGS = "rmkit.json"
OWN_WEIGHTS = "rmkit.safetensors"  # of models that transformers has no class for
PROBE = ("What is tea?", ["A drink made of leaves.", "No idea!"])  # scored when saving and again when loading


class RewardModel(BaseRewardModel):
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
        super().__init__(
            backbone, pooling=pooling, head=head, dropout=dropout, trainable=trainable, max_length=max_length
        )
        if pooling not in list(POOLINGS):
            raise ValueError(f"pooling is one of {', '.join(POOLINGS)}: got {pooling!r}")
        if head not in ("linear", "mlp"):
            raise ValueError(f"head is 'linear' or 'mlp': got {head!r}")
        if not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
            raise ValueError(f"dropout is a share, at least 0 and less than 1: got {dropout!r}")
        hidden = self.body.config.hidden_size
        self.dropout = nn.Dropout(dropout)
        last = nn.Linear(hidden, 1, bias=False)
        nn.init.normal_(last.weight, std=1 / math.sqrt(hidden + 1))  # Stiennon et al. 2020, appendix B
        self.head = last if head == "linear" else nn.Sequential(nn.Linear(hidden, hidden), nn.GELU(), last)
        self.fresh_head = last.weight.detach().clone()  # by which `diagnose` knows one never trained, or lost
        self.head.to(self.device)
        set_trainable(self.body, trainable)

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

    def rewards_by_token(self, batch: Batch) -> torch.Tensor:
        """[N, T] what the head makes of the hidden state of every token. ValueError for mean pooling, which reads no single one."""
        if self.settings["pooling"] != "last":
            raise ValueError("token_rewards wants a model that reads the last token: this one takes the mean of all")
        hidden = self.hidden_states(batch).float()
        with torch.autocast(self.device.type, enabled=False):
            return self.head(hidden).squeeze(-1)

    @staticmethod
    def require_savable(folder: str | Path) -> Path:
        """The folder. Raises FileExistsError for one that `save` would refuse."""
        folder = Path(folder)
        taken = next((path for path in (folder, *folder.parents) if path.is_file()), None)
        if taken or (folder.is_dir() and any(folder.iterdir()) and not (folder / SETTINGS).is_file()):
            raise FileExistsError(f"{taken or folder} exists and is not a saved reward model: give another folder")
        return folder

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
        folder = self.require_savable(folder)
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
        weights = {f"model.{k}": v for k, v in merged_weights(self.body).items()} | head
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


def pool_last(hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
    """hidden [N, T, H] → [B, K, H], at the token that closes each completion, wherever padding begins."""
    return hidden[batch.row, batch.last_positions()]


def pool_mean(hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
    """hidden [N, T, H] → [B, K, H], the mean over each completion's tokens."""
    mask = batch.completion_masks().float()  # (N, S, T)
    mean = mask @ hidden.float() / mask.sum(-1, keepdim=True).clamp(min=1)  # (N, S, H), where no bf16 sum can round
    return mean[batch.row, batch.slot - 1]


POOLINGS = {"last": pool_last, "mean": pool_mean}
