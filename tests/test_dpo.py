"""Protects: an implicit reward is β times the log-ratio of exactly the completion's tokens, and DPO is `fit` on it."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from rmkit import (
    Backbone,
    CheckpointError,
    ImplicitRewardModel,
    Playground,
    Preference,
    TrainConfig,
    bradley_terry,
    collate,
    computed_once,
    diagnose,
    fit,
    load_backbone,
    load_preferences,
    log_probabilities,
    report,
)
from rmkit.dpo import dpo_loss, next_token_log_probabilities

PAIRS = load_preferences("json_vs_text")
AWKWARD = [  # where prompt and completion meet, and where rows share a prompt
    Preference("Say nothing.", ("\nNo.", " No.")),
    Preference("Count:", ("\n\n1 2 3", "123", "  three"), (0, 1, 1)),
    Preference("ends in a space ", (" begins with one", "don't", "naïve 🦙🦙", "{}", "ß"), (0, 1, 1, 2, 3)),
    Preference("Again and again. " * 12, ("Yes.", "No.", "Perhaps, perhaps not."), (0, 1, 2)),
]


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    """An empty store of its own for every test."""
    monkeypatch.setenv("RMKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def policy(tiny):
    """A tiny policy that is no longer its reference."""
    return moved(ImplicitRewardModel(tiny, trainable="last:2"))


def moved(model, seed=0):
    """Every weight that trains, a little off."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


@torch.no_grad()
def by_hand(language_model, encoded):
    """log π of each completion in double precision, from whole rows and whole logits: [[…] …]."""
    precise = copy.deepcopy(language_model).double()
    found = []
    for e in encoded:
        sums = []
        for completion in e.completions:
            ids = torch.tensor([e.prompt + completion])
            logs = precise(ids).logits.log_softmax(-1)[0]  # (T, V)
            places = range(len(e.prompt), ids.shape[1])
            sums.append(sum(logs[t - 1, ids[0, t]].item() for t in places))
        found.append(sums)
    return found


def assert_same(found, expected):
    for row, wanted in zip(found.tolist(), expected, strict=True):
        for a, b in zip(row[: len(wanted)], wanted, strict=True):
            assert a == pytest.approx(b, abs=1e-5 * max(1, abs(b)))


# --- response log-probabilities -----------------------------------------------------------------------------


@pytest.mark.parametrize("per_row", [1, 2, 16])
def test_log_probabilities_are_those_of_a_double_precision_computation(policy, per_row):
    """Whatever stands beside a completion in the batch or in its row, and wherever its tokens begin."""
    encoded = policy.encode([*AWKWARD, *PAIRS[:3]])
    batch = collate(encoded, policy.tokenizer.pad_token_id, per_row)
    assert_same(policy.log_probabilities(batch), by_hand(policy.language_model, encoded))


def test_log_probabilities_of_the_real_model(smollm2):
    """SmolLM2's tied head and 49,152 tokens: fp32 agrees with double precision."""
    model = ImplicitRewardModel(copy.copy(smollm2), trainable="last:1")
    encoded = model.encode(PAIRS[:1])
    assert_same(model.log_probabilities(model.collate(encoded)), by_hand(model.language_model, encoded))


def test_positions_that_predict(tiny):
    """In a shared row the first token of every completion comes after the prompt, not after the completion beside it."""
    model = ImplicitRewardModel(tiny, trainable="last:1")
    (encoded,) = model.encode([AWKWARD[1]])
    encoded = replace(encoded, prompt=(5, 6), completions=((7, 8), (9,), (10, 11)), ranks=(0, 1, 1))
    batch = collate([encoded], 0, per_row=16)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 10, 11]]
    assert batch.predicting_positions().tolist() == [[0, 0, 1, 2, 1, 1, 5]]


def test_a_completion_of_the_length_of_its_prompt_is_not_mistaken_for_a_beginning(tiny):
    """Positions restart after the prompt in every completion, and only their first token is predicted by its end."""
    model = ImplicitRewardModel(tiny, trainable="last:1")
    (encoded,) = model.encode([AWKWARD[1]])
    rows = [replace(encoded, prompt=(5,), completions=((7,), (9, 10, 11)), ranks=(0, 1)), encoded]
    batch = collate(rows, 0, per_row=2)
    positions = batch.predicting_positions()
    assert positions[0, :5].tolist() == [0, 0, 0, 2, 3]
    assert ((batch.position_ids.gather(1, positions) == batch.position_ids - 1) | (batch.segment < 0) | (
        batch.position_ids == 0
    )).all()  # fmt: skip


HIDDEN = torch.randn(300, 16, generator=torch.manual_seed(0))
TARGETS = torch.randint(997, (300,), generator=torch.manual_seed(1))
WEIGHT = torch.randn(997, 16, generator=torch.manual_seed(2))


class Largest(TorchDispatchMode):
    """The most elements that any tensor has which comes into being within it."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        found = function(*arguments, **(options or {}))
        for tensor in found if isinstance(found, tuple | list) else (found,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return found


@pytest.mark.parametrize("head_trains", [False, True])
def test_logits_exist_a_chunk_at_a_time_and_nothing_else_changes(head_trains):
    """Value and both gradients against the plain computation; no tensor larger than a chunk of logits, forth or back."""
    upstream = torch.randn(300, generator=torch.manual_seed(3))

    def run(function):
        hidden, weight = HIDDEN.clone().requires_grad_(), WEIGHT.clone().requires_grad_(head_trains)
        found = function(hidden, weight)
        (found * upstream).sum().backward()
        return found.detach(), hidden.grad, weight.grad

    expected = run(lambda h, w: F.linear(h, w).log_softmax(-1).gather(1, TARGETS[:, None])[:, 0])
    kept = {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with Largest() as largest, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = run(lambda h, w: next_token_log_probabilities(h, TARGETS, w, chunk=32))
    assert largest.elements <= max(32 * 997, WEIGHT.numel())
    assert sum(kept.values()) < 2 * (32 * 997)  # of ten chunks, none is kept
    for a, b in zip(found, expected, strict=True):
        if a is None:
            assert b is None and not head_trains
        else:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_largest_sees_whole_logits():
    """The yardstick of the test above can fail."""
    with Largest() as largest:
        next_token_log_probabilities(HIDDEN, TARGETS, WEIGHT, chunk=300)
    assert largest.elements == 300 * 997


# --- the loss -----------------------------------------------------------------------------------------------

POLICY = torch.tensor([[-20.0, -31.5], [-300.0, -12.25], [-8.0, -8.0]], dtype=torch.float64)
REFERENCE = torch.tensor([[-22.0, -30.0], [-100.0, -12.0], [-8.0, -7.5]], dtype=torch.float64)
RANKS = torch.tensor([[0, 1], [0, 1], [1, 0]])


@pytest.mark.parametrize(("beta", "flips"), [(0.1, 0.0), (0.5, 0.0), (0.1, 0.2)])
def test_loss_and_gradient_by_hand(beta, flips):
    """With softplus and σ in plain Python; the gradient is β (ε − σ(−Δ)) for the better one, and its negative."""
    policy = POLICY.clone().requires_grad_()
    found = dpo_loss(policy, REFERENCE, RANKS, beta, flips)
    found.sum().backward()
    ratios = (POLICY - REFERENCE).tolist()
    for row, ranks, loss, slope in zip(ratios, RANKS.tolist(), found.tolist(), policy.grad.tolist(), strict=True):
        better, worse = ranks.index(0), ranks.index(1)
        lead = beta * (row[better] - row[worse])
        expected = (1 - flips) * math.log1p(math.exp(-lead)) + flips * math.log1p(math.exp(lead))
        assert loss == pytest.approx(expected, rel=1e-12)
        pull = beta * (flips - 1 / (1 + math.exp(lead)))
        assert slope[better] == pytest.approx(pull, rel=1e-9) and slope[worse] == pytest.approx(-pull, rel=1e-9)


def test_loss_is_bradley_terry_on_implicit_rewards():
    torch.testing.assert_close(
        dpo_loss(POLICY, REFERENCE, RANKS, 0.3), bradley_terry(0.3 * (POLICY - REFERENCE), RANKS)
    )


def test_loss_does_not_broadcast():
    with pytest.raises(ValueError, match=r"both \[B, K\]"):
        dpo_loss(POLICY, REFERENCE[:, :1], RANKS)


def test_loss_of_the_model_is_that_of_its_log_probabilities(policy):
    encoded = policy.encode(PAIRS[:4])
    batch = policy.batch(encoded)
    expected = torch.tensor(by_hand(policy.language_model, encoded))
    with policy.as_reference():
        reference = torch.tensor(by_hand(policy.language_model, encoded))
    assert (expected - reference).abs().min() > 0.01
    torch.testing.assert_close(
        bradley_terry(policy(batch), batch.ranks).double(),
        dpo_loss(expected.double(), reference.double(), batch.ranks, 0.1),
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip


def test_loss_equals_that_of_trl(tiny_folder, tmp_path):
    """The same pairs, from its own tokenisation to its loss; in evaluation, where its DPOTrainer drops nothing out."""
    trl = pytest.importorskip("trl", reason="TRL is not installed (pip install --no-deps trl==1.16.0)")
    from datasets import Dataset

    model = moved(ImplicitRewardModel(load_backbone(str(tiny_folder)), beta=0.3, trainable="all"))
    rows = [
        {
            "prompt": p.messages,
            "chosen": [{"role": "assistant", "content": p.chosen}],
            "rejected": [{"role": "assistant", "content": p.rejected}],
        }
        for p in PAIRS[:6]
    ]
    config = trl.DPOConfig(
        output_dir=str(tmp_path), beta=0.3, max_length=None, use_cpu=True, bf16=False, gradient_checkpointing=False,
        report_to=[], disable_tqdm=True,
    )  # fmt: skip
    reference = load_backbone(str(tiny_folder)).model
    trainer = trl.DPOTrainer(
        model.language_model, reference, config, train_dataset=Dataset.from_list(rows), processing_class=model.tokenizer
    )
    inputs = trainer.data_collator([trainer.train_dataset[i] for i in range(6)])
    trainer.model.eval()
    with torch.no_grad():
        theirs = trainer.compute_loss(trainer.model, inputs)
        batch = model.batch(model.encode(PAIRS[:6]))
        ours = bradley_terry(model(batch), batch.ranks).mean()
    assert abs(theirs.item() - math.log(2)) > 0.01
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


# --- training -----------------------------------------------------------------------------------------------

CONFIG = TrainConfig(1e-3, batch_size=4, micro_batch_tokens=100, max_steps=6, eval_every=3, patience=None)


@pytest.mark.parametrize("trainable", ["last:2", "lora", "all"])
def test_fit_trains_the_policy_away_from_its_reference(tiny, trainable):
    """From exactly ln 2, since untrained every reward is 0; what the reference thinks does not change on the way."""
    model = ImplicitRewardModel(tiny, trainable=trainable)
    before = model.log_probabilities(model.collate(model.encode(PAIRS[:8]))).detach()
    history = fit(model, PAIRS[:40], PAIRS[400:408], CONFIG)
    assert history.validations[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert history.steps[-1]["loss"] < 0.65
    rewards = model.rewards(PAIRS[:8])
    assert (rewards[:, 0] > rewards[:, 1]).all()
    with model.as_reference():
        after = model.log_probabilities(model.collate(model.encode(PAIRS[:8])))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-4)
    torch.testing.assert_close(model.batch(model.encode(PAIRS[:8])).reference, before, rtol=0, atol=1e-4)


def test_the_reference_is_asked_once_for_every_completion(tiny, monkeypatch):
    model = ImplicitRewardModel(tiny, trainable="last:1")
    asked, plain = [], model.reference_token_log_probabilities

    def counted(batch):
        asked.append(int((batch.ranks >= 0).sum()))
        return plain(batch)

    monkeypatch.setattr(model, "reference_token_log_probabilities", counted)
    fit(model, PAIRS[:8], PAIRS[400:404], replace(CONFIG, max_steps=4, eval_every=1))
    assert sum(asked) == 2 * (8 + 4) == len(model.reference_sums)


def test_head_and_embedding_train_only_with_all(tiny_folder):
    """Also where they are one: a tied head that trained would move the embedding below the frozen layers."""
    tied = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=1500, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=256, tie_word_embeddings=True,
        )
    )  # fmt: skip
    for make in (
        lambda: load_backbone(str(tiny_folder)),
        lambda: Backbone("tied", copy.deepcopy(tied), load_backbone(str(tiny_folder)).tokenizer),
    ):
        for trainable in ("last:1", "lora", "all"):
            model = ImplicitRewardModel(make(), trainable=trainable)
            language_model = model.language_model
            trains = {language_model.get_output_embeddings().weight.requires_grad, model.body.embed_tokens.weight.requires_grad}  # fmt: skip
            assert trains == {trainable == "all"}


def test_an_interrupted_run_goes_on_to_the_same_weights(tiny_folder, tmp_path):
    """Up to the rounding of the reference's sums, which are taken anew in other batches."""

    def run(folder, steps):
        model = ImplicitRewardModel(load_backbone(str(tiny_folder)), trainable="last:2")
        if steps:
            seen = []

            def stopping(rewards, ranks):
                seen.append(rewards)
                if len(seen) > steps:
                    raise KeyboardInterrupt
                return bradley_terry(rewards, ranks)

            stopping.__qualname__ = "bradley_terry"
            with pytest.raises(KeyboardInterrupt):
                fit(model, PAIRS[:16], PAIRS[400:404], CONFIG, stopping, checkpoint=folder)
        model = ImplicitRewardModel(load_backbone(str(tiny_folder)), trainable="last:2")
        history = fit(model, PAIRS[:16], PAIRS[400:404], CONFIG, checkpoint=folder)
        return history, model.rewards(PAIRS[:4])

    (whole, expected), (resumed, found) = run(tmp_path / "a", 0), run(tmp_path / "b", 12)
    assert [s["loss"] for s in resumed.steps] == pytest.approx([s["loss"] for s in whole.steps], abs=1e-5)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_another_beta_is_another_run(tiny_folder, tmp_path):
    fit(
        ImplicitRewardModel(load_backbone(str(tiny_folder)), 0.1),
        PAIRS[:8],
        PAIRS[400:404],
        CONFIG,
        checkpoint=tmp_path,
    )
    with pytest.raises(CheckpointError, match=r"beta: 0\.1 there, 0\.2 now"):
        fit(ImplicitRewardModel(load_backbone(str(tiny_folder)), 0.2), PAIRS[:8], PAIRS[400:404], CONFIG, checkpoint=tmp_path)  # fmt: skip


def test_frozen_layers_computed_once_change_nothing(policy):
    encoded = policy.encode([*AWKWARD, *PAIRS[:3]])
    expected = policy.rewards(encoded)
    with computed_once(policy, encoded) as trunk:
        for _ in range(2):
            torch.testing.assert_close(policy.rewards(encoded), expected, rtol=1e-5, atol=1e-5)
        assert trunk.computed == len(encoded)


# --- the reference ------------------------------------------------------------------------------------------


def test_untrained_every_reward_is_nought(tiny):
    assert (ImplicitRewardModel(tiny, trainable="last:1").rewards([*AWKWARD, *PAIRS[:4]]).abs() < 1e-5).all()


def test_as_reference_gives_everything_back(policy):
    """Weights and mode, also where what stands within it fails."""
    weights = {name: p.clone() for name, p in policy.named_parameters()}
    policy.train()

    def fail():
        with policy.as_reference():
            assert not policy.training and not torch.is_grad_enabled()
            assert any(not torch.equal(p, weights[name]) for name, p in policy.named_parameters())
            raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        fail()
    assert policy.training
    assert all(torch.equal(p, weights[name]) for name, p in policy.named_parameters())


def test_within_as_reference_every_reward_is_nought_and_nothing_is_kept_that_is_wrong(policy):
    """However deep: whatever asks for the reference asks within, too."""
    expected = policy.rewards(PAIRS[:4])
    policy.reference_sums.clear()
    with policy.as_reference():
        assert (policy.rewards(PAIRS[:4]).abs() < 1e-5).all()
        with policy.as_reference():
            found = log_probabilities(policy, PAIRS[:4])
        torch.testing.assert_close(found.policy, found.reference, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(policy.rewards(PAIRS[:4]), expected, rtol=1e-4, atol=1e-5)


def test_a_separate_reference_never_reads_the_policys_frozen_layers(tiny_folder, tmp_path):
    """Its own layers differ, and what they give is not kept as the policy's."""
    trained = moved(ImplicitRewardModel(load_backbone(str(tiny_folder)), trainable="all"))
    read = ImplicitRewardModel(
        load_backbone(str(trained.save(tmp_path / "policy"))),
        trainable="last:1",
        reference=load_backbone(str(tiny_folder)),
    )
    encoded = read.encode(PAIRS[:4])
    expected = read.rewards(encoded)
    assert expected.abs().min() > 1e-3
    with computed_once(read, encoded):
        with read.as_reference():
            assert (read.rewards(encoded).abs() < 1e-5).all()
        torch.testing.assert_close(read.rewards(encoded), expected, rtol=1e-4, atol=1e-5)


def test_a_run_goes_on_with_no_other_reference(tiny_folder, tmp_path):
    """A backbone that was half trained when the model was made anew is another reference."""
    backbone = load_backbone(str(tiny_folder))
    fit(ImplicitRewardModel(backbone), PAIRS[:8], PAIRS[400:404], CONFIG, checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match="reference weights"):
        fit(ImplicitRewardModel(backbone), PAIRS[:8], PAIRS[400:404], CONFIG, checkpoint=tmp_path)


def test_diagnose_in_half_precision_finds_no_padding_and_leaves_no_trace(tiny):
    """What the reference said in bf16 is not compared with what the policy says in fp32."""
    model = moved(ImplicitRewardModel(tiny, trainable="last:2"))
    model.autocast = torch.bfloat16
    before = model.rewards(PAIRS[:8])
    assert not diagnose(model, PAIRS[:8]).found["batch"]
    assert torch.equal(model.rewards(PAIRS[:8]), before)


@pytest.mark.parametrize("trainable", ["last:2", "lora", "all"])
def test_a_saved_policy_is_read_with_the_model_it_came_from(tiny_folder, tmp_path, trainable):
    model = moved(ImplicitRewardModel(load_backbone(str(tiny_folder)), 0.2, trainable=trainable))
    expected = model.rewards(PAIRS[:5])
    assert expected.abs().min() > 1e-3
    folder = model.save(tmp_path / "policy")
    reference = load_backbone(str(tiny_folder))
    for read_as in ("last:1", "lora", "all"):
        read = ImplicitRewardModel(load_backbone(str(folder)), 0.2, trainable=read_as, reference=reference)
        torch.testing.assert_close(read.rewards(PAIRS[:5]), expected, rtol=1e-4, atol=1e-4)
        with computed_once(read, read.encode(PAIRS[:5])):
            read.reference_sums.clear()
            torch.testing.assert_close(read.rewards(PAIRS[:5]), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(FileExistsError, match="exists"):
        model.save(folder)


def test_reference_free_reads_the_policy_alone(tiny):
    model = moved(ImplicitRewardModel(tiny, 0.5, trainable="last:1", reference_free=True))
    encoded = model.encode(PAIRS[:3])
    assert_same(model.rewards(encoded), [[0.5 * x for x in row] for row in by_hand(model.language_model, encoded)])
    assert not model.reference_sums


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trainable": "head"}, "nothing would train"),
        ({"trainable": "last:9"}, "n from 1 to 4"),
        ({"beta": 0}, "beta is a number more than 0"),
        ({"beta": "0.1"}, "beta is a number more than 0"),
        ({"beta": float("inf")}, "beta is a number more than 0"),
        ({"max_length": 1}, "max_length"),
    ],
)
def test_settings_that_do_not_exist(tiny, settings, message):
    with pytest.raises(ValueError, match=message):
        ImplicitRewardModel(tiny, **settings)


def test_what_cannot_be_a_reference_or_a_policy(tiny, smollm2):
    with pytest.raises(ValueError, match="another backbone of the same shape and vocabulary"):
        ImplicitRewardModel(tiny, reference=tiny)  # it would change with the policy, and every reward would be 0
    with pytest.raises(ValueError, match="another backbone of the same shape and vocabulary"):
        ImplicitRewardModel(tiny, reference=smollm2)
    with pytest.raises(ValueError, match="no language-model head"):
        ImplicitRewardModel(replace(tiny, model=tiny.model.base_model))
    with pytest.raises(TypeError, match="load_backbone"):
        ImplicitRewardModel("smollm2-135m")


def test_batch_without_its_reference_is_refused(policy):
    with pytest.raises(ValueError, match=r"make it with model\.batch"):
        policy(policy.collate(policy.encode(PAIRS[:1])))


# --- reading it ---------------------------------------------------------------------------------------------


def test_log_probabilities_hold_all_that_a_reward_can_be_made_of(policy):
    encoded = policy.encode([*AWKWARD, *PAIRS[:5]])
    for within in (False, True):
        if within:
            with computed_once(policy, encoded):
                found = log_probabilities(policy, [*AWKWARD, *PAIRS[:5]], micro_batch_tokens=150)
        else:
            found = log_probabilities(policy, [*AWKWARD, *PAIRS[:5]], micro_batch_tokens=150)
        torch.testing.assert_close(found.rewards(policy.beta), policy.rewards(encoded), rtol=1e-4, atol=1e-5)
        assert found.tokens.tolist() == [[*map(len, e.completions), *[0] * (5 - len(e.completions))] for e in encoded]
        assert found.prompt_tokens.tolist() == [len(e.prompt) - 1 for e in encoded]
        assert_same(found.policy, by_hand(policy.language_model, encoded))


def test_prompt_log_probabilities_by_hand(policy):
    (encoded,) = policy.encode(PAIRS[:1])
    found = log_probabilities(policy, PAIRS[:1])
    ids = torch.tensor([encoded.prompt])
    logs = policy.language_model(ids).logits.log_softmax(-1)[0]
    expected = sum(logs[t - 1, ids[0, t]].item() for t in range(1, ids.shape[1]))
    assert found.prompt_policy.item() == pytest.approx(expected, rel=1e-4)
    assert abs(found.prompt_policy - found.prompt_reference) > 1e-3


def test_ways_to_average(policy):
    """Prompts in a sum move both alike; in a mean they need not, and absent completions stay at 0."""
    found = log_probabilities(policy, [*AWKWARD, *PAIRS[:3]])
    ratio, present = found.policy - found.reference, found.tokens > 0
    prompt = (found.prompt_policy - found.prompt_reference)[:, None]
    whole = found.rewards(2.0, prompts=True) - found.rewards(2.0)
    torch.testing.assert_close(whole, (2 * prompt * present), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.rewards(1.0, average=True)[present], (ratio / found.tokens)[present])
    torch.testing.assert_close(
        found.rewards(1.0, average=True, prompts=True)[present],
        ((ratio + prompt) / (found.tokens + found.prompt_tokens[:, None]))[present],
    )
    torch.testing.assert_close(found.rewards(1.0, reference_free=True), found.policy)
    assert not found.rewards(average=True, prompts=True)[~present].any()


def test_reward_grows_token_by_token_to_the_reward(policy):
    grown = policy.token_rewards("What is tea?", "A drink made of leaves.")
    assert grown[-1][1] == pytest.approx(policy.score("What is tea?", ["A drink made of leaves."]).item(), abs=1e-5)
    shorter = policy.token_rewards("What is tea?", "A drink")
    assert shorter[0] == pytest.approx(grown[0])
    assert len(grown) > len(shorter) > 2


def test_token_log_ratios_are_found_in_any_layout(policy):
    """Which tokens carry a reward: the same where answers share a row with their prompt, and adding up to it."""
    encoded = policy.encode([AWKWARD[2]])
    for per_row in (1, 16):
        batch = collate(encoded, policy.tokenizer.pad_token_id, per_row)
        ratios = policy.token_log_ratios(batch)
        sums = (batch.completion_masks() * ratios[:, None]).sum(-1)[batch.row, batch.slot - 1]
        torch.testing.assert_close(policy.beta * sums, policy.rewards(encoded), rtol=1e-4, atol=1e-5)


def test_it_generates_as_policy_and_as_reference(policy, tiny_folder):
    """Greedily, token by token: what the plain language model finds most probable; its end of turn is not shown."""

    def expected(language_model):
        (encoded,) = policy.encode([Preference("Tea?", ("a", "b"))])
        ids = list(encoded.prompt)
        for _ in range(6):
            best = language_model(torch.tensor([ids])).logits[0, -1].argmax().item()
            if best == policy.tokenizer.eos_token_id:
                break
            ids.append(best)
        return policy.tokenizer.decode(ids[len(encoded.prompt) :], skip_special_tokens=True)

    assert policy.generate("Tea?", max_new_tokens=6) == expected(policy.language_model)
    with policy.as_reference():
        assert policy.generate("Tea?", max_new_tokens=6) == expected(load_backbone(str(tiny_folder)).model)


def test_whatever_takes_a_reward_model_takes_it(policy):
    """The checklist, the clinic and the playground."""
    assert "held-out" in str(report(policy, PAIRS[400:408]).table)
    found = diagnose(policy, PAIRS[:8], PAIRS[400:408])
    assert not found.found[["batch", "identical", "finite", "head"]].any()
    assert "no head" in found.seen["head"]
    assert "P(first preferred)" in Playground(policy, "Tea?", "Yes.", "No.").result.value
