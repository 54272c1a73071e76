"""Language models from folders and back: pipelines, exports, prompts, and what a user's mistakes say."""

from __future__ import annotations

import inspect
import json
import math
import shutil
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers

from flowrl.errors import UserError
from flowrl.models import LoRAOptions, check_parity, export_formats, export_policy, family_of, load_adapter, load_policy
from flowrl.models.causal.load import load_causal
from flowrl.models.masked.load import load_masked
from flowrl.models.text import remote_code
from flowrl.models.text.parity import random_completions
from flowrl.types import prompts_of
from tests import components_text
from tests.components_text import CHAT, character_tokenizer, folder
from tests.parity.conftest import move
from tests.parity.test_text_models import CAUSAL, MASKED, PROMPTS, REMOTE, load, rows


# ------------------------------------------------------------------------------------------------------- pipelines
def test_llada2_scores_are_what_its_pipeline_computes():
    """Every call of the model by ``LLaDA2Pipeline``, on the canvas it has at that step."""
    from diffusers import BlockRefinementScheduler, LLaDA2Pipeline

    policy = load("llada2")
    model, calls = policy.network.model, []
    pipeline = LLaDA2Pipeline(model, BlockRefinementScheduler(), policy.codec.tokenizer)
    hook = model.register_forward_hook(lambda _, a, k, out: calls.append((a[0].clone(), out.logits)), with_kwargs=True)
    pipeline(prompt="12*(5-1)=", gen_length=7, block_length=4, num_inference_steps=3, temperature=1.0,
             threshold=0.95, eos_early_stop=False, generator=torch.Generator().manual_seed(0))  # fmt: skip
    hook.remove()
    condition = policy.condition(prompts_of(["12*(5-1)="]))
    start = int(condition.row_lengths)
    assert len(calls) > 6
    for ids, logits in calls:
        tokens = torch.nn.functional.pad(ids[:, start:], (0, 7), value=policy.mask_token)[:, :7]
        targets = torch.zeros(1, 7, dtype=torch.bool)
        targets[0, max(ids.shape[1] - 4 - start, 0) : ids.shape[1] - start] = True
        with torch.no_grad():
            ours = policy.logits(condition, tokens, targets)
        theirs = logits[0, start:][targets[0, : ids.shape[1] - start].nonzero()[:, 0]]
        theirs[:, policy.mask_token] = -math.inf
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_diffusion_gemma_scores_are_what_its_pipeline_computes(monkeypatch):
    """The first denoising step of every canvas, the earlier canvases being context."""
    from diffusers import BlockRefinementScheduler, DiffusionGemmaPipeline

    policy = load("diffusion_gemma")
    _name_the_cache_as_it_is_taken(policy.network.model.model.decoder, monkeypatch)
    tokenizer = character_tokenizer(mask=True, chat=CHAT)
    pipeline = DiffusionGemmaPipeline(policy.network.model, BlockRefinementScheduler(block_length=4), tokenizer)
    calls = []

    def see(_, args, given, output):
        if given.get("self_conditioning_logits") is None:
            calls.append((given["decoder_input_ids"].clone(), output.logits))

    hook = policy.network.model.register_forward_hook(see, with_kwargs=True)
    generator = torch.Generator().manual_seed(0)
    output: Any = pipeline(
        prompt="3+4=", gen_length=8, num_inference_steps=3, temperature=1.0, confidence_threshold=None,
        eos_early_stop=False, output_type="seq", generator=generator,
    )  # fmt: skip
    made = output.sequences
    hook.remove()
    assert len(calls) == 2 and made.shape == (1, 8)
    condition = policy.condition(prompts_of(["<user>3+4=:"]))
    for number, (canvas, logits) in enumerate(calls):
        tokens = made.clone()
        tokens[:, number * 4 : number * 4 + 4] = canvas
        targets = torch.arange(8)[None] // 4 == number
        with torch.no_grad():
            ours = policy.logits(condition, tokens, targets)
        logits[..., policy.mask_token] = -math.inf
        torch.testing.assert_close(ours, logits[0], atol=1e-5, rtol=1e-5)


def _name_the_cache_as_it_is_taken(decoder, monkeypatch):
    """The pipeline of diffusers 0.42.1 calls the decoder's mask with ``past_key_values``, which transformers 5.24 takes
    as ``cache``: the same cache is handed on under the name that is there. Nothing of the computation is replaced."""
    make_mask = decoder.create_diffusion_decoder_attention_mask
    if "cache" not in inspect.signature(make_mask).parameters:
        return

    def renamed(**given):
        if "past_key_values" in given:
            given["cache"] = given.pop("past_key_values")
        return make_mask(**given)

    monkeypatch.setattr(decoder, "create_diffusion_decoder_attention_mask", renamed)


# ------------------------------------------------------------------------------------------------------- remote code
@pytest.mark.parametrize("name", REMOTE)
def test_remote_code_computes_what_its_class_computes(name):
    """Against the class called directly, with the weights of the file: nothing is left uninitialised by loading."""
    policy = load(name, full=True)
    place = folder(name) / ("model" if name.startswith("llada2") else "")
    kind = getattr(components_text.remote_module(), type(policy.network.model).__name__)
    direct = kind(kind.config_class.from_pretrained(place)).eval()
    direct.load_state_dict(safetensors.torch.load_file(place / "model.safetensors"))
    torch.testing.assert_close(look(policy.network.model, name), look(direct, name), atol=0, rtol=0)


def test_constants_in_no_file_are_garbage_unless_restored(monkeypatch):
    torch.use_deterministic_algorithms(True, warn_only=True)  # it fills memory that nobody set with NaN
    try:
        assert bool(look(load("dream", full=True).network.model, "dream").isfinite().all())
        monkeypatch.setattr(remote_code, "_restore_constants", lambda model: None)
        with pytest.raises(UserError, match="does not give the same logits twice"):
            load("dream", full=True)
    finally:
        torch.use_deterministic_algorithms(False)


def test_layers_computed_without_gradients_are_refused(monkeypatch):
    monkeypatch.setattr(remote_code, "_restore_gradients", lambda model: None)
    with pytest.raises(UserError, match=r"computes 6 of its layers without gradients \(blocks.0.ff_proj"):
        load("llada2", full=True)


def test_transformers_is_left_as_it_was():
    from transformers import dynamic_module_utils, modeling_rope_utils
    from transformers.utils import import_utils

    before, ties = dynamic_module_utils.get_class_in_module, set()
    for name in (*REMOTE, "llada", "llada"):
        model = load(name, full=True).network.model
        ties |= {type(model).tie_weights} if name == "llada" else set()
    assert len(ties) == 1  # mended once
    assert dynamic_module_utils.get_class_in_module is before
    assert "default" not in modeling_rope_utils.ROPE_INIT_FUNCTIONS and not hasattr(
        import_utils, remote_code.REMOVED_CHECKS[0]
    )


def test_tokens_beyond_the_tokenizer_have_no_text():
    policy = load("dream")
    words = len(policy.codec.tokenizer)
    assert policy.decode(torch.tensor([[4, words, 5, words + 7]])) == policy.decode(torch.tensor([[4, 5]]))


# --------------------------------------------------------------------------------------------------------- exports
def opened(path, name):
    """A model as its users open it; remote code as those do who have the transformers it was written for."""
    if name not in REMOTE:
        return _opened(path, name)
    with remote_code.patched_transformers():
        model = _opened(path, name)
        remote_code.patch_model(model)
    return model


def _opened(path, name):
    if name == "diffusion_gemma":
        return transformers.DiffusionGemmaForBlockDiffusion.from_pretrained(path).eval()
    if name.startswith("llada2"):
        return transformers.AutoModelForCausalLM.from_pretrained(path / "model", trust_remote_code=True).eval()
    if name in ("llada", "dream"):
        return transformers.AutoModel.from_pretrained(path, trust_remote_code=True).eval()
    loader = transformers.AutoModelForCausalLM if name in CAUSAL else transformers.AutoModelForMaskedLM
    return loader.from_pretrained(path).eval()


def look(model, name):
    """Logits of one sequence."""
    ids = torch.arange(4, 16)[None]
    inputs = {"input_ids": ids}
    if name == "diffusion_gemma":
        inputs = {"input_ids": ids[:, :8], "decoder_input_ids": ids[:, 8:]}
    elif name == "llada2-square":
        inputs["attention_mask"] = torch.zeros(1, 1, 12, 12)
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("name", [*CAUSAL, *MASKED])
@pytest.mark.parametrize("to", ["peft", pytest.param("merged", marks=pytest.mark.slow)])
def test_exports_reload_with_equal_logits(name, to, tmp_path):
    policy = load(name, lora=LoRAOptions(rank=4, alpha=16))
    start = look(policy.network.model, name)
    move(policy, 0.1)
    trained = look(policy.network.model, name)
    assert export_formats(policy) == ("peft", "merged")
    assert float((trained - start).abs().max()) > 1e-2
    assert export_policy(policy, tmp_path / "out", to) < 1e-4
    if to == "peft":
        from peft import PeftModel

        again = PeftModel.from_pretrained(opened(folder(name), name), str(tmp_path / "out"))
        other = load(name, lora=LoRAOptions(rank=4, alpha=8))
        load_adapter(other, tmp_path / "out")  # another alpha is folded into the weights
        torch.testing.assert_close(look(other.network.model, name), trained, atol=1e-5, rtol=1e-5)
    else:
        again = opened(tmp_path / "out", name)
        loader = load_causal if name in CAUSAL else load_masked
        assert check_parity(loader(tmp_path / "out", trust_remote_code=name in REMOTE)) < 1e-4
    torch.testing.assert_close(look(again, name), trained, atol=1e-4, rtol=1e-4)
    assert not [p for p in (tmp_path / "out").rglob("*") if p.suffix in (".bin", ".pt", ".pkl", ".pth")]


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "llada2", "diffusion_gemma"])
def test_full_fine_tuning_exports_merged_only(name, tmp_path):
    policy = load(name, full=True)
    move(policy, 0.02)
    assert export_formats(policy) == ("merged",)
    with pytest.raises(UserError, match="use merged"):
        export_policy(policy, tmp_path / "out", "peft")
    assert export_policy(policy, tmp_path / "out", "merged") < 1e-4
    trained = look(policy.network.model, name)
    torch.testing.assert_close(look(opened(tmp_path / "out", name), name), trained, atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="not empty"):
        export_policy(policy, tmp_path / "out", "merged")
    with pytest.raises(UserError, match="cannot export to 'diffusers'; choose one of peft, merged"):
        export_policy(policy, tmp_path / "new", "diffusers")


def test_the_critic_is_not_exported(tmp_path):
    policy = load("llama", critic="network")
    move(policy, 0.1)
    export_policy(policy, tmp_path / "out", "peft")
    assert not [k for k in _keys(tmp_path / "out" / "adapter_model.safetensors") if "critic" in k]
    load_adapter(load("llama", critic="head"), tmp_path / "out")


def _keys(file):
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened_file:
        return list(opened_file.keys())


@pytest.mark.slow
def test_the_default_adapter_finds_attention_and_feed_forward():
    found = {}
    for name in (*CAUSAL, *MASKED):
        trained = load(name).network.adaptation.parameters
        found[name] = {key.split(".lora_")[0].rsplit(".", 1)[1] for key in trained}
    llama = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    ours = {"q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out"}
    assert all(found[name] == llama for name in ("llama", "qwen2", "qwen3", "gemma2", "cohere"))
    assert found["gpt2"] == {"c_attn", "c_proj", "c_fc"}
    assert found["bert"] == found["roberta"] == {"query", "key", "value", "dense"}
    assert found["modernbert"] == {"Wqkv", "Wo", "Wi"}
    assert all(found[name] == ours for name in REMOTE)
    for key in load("llada").network.adaptation.parameters:
        assert key.startswith("blocks."), "the vocabulary layer, also called ff_out, is left alone"
    assert not [k for k in load("diffusion_gemma").network.adaptation.parameters if "vision" in k]


# --------------------------------------------------------------------------------------------------------- prompts
def test_prompts_are_tokenised_once_and_completions_cut():
    policy = load("llama")
    condition = policy.condition(prompts_of(PROMPTS))
    assert len(condition) == 5 and condition.prompts.shape == (3, len(PROMPTS[1]))
    assert condition.index.tolist() == [0, 1, 0, 2, 0]
    assert condition.take(torch.tensor([3, 3, 1])).row_lengths.tolist() == [2, 2, 9]
    ids = policy.codec.tokenizer("12+3")["input_ids"]
    ends = [*ids, policy.end_tokens[0], *ids], [*ids, 0, 0, 0, 0, 0]
    assert policy.decode(torch.tensor(ends)) == ["12+3", "12+3"]
    masked = load("bert")
    assert masked.decode(torch.tensor([[*ids, masked.mask_token, masked.end_tokens[0]]])) == [
        masked.decode(torch.tensor([ids]))[0]
    ]


def test_corruption_is_a_function_of_the_seed():
    policy = load("bert")
    condition = policy.condition(prompts_of([PROMPTS[1]] * 400))
    seeds = torch.arange(400)
    spoilt = condition.corrupted(seeds, 0.3, policy.mask_token)
    changed = spoilt.prompts[spoilt.index] == policy.mask_token
    assert abs(float(changed.float().mean()) - 0.3) < 0.03 and len(changed.unique(dim=0)) > 50
    kept = spoilt.prompts[spoilt.index][~changed]
    assert kept.equal(condition.prompts[condition.index][~changed])
    order = torch.tensor([7, 3])
    again = condition.take(order).corrupted(seeds[order], 0.3, policy.mask_token)
    assert again.prompts.equal(spoilt.prompts[order])
    assert not (condition.prompts == policy.mask_token).any()
    assert bool((condition.corrupted(seeds, 1.0, policy.mask_token).prompts == policy.mask_token).all())


@pytest.fixture
def chatty(tmp_path):
    path = shutil.copytree(folder("llama"), tmp_path / "chatty")
    character_tokenizer(chat=CHAT.replace("<", "(").replace(">", ")")).save_pretrained(path)
    return path


def test_chat_templates(chatty):
    def text(policy, prompt):
        condition = policy.condition(prompts_of([prompt]))
        return policy.codec.tokenizer.decode(condition.prompts[0])

    assert text(load_causal(chatty), "1+1") == "(user)1+1:"
    assert text(load_causal(chatty, system="add"), "1+1") == "(system)add(user)1+1:"
    assert text(load_causal(chatty, chat=False), "1+1") == "1+1"
    assert text(load("llama"), "1+1") == "1+1"
    with pytest.raises(UserError, match=r"model\.system needs a chat template"):
        load_causal(chatty, chat=False, system="add")
    with pytest.raises(UserError, match=r"model\.chat is true but the tokenizer has no chat template"):
        load("llama", chat=True)
    strict = character_tokenizer(
        chat="{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}x"
    )
    strict.save_pretrained(chatty)
    with pytest.raises(UserError, match=r"chat template refuses the prompt '1': no system; try without model\.system"):
        load_causal(chatty, system="add").condition(prompts_of(["1"]))


def test_a_chat_model_ends_where_its_template_closes_an_answer(chatty):
    """Gemma's and Phi-3's tokenizers name another end token, which their chat models never say."""
    assert load_causal(chatty).end_tokens == (1,)  # the template closes nothing: the tokenizer's own
    turns = "{% for m in messages %}{{ m['content'] }}<unk>.{% endfor %}"
    character_tokenizer(chat=turns).save_pretrained(chatty)
    assert load_causal(chatty).end_tokens == (2, 1)
    assert load_causal(chatty, chat=False).end_tokens == (1,)


# -------------------------------------------------------------------------------------------------------- families
def test_the_family_is_told_by_the_files(tmp_path):
    assert {family_of(folder(name)) for name in CAUSAL} == {"causal"}
    assert {family_of(folder(name)) for name in MASKED} == {"masked"}
    (tmp_path / "pipeline").mkdir()
    index = {"_class_name": "StableDiffusion3Pipeline"}
    (tmp_path / "pipeline" / "model_index.json").write_text(json.dumps(index))
    assert family_of(tmp_path / "pipeline") == family_of("shapes") == family_of(tmp_path) == "diffusion"
    (tmp_path / "pipeline" / "model_index.json").write_text(json.dumps({"_class_name": "DiffusionGemmaPipeline"}))
    assert family_of(tmp_path / "pipeline") == "masked"
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(UserError, match=r"'vit'. is not that of a language model"):
        family_of(tmp_path)


def test_one_door_for_all_families():
    from flowrl.models.causal import CausalPolicy
    from flowrl.models.masked import MaskedPolicy

    assert isinstance(load_policy(folder("gpt2"), dtype="float32"), CausalPolicy)
    assert isinstance(load_policy(folder("bert"), family="masked"), MaskedPolicy)
    with pytest.raises(UserError, match=r"model\.call is for diffusion pipelines"):
        load_policy(folder("bert"), call={"guidance_scale": 2})
    with pytest.raises(UserError, match="no model family 'masks'; did you mean 'masked'"):
        load_policy(folder("bert"), family="masks")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="a language model has no option 'decode_batch'"):
        load_policy(folder("bert"), decode_batch=3)


def test_the_wrong_family_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"autoregressive language model \(LlamaForCausalLM\), but family masked needs"):
        load_masked(folder("llama"))
    with pytest.raises(UserError, match=r"masked \(bidirectional\) .* \(BertForMaskedLM\), but family causal needs"):
        load_causal(folder("bert"))
    with pytest.raises(UserError, match=r"\(LLaDA2Pipeline\), but family causal needs"):
        load_causal(folder("llada2"), trust_remote_code=True)
    # files that do not tell, or lie: then the network itself is asked
    with pytest.raises(UserError, match="is a bidirectional model: a later token changes its earlier predictions by"):
        load_causal(folder("nameless"), trust_remote_code=True)
    assert check_parity(load_masked(folder("nameless"), trust_remote_code=True)) < 1e-4
    path = shutil.copytree(folder("nameless"), tmp_path / "causal")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "block_causal": 1}))  # blocks of one token
    with pytest.raises(UserError, match="is an autoregressive model: later tokens do not change its earlier predict"):
        load_masked(path, trust_remote_code=True)


def test_mistakes_are_explained(tmp_path):
    (tmp_path / "empty").mkdir()
    headless = shutil.copytree(folder("llama"), tmp_path / "headless")
    transformers.LlamaForCausalLM.from_pretrained(headless).model.save_pretrained(headless)
    wordless = shutil.copytree(folder("llama"), tmp_path / "wordless")
    for file in wordless.glob("tokenizer*"):
        file.unlink()
    endless = shutil.copytree(folder("bert"), tmp_path / "endless")
    tokenizer = transformers.AutoTokenizer.from_pretrained(endless)
    tokenizer.eos_token = tokenizer.sep_token = None
    tokenizer.save_pretrained(endless)
    config = json.loads((endless / "config.json").read_text())
    (endless / "config.json").write_text(json.dumps({**config, "eos_token_id": None}))
    speechless = shutil.copytree(folder("llada2"), tmp_path / "speechless")
    shutil.rmtree(speechless / "tokenizer")
    causal = [
        (tmp_path / "missing", {}, "neither a folder nor a name"),
        (tmp_path / "empty", {}, "has no config.json"),
        (folder("llama"), {"dtype": "fp32"}, "model.dtype must be one of"),
        (folder("llama"), {"full": True, "lora": LoRAOptions()}, "exclude each other"),
        (folder("llama"), {"lora": LoRAOptions(targets=("to_q",))}, "to_q matches no layer .* self_attn.q_proj"),
        (folder("llama"), {"attention": "nonsense"}, "attention 'nonsense' is not available"),
        (folder("llama"), {"max_prompt": 64}, "leaves no room in the model's context of 64"),
        (headless, {}, "lacks 1 weights of LlamaForCausalLM .lm_head.weight"),
        (wordless, {}, "no tokenizer can be loaded"),
        ("sudoky", {}, "neither a folder nor a name"),
    ]
    masked = [
        (folder("unmasked"), {}, "names a mask token; set model.mask_token_id"),
        (folder("unmasked"), {"mask_token_id": 999}, "mask_token_id=999 is not one of the model's 50 tokens"),
        (folder("unmasked"), {"mask_token_id": -1}, "mask_token_id=-1 is not one of"),
        (folder("llada"), {}, "comes with code of its own; read it, then set model.trust_remote_code: true"),
        (folder("llada2"), {}, "comes with code of its own"),
        (endless, {}, "names an end token"),
        (speechless, {"trust_remote_code": True}, "was saved without a tokenizer; save one in its folder 'tokenizer'"),
    ]
    for loader, cases in ((load_causal, causal), (load_masked, masked)):
        for source, options, message in cases:
            with pytest.raises(UserError, match=message):
                loader(source, **options)
    assert load_masked(folder("unmasked"), mask_token_id=2).mask_token == 2
    wordless_policy = load_masked(folder("bert"))
    wordless_policy.excluded = tuple(range(1000))
    with pytest.raises(UserError, match="knows special tokens alone; a file is missing"):
        random_completions(wordless_policy, 1, 4)


def test_the_hub_may_be_out_of_reach(monkeypatch):
    import huggingface_hub

    def fail(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    for ask in (family_of, load_causal, load_masked):
        with pytest.raises(UserError, match=r"'nobody/no-such-model' is not on this machine, and .*no route to host"):
            ask("nobody/no-such-model")


def test_prompts_that_do_not_fit_are_explained():
    policy = load("llama")
    with pytest.raises(UserError, match=r"prompt '1111.*\.\.\.' has 70 tokens and the model's context is 64"):
        policy.condition(prompts_of(["1" * 70]))
    with pytest.raises(UserError, match="prompt '' has no tokens"):
        policy.condition(prompts_of([""]))
    with pytest.raises(UserError, match=r"has 5 tokens, more than model\.max_prompt=4"):
        load("llama", max_prompt=4).condition(prompts_of(["1+1+1"]))
    condition, tokens, targets, labels = rows(policy)
    long = policy.condition(prompts_of(["1" * 60] * len(tokens)))
    with pytest.raises(UserError, match=r"has 60 tokens, which with a completion of 6 is more .* context of 64"):
        policy.score(long, tokens, targets, labels)
    with pytest.raises(UserError, match="a completion needs at least one token"):
        policy.score(condition, tokens[:, :0], targets[:, :0], labels[:, :0])
    decoder = policy.decoder(long)
    for step in range(4):
        decoder.push(tokens[:, step])
    with pytest.raises(UserError, match="together reach the model's context of 64"):
        decoder.push(tokens[:, 4])
    with pytest.raises(UserError, match="does not fit model"):
        load_adapter(policy, _adapter_of_another_rank(components_text.folder("llama")))


def _adapter_of_another_rank(source):
    import tempfile
    from pathlib import Path

    place = Path(tempfile.mkdtemp()) / "adapter"
    export_policy(load_causal(source, lora=LoRAOptions(rank=2)), place, "peft")
    return place


def test_worlds_and_lengths(monkeypatch):
    """An embedded world is one of its base models."""
    import flowrl.worlds.shapes as world

    monkeypatch.setattr(world, "BASES", {"causal": folder("llama")}, raising=False)
    assert family_of("shapes") == "causal"
    assert load_causal("shapes").source.path == str(folder("llama"))
    with pytest.raises(UserError, match="world shapes has no base model of the family masked; it has causal"):
        load_masked("shapes")
    monkeypatch.setattr(world, "BASES", {"causal": folder("llama"), "masked": folder("bert")})
    with pytest.raises(UserError, match="base models of the families causal, masked; name one"):
        family_of("shapes")
    assert load_masked("shapes").source.path == str(folder("bert"))
