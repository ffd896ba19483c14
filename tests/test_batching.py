"""Protects: the tokens that are scored are the text, the whole text, and end at the end of turn; padding says nothing."""

import random
from dataclasses import replace

import pytest
import torch
from transformers import AutoTokenizer

from rmkit import Encoded, Preference, collate, encode
from rmkit.backbones import close_chat_template

AWKWARD = [
    "Plain words.", " leading and trailing ", "\n\nline breaks\n\n", "\ttabs\there\t", "  \n ", "🎉👩‍👩‍👧 ok", "漢字とかな、한국어", "שלום עולם مرحبا",
    "e\u0301 \u00a0\u2028\u200b", 'def f(x):\n    return {"a": [1, 2]}\n', '{"name": "Nile", "km": 6650}', "```json\n{}\n```",
    ", and so on", "assistant: hello", "<|assistant|>\nhello", "1234567890", "x" * 300, "",
]  # fmt: skip


@pytest.fixture(params=["tiny", "smollm2"])
def tokenizer(request):
    return request.getfixturevalue(request.param).tokenizer


# --- encode -------------------------------------------------------------------------------------------------


def rendered(tokenizer, prompt, completion):
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    return tokenizer.apply_chat_template(turns, tokenize=False)


@pytest.mark.parametrize("text", AWKWARD, ids=ascii)
def test_tokens_are_the_template_text_up_to_the_end_of_turn(tokenizer, text):
    """Decoding gives back every character, whether the text asks or answers; the template's last line break is gone."""
    for prompt, completions in [("Tell me.", (text, "An answer.")), (text, ("An answer.", "Another."))]:
        encoded = encode(Preference(prompt, completions), tokenizer)
        for ids, completion in zip(encoded.completions, completions, strict=True):
            whole = rendered(tokenizer, prompt, completion)
            assert whole.endswith(tokenizer.eos_token)
            assert tokenizer.decode(encoded.prompt + ids) == whole
            assert ids[-1] == tokenizer.eos_token_id
            assert ids.count(tokenizer.eos_token_id) == 1


def test_prompt_is_what_a_model_is_given_to_answer(tokenizer):
    """Whatever is answered: response tokens must be those that a model could have written after the prompt."""
    ask = [{"role": "user", "content": "Tell me."}]
    given = tokenizer.apply_chat_template(ask, add_generation_prompt=True)["input_ids"]
    for completion in AWKWARD:
        assert list(encode(Preference("Tell me.", (completion, "No.")), tokenizer).prompt) == given


def test_awkward_texts_hold_one_that_merges_with_the_prompt(smollm2):
    """Else the two tests above would not see the boundary being drawn: SmolLM2 has one token for three line breaks."""
    encoded = encode(Preference("Tell me.", (AWKWARD[2], "No.")), smollm2.tokenizer)
    together = smollm2.tokenizer.encode(rendered(smollm2.tokenizer, "Tell me.", AWKWARD[2]))
    assert together[: len(encoded.prompt)] != list(encoded.prompt)


@pytest.mark.parametrize(
    ("field", "preference"),
    [
        ("prompt", Preference("a{}b", ("c", "d"))),
        ("completion 0", Preference("a", ("b{}", "c"))),
        ("completion 2", Preference("a", ("b", "c", "{}d"), (0, 1, 2))),
    ],
)
def test_special_token_in_a_text_is_refused(tokenizer, field, preference):
    """It would end a turn, or begin one; every one that the vocabulary holds, and the message says where it stands."""
    specials = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    assert specials >= {tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token}
    for token in specials:
        prompt, *texts = (text.replace("{}", token) for text in (preference.prompt, *preference.completions))
        with pytest.raises(ValueError, match="special token") as raised:
            encode(replace(preference, prompt=prompt, completions=tuple(texts)), tokenizer)
        assert f"the {field} of " in str(raised.value) and repr(token) in str(raised.value)


def test_rows_that_are_too_long_lose_their_oldest_tokens(tokenizer):
    """To the token: the prompt first, and by the same number for both completions; then a completion's beginning."""
    preference = Preference("One two three four five six.", ("Short.", "A much longer answer, word after word."))
    whole = encode(preference, tokenizer)
    short, long = whole.completions
    assert whole.length == len(whole.prompt) + len(long) and not whole.cut
    assert encode(preference, tokenizer, max_length=whole.length) == whole
    for cut in range(1, len(whole.prompt)):
        assert encode(preference, tokenizer, whole.length - cut) == replace(whole, prompt=whole.prompt[cut:], cut=cut)
    for keep in range(1, len(long)):
        encoded = encode(preference, tokenizer, max_length=1 + keep)
        assert encoded.prompt == whole.prompt[-1:]
        assert encoded.completions == (short[-keep:], long[-keep:])
        assert encoded.cut == whole.length - 1 - keep


def test_pair_of_which_only_the_same_end_is_left_is_known(tokenizer):
    preference = Preference("Why?", ("Because it rains, so take a coat.", "Since it snows, so take a coat."))
    assert not encode(preference, tokenizer).is_blurred
    assert encode(preference, tokenizer, max_length=4).is_blurred
    assert not encode(replace(preference, ranks=(0, 0)), tokenizer, max_length=4).is_blurred  # as it was judged


def test_turns_before_the_prompt_are_read_and_cut_first(tokenizer):
    history = (("user", "What is tea?"), ("assistant", "A drink."))
    preference = Preference("Is it hot?", ("Mostly.", "Never."), history=history)
    encoded = encode(preference, tokenizer)
    text = tokenizer.decode(encoded.prompt)
    assert text.index("What is tea?") < text.index("A drink.") < text.index("Is it hot?")
    assert encoded.prompt == tuple(
        tokenizer.apply_chat_template(preference.messages, add_generation_prompt=True)["input_ids"]
    )
    alone = encode(replace(preference, history=()), tokenizer)
    shorter = tokenizer.decode(encode(preference, tokenizer, max_length=alone.length).prompt)
    assert "Is it hot?" in shorter and "tea" not in shorter
    special = replace(preference, history=(history[0], ("assistant", f"A drink.{tokenizer.eos_token}")))
    with pytest.raises(ValueError, match="turn 1 of 'Is it hot"):
        encode(special, tokenizer)


@pytest.fixture
def own_tokenizer(tiny_folder):
    """One to write templates into."""
    return AutoTokenizer.from_pretrained(tiny_folder)


def test_template_without_an_end_of_turn_gets_one(own_tokenizer):
    own_tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    close_chat_template(own_tokenizer)
    encoded = encode(Preference("Tell me.", ("Yes. ", "")), own_tokenizer)
    whole = [own_tokenizer.decode(encoded.prompt + ids) for ids in encoded.completions]
    assert whole == ["user: Tell me.\nassistant: Yes. </s>", "user: Tell me.\nassistant: </s>"]
    closed = own_tokenizer.chat_template
    close_chat_template(own_tokenizer)
    assert own_tokenizer.chat_template == closed


def test_template_that_rewrites_the_prompt_is_refused(own_tokenizer):
    own_tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(ValueError, match="writes the prompt differently once it is answered"):
        encode(Preference("a", ("b", "c")), own_tokenizer)


def test_template_that_refuses_a_dialogue_is_said(own_tokenizer):
    own_tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system turns here') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    with pytest.raises(ValueError, match="refuses a dialogue of system, user: no system turns here"):
        encode(Preference("a", ("b", "c"), history=(("system", "Be kind."),)), own_tokenizer)


# --- collate ------------------------------------------------------------------------------------------------

PAD = 9
HAND = [  # a pair, and three completions of which the last two are tied
    Encoded((5, 6), ((7, 2), (7, 8, 8, 2)), (0, 1)),
    Encoded((4,), ((2,), (7, 2), (8, 2)), (0, 1, 1)),
]


def test_batch_by_hand():
    """Two preferences of 2 and 3 completions are five rows; what is absent is marked, not invented."""
    batch = collate(HAND, PAD)
    assert batch.input_ids.tolist() == [
        [5, 6, 7, 2, 9, 9],
        [5, 6, 7, 8, 8, 2],
        [4, 2, 9, 9, 9, 9],
        [4, 7, 2, 9, 9, 9],
        [4, 8, 2, 9, 9, 9],
    ]
    assert batch.segment.tolist() == [
        [0, 0, 1, 1, -1, -1],
        [0, 0, 1, 1, 1, 1],
        [0, 1, -1, -1, -1, -1],
        [0, 1, 1, -1, -1, -1],
        [0, 1, 1, -1, -1, -1],
    ]
    assert batch.position_ids.tolist() == [
        [0, 1, 2, 3, 0, 0],
        [0, 1, 2, 3, 4, 5],
        [0, 1, 0, 0, 0, 0],
        [0, 1, 2, 0, 0, 0],
        [0, 1, 2, 0, 0, 0],
    ]
    assert batch.row.tolist() == [[0, 1, 0], [2, 3, 4]]
    assert batch.slot.tolist() == [[1, 1, 1], [1, 1, 1]]
    assert batch.ranks.tolist() == [[0, 1, -1], [0, 1, 1]]
    assert batch.attention_mask.tolist() == [[int(s >= 0) for s in row] for row in batch.segment.tolist()]
    assert batch.tokens == 4 + 6 + 2 + 3 + 3
    assert batch.last_positions().tolist() == [[3, 5, 3], [1, 2, 2]]  # the absent one points anywhere: row 0
    assert batch.completion_masks().shape == (5, 1, 6)
    assert batch.completion_masks()[:, 0].tolist() == [[s == 1 for s in row] for row in batch.segment.tolist()]


def test_masks_and_positions_of_two_completions_in_a_row():
    """The layout of the shared prefix, [prompt | completion 1 | completion 2], reads with the same code."""
    segment = torch.tensor([[0, 0, 1, 1, 1, 2, 2, -1]])
    one_row = replace(
        collate(HAND[:1], PAD), segment=segment, row=torch.zeros(1, 2).long(), slot=torch.tensor([[1, 2]])
    )
    assert one_row.last_positions().tolist() == [[4, 6]]
    assert one_row.completion_masks().long().tolist() == [[[0, 0, 1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1, 1, 0]]]


@pytest.mark.parametrize("counts", [[2, 2, 2], [2, 4, 2, 3]])
def test_every_completion_is_found_where_the_batch_says(counts):
    """Row, slot, segment and last position give back prompt and completion of every preference, of any K."""
    rng = random.Random(0)
    data = [
        Encoded(
            tuple(rng.choices(range(10), k=rng.randint(1, 9))),
            tuple(tuple(rng.choices(range(10), k=rng.randint(1, 9))) for _ in range(count)),
            tuple(range(count)),
        )
        for count in counts
    ]
    batch = collate(data, pad_token_id=3)  # which is a token of the texts, too
    assert batch.ranks.shape == batch.row.shape == batch.slot.shape == (len(data), max(counts))
    for b, encoded in enumerate(data):
        assert (batch.ranks[b] >= 0).sum() == len(encoded.completions)
        for k, completion in enumerate(encoded.completions):
            row, slot = batch.row[b, k], batch.slot[b, k]
            assert tuple(batch.input_ids[row][batch.segment[row] == 0].tolist()) == encoded.prompt
            assert tuple(batch.input_ids[row][batch.segment[row] == slot].tolist()) == completion
            assert batch.last_positions()[b, k] == len(encoded.prompt) + len(completion) - 1
    assert len({int(batch.row[b, k]) for b, e in enumerate(data) for k in range(len(e.ranks))}) == sum(counts)


def test_pad_id_fills_and_is_never_read():
    """Positions and masks come from lengths: a pad id that is also the end of turn changes nothing but the filling."""
    one, other = collate(HAND, PAD), collate(HAND, pad_token_id=2)
    assert (other.input_ids != one.input_ids).equal(one.segment == -1)
    assert torch.equal(one.last_positions(), other.last_positions())
    assert torch.equal(one.attention_mask, other.attention_mask)
