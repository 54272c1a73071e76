"""What rewards by vision-language models share: asking about images, locally or behind an OpenAI endpoint."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from flowrl.errors import UserError
from flowrl.media import picture
from flowrl.scorers.endpoint import Endpoint, EndpointOptions
from flowrl.scorers.loading import device_and_dtype, folder_or_repository, from_hub, load_whole, require_safetensors

TOP = 20
"""Alternatives of the first token that an endpoint is asked for, the most that the protocol allows."""


class Backend(Protocol):
    """A model that answers questions about images, uint8 [n, 3, H, W], one question each; or about videos
    [n, F, 3, H, W], whose frames it is shown as images in their order."""

    name: str

    def check(self, words: Sequence[str]) -> None:
        """Raise `UserError` where an answer cannot be recognised by its first token."""
        ...

    def chances(self, pixels: Tensor, questions: Sequence[str], words: Sequence[str]) -> Tensor:
        """[n, W] float64 probabilities that the answer starts with each of W words; NaN where not known."""
        ...

    def beginnings(self, pixels: Tensor, questions: Sequence[str], spellings: Sequence[Sequence[str]]) -> Tensor:
        """[n] float64 probabilities that the first token of an answer is that of one of its spellings, each token once;
        NaN where not known."""
        ...

    def replies(self, pixels: Tensor, questions: Sequence[str]) -> list[str | None]:
        """The most likely answers; None where there is none."""
        ...


def open_backend(
    reward: str,
    path: str | None,
    device: str | None,
    dtype: str,
    endpoint: EndpointOptions,
    *,
    length: int = 1,
) -> Backend:
    """The local model at ``path``, or one behind an endpoint (its ``url`` is empty where none is given), replying with
    at most ``length`` tokens.

    Raises `UserError` unless exactly one is given.
    """
    if (path is None) == (not endpoint.url):
        raise UserError(f"{reward}: give either path (a local model) or url and model (an endpoint)")
    if path is not None:
        return LocalVlm(path, reward, device=device, dtype=dtype, length=length)
    if not endpoint.model:
        raise UserError(f"{reward}: url needs model, the name that the server gives the model")
    return RemoteVlm(endpoint, length=length)


class LocalVlm:
    """Any image-text-to-text model of transformers with a chat template, from a folder or the hub; safetensors only.

    Preprocessing is the processor's own, from uint8 images, with Pillow's resize where transformers offers it: Qwen's
    and LLaVA's own code use that, and torchvision's differs by a level in places, by many levels at the edges of noise.
    Batches are padded on the left, so that the answer starts at the last position of every row.
    """

    def __init__(self, path: str, reward: str, *, device: str | None, dtype: str, length: int) -> None:
        self._device, self._dtype = device_and_dtype(device, dtype)
        self.processor, self.model = _load(path, reward, self._dtype)
        self.model.to(self._device)
        self.name = f"{path}:{dtype}"
        self._reward, self._length = reward, length

    def chances(self, pixels: Tensor, questions: Sequence[str], words: Sequence[str]) -> Tensor:
        """Softmax over the whole vocabulary at the first position of the answer; a word is one token."""
        columns = [self._token(word) for word in words]
        return self._first(pixels, questions)[:, columns].exp().cpu()

    def beginnings(self, pixels: Tensor, questions: Sequence[str], spellings: Sequence[Sequence[str]]) -> Tensor:
        """From the same softmax; a spelling may be several tokens."""
        columns = [sorted({token for word in words for token in self._begin(word)}) for words in spellings]
        if [] in columns:
            unknown = list(spellings[columns.index([])])
            raise UserError(
                f"{self._reward}: the model's tokenizer knows none of the answers {unknown}; ask another one"
            )
        chances = self._first(pixels, questions).exp()
        return torch.stack([row[some].sum() for row, some in zip(chances, columns, strict=True)]).cpu()

    def replies(self, pixels: Tensor, questions: Sequence[str]) -> list[str | None]:
        """Greedy decoding."""
        inputs = self._inputs(pixels, questions)
        start = inputs["input_ids"].shape[1]
        tokens = self.model.generate(
            **inputs, max_new_tokens=self._length, do_sample=False, pad_token_id=self.processor.tokenizer.pad_token_id
        )
        return list(self.processor.tokenizer.batch_decode(tokens[:, start:], skip_special_tokens=True))

    def _inputs(self, pixels: Tensor, questions: Sequence[str]) -> Any:
        pictures = [[picture(one) for one in each] for each in as_frames(pixels)]
        seen = [{"type": "image"}] * len(pictures[0])
        contents = [[*seen, {"type": "text", "text": question}] for question in questions]
        conversations = [[{"role": "user", "content": content}] for content in contents]
        texts = self.processor.apply_chat_template(conversations, tokenize=False, add_generation_prompt=True)
        start = self.processor.tokenizer.bos_token
        begun = start is not None and texts[0].startswith(start)  # by the template: once is enough
        inputs = self.processor(
            text=texts, images=pictures, padding=True, return_tensors="pt", add_special_tokens=not begun
        )
        return inputs.to(self._device, self._dtype)

    def check(self, words: Sequence[str]) -> None:
        """A word should be one token, and a known one."""
        for word in words:
            self._token(word)

    def _first(self, pixels: Tensor, questions: Sequence[str]) -> Tensor:
        """[n, V] log-probabilities of the answer's first token."""
        logits = self.model(**self._inputs(pixels, questions), logits_to_keep=1).logits[:, -1]
        return logits.double().log_softmax(dim=-1)

    def _begin(self, word: str) -> list[int]:
        """The word's first token; none where it is unknown or nothing but space, which begins any word."""
        tokenizer = self.processor.tokenizer
        ids = tokenizer(word, add_special_tokens=False).input_ids[:1]
        return [token for token in ids if token != tokenizer.unk_token_id and tokenizer.decode([token]).strip()]

    def _token(self, word: str) -> int:
        ids = self.processor.tokenizer(word, add_special_tokens=False).input_ids
        if len(ids) != 1 or ids[0] == self.processor.tokenizer.unk_token_id:
            pieces = self.processor.tokenizer.convert_ids_to_tokens(ids)
            raise UserError(f"{self._reward}: the answer {word!r} should be one token of the model, found {pieces}")
        return ids[0]


class RemoteVlm:
    """A model behind an OpenAI-compatible endpoint; images are sent as PNG data URIs."""

    def __init__(self, options: EndpointOptions, *, length: int) -> None:
        self.name = f"{options.url}:{options.model}"
        first = {"max_tokens": 1, "logprobs": True, "top_logprobs": TOP}
        self._first = _FirstToken(replace(options, parameters={"temperature": 0, **first, **options.parameters}))
        text = {"temperature": 0, "max_tokens": length}
        self._text = Endpoint(replace(options, parameters={**text, **options.parameters}))

    def chances(self, pixels: Tensor, questions: Sequence[str], words: Sequence[str]) -> Tensor:
        """From the first token's `TOP` alternatives, spaces around them removed. A word that is not among them counts
        as 0 if another one is; where none is, nothing is known."""
        answers = self._first.complete([message(p, q) for p, q in zip(pixels, questions, strict=True)])
        rows = []
        for answer in answers:
            known = {} if answer is None else json.loads(answer)
            row = [known.get(word) for word in words]
            rows.append(
                [value or 0.0 for value in row] if any(value is not None for value in row) else [torch.nan] * len(row)
            )
        return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(words))

    def beginnings(self, pixels: Tensor, questions: Sequence[str], spellings: Sequence[Sequence[str]]) -> Tensor:
        """From the same alternatives; a spelling that is not among them counts as 0, which is a lower bound."""
        answers = self._first.complete([message(p, q) for p, q in zip(pixels, questions, strict=True)])
        rows = []
        for answer, words in zip(answers, spellings, strict=True):
            known = {} if answer is None else json.loads(answer)
            rows.append(sum(known.get(word, 0.0) for word in {w.strip() for w in words}) if known else torch.nan)
        return torch.tensor(rows, dtype=torch.float64)

    def check(self, words: Sequence[str]) -> None:
        """The server's tokens are not known before it answers."""

    def replies(self, pixels: Tensor, questions: Sequence[str]) -> list[str | None]:
        """What the model says, at temperature 0 unless the parameters say otherwise."""
        return self._text.complete([message(p, q) for p, q in zip(pixels, questions, strict=True)])


class _FirstToken(Endpoint):
    """Replies with the probabilities of the first token's alternatives, as JSON, instead of the text."""

    def _text(self, answer: Any) -> str | None:
        super()._text(answer)  # counts tokens, and refuses an answer of another shape
        try:
            alternatives = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
            pairs = [(str(one["token"]).strip(), float(one["logprob"])) for one in alternatives]
        except (KeyError, IndexError, TypeError, ValueError):
            raise UserError(
                f"endpoint {self._place()} gives no log-probabilities (logprobs, top_logprobs={TOP}); serve the model "
                "with vLLM or SGLang, which do"
            ) from None
        chances: dict[str, float] = {}
        for word, logprob in pairs:
            chances[word] = chances.get(word, 0.0) + float(torch.tensor(logprob, dtype=torch.float64).exp())
        return json.dumps(chances)


def message(pixels: Tensor, question: str) -> list[dict[str, Any]]:
    """OpenAI's conversation of one image, uint8 [3, H, W], or of frames [F, 3, H, W], and a question about it."""
    seen = [{"type": "image_url", "image_url": {"url": data_uri(one)}} for one in as_frames(pixels[None])[0]]
    return [{"role": "user", "content": [*seen, {"type": "text", "text": question}]}]


def as_frames(pixels: Tensor) -> Tensor:
    """[n, F, 3, H, W]: an image [n, 3, H, W] is a video of one frame."""
    return pixels[:, None] if pixels.ndim == 4 else pixels


def data_uri(pixels: Tensor) -> str:
    """An image, uint8 [3, H, W], as a PNG within a URI: nothing is lost."""
    file = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy()).save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _load(path: str, reward: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Processor and model for inference, every weight found. Raises `UserError` for what cannot be used."""
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

    source = folder_or_repository(path, reward)
    require_safetensors(source, reward)
    processor: Any = from_hub(lambda: AutoProcessor.from_pretrained(source), path, reward)
    processor.image_processor = from_hub(
        lambda: AutoImageProcessor.from_pretrained(source, backend="pil"), path, reward
    )
    model = load_whole(AutoModelForImageTextToText, source, path, reward, dtype)
    if not getattr(processor, "chat_template", None):
        raise UserError(f"{reward}: {path} has no chat template (chat_template.jinja), so it cannot be asked")
    processor.tokenizer.padding_side = "left"
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return processor, model
