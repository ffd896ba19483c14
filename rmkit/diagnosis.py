"""What is wrong with a reward model or its data: the faults that users of real systems report, one check each."""

from __future__ import annotations

import math
import random
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import pandas as pd
import torch

from rmkit.base import BaseRewardModel, some_of
from rmkit.batching import Encoded, ranks_tensor
from rmkit.metrics import pairwise_accuracy, wilson_interval
from rmkit.model import RewardModel
from rmkit.preferences import Preference, on_both_sides

SAMPLE = 200  # preferences of a set that are scored
PROBES = 6  # of these, the ones that are scored again, from the shortest to the longest
NOISE = 1e-4  # times max(1, |r|): twenty times what the order of summation moves a reward of SmolLM2 by in fp32
SATURATED = 1e-4  # a Bradley–Terry gradient, σ(−|Δ|), that moves nothing any more: |Δ| = 9.2

Finding = tuple[bool, str]  # found, seen
NOT_FINITE = (False, "not judged: no preference has finite rewards")

REMEDIES = {
    "batch": "The reward is read where padding decides (position −1; the last token that is not the pad token, where pad = "
    "eos), or padding is seen: read it at the completion's last token, and pass mask and positions.",
    "closing token": "An earlier token is read, as transformers does where the pad token also closes the completion: pad "
    "with another token, and find the last token from the segments.",
    "identical": "Their loss stays at ln 2 and teaches nothing: leave them out, or raise max_length if it cut the difference off.",
    "truncated": "Raise max_length if the backbone reads more; else look at what was cut, and report the number.",
    "leak": "Their accuracy is that of things learned by heart: split with split_preferences.",
    "finite": "Load the last good weights and train with a lower learning rate; with weights in fp32, never in fp16.",
    "constant": "The loss cannot leave ln 2 = 0.693: look at head, pooling and learning rate.",
    "half precision": "bf16 steps by 0.03 between 4 and 8: compute the head in fp32, outside autocast.",
    "saturated": "Read these pairs: their judgements may be wrong. If not, the model is too sure of itself: fewer steps or a "
    "lower learning rate, and trust its order more than its probabilities.",
    "head": "Train it, or load what RewardModel.save wrote: a checkpoint of LoRA adapters has to hold the head as well.",
    "accuracy": "No better than chance, as far as so many pairs can tell: train, or judge on more. An interval wholly below "
    "0.5 says that chosen and rejected were exchanged.",
}


def diagnose(
    model: BaseRewardModel, preferences: Sequence[Preference], validation: Sequence[Preference] = ()
) -> pd.DataFrame:
    """Look for known faults in `model` and in its data: one row a check, always the same ones in the same order.

    Columns: `found`, whether there is trouble; `seen`, what was measured; `remedy`, empty where nothing was found.

    batch: a reward moves with what is scored beside it (transformers#35352, trl#2758, reward-bench#115 and #137).
    closing token: the token that closes a completion has no say in its reward (the same, where pad = eos).
    identical: completions judged differently are the same tokens, after truncation (rlhf-book#503, OpenRLHF#1311).
    truncated: rows lost tokens (TRL's RewardTrainer drops such rows).
    leak: a prompt or a group is on both sides (OpenRLHF's and RLHFlow's defaults).
    finite: rewards that are NaN or infinite (ColossalAI#3490). The other checks leave these preferences out.
    constant: most preferences have completions rewarded alike (RLHF-Reward-Modeling#49, Generalizable-Reward-Model#1).
    half precision: all rewards are numbers of 16 bits: they were rounded, and tie (trl#2564).
    saturated: of the pairs that are called certain to 1 in 10,000 (σ(−|Δ|) < 1e-4, no gradient left), over 1 % are wrong.
    head: zero, not finite, or as it was drawn: lost in saving (trl#1379, OpenRLHF#873, LLaMA-Factory#4379).
    accuracy: on `validation` where there is any, its 95 % interval reaches down to chance.

    Every preference is tokenised; of more than 200 on a side, 200 are scored, the same ones on
    every call, and six of them four times more, in fp32. The model and the random numbers stay as they were.
    Raises ValueError without preferences, PreferenceError for one that cannot be encoded.
    """
    if not preferences:
        raise ValueError("diagnose wants at least one preference, and got none")
    modes = [(module, module.training) for module in model.modules()]
    autocast, trunk = model.autocast, model.trunk
    try:
        model.eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `encode` warns of what the table says
            encoded, held_out = model.encode(preferences), model.encode(validation, "validation preference")
        seen = _Scored.by(model, _drawn(preferences), _drawn(encoded))
        judged = _Scored.by(model, _drawn(validation), _drawn(held_out)) if validation else seen
        model.trunk = None  # which would give what was computed before
        model.autocast = None  # in bf16, padding alone moves a reward of SmolLM2 by 0.07
        findings = {
            "batch": _batch(model, seen),
            "closing token": _closing_token(model, seen),
            "identical": _identical(encoded),
            "truncated": _truncated(encoded),
            "leak": _leak(preferences, validation),
            "finite": _finite([seen, judged] if validation else [seen], len(preferences) + len(validation)),
            "constant": _constant(seen),
            "half precision": _half_precision(seen),
            "saturated": _saturated(seen),
            "head": _head(model),
            "accuracy": _accuracy(judged, "validation" if validation else "given"),
        }
    finally:
        model.autocast, model.trunk = autocast, trunk
        for module, training in modes:
            module.training = training
    rows = [(check, found, seen, REMEDIES[check] if found else "") for check, (found, seen) in findings.items()]
    return pd.DataFrame(rows, columns=["check", "found", "seen", "remedy"]).set_index("check")


@dataclass
class _Scored:
    """The preferences of a sample whose rewards are all finite, and how many others there were."""

    preferences: list[Preference]
    encoded: list[Encoded]
    rewards: torch.Tensor  # [N, K]
    broken: int

    @classmethod
    def by(cls, model: BaseRewardModel, preferences: list[Preference], encoded: list[Encoded]) -> _Scored:
        rewards = model.rewards(encoded)
        finite = torch.isfinite(rewards).all(1)
        fine = finite.nonzero().flatten().tolist()
        return cls([preferences[i] for i in fine], [encoded[i] for i in fine], rewards[finite], int((~finite).sum()))

    def differences(self) -> torch.Tensor:
        """r_better − r_worse of every pair that was told apart and differs in its tokens, [P]."""
        return torch.tensor(
            [
                r[i] - r[j]
                for e, r in zip(self.encoded, self.rewards.tolist(), strict=True)
                for i, j in combinations(range(len(e.ranks)), 2)
                if e.ranks[i] < e.ranks[j] and e.completions[i] != e.completions[j]
            ]
        )


def _drawn(rows: Sequence) -> list:
    """At most SAMPLE of them: at random, since even steps could hit a pattern, but the same on every call."""
    return [rows[i] for i in sorted(random.Random(0).sample(range(len(rows)), min(SAMPLE, len(rows))))]


def _noise(rewards: torch.Tensor) -> torch.Tensor:
    return NOISE * rewards.abs().clamp(min=1)


# --- where a reward is read ---------------------------------------------------------------------------------


def _batch(model: BaseRewardModel, sample: _Scored) -> Finding:
    if not sample.encoded:
        return NOT_FINITE
    probes = _probes(sample.encoded)
    room = model.body.config.max_position_embeddings - len(probes[-1].prompt)
    longer = replace(probes[-1], completions=tuple((c + c)[: min(len(c) + 16, room)] for c in probes[-1].completions))
    alone = torch.cat([_score(model, [row]) for row in _singly(probes)])  # without any padding
    moved = (_score(model, [*probes, longer])[: len(alone)] - alone).abs()
    seen = f"{len(alone)} completions, scored alone and then beside longer ones, moved by {moved.max():.1e} at most"
    return not bool((moved <= _noise(alone)).all()), seen


def _closing_token(model: BaseRewardModel, sample: _Scored) -> Finding:
    if not sample.encoded:
        return NOT_FINITE
    rows = [row for row in _singly(_probes(sample.encoded)) if len(row.completions[0]) > 1]
    rewards = _score(model, rows) if rows else torch.zeros(1)
    if rewards.max() - rewards.min() <= _noise(rewards).max():
        return False, "not judged: nothing moves these rewards"
    without = [replace(row, completions=(row.completions[0][:-1],)) for row in rows]
    other = [next(token for token in (*row.prompt, 0, 1) if token != row.completions[0][-1]) for row in rows]
    with_other = [replace(w, completions=((*w.completions[0], t),)) for w, t in zip(without, other, strict=True)]
    alike = [(_score(model, changed) - rewards).abs() <= _noise(rewards) for changed in (without, with_other)]
    seen = f"of {len(rows)} completions, {alike[0].sum()} have the same reward without the token that closes them, {alike[1].sum()} with another instead"
    return any(bool(same.all()) for same in alike), seen


def _probes(encoded: list[Encoded]) -> list[Encoded]:
    """Up to PROBES preferences, from the shortest to the longest."""
    by_length = sorted(encoded, key=lambda e: e.length)
    return [by_length[i] for i in sorted({round(i * (len(encoded) - 1) / (PROBES - 1)) for i in range(PROBES)})]


def _singly(encoded: list[Encoded]) -> list[Encoded]:
    return [replace(e, completions=(c,), ranks=(0,)) for e in encoded for c in e.completions]


@torch.no_grad()
def _score(model: BaseRewardModel, encoded: list[Encoded]) -> torch.Tensor:
    """The rewards of all completions, in one batch: [C], as `_singly` orders them."""
    batch = model.batch(encoded)
    return model(batch)[batch.ranks >= 0].cpu()


# --- data ---------------------------------------------------------------------------------------------------


def _identical(encoded: list[Encoded]) -> Finding:
    found = [i for i, e in enumerate(encoded) if e.is_blurred]
    seen = f"{len(found)} of {len(encoded)} preferences have completions of the same tokens, judged differently"
    return bool(found), seen + f": {some_of(found)}" * bool(found)


def _truncated(encoded: list[Encoded]) -> Finding:
    found = [i for i, e in enumerate(encoded) if e.cut]
    seen = f"{len(found)} of {len(encoded)} preferences lost their oldest tokens"
    return bool(found), seen + f", up to {max(e.cut for e in encoded)}: {some_of(found)}" * bool(found)


def _leak(preferences: Sequence[Preference], validation: Sequence[Preference]) -> Finding:
    if not validation:
        return False, "not judged: no validation preferences given"
    found = on_both_sides(preferences, validation)
    seen = f"{len(found)} of {len(validation)} validation preferences have their prompt or group on both sides"
    return bool(found), seen + f": {some_of(found)}" * bool(found)


# --- rewards ------------------------------------------------------------------------------------------------


def _finite(samples: list[_Scored], given: int) -> Finding:
    broken = sum(sample.broken for sample in samples)
    scored = sum(len(sample.encoded) for sample in samples) + broken
    seen = f"{broken} of {scored} preferences have a reward that is not finite"
    return broken > 0, seen + f"; {scored} of {given} were drawn and scored" * (scored < given)


def _constant(sample: _Scored) -> Finding:
    rows = [
        r[: len(e.ranks)] for e, r in zip(sample.encoded, sample.rewards, strict=True) if len(set(e.completions)) > 1
    ]
    if not rows:
        return False, "not judged: no preference has finite rewards and completions of different tokens"
    spread = torch.stack([r.max() - r.min() for r in rows])  # only differences within a prompt mean anything
    alike = spread <= torch.stack([_noise(r).max() for r in rows])
    seen = f"{alike.sum()} of {len(rows)} preferences have their completions rewarded alike; the median spread is {spread.median():.2g}"
    return bool(alike.sum() * 2 > len(rows)), seen


def _half_precision(sample: _Scored) -> Finding:
    if not sample.encoded:
        return NOT_FINITE
    given, in_bf16 = (
        sample.rewards[ranks_tensor(sample.encoded) >= 0],
        replace(sample, rewards=sample.rewards.bfloat16()),
    )
    short = any(bool((given == given.to(dtype)).all()) for dtype in (torch.bfloat16, torch.float16))
    ties, more = (int((s.differences() == 0).sum()) for s in (sample, in_bf16))
    seen = (
        f"{given.unique().numel()} values in {given.numel()} rewards; {ties} judged pairs tie, and {more} would in bf16"
    )
    return short and bool(given.any()), seen + "; 16 bits write every one of them" * short


def _saturated(sample: _Scored) -> Finding:
    differences, bound = sample.differences(), math.log(1 / SATURATED - 1)
    if not len(differences):
        return False, "not judged: no pair with finite rewards and different tokens was told apart"
    far, wrong = int((differences.abs() > bound).sum()), int((differences < -bound).sum())
    seen = (
        f"{far} of {len(differences)} judged pairs are more than {bound:.1f} apart, {wrong} of them the wrong way round"
    )
    return wrong * 100 > far, seen


def _head(model: BaseRewardModel) -> Finding:
    if not isinstance(model, RewardModel):
        return False, "not judged: its rewards are read off the language model's probabilities, and it has no head"
    weight = model.last_layer.weight.detach().cpu()
    if not torch.isfinite(weight).all():
        return True, f"{(~torch.isfinite(weight)).sum()} of its {weight.numel()} weights are not finite"
    if not weight.any():
        return True, f"all of its {weight.numel()} weights are zero"
    if torch.equal(weight, model.fresh_head):
        return True, "it is as it was drawn: never trained, or lost when loading"
    return False, f"its {weight.numel()} weights, of norm {weight.norm():.2g}, are not as this model drew them"


def _accuracy(sample: _Scored, which: str) -> Finding:
    told = [i for i, e in enumerate(sample.encoded) if e.ranks[-1] > 0]
    if not told:
        return False, f"not judged: no {which} preference has finite rewards and was told apart"
    encoded = [sample.encoded[i] for i in told]
    ranks = ranks_tensor(encoded)  # (N, K)
    lengths = torch.zeros(ranks.shape)
    lengths[ranks >= 0] = torch.tensor([float(len(c)) for e in encoded for c in e.completions])
    accuracy = pairwise_accuracy(sample.rewards[told, : ranks.shape[1]], ranks)
    longer = pairwise_accuracy(lengths, ranks).value
    pairs, of_group = ((ranks[:, :, None] < ranks[:, None, :]) & (ranks[:, :, None] >= 0)).sum((1, 2)), Counter()
    for i, n in zip(told, pairs.tolist(), strict=True):
        of_group[sample.preferences[i].group] += n
    # pairs of one group may say one thing many times over: so many independent ones are there at least (Kish 1965)
    independent = accuracy.pairs**2 / sum(n**2 for n in of_group.values())
    low, high = wilson_interval(accuracy.value * independent, independent)
    seen = f"{accuracy.value:.2f} [{low:.2f}, {high:.2f}] on {accuracy.pairs} pairs of {len(of_group)} groups ({which}); the longer one wins {longer:.2f}"
    return low <= 0.5, seen
