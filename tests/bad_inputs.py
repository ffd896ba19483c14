"""Bad inputs, each done for real, and what rmkit says of them.

python -m tests.bad_inputs   # writes tests/BAD_INPUTS.md anew
"""

import gzip
import json
import os
import re
import shutil
import socket
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import datasets
import filelock
import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

import rmkit
from rmkit import (
    ImplicitRewardModel,
    Preference,
    RewardModel,
    TrainConfig,
    bradley_terry,
    load_backbone,
    load_preferences,
    split_preferences,
)
from rmkit.calibration import calibration_error, fit_temperature
from rmkit.graded import WEIGHTS, paraphrased
from rmkit.losses import Davidson, RaoKupper
from rmkit.metrics import accuracy_table, nll, rank_correlation
from rmkit.rewardbench import section_scores, ties_score
from rmkit.ties import careless_ties, three_way_nll, tie_calibration_error
from rmkit.train import read_recipe
from tests.tiny import make_tiny_backbone

TABLE = Path(__file__).with_name("BAD_INPUTS.md")

TEA = {"prompt": "What is tea?", "chosen": "A drink.", "rejected": "No idea."}
PAIRS = [
    Preference(f"What is {thing}?", (f"A {thing}.", "No idea.")) for thing in "tea milk wine beer soup rice".split()
]
TIE = Preference("Is it?", ("Yes.", "No."), (0, 0))
TURNED = Preference(PAIRS[0].prompt, PAIRS[0].completions[::-1])
TWO_STEPS = TrainConfig(learning_rate=1e-2, max_steps=2)
IMAGE = [{"type": "image", "url": "cat.png"}, {"type": "text", "text": "What is it?"}]


class Desk:
    """What a case is done with: an own folder, a tiny backbone, and a machine without GPU, network or settings."""

    def __init__(self, folder: Path, tiny: Path, patch: pytest.MonkeyPatch):
        self.folder, self.tiny, self.patch = folder, tiny, patch
        patch.chdir(folder)
        patch.setenv("RMKIT_CACHE", str(folder / "cache"))
        patch.delenv("RMKIT_BACKBONE", raising=False)
        patch.delenv("RMKIT_TRUNK_GB", raising=False)
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets")
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        patch.setattr(socket, "getaddrinfo", no_network)
        torch.manual_seed(0)

    def write(self, *rows, name="my.jsonl", read=True):
        """A file of rows (objects, or lines as they are), and what load_preferences says of it."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return load_preferences(path) if read else path

    @cached_property
    def backbone(self):
        return load_backbone(str(self.tiny))

    def model(self, **settings):
        return RewardModel(self.backbone, **{"trainable": "head", **settings})

    def implicit(self, backbone=None, **settings):
        return ImplicitRewardModel(backbone or self.backbone, **{"trainable": "last:1", **settings})

    def changed(self, change=lambda folder: None, file="config.json", **values):
        """A copy of the backbone's folder, with other values in a JSON file, or otherwise changed, and loaded."""
        folder = Path(shutil.copytree(self.tiny, self.folder / "backbone"))
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | values))
        change(folder)
        return load_backbone(str(folder))

    def template(self, text):
        """A model whose chat template is another."""
        self.backbone.tokenizer.chat_template = text
        return self.model()

    def damaged(self, damage):
        """A saved model, damaged, and loaded."""
        damage(folder := self.model().save(self.folder / "model"))
        return RewardModel.load(folder)

    def fit(self, train=PAIRS[:4], validation=PAIRS[4:], config=TWO_STEPS, model=None, **options):
        return rmkit.fit(model or self.model(), train, validation, config, **options)

    def resumed(self, damage=lambda step: None, **options):
        """A finished run, its checkpoint damaged, and the call again."""
        self.fit(checkpoint=self.folder / "run")
        damage(next((self.folder / "run").glob("step-*")))
        return self.fit(checkpoint=self.folder / "run", **options)


def no_network(*_, **__):
    raise socket.gaierror(-2, "Name or service not known")


def said(role, content):
    return {"role": role, "content": content}


def graded(utility=None, **grades):
    """A row of graded answers, the first of which has these grades beside full ones; None leaves one out."""
    full = dict.fromkeys(WEIGHTS, 2)
    first = {"text": "A drink.", "grades": {k: v for k, v in (full | grades).items() if v is not None}, "reason": {}}
    best = {"text": "A leaf.", "grades": full, "reason": {}, "utility": 10.0}
    answers = [first | {"utility": 10.0 if utility is None else utility}, best]
    return {"prompt": "Tea?", "domain": "drinks", "kind": "fact", "group": "tea", "answers": answers}


def half(path):
    os.truncate(path, path.stat().st_size // 2)


def beginning(path):
    os.truncate(path, 10)


def weights(folder, **changes):
    """Put tensors in the place of others, or take them out (None)."""
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in changes.items():
        tensors.pop(name)
        tensors |= {} if tensor is None else {name: tensor}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def settings(folder, old, new):
    text = (folder / "rmkit.json").read_text()
    (folder / "rmkit.json").write_text(text.replace(old, new))


def tokenizer_files(folder):
    return [path.unlink() for path in folder.glob("tokenizer*")]


def locked(desk):
    (desk.folder / "run").mkdir()
    with filelock.FileLock(desk.folder / "run" / ".lock"):
        desk.fit(checkpoint=desk.folder / "run")


def cut_short(desk):
    half(desk.write(*[TEA | {"source": os.urandom(40).hex()} for _ in range(50)], name="my.jsonl.gz", read=False))
    load_preferences(desk.folder / "my.jsonl.gz")


def misnamed(desk, written, renamed, *rows):
    load_preferences(desk.write(*rows or [TEA], name=written, read=False).rename(desk.folder / renamed))


def in_folder(desk, name, *rows, split="train"):
    """Rows that `datasets` reads from a folder."""
    return load_preferences(desk.write(*rows, name=f"mine/{name}", read=False).parent, split)


def file_at(desk, name):
    (desk.folder / name).write_text("a file")
    return desk.folder / name


def with_environment(desk, act, **variables):
    for name, value in variables.items():
        desk.patch.setenv(name, str(value))
    return act()


def naive(rewards, ranks):
    """The loss as one first writes it: the logarithm of a sigmoid that has become 0."""
    return -torch.log(torch.sigmoid(rewards[:, 0] - rewards[:, 1]))


def recipe(desk, text):
    (desk.folder / "recipe.yaml").write_text(text)
    read_recipe(desk.folder / "recipe.yaml")


def broken_model(desk):
    model = desk.model()
    torch.nn.init.constant_(model.head.weight, float("inf"))
    desk.fit(model=model)


@dataclass(frozen=True)
class Case:
    area: str
    done: str
    act: Callable[[Desk], object]
    names: tuple[str, ...]  # what the message must hold: file, line, field, index or value


def area(name: str, *cases: tuple) -> list[Case]:
    return [Case(name, done, act, tuple(names)) for done, act, *names in cases]


CASES = [
    *area("Rows of a file",
        ("Misspelt columns", lambda d: d.write(TEA, {"prompt": "a", "choosen": "b", "rejectd": "c"}), "my.jsonl:2: chosen: is missing", "choosen"),
        ("Columns of another kind of data (question, answer)", lambda d: d.write({"question": "a", "answer": "b"}), "my.jsonl:1", "question, answer"),
        ("A number for a text", lambda d: d.write(TEA, TEA | {"chosen": 7}), "my.jsonl:2: chosen: is a number"),
        ("Texts in some rows, null in others", lambda d: d.write(TEA, TEA | {"rejected": None}, TEA, TEA | {"prompt": None}), "my.jsonl:2: rejected: is null", "my.jsonl:4: prompt: is null"),
        ("A list of texts for chosen", lambda d: d.write(TEA | {"chosen": ["A drink.", "A leaf."]}), "my.jsonl:1: chosen turn 1"),
        ("Spaces alone for an answer", lambda d: d.write(TEA | {"rejected": " \n"}), "my.jsonl:1: rejected: is empty"),
        ("Equal texts for chosen and rejected", lambda d: d.write(TEA | {"rejected": "A drink."}), "my.jsonl:1: chosen and rejected"),
        ("A margin below 0", lambda d: d.write(TEA | {"margin": -1}), "my.jsonl:1: margin: is -1"),
        ("A margin of NaN", lambda d: d.write(TEA | {"margin": float("nan")}), "my.jsonl:1: margin: is nan"),
        ("A margin as text", lambda d: d.write(TEA | {"margin": "3"}), "my.jsonl:1: margin: is '3'"),
        ("A tie as text", lambda d: d.write(TEA | {"tie": "no"}), "my.jsonl:1: tie: is text"),
        ("A number as domain", lambda d: d.write(TEA | {"domain": 3}), "my.jsonl:1: domain: is a number"),
        ("Half of a surrogate pair (an emoji cut in two)", lambda d: d.write(TEA | {"chosen": "Tea \ud83c"}), "my.jsonl:1: chosen", "surrogate"),
        ("A transcript that differs before the last answer", lambda d: d.write({"chosen": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Tea?\n\nAssistant: Yes", "rejected": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Milk?\n\nAssistant: No"}), "my.jsonl:1: chosen and rejected", "turn 3"),
        ("A transcript that ends with the user", lambda d: d.write({"chosen": "\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "\n\nHuman: Hi"}), "my.jsonl:1: rejected: ends in a turn of the user"),
        ("No prompt, and texts without a common opening", lambda d: d.write({"chosen": "Yes.", "rejected": "No."}), "my.jsonl:1: chosen and rejected", "prompt"),
        ("No prompt, and nothing after the common opening", lambda d: d.write({"chosen": "Tea is", "rejected": "Tea is green."}), "my.jsonl:1: chosen"),
        ("No prompt in one row, though others have one", lambda d: d.write(TEA, {"chosen": "Tea? Yes.", "rejected": "Tea? No."}), "my.jsonl:2: prompt: is missing"),
    ),
    *area("Messages and rankings",
        ("A role that does not exist", lambda d: d.write(TEA | {"prompt": [said("human", "Tea?")]}), "my.jsonl:1: prompt turn 1", "'human'"),
        ("Keys of another format (from, value)", lambda d: d.write(TEA | {"prompt": [{"from": "human", "value": "Tea?"}]}), "my.jsonl:1: prompt turn 1"),
        ("A message with an image", lambda d: d.write(TEA | {"prompt": [said("user", IMAGE)]}), "my.jsonl:1: prompt turn 1", "a list"),
        ("A prompt that ends with the assistant", lambda d: d.write(TEA | {"prompt": [said("user", "Tea?"), said("assistant", "Yes")]}), "my.jsonl:1: prompt: ends in a turn of the assistant"),
        ("A dialogue that ends with the user", lambda d: d.write({name: [said("user", "Tea?")] for name in ("chosen", "rejected")}), "my.jsonl:1: chosen", "my.jsonl:1: rejected"),
        ("Messages for chosen, text for rejected", lambda d: d.write(TEA | {"chosen": [said("assistant", "Yes")]}), "my.jsonl:1: chosen and rejected"),
        ("A prompt that is not the dialogue's", lambda d: d.write({"prompt": "Milk?"} | {name: [said("user", "Tea?"), said("assistant", name)] for name in ("chosen", "rejected")}), "my.jsonl:1: prompt"),
        ("Fewer ranks than completions", lambda d: d.write({"prompt": "p", "completions": ["a", "b", "c"], "ranks": [0, 1]}), "my.jsonl:1: ranks", "2 for 3"),
        ("Scores for ranks", lambda d: d.write({"prompt": "p", "completions": ["a", "b"], "ranks": [4.5, 3]}), "my.jsonl:1: ranks", "4.5"),
        ("Ranks as texts", lambda d: d.write({"prompt": "p", "completions": ["a", "b"], "ranks": ["first", "second"]}), "my.jsonl:1: ranks", "'first'"),
        ("No ranks", lambda d: d.write({"prompt": "p", "completions": ["a", "b"]}), "my.jsonl:1: ranks: is missing"),
        ("One completion twice, with unlike ranks", lambda d: d.write({"prompt": "p", "completions": ["a", "b", "a"], "ranks": [0, 1, 2]}), "my.jsonl:1: completions[0] and completions[2]"),
        ("A tie beside ranks", lambda d: d.write({"prompt": "p", "completions": ["a", "b"], "ranks": [0, 0], "tie": True}), "my.jsonl:1: tie"),
    ),
    *area("Files",
        ("A line that is broken off", lambda d: d.write(TEA, b'{"prompt": "What is te'), "my.jsonl:2", "character"),
        ("Bytes that are not UTF-8", lambda d: d.write(TEA, json.dumps(TEA | {"chosen": "Café"}, ensure_ascii=False).encode("latin-1")), "my.jsonl:2", "byte 42"),
        ("A file in UTF-16", lambda d: d.write(json.dumps(TEA).encode("utf-16")), "my.jsonl:1", "UTF-8"),
        ("A JSON array over several lines", lambda d: d.write(b"[", json.dumps(TEA).encode() + b",", json.dumps(TEA).encode(), b"]"), "my.jsonl:1", "Every line is to be one JSON object"),
        ("A JSON array in one line", lambda d: d.write([TEA, TEA]), "my.jsonl:1", "a list", "Every line is to be one JSON object"),
        ("CSV named .jsonl", lambda d: d.write(b"prompt,chosen,rejected", b"Tea?,Yes,No"), "my.jsonl:1", "Every line is to be one JSON object"),
        ("A line of 10 MB", lambda d: d.write(TEA, TEA | {"chosen": "tea " * 10 * 2**18}), "my.jsonl:2", "10.0 MB"),
        ("An empty file", lambda d: d.write(), "my.jsonl: has no rows"),
        ("A .json file", lambda d: misnamed(d, "my.jsonl", "my.json"), "my.json:", ".jsonl"),
        ("A .csv file", lambda d: misnamed(d, "my.jsonl", "my.csv", b"prompt,chosen,rejected"), "my.csv:", ".jsonl"),
        ("gzip without .gz", lambda d: misnamed(d, "my.jsonl.gz", "my.jsonl"), "my.jsonl:", "rename it to end in .jsonl.gz"),
        (".gz without gzip", lambda d: misnamed(d, "my.jsonl", "my.jsonl.gz"), "my.jsonl.gz:"),
        ("gzip that is cut short", cut_short, "my.jsonl.gz:"),
        ("A file that is not there", lambda d: load_preferences("no/such/file.jsonl"), "no/such/file.jsonl"),
        ("A misspelt set of the workbook", lambda d: load_preferences("jason_vs_text"), "jason_vs_text", "json_vs_text"),
        ("The address of a page on the hub", lambda d: load_preferences("https://huggingface.co/datasets/owner/name"), "https://huggingface.co/datasets/owner/name", "'owner/name'"),
        ("No name at all", lambda d: load_preferences(""), "''"),
        ("None for a name", lambda d: load_preferences(None), "None"),
        ("A hub id without network", lambda d: load_preferences("owner/name"), "'owner/name'", "Load it once while this machine is online"),
        ("A folder without data", lambda d: load_preferences(d.folder), "<folder>"),
        ("A folder without that split", lambda d: in_folder(d, "test.jsonl", TEA), "<folder>/mine", "'train'", "['test']"),
        ("None for a split", lambda d: in_folder(d, "train.jsonl", TEA, split=None), "None", "'train'"),
        ("A folder with broken JSON", lambda d: in_folder(d, "train.jsonl", b"{broken"), "<folder>/mine[train]", "row 0"),
        ("A folder of CSV with an empty cell", lambda d: in_folder(d, "train.csv", b"prompt,chosen,rejected", b"a,b,c", b"a,b,"), "<folder>/mine[train] row 1: rejected"),
    ),
    *area("Preferences by hand",
        ("One completion", lambda d: Preference("Tea?", ("Yes.",)), "('Yes.',)"),
        ("A text for the completions, of which each letter would be one", lambda d: Preference("Tea?", "ab"), "completions", "'ab'"),
        ("A list for the completions", lambda d: Preference("Tea?", ["Yes.", "No."]), "completions", "['Yes.', 'No.']"),
        ("None for a completion", lambda d: Preference("Tea?", ("Yes.", None)), "completions", "None"),
        ("None for the prompt", lambda d: Preference(None, ("Yes.", "No.")), "prompt", "None"),
        ("The worse completion first", lambda d: Preference("Tea?", ("No.", "Yes."), (1, 0)), "ranks", "(1, 0)"),
        ("A rank left out", lambda d: Preference("Tea?", ("a", "b", "c"), (0, 2, 3)), "ranks", "(0, 2, 3)"),
        ("Scores for ranks", lambda d: Preference("Tea?", ("a", "b"), (0.9, 0.1)), "ranks", "(0.9, 0.1)"),
        ("A margin below 0", lambda d: Preference("Tea?", ("a", "b"), margin=-2), "margin", "-2"),
        ("A number for a group", lambda d: Preference("Tea?", ("a", "b"), group=3), "group", "3"),
        ("Messages for the history", lambda d: Preference("Tea?", ("a", "b"), history=(said("user", "Hi"),)), "history", "'content': 'Hi'"),
        ("A role that does not exist", lambda d: Preference("Tea?", ("a", "b"), history=(("tool", "Hi"),)), "history", "('tool', 'Hi')"),
    ),
    *area("Splits",
        ("A share of 0", lambda d: split_preferences(PAIRS, 0), "validation", "got 0"),
        ("A share of 1", lambda d: split_preferences(PAIRS, 1), "validation", "got 1"),
        ("20 for 20 %", lambda d: split_preferences(PAIRS, 20), "validation", "got 20"),
        ("A share as text", lambda d: split_preferences(PAIRS, "0.2"), "validation", "got '0.2'"),
        ("One group alone", lambda d: split_preferences([Preference(f"{i}?", ("a", "b"), group="tea") for i in range(5)]), "5 preferences", "20%"),
        ("No preferences", lambda d: split_preferences([]), "0 preferences"),
        ("One prompt in two groups", lambda d: split_preferences([Preference("Tea?", ("a", "b"), group=group) for group in ("x", "y")]), "'Tea?'", "'x' and 'y'"),
        ("Rows for preferences", lambda d: split_preferences([TEA]), "preference 0", "dict"),
        ("The name of a set for its preferences", lambda d: split_preferences("json_vs_text"), "str"),
    ),
    *area("Encoding",
        ("A special token in a prompt", lambda d: d.model().encode([PAIRS[0], Preference("Say </s>", ("a", "b"))]), "preference 1", "the prompt", "'</s>'"),
        ("A special token in a completion", lambda d: d.model().encode([Preference("Say", ("a", "b<s>"))]), "preference 0", "completion 1", "'<s>'"),
        ("A special token in a turn", lambda d: d.model().rewards([Preference("Say", ("a", "b"), history=(("user", "<unk>"),))]), "preference 0", "turn 0", "'<unk>'"),
        ("Half of a surrogate pair", lambda d: d.model().encode([Preference("Tea", ("a", "b\ud83c"))]), "preference 0", "completion 1", "surrogate"),
        ("A system turn for a template that refuses it", lambda d: d.template("{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{{ m.content }}{% endfor %}").encode([Preference("Tea?", ("a", "b"), history=(("system", "Be brief."),))]), "preference 0", "system, user", "System role not supported"),
        ("A template that rewrites the prompt once it is answered", lambda d: d.template("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}").encode(PAIRS[:1]), "preference 0", "chat template"),
        ("Rows for preferences", lambda d: d.model().encode([TEA]), "preference 0", "dict"),
        ("One preference for a list", lambda d: d.model().rewards(PAIRS[0]), "Preference"),
        ("A backbone for its tokenizer", lambda d: rmkit.encode(PAIRS[0], d.backbone), "backbone.tokenizer", "Backbone"),
        ("Rows of −3 tokens", lambda d: rmkit.encode(PAIRS[0], d.backbone.tokenizer, -3), "max_length", "-3"),
        ("Preferences collated before they are encoded", lambda d: d.model().collate(PAIRS), "encode", "Preference("),
        ("A batch of nothing", lambda d: d.model().collate([]), "[]"),
        ("Texts longer than max_length", lambda d: d.model(max_length=25).encode(PAIRS), "6 of 6", "25 tokens", "0, 1, 2"),
        ("Completions that are the same tokens", lambda d: d.model().encode([PAIRS[0], Preference("Tea?", ("Yes.", "Yes."))]), "1 of 2", ": 1"),
    ),
    *area("Models",
        ("The name of a backbone for a backbone", lambda d: RewardModel("smollm2-135m"), "load_backbone()", "str"),
        ("pooling='max'", lambda d: d.model(pooling="max"), "pooling", "last, mean", "'max'"),
        ("head='nonlinear'", lambda d: d.model(head="nonlinear"), "head", "'mlp'", "'nonlinear'"),
        ("dropout=10", lambda d: d.model(dropout=10), "dropout", "10"),
        ("dropout='0.1'", lambda d: d.model(dropout="0.1"), "dropout", "'0.1'"),
        ("trainable='last:0'", lambda d: d.model(trainable="last:0"), "trainable", "from 1 to 4", "'last:0'"),
        ("trainable='last:99'", lambda d: d.model(trainable="last:99"), "trainable", "from 1 to 4", "'last:99'"),
        ("trainable='laast:2'", lambda d: d.model(trainable="laast:2"), "trainable", "'laast:2'"),
        ("trainable=2", lambda d: d.model(trainable=2), "trainable", "got 2"),
        ("max_length=1", lambda d: d.model(max_length=1), "max_length", "512", "got 1"),
        ("max_length beyond what the backbone reads", lambda d: d.model(max_length=4096), "max_length", "512", "4096"),
        ("max_length='128'", lambda d: d.model(max_length="128"), "max_length", "'128'"),
        ("A misspelt setting", lambda d: d.model(poling="mean"), "poling"),
        ("A backbone that has LoRA of an earlier model", lambda d: [d.model(trainable="lora"), d.model()], "LoRA", "load it again"),
        ("score with a text for the list", lambda d: d.model().score("Tea?", "Yes."), "completions", "[text]", "'Yes.'"),
        ("score with messages for the prompt", lambda d: d.model().score([said("user", "Tea?")], ["Yes."]), "prompt", "'Tea?'"),
        ("score with a number among the texts", lambda d: d.model().score("Tea?", ["Yes.", 3]), "completions", "3"),
        ("rewards with micro_batch_tokens=-1", lambda d: d.model().rewards(PAIRS, -1), "micro_batch_tokens", "-1"),
    ),
    *area("Implicit rewards",
        ("trainable='head'", lambda d: d.implicit(trainable="head"), "'head'", "last:1"),
        ("beta=0", lambda d: d.implicit(beta=0), "beta", "got 0"),
        ("beta='0.1'", lambda d: d.implicit(beta="0.1"), "beta", "'0.1'"),
        ("A body without its language-model head", lambda d: d.implicit(replace(d.backbone, model=d.backbone.model.base_model)), "language-model head"),
        ("The folder of the reference for the reference", lambda d: d.implicit(reference="reference"), "load_backbone()", "str"),
        ("The policy's own backbone as its reference", lambda d: d.implicit(reference=d.backbone), "loaded by itself", "is not"),
        ("A batch that does not say what the reference thinks", lambda d: (m := d.implicit())(m.collate(m.encode(PAIRS))), "model.batch"),
        ("Log-probabilities of an explicit model", lambda d: rmkit.log_probabilities(d.model(), PAIRS), "ImplicitRewardModel", "RewardModel"),
        ("Log-probabilities of nothing", lambda d: rmkit.log_probabilities(d.implicit(), []), "none"),
        ("A tie for DPO without a loss for it", lambda d: d.fit(train=[TIE], model=d.implicit()), "tie_as_half"),
        ("A checkpoint of another beta", lambda d: [d.fit(model=d.implicit(load_backbone(str(d.tiny)), beta=b), checkpoint=d.folder / "run") for b in (0.1, 0.2)], "beta: 0.1 there, 0.2 now"),
        ("Saving a policy where something is", lambda d: d.implicit().save(d.folder), "<folder> exists"),
        ("Saving a policy below a file", lambda d: d.implicit().save(file_at(d, "thesis") / "policy"), "<folder>/thesis exists"),
    ),
    *area("Saving and loading",
        ("Saving to a folder of something else", lambda d: d.model().save(file_at(d, "chapter").parent), "<folder>", "give another folder"),
        ("Saving where a file is", lambda d: d.model().save(file_at(d, "thesis")), "<folder>/thesis"),
        ("Saving below a file", lambda d: d.model().save(file_at(d, "thesis") / "model"), "<folder>/thesis exists"),
        ("Saving with mean pooling", lambda d: d.model(pooling="mean").save(d.folder / "model"), "mean-pooling", "only rmkit loads this folder"),
        ("Saving with an mlp head", lambda d: d.model(head="mlp").save(d.folder / "model"), "'mlp'", "only rmkit loads this folder"),
        ("Loading a folder that is not there", lambda d: RewardModel.load(d.folder / "model"), "<folder>/model", "rmkit.json"),
        ("Loading a backbone's folder", lambda d: RewardModel.load(d.tiny), "<backbone>", "rmkit.json"),
        ("Weights cut short", lambda d: d.damaged(lambda f: half(f / "model.safetensors")), "<folder>/model", "model.safetensors"),
        ("Weights deleted", lambda d: d.damaged(lambda f: (f / "model.safetensors").unlink()), "<folder>/model/model.safetensors"),
        ("A head that is missing", lambda d: d.damaged(lambda f: weights(f, **{"score.weight": None})), "score.weight is missing"),
        ("A head of another width", lambda d: d.damaged(lambda f: weights(f, **{"score.weight": torch.zeros(1, 32)})), "score.weight", "[1, 32]", "[1, 64]"),
        ("A head of another model", lambda d: d.damaged(lambda f: weights(f, **{"score.weight": torch.ones(1, 64)})), "when it was saved"),
        ("A layer that is missing", lambda d: d.damaged(lambda f: weights(f, **{"model.layers.2.mlp.up_proj.weight": None})), "model.layers.2.mlp.up_proj.weight is missing"),
        ("Another chat template", lambda d: d.damaged(lambda f: (f / "chat_template.jinja").write_text("{{ messages[-1].content }}")), "chat template"),
        ("A config of fewer layers", lambda d: d.damaged(lambda f: (f / "config.json").write_text((f / "config.json").read_text().replace('"num_hidden_layers": 4', '"num_hidden_layers": 2'))), "model.layers.2"),
        ("No tokenizer", lambda d: d.damaged(tokenizer_files), "the tokenizer"),
        ("Settings cut short", lambda d: d.damaged(lambda f: beginning(f / "rmkit.json")), "rmkit.json"),
        ("Settings of something else", lambda d: d.damaged(lambda f: (f / "rmkit.json").write_text("{}")), "rmkit.json: 'probe' is missing"),
        ("A setting that does not exist", lambda d: d.damaged(lambda f: settings(f, '"last"', '"max"')), "rmkit.json", "pooling", "'max'"),
    ),
    *area("TrainConfig",
        *((f"{name}={value!r}", lambda d, name=name, value=value: TrainConfig(**{name: value}), f"TrainConfig.{name} is {value!r}") for name, value in [
            ("learning_rate", 0), ("learning_rate", 5), ("learning_rate", "1e-5"), ("batch_size", 0), ("batch_size", 8.0),
            ("micro_batch_tokens", -1), ("epochs", 0.5), ("max_steps", 1e3), ("warmup_ratio", 10), ("weight_decay", 1),
            ("max_grad_norm", None), ("max_grad_norm", 0), ("eval_every", 0), ("patience", 0), ("seed", None),
        ]),
        ("A misspelt field", lambda d: TrainConfig(lr=1e-5), "'lr'"),
    ),
    *area("Training",
        ("Nothing to train on", lambda d: d.fit([]), "0 to train on"),
        ("Nothing to validate with", lambda d: d.fit(validation=[]), "0 to validate with"),
        ("Ties with the Bradley–Terry loss", lambda d: d.fit([*PAIRS[:4], TIE]), "[4]", "ties"),
        ("Ties in the validation alone", lambda d: d.fit(validation=[TIE]), "[0]", "ties"),
        ("Nothing but ties to validate a model of ties with", lambda d: d.fit(validation=[TIE], loss=RaoKupper(0.3)), "all validation preferences are ties", "told apart"),
        ("A prompt on both sides", lambda d: d.fit(PAIRS, PAIRS[:1]), "1 of 1", "'what is tea?'", "split_preferences"),
        ("Rows for preferences", lambda d: d.fit([TEA]), "preference 0", "dict"),
        ("The name of a set for its preferences", lambda d: d.fit("json_vs_text"), "str"),
        ("A special token in a text", lambda d: d.fit([*PAIRS[:4], Preference("Say </s>", ("a", "b"))]), "preference 4", "'</s>'"),
        ("A loss that gives NaN", lambda d: d.fit(loss=lambda rewards, ranks: bradley_terry(rewards, ranks) * float("nan")), "step 1", "[0, 1, 2, 3]"),
        ("A learning rate that breaks a loss written by hand", lambda d: d.fit([PAIRS[0], TURNED], config=TrainConfig(learning_rate=0.9, max_steps=4, batch_size=1, warmup_ratio=0), model=d.model(head="mlp"), loss=naive), "step 2", "[0]", "learning rate"),
        ("A model whose weights are infinite", broken_model, "[0, 1]", "step 0"),
    ),
    *area("A run from a file",
        ("No YAML", lambda d: recipe(d, "data: ["), "recipe.yaml:1", "not YAML"),
        ("A field that there is not", lambda d: recipe(d, "data: {train: json_vs_text}\nsave: m\noptimizer: sgd"), "recipe.yaml", "'optimizer'", "training"),
        ("A setting of another kind of model", lambda d: recipe(d, "data: {train: json_vs_text}\nsave: m\nmodel: {beta: 0.1}"), "recipe.yaml: model", "'beta'"),
        ("A learning rate as YAML reads it", lambda d: recipe(d, "data: {train: json_vs_text}\nsave: m\ntraining: {learning_rate: 1e-5}"), "recipe.yaml: training", "1.0e-5"),
        ("A loss that there is not", lambda d: recipe(d, "data: {train: json_vs_text}\nsave: m\nloss: mse"), "recipe.yaml: loss", "bradley_terry"),
        ("Nowhere to save", lambda d: recipe(d, "data: {train: json_vs_text}"), "recipe.yaml", "'save' is missing"),
    ),
    *area("Checkpoints",
        ("A file for the folder", lambda d: d.fit(checkpoint=file_at(d, "run")), "<folder>/run", "give another folder"),
        ("The folder of a run with another learning rate", lambda d: d.resumed(config=TrainConfig(max_steps=2)), "<folder>/run", "learning_rate", "0.01", "1e-05"),
        ("The folder of a run on other data", lambda d: d.resumed(train=PAIRS[:3]), "<folder>/run", "training preferences"),
        ("The folder that another process writes to", locked, "<folder>/run", "another run"),
        ("The folder of a run with another loss", lambda d: d.resumed(loss=RaoKupper(0.3)), "<folder>/run", "loss", "'bradley_terry'", "'RaoKupper'"),
        ("Weights cut short", lambda d: d.resumed(lambda step: half(step / "tensors.safetensors")), "<folder>/run/step-00000002"),
        ("Weights deleted", lambda d: d.resumed(lambda step: (step / "tensors.safetensors").unlink()), "<folder>/run/step-00000002"),
        ("State cut short", lambda d: d.resumed(lambda step: beginning(step / "state.json")), "<folder>/run/step-00000002"),
    ),
    *area("What frozen layers gave (trunk)",
        ("RMKIT_TRUNK_GB=2GB", lambda d: with_environment(d, d.fit, RMKIT_TRUNK_GB="2GB"), "RMKIT_TRUNK_GB", "'2GB'"),
        ("RMKIT_TRUNK_GB=-1", lambda d: with_environment(d, d.fit, RMKIT_TRUNK_GB="-1"), "RMKIT_TRUNK_GB", "'-1'"),
        ("A store that is too small", lambda d: with_environment(d, d.fit, RMKIT_TRUNK_GB="0.000001"), "RMKIT_TRUNK_GB", "1e-06 GB"),
        ("A folder that cannot be written to", lambda d: with_environment(d, d.fit, RMKIT_CACHE=file_at(d, "a_file")), "<folder>/a_file/trunk", "RMKIT_CACHE"),
        ("A store for a model that trains whole", lambda d: rmkit.Trunk(d.model(trainable="all")), "trainable='all'"),
    ),
    *area("Backbones",
        ("A misspelt name", lambda d: load_backbone("smolm2"), "'smolm2'", "'smollm2-135m'"),
        ("A misspelt name in RMKIT_BACKBONE", lambda d: with_environment(d, load_backbone, RMKIT_BACKBONE="smolm2"), "'smolm2'", "'smollm2-135m'"),
        ("A folder that is not there", lambda d: load_backbone(d.folder / "model"), "<folder>/model"),
        ("A hub id without network", lambda d: load_backbone("owner/model"), "'owner/model'", "rmkit.fetch"),
        ("A file for the cache folder", lambda d: with_environment(d, lambda: load_backbone("smollm2-135m"), RMKIT_CACHE=file_at(d, "a_file")), "<folder>/a_file", "RMKIT_CACHE"),
        ("A family that rmkit does not know", lambda d: d.changed(model_type="gpt2"), "<folder>/backbone", "'gpt2'", "llama, mistral"),
        ("An empty folder", lambda d: load_backbone(str(d.folder)), "<folder>", "config.json"),
        ("A folder without weights", lambda d: d.changed(lambda f: (f / "model.safetensors").unlink()), "<folder>/backbone", "model.safetensors"),
        ("A folder without tokenizer", lambda d: d.changed(tokenizer_files), "the tokenizer of", "<folder>/backbone"),
        ("Weights cut short", lambda d: d.changed(lambda f: half(f / "model.safetensors")), "the weights of", "<folder>/backbone"),
        ("A git LFS pointer for the weights", lambda d: d.changed(lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\nsize 1")), "the weights of", "<folder>/backbone"),
        ("A tokenizer cut short", lambda d: d.changed(lambda f: beginning(f / "tokenizer.json")), "the tokenizer of", "<folder>/backbone"),
        ("A config cut short", lambda d: d.changed(lambda f: beginning(f / "config.json")), "<folder>/backbone/config.json"),
        ("A config of fewer layers than the weights", lambda d: d.changed(num_hidden_layers=2), "<folder>/backbone", "model.layers.2"),
        ("A config of more layers than the weights", lambda d: d.changed(num_hidden_layers=6), "<folder>/backbone", "model.layers.4"),
        ("A config of another width", lambda d: d.changed(hidden_size=32), "<folder>/backbone", "config.json"),
        ("A chat template that is broken off", lambda d: d.changed(lambda f: (f / "chat_template.jinja").write_text("{{ messages")), "chat template"),
        ("No token to pad with", lambda d: d.changed(lambda f: (f / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content + '<unk>' }}{% endfor %}"), file="tokenizer_config.json", eos_token="</s>"), "<folder>/backbone", "pad"),
        ("A reward model's folder", lambda d: load_backbone(str(d.model().save(d.folder / "model"))), "<folder>/model", "lm_head.weight"),
    ),
    *area("Graded answers and annotators",
        ("Graded answers as preferences", lambda d: load_preferences("graded_answers"), "graded_answers", "load_graded_answers"),
        ("A file that is not there", lambda d: rmkit.load_graded_answers(d.folder / "grades.jsonl"), "<folder>/grades.jsonl"),
        ("Pairs for graded answers", lambda d: rmkit.load_graded_answers(d.write(TEA, read=False)), "my.jsonl:1: answers", "my.jsonl:1: domain: is null"),
        ("A grade of 3", lambda d: rmkit.load_graded_answers(d.write(graded(clear=3), read=False)), "my.jsonl:1: answers[0].grades.clear: is 3"),
        ("A criterion that is missing", lambda d: rmkit.load_graded_answers(d.write(graded(clear=None), read=False)), "my.jsonl:1: answers[0].grades", "correct, relevant"),
        ("A point lost without a reason", lambda d: rmkit.load_graded_answers(d.write(graded(clear=1), read=False)), "my.jsonl:1: answers[0].reason", "clear"),
        ("A utility that the grades do not make", lambda d: rmkit.load_graded_answers(d.write(graded(utility=9), read=False)), "my.jsonl:1: answers[0].utility: is 9", "10.0"),
        ("A paraphrase with one rewording", lambda d: paraphrased(rmkit.load_graded_answers(d.write(graded(), read=False)), d.write({"prompt": "Tea?", "rewordings": ["What of tea?"], "variations": ["a", "b"]}, name="para.jsonl", read=False)), "para.jsonl:1: rewordings", "2"),
        ("Annotators of no temperature", lambda d: rmkit.Annotator(temperature=0), "Annotator.temperature is 0"),
        ("Annotators who never look", lambda d: rmkit.Annotator(careless=1), "Annotator.careless is 1", "less than 1"),
        ("A tie model without a rate", lambda d: rmkit.Annotator(tie_model="davidson"), "Annotator.tie_rate is 0.0"),
        ("Preferences for pairs of answers", lambda d: rmkit.Annotator().judge(PAIRS), "graded_pairs", "Preference"),
        ("Ceilings of what does not sum to 1", lambda d: rmkit.ceilings(torch.tensor([[0.5, 0.2, 0.1]])), "[N, 3]", "sum to 1"),
        ("A panel of nobody", lambda d: rmkit.panel_ratings(torch.zeros(3), raters=0), "got 0, 1.0, 0.5"),
    ),
    *area("Losses and metrics",
        ("Loss: a tie", lambda d: bradley_terry(torch.zeros(2, 2), torch.tensor([[0, 1], [0, 0]])), "[1]", "ties"),
        ("Loss: ranks of fewer preferences", lambda d: bradley_terry(torch.zeros(3, 2), torch.tensor([[0, 1]])), "[3, 2]", "[1, 2]"),
        ("Loss: one row without its bracket", lambda d: bradley_terry(torch.zeros(2), torch.tensor([0, 1])), "[2]"),
        ("A model of ties: no ties", lambda d: RaoKupper(0), "tie_rate", "got 0", "bradley_terry"),
        ("A model of ties: per cent", lambda d: Davidson(30), "tie_rate", "got 30", "less than 1"),
        ("Judging ties: a tie rate for a model of ties", lambda d: three_way_nll(0.3, torch.eye(2), torch.tensor([[0, 1]] * 2)), "RaoKupper(0.3)", "got 0.3"),
        ("Calibration of ties: more bins than pairs", lambda d: tie_calibration_error(RaoKupper(0.3), torch.eye(2), torch.tensor([[0, 0]] * 2)), "from 1 to the pairs, 2: got 10"),
        ("Careless ties: no ties", lambda d: careless_ties(torch.eye(2), torch.tensor([[0, 1]] * 2)), "without ties", "2 pairs"),
        ("Careless ties: nothing but ties", lambda d: careless_ties(torch.eye(2), torch.tensor([[0, 0]] * 2)), "told apart", "2 pairs"),
        ("Careless ties: rewards that rank no better than chance", lambda d: careless_ties(torch.eye(2), torch.tensor([[0, 0], [0, 1]])), "no better than chance"),
        ("Accuracy: ties alone", lambda d: rmkit.pairwise_accuracy(torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.long)), "no pair"),
        ("Accuracy: a reward of NaN", lambda d: rmkit.pairwise_accuracy(torch.tensor([[1.0, float("nan")]]), torch.tensor([[0, 1]])), "not a finite number"),
        ("Accuracy: ranks of more completions", lambda d: rmkit.pairwise_accuracy(torch.zeros(1, 2), torch.tensor([[0, 1, 2]])), "[1, 2]", "[1, 3]"),
        ("Interval: no trials", lambda d: rmkit.wilson_interval(0, 0), "0 of 0"),
        ("Interval: more successes than trials", lambda d: rmkit.wilson_interval(5, 3), "5 of 3"),
        ("Interval by groups: a single group", lambda d: nll(torch.ones(2, 2), torch.tensor([[0, 1]] * 2), ["a", "a"]), "two groups or more"),
        ("Calibration: repetitions at once", lambda d: calibration_error(torch.ones(3, 2, 2), torch.tensor([[0, 1]] * 2)), "[3, 2, 2]", "one repetition at a time"),
        ("A table: fewer rewards than preferences", lambda d: accuracy_table(torch.ones(2, 2), PAIRS), "6 preferences", "[2, 2]"),
        ("RewardBench ties: a reward of NaN", lambda d: ties_score({"a": ([1.0, float("nan"), 0.0], 2)}, {"a": ([1.0, 0.0], 1)}), "a: holds", "finite"),
        ("Interval by groups: fewer groups than preferences", lambda d: rmkit.pairwise_accuracy(torch.ones(2, 2), torch.tensor([[0, 1]] * 2), ["a"]), "1 for 2"),
        ("Rank correlation: constant rewards", lambda d: rank_correlation(torch.ones(4), torch.arange(4), list("aabb")), "are equal"),
        ("Rank correlation: a group for some", lambda d: rank_correlation(torch.arange(4), torch.arange(4), ["a", "b"]), "got (4,), (4,) and 2"),
        ("Calibration: more bins than pairs", lambda d: calibration_error(torch.eye(2), torch.tensor([[0, 1]] * 2)), "even number from 2 to twice the pairs, 4: got 10"),
        ("Temperature: every pair is right", lambda d: fit_temperature(torch.tensor([[1.0, 0.0]] * 3), torch.tensor([[0, 1]] * 3)), "no pair is ranked wrong"),
        ("RewardBench: a subset that it does not have", lambda d: section_scores(torch.eye(2), ["hep-go", "hep-cobol"]), "hep-cobol"),
        ("RewardBench ties: a prompt without its twin", lambda d: ties_score({"a": ([1.0, 1.0, 0.0], 2)}, {}), "'a'"),
    ),
]  # fmt: skip


def run(case: Case, tiny: Path) -> tuple[str, str]:
    """Do what a case does: the class that was raised or warned, and its message without what differs between machines."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as caught:  # fmt: skip
        warnings.simplefilter("always")
        folder = Path(folder).resolve()
        raised = None
        desk = Desk(folder, tiny, patch)
        try:
            case.act(desk)
        except Exception as error:
            raised = error
        patch.undo()  # out of the folder, before it is deleted
    found = [raised] if raised else [w.message for w in caught if w.category is UserWarning]
    names, messages = {type(one).__name__ for one in found}, "\n".join(map(str, found))
    return ", ".join(sorted(names)) or "nothing", plain(messages, folder, tiny)


def plain(message: str, folder: Path, tiny: Path) -> str:
    """A message without the folders, the hashes and the long fractions of this machine."""
    for path, name in ((folder, "<folder>"), (tiny, "<backbone>")):
        message = message.replace(str(path), name)
    message = re.sub(r"\b[0-9a-f]{32}\b", "<hash>", message)
    message = re.sub(r"past line \d+", "past line <n>", message)  # of random bytes
    return re.sub(r"-?\d+\.\d{4,}", "<number>", message)


def line(case: Case, outcome: tuple[str, str]) -> str:
    """The case's line of the table."""
    cells = [case.done, *outcome]
    return "| " + " | ".join(map(escaped, cells)) + " |"


def escaped(text: str) -> str:
    text = re.sub(r"([\\`*_|~\[\]])", r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;"))
    return "<br>".join(part.strip() for part in text.splitlines())


INTRODUCTION = """# Bad inputs, and what is told

{count} mistakes, each done for real by `python -m tests.bad_inputs`, which writes this file; `tests/test_bad_inputs.py`
does them again and holds what is told against it. `<folder>` is where the case's files are, `<backbone>` the folder of a
tiny backbone. PreferenceError is a ValueError; UserWarning is a warning, after which the work goes on.
"""


def main() -> None:
    counts = Counter(case.area for case in CASES)
    parts = [INTRODUCTION.format(count=len(CASES))]
    with tempfile.TemporaryDirectory() as folder:
        tiny = make_tiny_backbone(Path(folder).resolve() / "tiny")
        for name, cases in groupby(CASES, attrgetter("area")):
            lines = [line(case, run(case, tiny)) for case in cases]
            head = ["| what was done | raised or warned | what is told |", "| --- | --- | --- |"]
            parts.append("\n".join([f"## {name} ({counts[name]})", "", *head, *lines]) + "\n")
    TABLE.write_text("\n".join(parts), encoding="utf-8")
    print(f"{TABLE.name}: {len(CASES)} cases in {len(counts)} areas")


if __name__ == "__main__":
    main()
