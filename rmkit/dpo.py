"""The reward that a language model implies: response log-probabilities, DPO, and what can be read off (notebook 06).

DPO is `fit` with another model: `fit(ImplicitRewardModel(load_backbone()), train, validation)`. The loss is Bradley–Terry on
β (log π − log π_ref), and every other loss of `rmkit.losses` works on it too: `label_smoothed` makes it conservative DPO.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from rmkit.backbones import Backbone
from rmkit.base import BaseRewardModel, evaluating, merged_weights, set_trainable
from rmkit.batching import PADDING, PROMPT, Batch, Encoded
from rmkit.checkpoints import fingerprint
from rmkit.losses import label_smoothed
from rmkit.preferences import Preference
from rmkit.trunk import UNIMPORTANT, computed_once

CHUNK = 128  # tokens whose logits are in memory at a time: 25 MB of SmolLM2's 49,152


def next_token_log_probabilities(
    hidden: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor, chunk: int = CHUNK
) -> torch.Tensor:
    """log softmax(W h)[target] → [M] fp32, nats; hidden [M, H], targets [M], weight W [V, H] of the language-model head.

    No more than two or three arrays of `chunk` · V exist at a time, and none is kept for the way back: where W is frozen, the
    slope in h is taken while the logits are there; where it trains, they are made anew. Kept whole, they would be more than
    all else that a step of DPO keeps.
    """
    hidden, weight = hidden.float(), weight.float()
    parts = zip(hidden.split(chunk), targets.split(chunk), strict=True)
    with torch.autocast(hidden.device.type, enabled=False):  # bf16 logits around 20 are 0.125 apart
        if not weight.requires_grad:
            return torch.cat([_WithSlope.apply(h, t, weight) for h, t in parts])
        return torch.cat([checkpoint(_log_probabilities, h, t, weight, use_reentrant=False) for h, t in parts])


def _log_probabilities(hidden: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return -F.cross_entropy(F.linear(hidden, weight), targets, reduction="none")


class _WithSlope(torch.autograd.Function):
    """`_log_probabilities` and d log p_y / dh = w_y − Σ_v p_v w_v, in two matrix products of H · V; autograd wants three."""

    @staticmethod
    def forward(ctx, hidden: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        logs = F.log_softmax(F.linear(hidden, weight), -1)
        found = logs.gather(1, targets[:, None]).squeeze(1)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(weight[targets] - logs.exp_() @ weight)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return upstream[:, None] * slope, None, None


def dpo_loss(
    policy: torch.Tensor, reference: torch.Tensor, ranks: torch.Tensor, beta: float = 0.1, flips: float = 0.0
) -> torch.Tensor:
    """−(1 − ε) log σ(Δ) − ε log σ(−Δ) → [B], nats, of Δ = β [(log π − log π_ref)_better − (log π − log π_ref)_worse].

    policy, reference [B, K]: log-probabilities of the completions, nats, summed over their tokens; ranks [B, K] as in
    `rmkit.losses`; flips: ε, the share of judgements that are turned around. Rafailov et al., arXiv:2305.18290, eq. 7;
    with ε, Mitchell 2023. Raises ValueError for other shapes, and for ties.
    """
    if policy.shape != reference.shape:  # which torch might broadcast
        raise ValueError(f"policy and reference are both [B, K]: got {list(policy.shape)} and {list(reference.shape)}")
    return label_smoothed(beta * (policy - reference), ranks, flips)


class ImplicitRewardModel(BaseRewardModel):
    """A language model read as a reward model: r(x, y) = β Σ_t [log π(y_t | x, y_<t) − log π_ref(y_t | x, y_<t)].

    The sum is over the completion's tokens, its end of turn among them, and never over the prompt's. It is the reward that π
    is best for, up to β log Z(x), which the prompt alone decides (arXiv:2305.18290, eq. 5): rewards of one prompt may be
    compared, of different prompts not. Untrained, π is π_ref and every reward is 0, up to rounding.

    backbone: from `load_backbone()`, with its language-model head. What trains, trains there.
    beta: nats of reward for each nat of log-ratio, more than 0; 0.1 … 0.5 are usual.
    trainable: as of RewardModel, where something of the body has to train. The language-model head and the embedding train
        with `"all"` alone.
    reference: another backbone of the same shape, to compare with; None: this one as it is now. A policy that was trained
        elsewhere is read with the model that it was trained from. It is used, not copied: leave it as it is.
    reference_free: r = β log π(y | x), where the reference is left out.
    max_length: as of RewardModel.
    Raises ValueError for a setting that does not exist, for a backbone without a language-model head, for another shape.
    """

    def __init__(
        self,
        backbone: Backbone,
        beta: float = 0.1,
        trainable: str = "all",
        reference: Backbone | None = None,
        reference_free: bool = False,
        max_length: int | None = None,
    ):
        super().__init__(
            backbone, beta=beta, trainable=trainable, reference_free=reference_free, max_length=max_length,
        )  # fmt: skip
        if isinstance(beta, np.generic):  # of a sweep
            beta = self.settings["beta"] = beta.item()
        if isinstance(beta, bool) or not isinstance(beta, (int, float)) or not 0 < beta < float("inf"):
            raise ValueError(f"beta is a number more than 0, such as 0.1: got {beta!r}")
        if reference is not None and not isinstance(reference, Backbone):
            raise TypeError(f"reference is what load_backbone() gives, or None: got {type(reference).__name__}")
        if trainable == "head":
            raise ValueError("with trainable='head' nothing would train: an implicit reward has no head. Take 'last:1'")
        if backbone.model.get_output_embeddings() is None:
            raise ValueError(f"{backbone.name} has no language-model head, so it gives no probabilities to read")
        self.language_model = backbone.model
        if reference is not None:
            _require_same_shape(reference, backbone)
        backbone.model.requires_grad_(trainable == "all")
        set_trainable(self.body, trainable)
        # the weights of the reference that differ from the model's, or will, once it trains
        self._others = {name: p.detach().clone() for name, p in self.named_parameters() if p.requires_grad}
        if reference is not None:
            self._others |= self._weights_of(reference)
        self._shares_trunk, self._is_reference = reference is None, False
        # log π_ref by precision and the tokens of prompt and completion, computed once and kept until it is emptied; two
        # models with one reference may share it
        self.reference_sums: dict[tuple[str, tuple[int, ...], tuple[int, ...]], float] = {}

    @property
    def beta(self) -> float:
        return self.settings["beta"]

    def forward(self, batch: Batch) -> torch.Tensor:
        """Rewards [B, K]; 0 where a preference has fewer than K completions. ValueError for a batch without its reference."""
        log_ratios = self.log_probabilities(batch)  # (B, K)
        if not self.settings["reference_free"]:
            if batch.reference is None:
                raise ValueError(
                    "this batch does not say what the reference thinks of its completions: make it with model.batch"
                )
            log_ratios = log_ratios - batch.reference
        return (self.beta * log_ratios).masked_fill(batch.ranks < 0, 0.0)

    def batch(self, encoded: Sequence[Encoded]) -> Batch:
        """What `fit` and `rewards` compute with: with what frozen layers gave, and what the reference thinks of every completion."""
        batch = super().batch(encoded)
        if self.settings["reference_free"]:
            return batch
        texts = [[(str(self.autocast), e.prompt, completion) for completion in e.completions] for e in encoded]
        if any(text not in self.reference_sums for some in texts for text in some):
            sums = _of_completions(self.reference_token_log_probabilities(batch), batch)
            for some, found in zip(texts, sums.tolist(), strict=True):
                for text, value in zip(some, found, strict=False):  # found has K, also of one with fewer
                    self.reference_sums.setdefault(text, value)
        reference = torch.zeros(batch.ranks.shape)
        for b, some in enumerate(texts):
            reference[b, : len(some)] = torch.tensor([self.reference_sums[text] for text in some])
        return replace(batch, reference=reference.to(self.device))

    def log_probabilities(self, batch: Batch) -> torch.Tensor:
        """log π(y | x) → [B, K], nats: the sum over each completion's tokens, given all before them."""
        return _of_completions(self.token_log_probabilities(batch), batch)

    def token_log_probabilities(self, batch: Batch, prompts: bool = False) -> torch.Tensor:
        """[N, T] log π of every token of a completion given all that it sees, nats; 0 elsewhere.

        prompts: of the prompts' tokens too, but for the first, which nothing predicts.
        """
        wanted = batch.segment > (PADDING if prompts else PROMPT)
        wanted[:, 0] = False
        rows, places = wanted.nonzero(as_tuple=True)  # (M) each
        hidden = self.hidden_states(batch)[rows, batch.predicting_positions()[rows, places]]  # (M, H)
        weight = self.language_model.get_output_embeddings().weight
        found = next_token_log_probabilities(hidden, batch.input_ids[rows, places], weight)
        return found.new_zeros(wanted.shape).index_put((rows, places), found)

    def reference_token_log_probabilities(self, batch: Batch, prompts: bool = False) -> torch.Tensor:
        """[N, T] as `token_log_probabilities`, of the reference."""
        with self.as_reference():
            return self.token_log_probabilities(batch if self._shares_trunk else replace(batch, hidden=None), prompts)

    def token_log_ratios(self, batch: Batch) -> torch.Tensor:
        """[N, T] log π − log π_ref of every token of a completion, nats; log π alone where the model is reference-free."""
        log_ratios = self.token_log_probabilities(batch)
        if self.settings["reference_free"]:
            return log_ratios
        return log_ratios - self.reference_token_log_probabilities(batch)

    def rewards_by_token(self, batch: Batch) -> torch.Tensor:
        """[N, T] the reward of a completion up to each of its tokens, in rows of one completion."""
        return self.beta * self.token_log_ratios(batch).cumsum(1)

    @contextlib.contextmanager
    def as_reference(self) -> Iterator[None]:
        """Within it the model is its own reference: its weights are the reference's, without dropout and without gradients."""
        if self._is_reference:  # one within another
            with torch.no_grad():
                yield
            return
        training, trunk = self.training, self.trunk
        try:
            self._exchange()
            self.eval()
            if not self._shares_trunk:
                self.trunk = None  # it keeps what the policy's layers gave
            with torch.no_grad():
                yield
        finally:
            if self._is_reference:
                self._exchange()
            self.trunk = trunk
            self.train(training)

    @torch.no_grad()
    def generate(self, prompt: str, max_new_tokens: int = 64, **options) -> str:
        """What the model answers, greedily unless `options` of transformers' `generate` say otherwise."""
        (encoded,) = self.encode([Preference(prompt, ("?", "?"), (0, 0))], "prompt")
        ids = torch.tensor([encoded.prompt], device=self.device)
        options = {"do_sample": False, "max_new_tokens": max_new_tokens} | options
        precision = torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None)
        with evaluating(self), precision:
            answer = self.language_model.generate(
                ids, attention_mask=torch.ones_like(ids), pad_token_id=self.tokenizer.pad_token_id,
                eos_token_id=[encoded.completions[0][-1], self.tokenizer.eos_token_id], **options,
            )  # fmt: skip
        return self.tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True)

    @staticmethod
    def require_savable(folder: str | Path) -> Path:
        """The folder. Raises FileExistsError for one that `save` would refuse."""
        folder = Path(folder)
        if taken := next(
            (path for path in (folder, *folder.parents) if path.is_file() or path == folder and path.exists()), None
        ):
            raise FileExistsError(f"{taken} exists: give a folder that does not")
        return folder

    def save(self, folder: str | Path) -> Path:
        """Write the policy as an ordinary causal language model, LoRA merged in: `load_backbone(folder)` reads it.

        The folder appears whole or not at all. Raises FileExistsError for one that is there already.
        """
        folder = self.require_savable(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as work:
            new = Path(work) / "new"
            self.language_model.save_pretrained(new, state_dict=merged_weights(self.language_model))
            for path in new.glob("*.safetensors"):  # which nobody else might read
                path.chmod((new / "config.json").stat().st_mode)
            self.tokenizer.save_pretrained(new)
            os.replace(new, folder)
        return folder

    def identity(self) -> dict:
        """The kind of model, and the weights that it is compared with: a checkpoint goes on with no others."""
        return {"model": type(self).__qualname__, "reference weights": fingerprint(self._others)}

    def _weights_of(self, reference: Backbone) -> dict[str, torch.Tensor]:
        """By the names that they have here, where LoRA may have changed them."""
        ours = {name.replace(".base_layer.", "."): p for name, p in self.language_model.named_parameters()}
        here = {id(p): name for name, p in self.named_parameters()}
        return {here[id(ours[name])]: p.detach() for name, p in reference.model.named_parameters()}

    def _exchange(self) -> None:
        """Of the weights in which they differ, give the model the reference's, and keep the model's; or the other way."""
        own = {name: p for name, p in self.named_parameters() if name in self._others}
        others = {name: self._others[name].to(p.device) for name, p in own.items()}  # all, before any is exchanged
        for name, parameter in own.items():
            parameter.data, self._others[name] = others[name], parameter.data
        self._is_reference = not self._is_reference


def _require_same_shape(reference: Backbone, backbone: Backbone) -> None:
    """Raise ValueError for a model of another shape or vocabulary, or for this very one, which will change."""
    theirs, ours = (dict(one.model.named_parameters()) for one in (reference, backbone))
    shapes = [{name: p.shape for name, p in side.items()} for side in (theirs, ours)]
    configs = [
        {k: v for k, v in one.model.config.to_dict().items() if k not in UNIMPORTANT} for one in (reference, backbone)
    ]
    if (
        shapes[0] != shapes[1]
        or configs[0] != configs[1]
        or reference.tokenizer.get_vocab() != backbone.tokenizer.get_vocab()
        or any(theirs[name] is ours[name] for name in ours)
    ):
        raise ValueError(
            f"reference is another backbone of the same shape and vocabulary, loaded by itself: {reference.name} is not"
        )


@dataclass(frozen=True)
class LogProbabilities:
    """What a policy and its reference think of N prompts and up to K completions each, nats, summed over tokens.

    policy, reference [N, K]: log π(y | x) and log π_ref(y | x); tokens [N, K]: how many; 0 where there is no completion.
    prompt_policy, prompt_reference, prompt_tokens [N]: the same of the prompt's own tokens after its first.
    """

    policy: torch.Tensor
    reference: torch.Tensor
    tokens: torch.Tensor
    prompt_policy: torch.Tensor
    prompt_reference: torch.Tensor
    prompt_tokens: torch.Tensor

    def rewards(
        self, beta: float = 1.0, average: bool = False, prompts: bool = False, reference_free: bool = False
    ) -> torch.Tensor:
        """β (log π − log π_ref) → [N, K], of the completions' tokens: the sum, which is DPO's implicit reward.

        beta: that of the model; 1 gives the log-ratios. Three ways to get it wrong, or to mean something else: average: the mean over the tokens; prompts: the prompt's
        tokens too; reference_free: without log π_ref.
        """
        compared = 0.0 if reference_free else 1.0
        total, tokens = self.policy - compared * self.reference, self.tokens
        if prompts:
            total = total + (self.prompt_policy - compared * self.prompt_reference)[:, None]
            tokens = tokens + self.prompt_tokens[:, None]
        present = self.tokens > 0
        return (beta * (total / tokens.clamp(min=1) if average else total)).masked_fill(~present, 0.0)


@torch.no_grad()
def log_probabilities(
    model: ImplicitRewardModel, preferences: Sequence[Preference], micro_batch_tokens: int | None = None
) -> LogProbabilities:
    """Of every completion, in the order of the preferences, and of every prompt; micro_batch_tokens as in `micro_batches`.

    Raises TypeError for a model without log-probabilities, ValueError without preferences, PreferenceError as `encode` does.
    """
    if not isinstance(model, ImplicitRewardModel):
        raise TypeError(f"log_probabilities wants an ImplicitRewardModel: a {type(model).__name__} has none to give")
    if not preferences:
        raise ValueError("log_probabilities wants at least one preference, and got none")
    encoded = model.encode(preferences)
    most = max(len(e.completions) for e in encoded)
    found = {name: torch.zeros(len(encoded), most) for name in ("policy", "reference", "tokens")}
    found |= {f"prompt_{name}": torch.zeros(len(encoded)) for name in found}
    with evaluating(model), computed_once(model, encoded):
        for chunk in model.micro_batches(encoded, micro_batch_tokens):
            batch = BaseRewardModel.batch(model, [encoded[i] for i in chunk])  # without the sums that are found here
            seen = {
                "policy": model.token_log_probabilities(batch, prompts=True),
                "reference": model.reference_token_log_probabilities(batch, prompts=True),
                "tokens": (batch.segment > PADDING).float(),
            }
            seen["tokens"][:, 0] = 0.0
            for name, tokens in seen.items():
                sums = _of_completions(tokens, batch)
                found[name][chunk, : sums.shape[1]] = sums.masked_fill(batch.ranks < 0, 0.0).cpu()
                found[f"prompt_{name}"][chunk] = ((batch.segment == PROMPT) * tokens).sum(1)[batch.row[:, 0]].cpu()
    return LogProbabilities(**found)


def _of_completions(tokens: torch.Tensor, batch: Batch) -> torch.Tensor:
    """[N, T], one number a token → [B, K], the sum over each completion's."""
    return (batch.completion_masks() * tokens[:, None]).sum(-1)[batch.row, batch.slot - 1]
