"""Rewards by vision-language models: each equals its formula on tiny models from config, or a stub of an endpoint."""

import base64
import hashlib
import http.server
import io
import json
import math
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from flowrl.errors import UserError
from flowrl.score import list_rewards, load_rewards
from flowrl.types import Prompt, Samples
from rewards._vlm import data_uri
from rewards.hpsv3 import PROMPT, TOKEN, hpsv3
from rewards.vlm_judge import RUBRICS, read_scores, vlm_judge
from rewards.vqascore import vqascore
from tests.tiny_scorers import CLOSE, PROMPTS, as_pil, pictures, randomize, save_clip
from tests.tiny_vlm import QWEN, save_llava, save_qwen, tokenizer


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        "qwen": save_qwen(tmp_path_factory.mktemp("qwen")),
        "llava": save_llava(tmp_path_factory.mktemp("llava")),
    }


IMAGE = {"qwen": "<|vision_start|><|image_pad|><|vision_end|>", "llava": "<image>"}


def ask_one(kind: str, folder: Path, image: Tensor, question: str) -> tuple[Any, Any, Any]:
    """Model, processor and inputs of one question, with the conversation written out here."""
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    processor.image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    text = f"<|im_start|>user\n{IMAGE[kind]}{question}<|im_end|>\n<|im_start|>assistant\n"
    return model, processor, processor(text=[text], images=as_pil(image[None]), return_tensors="pt")


@pytest.mark.parametrize("kind", ["qwen", "llava"])
def test_vqascore_equals_the_softmax_of_one_forward_pass(folders: dict[str, Path], kind: str) -> None:
    images = pictures()
    expected = []
    for image, prompt in zip(images, PROMPTS, strict=True):
        question = f'Does this figure show "{prompt}"? Please answer yes or no.'
        model, processor, inputs = ask_one(kind, folders[kind], image, question)
        with torch.no_grad():
            logits = model(**inputs).logits[0, -1].double()
        chances = logits.exp() / logits.exp().sum()
        expected.append([chances[processor.tokenizer.convert_tokens_to_ids(word)] for word in ("Yes", "No")])
    yes, no = torch.tensor(expected, dtype=torch.float64).unbind(1)
    assert float(yes.std()) > 1e-4  # images and prompts matter
    path = str(folders[kind])
    for size in (1, 2, 5):
        scores = vqascore(path, dtype="float32", device="cpu", batch_size=size)(images, PROMPTS)
        torch.testing.assert_close(scores, yes, **CLOSE)
        both = vqascore(path, dtype="float32", device="cpu", batch_size=size, normalised=True)(images, PROMPTS)
        torch.testing.assert_close(both, yes / (yes + no), **CLOSE)
    order = [3, 0, 4, 1, 2]
    scorer = vqascore(path, dtype="float32", device="cpu")
    moved = scorer(images[order], [PROMPTS[i] for i in order])
    torch.testing.assert_close(moved, yes[order], **CLOSE)
    assert scorer.version.startswith(f"vqascore:{path}:float32:") and scorer(images[:0], []).shape == (0,)


def test_images_are_resized_by_pillow(folders: dict[str, Path]) -> None:
    """As t2v_metrics and UnifiedReward do for Qwen; torchvision keeps what is beyond black and white between passes."""
    pixels = torch.randint(0, 256, (2, 3, 33, 470), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    resized = [one.resize((476, 28), Image.Resampling.BICUBIC) for one in as_pil(pixels / 255)]  # multiples of 28
    fitting = torch.stack([torch.from_numpy(np.array(one)).permute(2, 0, 1) for one in resized])
    scorer = vqascore(str(folders["qwen"]), dtype="float32", device="cpu")
    found, expected = scorer(pixels / 255, PROMPTS[:2]), scorer(fitting / 255, PROMPTS[:2])
    torch.testing.assert_close(found, expected, **CLOSE)


def test_vqascore_keeps_the_contract_of_scorers(folders: dict[str, Path]) -> None:
    images = pictures()
    scorer = vqascore(str(folders["llava"]), dtype="float32", device="cpu")
    state = torch.get_rng_state()
    broken = images.clone()
    broken[2, 0, 0, 0] = math.nan
    assert scorer(broken, PROMPTS).isnan().tolist() == [False, False, True, False, False]
    assert torch.equal(torch.get_rng_state(), state)
    entries = {entry.name: entry.kind for entry in list_rewards()}
    assert [entries[name] for name in ("vqascore", "vlm_judge", "hpsv3")] == ["image"] * 3
    spec = {"use": "vqascore", "options": {"path": str(folders["llava"]), "dtype": "float32"}, "device": "cpu"}
    found = load_rewards([spec]).raw(Samples([Prompt(text, i) for i, text in enumerate(PROMPTS)], images))
    torch.testing.assert_close(found[:, 0], scorer(images, PROMPTS), **CLOSE)


@pytest.mark.parametrize("kind", ["qwen", "llava"])
def test_a_local_judge_replies_as_greedy_decoding_does(folders: dict[str, Path], kind: str) -> None:
    images, prompts = pictures(3), PROMPTS[2:]  # prompts of different lengths: padding on the left
    rubric = "Does this figure show {prompt}? Final Score"
    judge = vlm_judge(str(folders[kind]), rubric=rubric, dtype="float32", device="cpu", max_tokens=6)
    pixels = (images * 255).round().byte()
    with torch.inference_mode():
        replies = judge._backend.replies(pixels, [rubric.format(prompt=prompt) for prompt in prompts])
    for image, prompt, reply in zip(images, prompts, replies, strict=True):
        model, processor, inputs = ask_one(kind, folders[kind], image, rubric.format(prompt=prompt))
        tokens = inputs["input_ids"]
        inputs = {key: value for key, value in inputs.items() if key not in ("input_ids", "attention_mask")}
        start = tokens.shape[1]
        for _ in range(6):  # decoding token by token, without a cache
            extra = {}
            if "mm_token_type_ids" in inputs:
                types = inputs["mm_token_type_ids"]
                extra["mm_token_type_ids"] = torch.cat([types, types.new_zeros(1, tokens.shape[1] - types.shape[1])], 1)
            with torch.no_grad():
                logits = model(input_ids=tokens, **{**inputs, **extra}).logits[0, -1]
            tokens = torch.cat([tokens, logits.argmax()[None, None]], 1)
            if int(tokens[0, -1]) == processor.tokenizer.eos_token_id:
                break
        assert processor.tokenizer.decode(tokens[0, start:], skip_special_tokens=True) == reply
    scores = judge(images, prompts)
    assert scores.isnan().all() and judge.counts == {"unparsable": 3}  # it babbles, and that is no 0


def test_scores_are_read_from_replies() -> None:
    final, one = ("Final Score",), (1, 5)
    for reply, score in {
        "ocean (location): 0\nFinal Score: 3": 0.5,
        "**Final Score**: 4.5": 0.875,
        "Final Score: **5**": 1.0,
        "assign a score after 'Final Score:'. Final Score: 2\n... Final Score: 1": 0.0,
    }.items():
        assert read_scores(reply, final, *one) == pytest.approx(score), reply
    for reply in ("", "Score: 3", "Final Score: X", "Final Score: 6", "Final Score: 0", "Final Score: -2"):
        assert read_scores(reply, final, *one) is None, reply
    reply = (
        'Word-wise Scores: [["red", 0.2]]\n\nAlignment Score (1-5): 4\nCoherence Score (1-5): 3.0\nStyle Score (1-5): 2'
    )
    fields = RUBRICS["unified_reward_semantic"][1]
    assert read_scores(reply, fields, *one) == pytest.approx((0.75 + 0.5 + 0.25) / 3)
    assert read_scores(reply, ("Alignment Score",), *one) == pytest.approx(0.75)
    assert read_scores(reply.replace("Style", "Stile"), fields, *one) is None
    assert read_scores("Score: 7", ("Score",), 0, 10) == pytest.approx(0.7)


class Stub:
    """An OpenAI-compatible server: ``plan`` maps a question and the image to ``choices[0]``."""

    def __init__(self, plan: Callable[[str, Image.Image], Any]) -> None:
        self.bodies: list[dict[str, Any]] = []
        stub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stub.bodies.append(body)
                image, text = body["messages"][0]["content"]
                kind, _, data = image["image_url"]["url"].partition(",")
                assert kind == "data:image/png;base64"
                choice = plan(text["text"], Image.open(io.BytesIO(base64.b64decode(data))))
                self.send_response(200 if choice is not None else 400)
                self.end_headers()
                self.wfile.write(json.dumps({"choices": [choice]}).encode())

            def log_message(self, *_: Any) -> None:
                return

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[str, Image.Image], Any]], Stub]]:
    stubs: list[Stub] = []

    def start(plan: Callable[[str, Image.Image], Any]) -> Stub:
        stubs.append(Stub(plan))
        return stubs[-1]

    yield start
    for stub in stubs:
        stub.server.shutdown()
        stub.server.server_close()


def first(**chances: float) -> dict[str, Any]:
    top = [{"token": token.replace("_", " "), "logprob": math.log(p)} for token, p in chances.items()]
    return {"message": {"content": "Yes"}, "logprobs": {"content": [{"token": "Yes", "top_logprobs": top}]}}


QUICK = {"model": "m", "backoff": 0.01, "timeout": 2.0, "retries": 1}


def test_vqascore_of_an_endpoint(serve: Callable[..., Stub]) -> None:
    answers = {
        "red": first(Yes=0.5, _Yes=0.25, No=0.2),  # spellings of the same word are summed
        "blue": first(No=0.9, Maybe=0.05),  # "Yes" is not among the alternatives
        "green": first(Maybe=0.5, Hm=0.4),  # neither is: nothing is known
        "none": None,
    }
    stub = serve(lambda text, _: answers[text.split('"')[1]])
    prompts = list(answers)
    images = pictures(4)
    with pytest.warns(UserWarning, match="did not answer 1 of 4"):
        scores = vqascore(url=stub.url, **QUICK)(images, prompts)
    assert scores[:2].tolist() == pytest.approx([0.75, 0.0]) and scores[2:].isnan().all()
    with pytest.warns(UserWarning, match="did not answer"):
        scores = vqascore(url=stub.url, normalised=True, **QUICK)(images, prompts)
    assert scores[:2].tolist() == pytest.approx([0.75 / 0.95, 0.0]) and scores[2:].isnan().all()
    body = stub.bodies[0]
    assert (body["logprobs"], body["top_logprobs"], body["max_tokens"], body["temperature"]) == (True, 20, 1, 0)
    silent = serve(lambda *_: {"message": {"content": "Yes"}})
    with pytest.raises(UserError, match="gives no log-probabilities"):
        vqascore(url=silent.url, **QUICK)(images[:1], ["red"])


def test_a_judge_behind_an_endpoint(serve: Callable[..., Stub]) -> None:
    seen: dict[str, Image.Image] = {}

    def plan(text: str, picture: Image.Image) -> Any:
        prompt = text.rsplit("[", 1)[1].removesuffix("]")
        seen[prompt] = picture
        says = {"red": "cube (object): 1\nFinal Score: 4", "blue": "Final Score: 9", "green": "I refuse", "none": None}
        return None if says[prompt] is None else {"message": {"content": says[prompt]}}

    stub = serve(plan)
    judge = vlm_judge(url=stub.url, **QUICK)
    images = pictures(4)
    with pytest.warns(UserWarning, match="did not answer 1 of 4"):
        scores = judge(images, ["red", "blue", "green", "none"])
    assert float(scores[0]) == 0.75 and scores[1:].isnan().all()
    assert judge.counts == {"read": 1, "unparsable": 2, "unanswered": 1}
    pixels = (images[0] * 255).round().byte()
    assert torch.equal(torch.tensor(list(seen["red"].tobytes())).view(40, 54, 3), pixels.permute(1, 2, 0).int())
    assert stub.bodies[0]["max_tokens"] == 1024 and stub.bodies[0]["temperature"] == 0
    semantic = serve(lambda *_: {"message": {"content": "Alignment Score (1-5): 5\nStyle Score (1-5): 2"}})
    found = vlm_judge(url=semantic.url, rubric="unified_reward_semantic", fields=["Alignment Score"], **QUICK)
    assert found(images[:1], ["red"]).tolist() == [1.0]


def test_wrong_options_are_named(folders: dict[str, Path], tmp_path: Path) -> None:
    path = str(folders["llava"])
    for make, match in (
        (lambda: vqascore(), "give either path .* or url and model"),
        (lambda: vqascore(path, url="http://localhost/v1"), "give either path"),
        (lambda: vqascore(url="http://localhost/v1"), "url needs model"),
        (lambda: vqascore(path, question="Is it good?"), "should contain {prompt}"),
        (
            lambda: vqascore(path, device="cpu", answer="Surely")(pictures(1), ["a"]),
            r"'Yes, of' should be one token|one token",
        ),
        (lambda: vqascore(path, device="cpu", opposite="No ball"), r"found \['No', 'ball'\]"),
        (lambda: vqascore("nowhere"), "neither a folder nor a name"),
        (lambda: vqascore(str(tmp_path)), "a .safetensors file is needed"),
        (lambda: vlm_judge(path, rubric="unified"), "no rubric 'unified'; did you mean 'unified_reward'"),
        (lambda: vlm_judge(path, rubric="Rate {picture}"), "contains {prompt} and no other field"),
        (lambda: vlm_judge(path, scale=[5, 1]), r"scale is \[lowest, highest\]"),
        (lambda: vlm_judge(path, fields=["Style"]), "has no field 'Style'"),
    ):
        with pytest.raises(UserError, match=match):
            make()
    assert data_uri(torch.zeros(3, 2, 2, dtype=torch.uint8)).startswith("data:image/png;base64,")


def test_a_model_without_a_chat_template_or_with_missing_weights_is_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    folder = shutil.copytree(folders["llava"], tmp_path / "mute")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="has no chat template"):
        vqascore(str(folder), device="cpu")
    folder = shutil.copytree(folders["llava"], tmp_path / "hollow")
    state = load_file(folder / "model.safetensors")
    state.pop(next(key for key in state if "lm_head" in key))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks 1 weights"):
        vqascore(str(folder), device="cpu")


def preference_weights(folder: Path, words: int) -> dict[str, Tensor]:
    """`HPSv3.safetensors` as published: Qwen2-VL in its first layout, more words, and the head."""
    from transformers import Qwen2VLForConditionalGeneration

    model = Qwen2VLForConditionalGeneration.from_pretrained(folder)
    model.resize_token_embeddings(words, mean_resizing=False)
    randomize(model, scale=0.25, seed=8)
    state = {key.removeprefix("model."): value for key, value in model.state_dict().items()}
    state = {key.replace("language_model.", "model."): value.detach().clone() for key, value in state.items()}
    generator = torch.Generator().manual_seed(9)
    for index, (outputs, inputs) in {0: (12, 32), 3: (6, 12), 5: (2, 6)}.items():
        state[f"rm_head.{index}.weight"] = 0.5 * torch.randn(outputs, inputs, generator=generator)
        state[f"rm_head.{index}.bias"] = 0.1 * torch.randn(outputs, generator=generator)
    return state


@pytest.fixture(scope="module")
def preference(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With room for one more word: the reward's token."""
    file = tmp_path_factory.mktemp("hpsv3") / "HPSv3.safetensors"
    save_file(preference_weights(folders["qwen"], len(tokenizer(QWEN)) + 1), file)
    return file


def mu_by_hand(folder: Path, state: dict[str, Tensor], image: Tensor, prompt: str) -> Tensor:
    """One image, no padding: embeddings and image put together here, the language model alone, the MLP as matrices."""
    from transformers import AutoProcessor, Qwen2VLConfig, Qwen2VLModel

    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer.add_tokens([TOKEN], special_tokens=True)
    config = Qwen2VLConfig.from_pretrained(folder)
    config.text_config.vocab_size = len(processor.tokenizer)
    model = Qwen2VLModel(config).eval()
    parts = {k: v for k, v in state.items() if not k.startswith(("rm_head", "lm_head"))}
    model.load_state_dict({k if k.startswith("visual") else "language_" + k: v for k, v in parts.items()})
    # 40 x 54 at 200704 pixels: 385.6 x 520.5, rounded up to multiples of 28
    picture = as_pil(image[None])[0].resize((532, 392), Image.Resampling.BICUBIC)
    seen = processor.image_processor(images=[picture], return_tensors="pt")
    assert seen["image_grid_thw"].tolist() == [[1, 28, 38]]
    text = PROMPT.format(text_prompt=prompt)
    holes = "<|vision_start|>" + "<|image_pad|>" * (14 * 19) + "<|vision_end|>"
    whole = f"<|im_start|>user\n{holes}{text}<|im_end|>\n<|im_start|>assistant\n"
    ids = processor.tokenizer(whole, return_tensors="pt").input_ids
    with torch.no_grad():
        states = model.language_model.embed_tokens(ids)
        features = model.visual(seen["pixel_values"], grid_thw=seen["image_grid_thw"]).pooler_output
        states[ids == config.image_token_id] = features
        out = model.language_model(inputs_embeds=states, use_cache=False).last_hidden_state[0]
    where = (ids[0] == processor.tokenizer.convert_tokens_to_ids(TOKEN)).nonzero()[-1, 0]
    layers = [(state[f"rm_head.{i}.weight"], state[f"rm_head.{i}.bias"]) for i in (0, 3, 5)]
    hidden = torch.relu(layers[0][0] @ out[where] + layers[0][1])
    hidden = torch.relu(layers[1][0] @ hidden + layers[1][1])
    return (layers[2][0] @ hidden + layers[2][1])[0].double()


def test_hpsv3_equals_a_direct_computation(folders: dict[str, Path], preference: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    images = pictures(3)
    prompts = ["a red cube", f"two green cones on a table {TOKEN}", "a blue ball"]
    state, base = load_file(preference), str(folders["qwen"])
    expected = torch.stack([mu_by_hand(folders["qwen"], state, *one) for one in zip(images, prompts, strict=True)])
    assert float(expected.std()) > 1e-3
    for size in (1, 2, 3):
        scorer = hpsv3(str(preference), base=base, dtype="float32", device="cpu", batch_size=size)
        torch.testing.assert_close(scorer(images, prompts), expected, **CLOSE)
    newer = {
        k
        if k.startswith(("rm_", "lm_"))
        else ("model." + k if k.startswith("visual") else k.replace("model.", "model.language_model.", 1)): v
        for k, v in state.items()
    }
    save_file(newer, tmp_path / "new.safetensors")
    other = hpsv3(str(tmp_path), base=base, dtype="float32", device="cpu")
    torch.testing.assert_close(other(images[:1], prompts[:1]), expected[:1], **CLOSE)
    assert scorer.version == f"hpsv3:{preference}:float32:pil-bicubic-1"
    broken = images.clone()
    broken[1, 0, 0, 0] = math.nan
    assert scorer(broken, prompts).isnan().tolist() == [False, True, False]


def test_hpsv3_counts_positions_one_by_one(folders: dict[str, Path], preference: Path) -> None:
    """Qwen2-VL's own two-dimensional positions would give another number; the published code does not use them."""
    scorer = hpsv3(str(preference), base=str(folders["qwen"]), dtype="float32", device="cpu")
    images, prompts = pictures(1), ["a red cube"]
    right = scorer(images, prompts)
    inputs = scorer._inputs((images * 255).round().byte(), prompts)
    positions, _ = scorer._model.get_rope_index(
        inputs["input_ids"], inputs["mm_token_type_ids"], image_grid_thw=inputs["image_grid_thw"]
    )
    with torch.no_grad():
        states = scorer._model(
            **{k: v for k, v in inputs.items() if k != "mm_token_type_ids"}, position_ids=positions
        ).last_hidden_state
        where = int((inputs["input_ids"][0] == scorer._token).nonzero()[-1, 0])
        wrong = scorer._head(states[0, where])[0]
    assert abs(float(wrong) - float(right)) > 1e-4


def test_the_question_of_hpsv3_is_the_published_one() -> None:
    assert PROMPT.startswith("\nYou are tasked with evaluating") and PROMPT.endswith(f": {TOKEN}\n\nEND\n")
    assert PROMPT.count("{") == PROMPT.count("{text_prompt}") == 1
    digest = hashlib.sha256(PROMPT.encode()).hexdigest()
    assert digest == "f6ee57479d4e9eee76b49c00dc962e1e696a5a2b3cc32cebd9b1fa76fe27502c"  # trailing spaces included


def test_wrong_weights_of_hpsv3_are_named(folders: dict[str, Path], preference: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    base, state = str(folders["qwen"]), load_file(preference)
    clip = save_clip(tmp_path / "clip")
    for change, given, match in (
        ({}, str(clip), "needs Qwen2-VL as base, but .* is a 'clip'"),
        ({"rm_head.5.weight": torch.zeros(1, 6)}, base, "holds no head from 32 numbers to mu and sigma"),
        ({"rm_head.3.bias": torch.zeros(7)}, base, "another architecture: 3.bias"),
        ({"model.norm.weight": None}, base, "another architecture: language_model.norm.weight is absent"),
        ({"model.embed_tokens.weight": None}, base, "has no embeddings of words"),
        (
            {"model.embed_tokens.weight": state["model.embed_tokens.weight"][:-1].clone()},
            base,
            "has no embedding of <|",
        ),
    ):
        changed = {key: value for key, value in {**state, **change}.items() if value is not None}
        save_file(changed, tmp_path / "w.safetensors")
        with pytest.raises(UserError, match=match.replace("|", r"\|")):
            hpsv3(str(tmp_path / "w.safetensors"), base=given, dtype="float32", device="cpu")
    with pytest.raises(UserError, match="do not exist"):
        hpsv3(str(tmp_path / "absent.safetensors"), base=base)


def test_half_precision_is_close_and_its_head_is_not_rounded(folders: dict[str, Path], preference: Path) -> None:
    images, base = pictures(2), str(folders["qwen"])
    makers: list[Callable[[str], Any]] = [
        lambda dtype: vqascore(base, dtype=dtype, device="cpu"),
        lambda dtype: hpsv3(str(preference), base=base, dtype=dtype, device="cpu"),
    ]
    for make in makers:
        full, half = (make(dtype)(images, PROMPTS[:2]) for dtype in ("float32", "bfloat16"))
        assert float((half - full).abs().max()) < 0.25 * float(full.abs().max())
        assert float((half - half.bfloat16().double()).abs().max()) > 0
    with pytest.raises(UserError, match="dtype 'float61'"):
        makers[0]("float61")
