"""Write json_vs_text.jsonl: 500 preference pairs in which the JSON answer is preferred to the free text.

    python data/make_json_vs_text.py             write the file
    python data/make_json_vs_text.py --check     compare it with what would be written
    python data/make_json_vs_text.py --describe  print the tables of the datasheet

The facts are in json_vs_text_topics.py. Standard library only; every run makes the same bytes.
"""

import argparse
import json
import random
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

from json_vs_text_topics import ATTRIBUTES, TOPICS

PATH = Path(__file__).resolve().with_name("json_vs_text.jsonl")
SEED = 2  # picked from 1 to 16: no domain strays far in length, in characters or in tokens
PAIRS_PER_TOPIC = 4

# No ask names a format, and every one takes every topic.
ASKS = (
    "Tell me about {}.",
    "What should I know about {}?",
    "What can you tell me about {}?",
    "I would like to learn about {}.",
    "Please tell me something about {}.",
    "What do you know about {}?",
    "Can you teach me about {}?",
    "Help me learn about {}.",
    "I am curious about {}.",
    "What is worth knowing about {}?",
    "Do you know anything about {}?",
    "Share what you know about {}.",
    "Let's talk about {}.",
    "A friend asked me about {}. What do I say?",
    "I know nothing about {}. Can you help?",
    "My quiz is about {}. What should I learn?",
)


def read_topics():
    """domain -> {name in a sentence: [(key, sentence part, question, value), ...]}; digits become int."""
    domains = {}
    for domain, kinds in TOPICS.items():
        topics = domains.setdefault(domain, {})
        for kind, table in kinds.items():
            for line in table.strip().splitlines():
                name, *values = (cell.strip() for cell in line.split("|"))
                cells = zip(ATTRIBUTES[kind], values, strict=True)
                topics[name] = [(*attribute, int(v) if v.isdigit() else v) for attribute, v in cells if v]
    return domains


def bare(name):
    """The topic without its article: "the Nile" -> "Nile"."""
    return name.removeprefix("the ")


# Shapes: name and facts {key: value} -> JSON text.
SHAPES = {
    "flat": lambda name, facts: json.dumps(facts),
    "compact": lambda name, facts: json.dumps(facts, separators=(",", ":")),
    "indented": lambda name, facts: json.dumps(facts, indent=4),
    "nested": lambda name, facts: json.dumps({name: facts}),
    "topic_facts": lambda name, facts: json.dumps({"topic": name, "facts": facts}),
    "pairs": lambda name, facts: json.dumps([list(fact) for fact in facts.items()]),
    "records": lambda name, facts: json.dumps([{"attribute": k, "value": v} for k, v in facts.items()]),
    "columns": lambda name, facts: json.dumps({"columns": list(facts), "values": list(facts.values())}),
}


# Styles: spoken name, facts as read_topics gives them, and a number that picks the variant -> plain text.
def start(text):
    """With a capital first letter, the rest untouched."""
    return text[0].upper() + text[1:]


def predicates(facts):
    """["is a mammal", "has 4 legs", ...]: what a sentence says of its subject."""
    return [part.format(v=v, a="an" if str(v)[0] in "aeiou" else "a") for _, part, _, v in facts]


def labelled(facts):
    """["written in: Go", "default port: 6443", ...]"""
    return [f"{key.replace('_', ' ')}: {v}" for key, _, _, v in facts]


def telegraphic(name, facts, variant):
    return " ".join(start(label) + "." for label in labelled(facts))


def bullets(name, facts, variant):
    return "\n".join("- " + label for label in labelled(facts))


def parenthetical(name, facts, variant):
    return f"{start(name)} ({'; '.join(labelled(facts))})."


def sentence(name, facts, variant):
    *first, last = predicates(facts)
    return f"{start(name)} {', '.join(first)} and {last}."


def question_answer(name, facts, variant):
    said = predicates(facts)
    return " ".join(f"{question} It {part}." for (_, _, question, _), part in zip(facts, said, strict=True))


def two_points(name, facts, variant):
    one, two = predicates(facts)
    return (
        f"The first thing to know about {name} is that it {one}. The second is that it {two}.",
        f"One thing to remember about {name} is that it {one}. Another one is that it {two}.",
        f"First, {name} {one}. Second, it {two}.",
    )[variant]


def chatty(name, facts, variant):
    one, two = predicates(facts)
    return (
        f"Sure, happy to help! {start(name)} {one}, and it {two}. Let me know if you want more!",
        f"Oh, that is a nice one! {start(name)} {one}, and on top of that it {two}. Fun, right?",
        f"Good question! So, {name} {one}, and, by the way, it {two}. Hope that helps a bit!",
    )[variant]


def narrative(name, facts, variant):
    one, two = predicates(facts)
    return (
        f"A child once asked about {name}. The teacher smiled and said that it {one} and that it {two}.",
        f"Two friends were talking about {name}. One said that it {one}, and the other knew that it {two}.",
        f"A reader opened an old book about {name}. Page one said that it {one}, and page two that it {two}.",
    )[variant]


TERSE = (telegraphic, bullets, parenthetical, sentence)
WORDY = (question_answer, two_points, chatty, narrative)
STYLES = {style.__name__: style for style in TERSE + WORDY}


def deal(deck, rng):
    """Endless cards, one shuffled deck after another: equally often, and never the same twice in one topic.

    The latter because every deck here holds a multiple of PAIRS_PER_TOPIC cards.
    """
    while True:
        yield from rng.sample(deck, len(deck))


def number_of_facts(shape, style):
    """Three where both answers stay short, otherwise two."""
    return 3 if STYLES[style] in TERSE and shape not in ("records", "topic_facts") else 2


def make_rows():
    """The 500 rows. The domains take turns topic by topic, so that the first n topics are a fair sample."""
    rng = random.Random(SEED)
    domains = read_topics()
    decks = (list(ASKS), list(SHAPES), list(STYLES))
    hands = {domain: zip(*(deal(deck, rng) for deck in decks), strict=True) for domain in domains}
    shuffled = [rng.sample(list(topics.items()), len(topics)) for topics in domains.values()]
    rows = []
    for turn in zip(*shuffled, strict=True):
        for domain, (name, facts) in zip(domains, turn, strict=True):
            for ask, shape, style in islice(hands[domain], PAIRS_PER_TOPIC):
                picked = sorted(rng.sample(range(len(facts)), number_of_facts(shape, style)))
                used = [facts[i] for i in picked]
                rows.append(
                    {
                        "prompt": ask.format(name),
                        "chosen": SHAPES[shape](bare(name), {key: v for key, _, _, v in used}),
                        "rejected": STYLES[style](name, used, rng.randrange(3)),
                        "domain": domain,
                        "group": bare(name),
                        "shape": shape,
                        "style": style,
                    }
                )
    return rows


def as_jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def balance_table(rows, length, unit):
    """Markdown: by domain, how often the chosen answer is longer or shorter, and the mean lengths."""
    lines = [
        f"| {unit} | pairs | chosen longer | chosen shorter | mean chosen | mean rejected |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for domain in (*TOPICS, "all"):
        pairs = [(length(r["chosen"]), length(r["rejected"])) for r in rows if domain in (r["domain"], "all")]
        n = len(pairs)
        longer, shorter = sum(c > r for c, r in pairs), sum(c < r for c, r in pairs)
        lines.append(
            f"| {domain} | {n} | {longer / n:.0%} | {shorter / n:.0%} "
            f"| {sum(c for c, _ in pairs) / n:.0f} | {sum(r for _, r in pairs) / n:.0f} |"
        )
    return "\n".join(lines)


def example_table(rows, column, answer):
    """Markdown: how often each shape or style is used, with the first row that shows it."""
    lines = [f"| {column} | pairs | example ({answer}) |", "| --- | --- | --- |"]
    counts = Counter(row[column] for row in rows)
    for name in {"shape": SHAPES, "style": STYLES}[column]:
        shown = next(row[answer] for row in rows if row[column] == name)
        lines.append(f"| {name} | {counts[name]} | `{shown}` |".replace("\n", "\\n"))
    return "\n".join(lines)


def ask_of(row):
    """Which of ASKS made this prompt."""
    names = (row["group"], "the " + row["group"])
    return next(ask for ask in ASKS for name in names if ask.format(name) == row["prompt"])


def ask_table(rows):
    counts = Counter(map(ask_of, rows))
    cells = [f"| {ask.format('X')} | {counts[ask]} " for ask in ASKS]
    lines = [left + right + "|" for left, right in zip(cells[::2], cells[1::2], strict=True)]
    return "\n".join(["| ask (X: the topic) | pairs | ask | pairs |", "| --- | --- | --- | --- |", *lines])


def describe(rows):
    """The tables of the datasheet that need no tokenizer."""
    tables = [
        balance_table(rows, len, "characters"),
        example_table(rows, "shape", "chosen"),
        example_table(rows, "style", "rejected"),
        ask_table(rows),
    ]
    return "\n\n".join(tables)


def main():
    parser = argparse.ArgumentParser(description="Write json_vs_text.jsonl, always the same bytes.")
    options = parser.add_mutually_exclusive_group()
    options.add_argument("--check", action="store_true", help="compare only; exit code 1 if it differs")
    options.add_argument("--describe", action="store_true", help="print the tables of the datasheet")
    arguments = parser.parse_args()
    rows = make_rows()
    content = as_jsonl(rows).encode("utf-8")
    if arguments.describe:
        print(describe(rows))
    elif not arguments.check:
        PATH.write_bytes(content)
        print(f"wrote {len(rows)} pairs to {PATH.name}")
    elif not PATH.exists() or PATH.read_bytes() != content:
        sys.exit(f"{PATH.name} is not what {Path(__file__).name} makes: run the script without --check")
    else:
        print(f"{PATH.name} is up to date")


if __name__ == "__main__":
    main()
