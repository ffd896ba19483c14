"""Preferences: a dialogue, two or more answers to it, a judgement (notebooks 00 and 03)."""

from __future__ import annotations

import os
import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from operator import itemgetter
from pathlib import Path

from rmkit.rows import file_rows, hub_rows, kind

DATA = Path(__file__).resolve().parent.parent / "data"
OTHER_FORMS = {  # of the workbook's own files, those that hold no judgements
    "graded_answers": "load_graded_answers() reads it, and annotators judge its answers",
    "paraphrases": "rmkit.graded.paraphrased(prompts) reads it",
    "regraded": "it holds second grades, for tests",
}
SHOWN_PROBLEMS = 20
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(?<!\.jsonl)(?<!\.jsonl\.gz)")

ROLES = ("system", "user", "assistant")
SPEAKERS = {"Human": "user", "Assistant": "assistant"}
Turns = tuple[tuple[str, str], ...]  # (role, text), oldest first
# A dialogue as one text, as HH-RLHF publishes it (Bai et al., 2022).
TRANSCRIPT = re.compile(r"(\r?\n){2}Human:|Human:.*(\r?\n){2}Assistant:", re.DOTALL)
SPEAKER = re.compile(r"(?:\A\s*|(?:\r?\n){2})(Human|Assistant):")
AS_TEXT = " (a text that begins with a speaker's name is read as a dialogue; in a list of messages it is left as it is)"
PROMPT_LIKE = ("question", "instruction", "query", "problem", "input", "context")  # what other sets call it
SURROGATE = re.compile("[\ud800-\udfff]")


class PreferenceError(ValueError):
    """Rows that cannot be used: in `problems` one line for each fault, with file, line and field.

    To go on without them is the caller's decision: `except PreferenceError as error: preferences = error.usable`.
    """

    def __init__(self, problems: Sequence[str], usable: Sequence[Preference] = ()):
        self.problems, self.usable = list(problems), list(usable)
        lines = [f"{len(problems)} problem{'s' * (len(problems) > 1)}; nothing is used:", *problems[:SHOWN_PROBLEMS]]
        if len(problems) > SHOWN_PROBLEMS:
            lines.append(f"… and {len(problems) - SHOWN_PROBLEMS} more (all are in .problems)")
        if usable:
            lines[0] = f"{lines[0][:-1]} (rows without fault, in .usable: {len(usable)}):"
        super().__init__("\n  ".join(lines))


@dataclass(frozen=True)
class Preference:
    """One prompt, K ≥ 2 completions, best first, and how they were judged.

    prompt: the user's turn that the completions answer.
    ranks: K integers from 0, never falling; equal numbers are a tie. A pair that prefers the first
    completion has ranks (0, 1), a tied pair (0, 0).
    margin: by how much the first was called better than the second, where the annotator said so.
    domain: what a split is stratified by, and a report is broken down by.
    group: what a split never cuts; unless the data says otherwise the dialogue's first user turn, which dialogues
    that go on from one another share.
    history: the turns before the prompt, oldest first: (role, text), of system, user and assistant.
    """

    prompt: str
    completions: tuple[str, ...]
    ranks: tuple[int, ...] = (0, 1)
    margin: float | None = None
    domain: str = ""
    group: str = ""
    history: Turns = ()

    def __post_init__(self):
        for field in ("prompt", "domain", "group"):
            if not isinstance(getattr(self, field), str):
                raise ValueError(f"{field} is a text: got {getattr(self, field)!r:.80}")
        if not isinstance(self.completions, tuple) or not all(isinstance(text, str) for text in self.completions):
            raise ValueError(f"completions is a tuple of texts, best first: got {self.completions!r:.80}")
        if not isinstance(self.ranks, tuple) or not all(type(rank) is int for rank in self.ranks):
            raise ValueError(f"ranks is a tuple of whole numbers, one a completion: got {self.ranks!r:.80}")
        if self.margin is not None and not _is_size(self.margin):
            raise ValueError(f"margin is a number from 0 up, or None: got {self.margin!r:.80}")
        if len(self.completions) < 2 or len(self.completions) != len(self.ranks):
            raise ValueError(
                f"a preference wants two or more completions, each with its rank: got {self.completions} and {self.ranks}"
            )
        if self.ranks[0] != 0 or any(b - a not in (0, 1) for a, b in pairwise(self.ranks)):
            raise ValueError(f"ranks start at 0 and rise by 0 or 1, best completion first: got {self.ranks}")
        for turn in self.history if isinstance(self.history, tuple) else [self.history]:
            if not (isinstance(turn, tuple) and len(turn) == 2 and turn[0] in ROLES and isinstance(turn[1], str)):
                raise ValueError(f"history is a tuple of (role, text), of {', '.join(ROLES)}: got {turn!r}")
        if not self.group:
            opening = next((text for role, text in self.history if role == "user"), self.prompt)
            object.__setattr__(self, "group", _same_prompt(opening))

    @property
    def chosen(self) -> str:
        return self.completions[0]

    @property
    def rejected(self) -> str:
        return self.completions[-1]

    @property
    def is_tie(self) -> bool:
        """Whether nothing is preferred to anything."""
        return self.ranks[-1] == 0

    @property
    def messages(self) -> list[dict[str, str]]:
        """The dialogue that the completions answer, as chat templates want it: history and prompt."""
        return [{"role": role, "content": text} for role, text in (*self.history, ("user", self.prompt))]


def load_preferences(name_or_path: str | Path, split: str = "train") -> list[Preference]:
    """Load and check preferences: one of the workbook's sets, a file, or a data set on the hub.

    name_or_path: the name of a file in data/ (`"json_vs_text"`), the path of a .jsonl or .jsonl.gz file, or a hub id
    (`"owner/name"`) or folder, of which `datasets` reads `split`. Every row is a pair or a ranking:

    - `prompt`, `chosen`, `rejected`: texts, or lists of messages (`role`, `content`): the prompt's end with the user,
      the answers are one message of the assistant, or the whole dialogue again (UltraFeedback, binarized)
    - `chosen`, `rejected` alone: dialogues that differ in the last answer only, as messages or as transcripts (HH-RLHF:
      `\\n\\nHuman:` or `\\n\\nAssistant:` before every turn, and spaces, which are dropped); or plain texts: the prompt
      is their longest common opening, as in TRL, but cut back to the last white space, which is dropped (in scripts
      without it, to the last mark that ends a sentence)
    - `prompt`, `completions`, `ranks`: two or more answers as above, a whole number for each: the smallest is best,
      equal is a tie

    A text `prompt` may be a transcript. Where there is something to say: `tie` (true or false, for pairs), `margin`
    (a number), `domain`, `group`. Null is as good as absent; other columns are ignored. Raises PreferenceError with
    every faulty row, and with the others in `.usable`; FileNotFoundError where there is no such data.
    """
    if not isinstance(name_or_path, (str, Path)) or not str(name_or_path):
        raise ValueError(
            f"name_or_path names a set of the workbook, a file or a set on the hub: got {name_or_path!r:.80}"
        )
    path = Path(name_or_path)
    if len(path.parts) == 1 and (DATA / f"{path}.jsonl").is_file():
        path = DATA / f"{path}.jsonl"
    if path.parent == DATA and path.stem in OTHER_FORMS:
        raise ValueError(f"{path.stem} holds no preferences: {OTHER_FORMS[path.stem]}")
    if path.is_file():
        rows = list(file_rows(path))
    elif path.is_dir() or HUB_ID.fullmatch(str(name_or_path)):
        rows = list(hub_rows(str(name_or_path), split))
    else:
        known = ", ".join(sorted({file.stem for file in DATA.glob("*.jsonl")} - OTHER_FORMS.keys()))
        raise FileNotFoundError(
            f"there is no file {name_or_path}; the workbook's own sets are: {known}; one on the hub is named 'owner/name'"
        )
    prompted = any(isinstance(row, dict) and row.get("prompt") is not None for _, row in rows)
    usable, problems = [], [] if rows else [f"{path.name}: has no rows"]
    for where, row in rows:
        faults = [row] if isinstance(row, str) else []
        preference = None if faults else _preference(row, prompted, faults)
        problems += [f"{where}: {fault}" for fault in faults]
        if preference:
            usable.append(preference)
    if problems:
        raise PreferenceError(problems, usable)
    return usable


def split_preferences(
    preferences: Sequence[Preference], validation: float = 0.2, seed: int = 0
) -> tuple[list[Preference], list[Preference]]:
    """Split into (train, validation), by group within each domain, the same way for the same seed.

    A group, and with it a prompt, is never on both sides; every domain gives as near to the share
    `validation` of its preferences as its groups allow, and makes up for the domains before it. Raises ValueError
    where a side would be empty, or one dialogue is in two groups.
    """
    require_preferences(preferences)
    if not _is_number(validation) or not 0 < validation < 1:
        raise ValueError(f"validation is a share of the data, between 0 and 1: got {validation!r}")
    group_of, domain_of = {}, {}  # of a dialogue, of a group
    domains: dict[str, dict[str, list[Preference]]] = defaultdict(lambda: defaultdict(list))
    for preference in preferences:
        group = preference.group
        dialogue = _dialogue(preference)
        if group_of.setdefault(dialogue, group) != group:
            raise ValueError(
                f"the prompt {preference.prompt!r} is in two groups, {group_of[dialogue]!r} and {group!r}: it could leak"
            )
        domains[domain_of.setdefault(group, preference.domain)][group].append(preference)
    rng = random.Random(seed)
    held_out: set[str] = set()
    owed = 0.0  # what a domain could not give, because its groups are too large, the next ones give
    for _, groups in sorted(domains.items()):
        wanted, taken = validation * sum(map(len, groups.values())) + owed, 0
        for group in rng.sample(sorted(groups), len(groups)):
            if abs(taken + len(groups[group]) - wanted) < abs(taken - wanted):
                held_out.add(group)
                taken += len(groups[group])
        owed = wanted - taken
    sides = [p for p in preferences if p.group not in held_out], [p for p in preferences if p.group in held_out]
    if not all(sides):
        raise ValueError(
            f"{len(preferences)} preferences in too few groups to hold out {validation:.0%}: one side would be empty"
        )
    return sides


def on_both_sides(train: Sequence[Preference], validation: Sequence[Preference]) -> list[int]:
    """The indices of the validation preferences whose prompt or group is in `train` too."""
    known = {p.group for p in train} | {_dialogue(p) for p in train}
    return [i for i, p in enumerate(validation) if {p.group, _dialogue(p)} & known]


def _dialogue(preference: Preference) -> Turns:
    """The whole of it: "yes" is the last turn of many dialogues."""
    return _same_dialogue((*preference.history, ("user", preference.prompt)))


def require_preferences(preferences: object, *others: type) -> None:
    """Raise TypeError for what is no list of preferences (or of `others`), with the first thing in it that is none."""
    if not isinstance(preferences, Sequence) or isinstance(preferences, str):
        raise TypeError(f"preferences come in a list, as from load_preferences: got {type(preferences).__name__}")
    for i, preference in enumerate(preferences):
        if not isinstance(preference, (Preference, *others)):
            what = type(preference).__name__
            raise TypeError(f"preference {i} is a {what}, no Preference: load_preferences makes them of rows")


def _same_prompt(text: str) -> str:
    """What two spellings of one prompt have in common."""
    return " ".join(text.split()).casefold()


def _same_dialogue(turns: Turns) -> Turns:
    return tuple((role, _same_prompt(text)) for role, text in turns)


def _preference(row: dict, prompted: bool, faults: list[str]) -> Preference | None:
    """What a row says; or None, and what is wrong with it added to `faults`.

    prompted: whether any row has a prompt. If so, plain answers without one are damaged, and what they share is chance.
    """
    present = {field: value for field, value in row.items() if value is not None}
    cells, ranks = _judged(row, present, faults)
    prompt = _turns("prompt", present["prompt"], "user", faults) if "prompt" in present else ()
    dialogues = {name: _turns(name, cell, "assistant", faults) for name, cell in cells.items()}
    if not faults:
        faults += _disagreements(cells, dialogues, prompt)
    if faults:
        return None
    answers = {name: turns[-1][1] for name, turns in dialogues.items()}
    turns = next(iter(dialogues.values()))[:-1] or prompt
    if not turns and (prompted or not all(isinstance(cell, str) for cell in cells.values())):
        faults.append(_missing("prompt", row))
    elif not turns and (other := [name for name in PROMPT_LIKE if str(present.get(name, "")).strip()]):
        faults.append(f"{_missing('prompt', row)}: rename {' or '.join(other)}, if that is the prompt")
    elif not turns:
        turns, answers = _common_opening(answers, faults)
    elif isinstance(row.get("prompt"), str) and TRANSCRIPT.match(row["prompt"]):
        answers = {name: answer.strip() for name, answer in answers.items()}  # the transcript's last turn
    seen: dict[str, tuple[str, float]] = {}
    for (name, answer), rank in zip(answers.items(), ranks, strict=True):
        same, same_rank = seen.setdefault(answer, (name, rank))
        if same_rank != rank:
            faults.append(f"{same} and {name}: are the same text, so there is nothing to learn from them")
    if faults:
        return None
    level = {rank: i for i, rank in enumerate(sorted(set(ranks)))}
    judged = sorted(zip(map(level.get, ranks), answers.values(), strict=True), key=itemgetter(0))  # best first
    beside = {field: present[field] for field in ("margin", "domain", "group") if field in present}
    texts, ranks = [text for _, text in judged], [rank for rank, _ in judged]
    return Preference(turns[-1][1], tuple(texts), tuple(ranks), history=turns[:-1], **beside)


def _judged(row: dict, present: dict, faults: list[str]) -> tuple[dict[str, object], list]:
    """The cells that hold answers, by name, and their ranks: of a ranking, or of a pair."""
    for field, wanted in (("domain", str), ("group", str), ("tie", bool)):
        if not isinstance(present.get(field, wanted()), wanted):
            faults.append(f"{field}: is {kind(present[field])}, not {kind(wanted())}")
    if not _is_size(margin := present.get("margin", 0)):
        faults.append(f"margin: is {margin!r:.40}, not a number from 0 up")
    elif margin and present.get("tie") is True:
        faults.append(f"margin: is {margin!r:.40}, where tie says that neither is better")
    is_pair = present.keys() & {"chosen", "rejected"}
    is_ranking = not is_pair and present.keys() & {"completions", "ranks"}
    fields = ("completions", "ranks") if is_ranking else ("chosen", "rejected")
    faults += [_missing(field, row) for field in ("prompt",) * (not is_pair) + fields if field not in present]
    cells = {field: present[field] for field in fields if field in present}
    if not is_ranking:
        return cells, [0, 0 if present.get("tie") else 1]
    if "tie" in present:
        faults.append("tie: is for pairs; in a ranking, equal ranks are a tie")
    no_lists = [field for field, cell in cells.items() if not isinstance(cell, list)]
    faults += [f"{field}: is {kind(cells[field])}, not a list" for field in no_lists]
    if no_lists or len(cells) < 2:
        return {}, []
    completions, ranks = cells.values()
    if len(ranks) != len(completions) or len(ranks) < 2:
        faults.append(f"ranks: has {len(ranks)} for {len(completions)} completions; there are two or more, each ranked")
    faults += [f"ranks: holds {r!r:.40}, not a whole number" for r in ranks if not _is_number(r) or r % 1 != 0][:1]
    return {f"completions[{i}]": completion for i, completion in enumerate(completions)}, ranks


def _disagreements(cells: dict[str, object], dialogues: dict[str, Turns], prompt: Turns) -> Iterator[str]:
    """Where the cells of a row do not go together."""
    (first, shared), *others = ((name, turns[:-1]) for name, turns in dialogues.items())
    for name, turns in others:
        if type(cells[name]) is not type(cells[first]):
            yield f"{first} and {name}: are {kind(cells[first])} and {kind(cells[name])}, and must be of one kind"
        elif turns != shared:
            turn = [a != b for a, b in zip_longest(shared, turns)].index(True) + 1
            as_text = AS_TEXT * isinstance(cells[name], str)
            yield f"{first} and {name}: differ before their last answer (turn {turn}){as_text}"
    same, whole = _same_dialogue(prompt), _same_dialogue(shared)
    if shared and shared[-1][0] != "user":
        yield f"{first}: its last answer is to a turn of the {shared[-1][0]}, not of the user"
    # beside whole dialogues, some sets keep one of the user's turns as the prompt's text
    elif prompt and shared and same != whole and not (len(same) == 1 and same[0] in whole):
        yield f"prompt: is not what the dialogue of {first} says before its last answer"


def _turns(field: str, cell: object, role: str, faults: list[str]) -> Turns:
    """The turns of a cell, which end in one of `role`: messages, a transcript, or plain text, which is one turn."""
    if isinstance(cell, str) and TRANSCRIPT.match(cell):
        parts = iter(SPEAKER.split(cell)[1:])  # speaker, text, speaker, text …
        messages = [{"role": SPEAKERS[who], "content": text.strip()} for who, text in zip(parts, parts, strict=True)]
        if role == "user" and messages[-1] == {"role": "assistant", "content": ""}:  # where the answer is to begin
            messages.pop()
    else:
        messages = [{"role": role, "content": cell}] if isinstance(cell, str) else cell
    if not isinstance(messages, list) or not messages:
        faults.append(f"{field}: is {'an empty list' if messages == [] else kind(messages)}, not text or messages")
        return ()
    known = len(faults)
    for i, message in enumerate(messages, start=1):
        place = f"{field} turn {i}" if cell is messages or len(messages) > 1 else field
        who, text = (message.get("role"), message.get("content")) if isinstance(message, dict) else ("", message)
        if who not in ROLES:
            faults.append(f"{place}: has the role {who!r:.40}, not {', '.join(ROLES)}")
        elif not isinstance(text, str):
            faults.append(f"{place}: has as content {kind(text)}, not text")
        elif not text.strip() and who != "system":
            faults.append(f"{place}: is empty")
        elif SURROGATE.search(text):
            faults.append(f"{place}: holds half of a surrogate pair, which no tokenizer reads")
    if len(faults) > known:
        return ()
    if messages[-1]["role"] != role:
        as_text = AS_TEXT * isinstance(cell, str)
        faults.append(f"{field}: ends in a turn of the {messages[-1]['role']}, not of the {role}{as_text}")
    return tuple((message["role"], message["content"]) for message in messages)


def _common_opening(texts: dict[str, str], faults: list[str]) -> tuple[Turns, dict[str, str]]:
    """Plain texts as the prompt that they share and what follows in each, cut at the last shared white space.

    Or, in scripts that write none, after the last shared mark that ends a sentence or a label.
    """
    opening = os.path.commonprefix(list(texts.values()))
    cut = re.match(r"(.*\s|.*[:：?？!！。；>])?", opening, re.DOTALL).end()
    if not opening[:cut].strip():
        faults.append(
            f"{' and '.join(texts)}: share no opening that could be the prompt, and no column prompt is there"
        )
    for name, text in texts.items():
        if not text[len(opening) :].strip():
            faults.append(f"{name}: has nothing after the opening that both share")
    return (("user", opening[:cut].rstrip()),), {name: text[cut:] for name, text in texts.items()}


def _missing(field: str, row: dict) -> str:
    there = " ".join(", ".join(name for name in row if row[name] is not None).split()) or "nothing"
    return f"{field}: is {'null' if field in row else 'missing'} (the row has {there:.200})"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_size(value: object) -> bool:
    return _is_number(value) and 0 <= value < float("inf")
