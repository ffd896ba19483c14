"""Protects: completions that share a row with their prompt get the rewards and gradients of rows of their own."""

import random

import pytest
import torch

from rmkit import Encoded, Preference, RewardModel, collate
from rmkit.batching import PROMPT, SHARED_ROW, micro_batches, sharing_pays

PAD = 0


def encoded(prompt, completions, seed=0, vocabulary=1500):
    """Random tokens: a prompt of so many, completions of so many each."""
    rng = random.Random(f"{seed} {prompt} {completions}")
    words = [tuple(rng.randrange(3, vocabulary) for _ in range(n)) for n in (prompt, *completions)]
    return Encoded(words[0], tuple(words[1:]), tuple(range(len(completions))))


LENGTHS = {2: [(7, 12), (1, 30)], 5: [(5, 9, 1, 14, 6), (20, 2, 2, 11, 3)]}
SETS = {
    f"K = {k}, prompts of {shortest} to {longest}": [
        encoded(prompt, lengths, seed=i)
        for i, (prompt, lengths) in enumerate([(shortest, completions[0]), (longest, completions[1])])
    ]
    for k, completions in LENGTHS.items()
    for shortest, longest in ((3, 24), (60, 300))
}
SETS["K from 2 to 37"] = [encoded(5, (3, 4)), encoded(9, [2 + i % 5 for i in range(37)]), encoded(4, (6, 1, 2))]


def rewards_and_gradients(model, batch):
    model.zero_grad()
    rewards = model(batch)
    (rewards * torch.arange(1.0, rewards.numel() + 1).view(rewards.shape).cos()).sum().backward()
    return rewards.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_alike(model, data, pad=PAD):
    simple, slopes = rewards_and_gradients(model, collate(data, pad))
    shared, found = rewards_and_gradients(model, collate(data, pad, SHARED_ROW))
    assert simple.std() > 0.1, "all rewards are alike: nothing to tell apart"
    assert ((shared - simple).abs() <= 1e-5 * simple.abs().clamp(min=1)).all()
    assert found.keys() == slopes.keys()
    for name, slope in slopes.items():
        assert (found[name] - slope).norm() <= 1e-4 * slope.norm(), name


@pytest.mark.parametrize("settings", [{}, {"pooling": "mean"}, {"trainable": "lora"}, {"trainable": "last:2"}], ids=str)
@pytest.mark.parametrize("data", SETS.values(), ids=SETS)
def test_rewards_and_every_gradient_are_alike(tiny, data, settings):
    torch.manual_seed(0)
    assert_alike(RewardModel(tiny, **settings).eval(), data)


@pytest.mark.parametrize("name", ["K = 2, prompts of 60 to 300", "K = 5, prompts of 3 to 24"])  # two, for their seconds
def test_smollm2s_rewards_and_every_gradient_are_alike(smollm2, name):
    torch.manual_seed(0)
    assert_alike(RewardModel(smollm2).eval(), SETS[name])


def test_mask_by_hand():
    """A token sees the prompt and its own completion, up to itself; padding sees nothing but padding."""
    batch = collate([encoded(2, (2, 1)), encoded(1, (2, 3))], PAD, per_row=2)
    assert batch.segment.tolist() == [[0, 0, 1, 1, 2, -1], [0, 1, 1, 2, 2, 2]]
    assert batch.position_ids.tolist()[1] == [0, 1, 2, 1, 2, 3]
    assert batch.position_ids[0, :5].tolist() == [0, 1, 2, 3, 2]
    assert (batch.row.tolist(), batch.slot.tolist()) == ([[0, 0], [1, 1]], [[1, 2], [1, 2]])
    assert batch.last_positions().tolist() == [[3, 4], [2, 5]]
    assert batch.tokens == 5 + 6
    mask = batch.attention_mask
    assert mask.shape == (2, 1, 6, 6) and mask.dtype == torch.bool
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 1],
    ]


def test_rows_are_cut_at_sixteen_completions():
    data = [encoded(3, [2] * 37)]
    batch = collate(data, PAD, SHARED_ROW)
    assert batch.slot.amax() == 13 < SHARED_ROW == 16
    assert batch.row[0].tolist() == [0] * 13 + [1] * 13 + [2] * 11, "as few rows as there can be, of like size"
    assert ((batch.segment == PROMPT).sum(1) == 3).all()


@pytest.mark.parametrize(
    ("prompt", "completions", "pays"),
    [(300, (45, 45), True), (100, (30, 30), True), (100, [60] * 5, True), (18, (23, 23), True), (3, (300, 300), False),
     (3, [30] * 5, False), (600, [900] * 16, False)],
)  # fmt: skip
def test_rows_are_shared_where_it_pays(prompt, completions, pays):
    """Where the prompt is a good part of a row; never where one long row's attention costs more than the prompts."""
    assert sharing_pays([encoded(prompt, completions)] * 4) == pays


def test_padding_counts_against_sharing():
    """One long pair among short ones: in shared rows all would be padded to the sum of its completions."""
    data = [encoded(100, (30, 30))] * 7
    assert sharing_pays(data) and not sharing_pays([*data, encoded(20, (400, 400))])


def test_model_shares_where_it_pays_and_scores_alike(tiny):
    torch.manual_seed(0)
    model = RewardModel(tiny)
    data = [Preference("Tell me. " * 40, ("Yes.", "No."))] * 2
    encodings = model.encode(data)
    assert model.batch(encodings).slot.amax() == 2 and model.collate(encodings).slot.amax() == 1
    model.eval()
    torch.testing.assert_close(model(model.batch(encodings)), model(model.collate(encodings)), rtol=1e-5, atol=1e-5)


# --- micro-batches under a budget of tokens -------------------------------------------------------------------

MIXED = [
    encoded(prompt, completions, seed=i)
    for i in range(6)
    for prompt, completions in [(100, (30, 20)), (4, (9, 7)), (250, (60, 40)), (6, (80, 75)), (40, [12] * 20)]
]


@pytest.mark.parametrize("tokens", [1, 200, 512, 5000])
def test_micro_batches_hold_every_preference_once_under_the_budget(tiny, tokens):
    """Padding counted, as they are laid out; a preference that is too long for it stands alone."""
    model = RewardModel(tiny)
    micro = model.micro_batches(MIXED, tokens)
    assert sorted(i for indices in micro for i in indices) == list(range(len(MIXED)))
    sizes = [model.lay_out([MIXED[i] for i in indices]).input_ids.numel() for indices in micro]
    assert all(size <= tokens or len(indices) == 1 for size, indices in zip(sizes, micro, strict=True))
    assert (max(map(len, micro)) == 1) == (tokens == 1)


def test_micro_batches_hold_little_padding(tiny):
    """Of like width; and what shares its prompt does not stand beside what does not."""
    model = RewardModel(tiny)
    batches = [model.lay_out([MIXED[i] for i in indices]) for indices in model.micro_batches(MIXED, 512)]
    assert sum(b.tokens for b in batches) > 0.95 * sum(b.input_ids.numel() for b in batches)
    whole = model.lay_out(MIXED)
    assert whole.tokens < 0.5 * whole.input_ids.numel(), "this data would hold little padding without them"


@pytest.mark.parametrize("processes", [2, 3, 7])
def test_every_process_gets_as_many_micro_batches(processes):
    for data in (MIXED, MIXED[:8], MIXED[:2]):
        micro = micro_batches(data, 512, processes=processes)
        assert sorted(i for indices in micro for i in indices) == list(range(len(data)))
        assert len(micro) % processes == 0 or len(micro) == len(data)
