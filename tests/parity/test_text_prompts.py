"""What a language model is given and where it ends: templates, prefill, conversations, end tokens, room."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.math.random import seeds
from flowrl.models.causal import CausalPolicy
from flowrl.models.causal.load import load_causal
from flowrl.models.masked.load import load_masked
from flowrl.models.text.codec import TextCodec
from flowrl.samplers.causal import CausalSampler
from flowrl.samplers.masked import MaskedSampler
from flowrl.train import train
from flowrl.types import Chat, Draw, Prompt, TokenTrace, prompts_of
from tests.components_text import character_tokenizer, folder

TEMPLATE = (
    "{% if tools %}<unk>{% for t in tools %}{{ t.function.name }}{% endfor %}<unk>{% endif %}"
    "{% for m in messages %}({{ m['role'] }}){{ (m['content'] or '') | trim }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments.a }}{% endfor %}<unk>{% endfor %}"
    "{% if add_generation_prompt %}(assistant)"
    "{% if thinking is defined and not thinking %}::{% endif %}{% endif %}"
)
"""Closes every message with ``<unk>``, the only special token besides ``<eos>`` and ``<pad>``."""


def chatty(tmp_path: Path, name: str, **generation: Any) -> Path:
    path = shutil.copytree(folder(name), tmp_path / name)
    character_tokenizer(mask=name in ("bert", "dream"), chat=TEMPLATE).save_pretrained(path)
    if generation:
        (path / "generation_config.json").write_text(json.dumps(generation))
    return path


def written(policy: Any, prompt: str | Chat) -> str:
    condition = policy.condition(prompts_of([prompt]))
    return policy.codec.tokenizer.decode(condition.prompts[0])


USER, SYSTEM = {"role": "user", "content": "1+1"}, {"role": "system", "content": "add"}


@pytest.mark.parametrize(("name", "load"), [("llama", load_causal), ("bert", load_masked)])
def test_prefill_and_template_arguments(tmp_path: Path, name: str, load: Any) -> None:
    path = chatty(tmp_path, name)
    assert written(load(path, prefill="so "), "1+1") == "(user)1+1<unk>(assistant)so "
    assert written(load(path, chat_template_kwargs={"thinking": False}), "1+1") == "(user)1+1<unk>(assistant)::"
    plain = load(path, chat=False, prefill="so ")
    expected = plain.codec.tokenizer("1+1so ")["input_ids"]
    assert plain.condition(prompts_of(["1+1"])).prompts[0].tolist() == expected
    one = load(path)
    options = Chat.of([USER], options={"thinking": False})
    assert written(one, options) == "(user)1+1<unk>(assistant)::"
    # a final message of the assistant is continued, as transformers does it
    begun = [SYSTEM, USER, {"role": "assistant", "content": "it is"}]
    assert written(one, Chat.of(begun)) == "(system)add<unk>(user)1+1<unk>(assistant)it is"
    own = one.codec.tokenizer.apply_chat_template(begun, continue_final_message=True, return_dict=True)["input_ids"]
    assert one.condition(prompts_of([Chat.of(begun)])).prompts[0].tolist() == own
    with pytest.raises(UserError, match=r"reads no 'thinkin' \(it reads thinking\)"):
        load(path, chat_template_kwargs={"thinkin": False})
    with pytest.raises(UserError, match=r"'tools' is set by flowrl"):
        load(path, chat_template_kwargs={"tools": []})
    with pytest.raises(UserError, match=r"chat_template_kwargs needs a chat template"):
        load(path, chat=False, chat_template_kwargs={"thinking": False})


def test_conversations_in_the_models_template(tmp_path: Path) -> None:
    path = chatty(tmp_path, "llama")
    policy, call = load_causal(path), {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    tool = {"type": "function", "function": {"name": "add"}}
    said = [USER, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "2"}]
    assert written(policy, Chat.of(said, [tool])) == (
        "<unk>add<unk>(user)1+1<unk>(assistant)add1<unk>(tool)2<unk>(assistant)"
    )
    mixed = policy.condition(prompts_of(["1+1", Chat.of([USER]), Chat.of([SYSTEM, USER]), "1+1"]))
    assert mixed.index.tolist() == [0, 1, 2, 0] and mixed.prompts[0].equal(mixed.prompts[1])
    for other, prompt, match in (
        (load_causal(path, chat=False), Chat.of([SYSTEM, USER]), "is a conversation, which needs a chat template"),
        (load_causal(path, system="x"), Chat.of([SYSTEM, USER]), "has a system message of its own"),
        (
            load_causal(path, prefill="x"),
            Chat.of([USER, {"role": "assistant", "content": "y"}]),
            "ends in words of the",
        ),
    ):
        with pytest.raises(UserError, match=match):
            other.condition(prompts_of([prompt]))


# --------------------------------------------------------------------------------------------------------- end tokens
def ends_of(tmp_path: Path, name: str = "llama", **generation: Any) -> tuple[int, ...]:
    load = load_masked if name == "bert" else load_causal
    path = chatty(tmp_path, name, **generation)
    try:
        return load(path).end_tokens
    finally:
        shutil.rmtree(path)


def test_all_end_tokens_count(tmp_path: Path) -> None:
    """Of the template (``<unk>``, 2), the generation config and the tokenizer (``<eos>``, 1)."""
    assert ends_of(tmp_path, eos_token_id=[5, 1, 7]) == (2, 5, 1, 7)
    assert ends_of(tmp_path, eos_token_id=6) == (2, 6, 1)
    assert ends_of(tmp_path, eos_token_id=[5, 10**6, -1]) == (2, 5, 1)
    # made by transformers from the model's config, whose 5 is an ordinary character and nobody's choice
    assert ends_of(tmp_path, eos_token_id=[5], _from_model_config=True) == (2, 1)
    assert ends_of(tmp_path, "bert", eos_token_id=[5]) == (2, 5, 1)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_samples_stop_at_the_first_of_several_ends(tmp_path: Path, name: str) -> None:
    """Stop, mask and text; compared with a policy that has no end: the same tokens up to the first of the ends."""
    usual = folder(name)
    load = load_causal if name == "llama" else load_masked
    policy = load(usual)
    sampler: Any = CausalSampler(length=24) if name == "llama" else MaskedSampler(length=24, steps=12, block=4)
    count = 16
    draw = Draw.of(seeds(0, "s", count=count), torch.arange(count), 0, 0)
    condition = policy.condition(prompts_of([f"{i}+1" for i in range(count)]))
    policy.end_tokens = ()
    endless = sampler(policy, condition, draw).final
    ends = [int(endless[0, 9]), int(endless[1, 5]), int(endless[2, 14])]
    policy.end_tokens = tuple(ends)
    policy.codec = replace(policy.codec, ends=tuple(ends))
    made = sampler(policy, condition, draw)
    assert isinstance(made.trace, TokenTrace)
    stopped = set()
    for row in range(count):
        tokens = endless[row].tolist()
        stop = next((i for i, token in enumerate(tokens) if token in ends), len(tokens) - 1)
        assert made.trace.mask[row].tolist() == [i <= stop for i in range(24)]
        assert made.final[row, : stop + 1].tolist() == tokens[: stop + 1]
        stopped.add(tokens[stop])
        cut = [t for t in tokens[: stop + (tokens[stop] not in ends)] if t != getattr(policy, "mask_token", -1)]
        assert policy.decode(made.final)[row] == policy.codec.tokenizer.decode(cut, skip_special_tokens=True)
    assert stopped >= set(ends)
    with torch.no_grad():
        scored = policy.score(condition, made.final, made.trace.mask, made.final).logp
    assert bool((scored[~made.trace.mask] == 0).all())


def test_special_tokens_can_be_kept(tmp_path: Path) -> None:
    path = chatty(tmp_path, "llama", eos_token_id=[5])
    quiet, frank = load_causal(path, chat=False), load_causal(path, chat=False, keep_special_tokens=True)
    word = quiet.codec.tokenizer("ab")["input_ids"]
    row = torch.tensor([[word[0], 2, word[1], 5, word[0]]])
    assert quiet.decode(row) == ["ab"] and frank.decode(row) == ["a<unk>b"]
    masked = load_masked(folder("bert"), keep_special_tokens=True)
    ids = masked.codec.tokenizer("ab")["input_ids"]
    assert masked.decode(torch.tensor([[ids[0], masked.mask_token, 2, 1]])) == ["a<unk>"]


# --------------------------------------------------------------------------------------------------------------- room
def prompts(*texts: str | Chat) -> list[Prompt]:
    return [
        Prompt(text, n) if isinstance(text, str) else Prompt(text.messages[-1]["content"], n, {}, text)
        for n, text in enumerate(texts)
    ]


def test_all_prompts_are_measured_at_the_start() -> None:
    """A prompt of few characters may have many tokens: here one with more than any of 200 longer texts."""
    policy = load_causal(folder("llama"))
    tokenizer = character_tokenizer()
    tokenizer.add_tokens(["word"])
    policy.codec = replace(policy.codec, tokenizer=tokenizer, embedded=None)
    long = ["word" * 40 + str(i) for i in range(200)]  # 160 characters, 41 to 43 tokens
    dense = "1" * 59
    assert policy.fit_prompts(prompts(*long), 6) == prompts(*long)
    with pytest.raises(
        UserError, match=r"entry 201, '1+', has 59 tokens, which with a completion of 6 is more .* 64 \(1 of 201"
    ):
        policy.fit_prompts(prompts(*long, dense), 6)
    assert policy.fit_prompts(prompts(*long, dense), 6, "drop") == prompts(*long)
    cut = policy.fit_prompts(prompts(*long, dense), 6, "truncate")
    assert cut[:200] == prompts(*long) and cut[200] == Prompt("1" * 58, 200)
    with pytest.raises(UserError, match="drop leaves no prompt of 1"):
        policy.fit_prompts(prompts(dense), 6, "drop")
    with pytest.raises(UserError, match="fills the model's context of 64"):
        policy.fit_prompts(prompts("1"), 64)


def test_a_conversation_is_cut_inside_its_longest_message(tmp_path: Path) -> None:
    path = chatty(tmp_path, "llama")
    policy = load_causal(path, max_prompt=50)
    said = [{"role": "user", "content": "abcdefghij" * 3}, {"role": "assistant", "content": "1"}, USER]
    (cut,) = policy.fit_prompts([Prompt("user: " + "abcdefghij" * 3 + "\n", 3, {"a": 1}, Chat.of(said))], 6, "truncate")
    assert cut.chat is not None and cut.id == 3 and cut.columns == {"a": 1}
    kept = cut.chat.messages[0]["content"]
    assert len(policy.codec.encode([cut.model_input])[0]) == 50 and ("abcdefghij" * 3).endswith(kept) and kept
    assert cut.chat.messages[1:] == said[1:]
    assert cut.text == f"user: {kept}\n"
    with pytest.raises(UserError, match="cannot be cut to 8 tokens"):
        load_causal(path, max_prompt=8).fit_prompts(prompts("1+1"), 6, "truncate")


def test_many_prompts_are_measured_quickly() -> None:
    policy: CausalPolicy = load_causal(folder("llama"))
    many = prompts(*(f"{i}+{i}" for i in range(20_000)))
    start = time.perf_counter()
    assert len(policy.fit_prompts(many, 6)) == len(many)
    assert time.perf_counter() - start < 20


# ------------------------------------------------------------------------------------------------- models as they are
@pytest.mark.parametrize("name", ["lfm2", "falcon_h1", "jamba", "qwen3_next"])
def test_hybrids_decode_with_their_caches(name: str) -> None:
    """States and keys alike follow the rows: samples and their probabilities are those of whole passes, and a token
    costs one row of the network, not the whole sequence again."""
    policy = load_causal(folder(name))
    assert policy.decoding == "padded" and policy.remarks(256) == []
    rows, asked = torch.arange(9), policy.condition(prompts_of(["1+1", "2+345", "7"] * 3))
    draw = Draw.of(seeds(0, "s", count=9), rows, 0, 0)
    made = CausalSampler(length=10)(policy, asked, draw)
    assert isinstance(made.trace, TokenTrace) and made.trace.logp is not None
    calls = policy.network_calls
    policy.decoding = "recomputed"
    again = CausalSampler(length=10)(policy, asked, draw)
    assert again.final.equal(made.final) and calls < policy.network_calls - calls
    with torch.no_grad():
        whole = policy.score(asked, made.trace.tokens, made.trace.mask, made.trace.tokens).logp
    torch.testing.assert_close(whole[made.trace.mask], made.trace.logp[made.trace.mask], atol=1e-4, rtol=1e-4)


def test_a_model_without_a_usable_cache_says_what_that_costs() -> None:
    """RecurrentGemma keeps its states in its layers, where rows cannot be chosen."""
    policy = load_causal(folder("recurrent_gemma"))
    assert policy.decoding == "recomputed"
    (said,) = policy.remarks(256)
    assert "RecurrentGemmaForCausalLM has no cache that flowrl can use" in said and "256 tokens costs about 128" in said
    assert "separate batches" in load_causal(folder("mamba")).remarks(8)[0]


def test_a_cache_that_forgets_its_states_is_noticed_at_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """`batch_select_indices` of Falcon-H1's cache chooses keys and values, not states; the first sampling failed."""
    from flowrl.models.causal import choose_decoding

    monkeypatch.setattr(choose_decoding, "SELECT_METHODS", ("batch_select_indices", "batch_select_indices"))
    assert load_causal(folder("falcon_h1")).decoding == "recomputed"


def test_a_tokenizer_that_knows_more_than_the_model(tmp_path: Path) -> None:
    """Embeddings smaller than the tokenizer: ordinary prompts work, others are a sentence and not an IndexError."""
    path = shutil.copytree(folder("llama"), tmp_path / "small")
    tokenizer = character_tokenizer()
    tokenizer.add_tokens(["<tool>"])
    tokenizer.add_special_tokens({"eos_token": "<end>", "pad_token": "<end>"})
    tokenizer.save_pretrained(path)
    (path / "generation_config.json").write_text('{"eos_token_id": [1]}')
    policy = load_causal(path)
    rows = len(policy.network.model.get_input_embeddings().weight)
    assert policy.end_tokens == (1,) and policy.pad_token < rows < len(tokenizer)
    policy.condition(prompts_of(["1+1"]))
    with pytest.raises(UserError, match=rf"holds the token '<tool>' \({rows}\), of which the model has no embedding"):
        policy.condition(prompts_of(["1<tool>"]))


def test_answers_may_begin_otherwise_in_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`eval.prefill` in held-out samples and nowhere else; `model.prefill` in the others."""
    written: list[tuple[str, str]] = []
    known = TextCodec.condition

    def watched(self: TextCodec, prompts: Any) -> Any:
        written.extend((self.prompt_format.prefill, self.prompt_text(prompt)) for prompt in prompts)
        return known(self, prompts)

    monkeypatch.setattr(TextCodec, "condition", watched)
    (tmp_path / "mine.py").write_text("def short(completions, prompts):\n    return [len(t) for t in completions]\n")
    for name in ("train", "test"):
        (tmp_path / f"{name}.txt").write_text(f"{name} 2+3=\n")
    values: dict[str, Any] = {
        "name": "begun",
        "model": {"path": str(folder("llama")), "full": True, "prefill": "1"},
        "algorithm": {"use": "rloo", "length": 4},
        "data": {"train": str(tmp_path / "train.txt"), "test": str(tmp_path / "test.txt"), "prompts": 1, "group": 2},
        "rewards": [f"{tmp_path / 'mine.py'}:short"],
        "train": {"iterations": 1, "ema": None},
        "eval": {"every": 1, "weights": "live", "prefill": "7-"},
        "monitor": {"samples": 0},
        "out": str(tmp_path / "run"),
    }
    train(Config.of(values))
    asked = {pair for pair in written if "2+3=" in pair[1]}
    assert asked == {("1", "train 2+3=1"), ("7-", "test 2+3=7-")}
    image = {**values, "model": {"path": "shapes"}, "algorithm": "awm", "out": str(tmp_path / "other")}
    with pytest.raises(UserError, match=r"eval\.prefill means nothing for diffusion models"):
        train(Config.of(image))
