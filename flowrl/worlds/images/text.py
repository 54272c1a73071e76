"""A base model's text side: a tokenizer of whole words, two small CLIP encoders, and a mute T5."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

ONE = 2.0  # of the one-hot encoder: on a par with the contextual one's features
START, END = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True)
class Language:
    """What a world's captions consist of."""

    words: Sequence[str]
    context: int  # tokens of the longest caption, its start and end included
    spelled: Sequence[str] = ()  # lower-case letters of words that are read letter by letter

    @property
    def tokens(self) -> list[list[str]]:
        """What means something of its own; a spelled letter is the same one within a word and at its end."""
        return [
            *([special] for special in (START, END)),
            *([f"{word}</w>"] for word in self.words),
            *([letter, f"{letter}</w>"] for letter in self.spelled),
        ]


def build_tokenizer(language: Language) -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer whose merges make one token of every word of the world."""
    words = language.words
    letters = sorted({letter for word in [*words, *language.spelled] for letter in word})
    vocab = [START, END, *letters, *(f"{letter}</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    for word in words:
        pieces = _apply(merges, [*word[:-1], f"{word[-1]}</w>"])
        while len(pieces) > 1:  # later merges rank lower, so they cannot split the words before
            merges.append((pieces[0], pieces[1]))
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
    vocab += dict.fromkeys(left + right for left, right in merges)
    kind: Any = CLIPTokenizer  # its merges are pairs, whatever it declares
    return kind(
        vocab={token: i for i, token in enumerate(vocab)},
        merges=merges,
        model_max_length=language.context,
        unk_token=END,
        bos_token=START,
        eos_token=END,
        pad_token=END,
    )


def _apply(merges: Sequence[tuple[str, str]], pieces: list[str]) -> list[str]:
    for left, right in merges:
        i = 0
        while i + 1 < len(pieces):
            if (pieces[i], pieces[i + 1]) == (left, right):
                pieces = [*pieces[:i], left + right, *pieces[i + 2 :]]
            i += 1
    return pieces


def contextual_encoder(tokenizer: CLIPTokenizer, language: Language, width: int = 64) -> CLIPTextModelWithProjection:
    """Two layers; SD3 reads the first one's output, in which each word has seen those before it."""
    model = CLIPTextModelWithProjection(_text_config(tokenizer, language.context, width, layers=2))
    torch.nn.init.normal_(_embeddings(model).token_embedding.weight, std=0.7)
    torch.nn.init.normal_(_embeddings(model).position_embedding.weight, std=0.4)
    return model.eval()


def one_hot_encoder(tokenizer: CLIPTokenizer, language: Language) -> CLIPTextModelWithProjection:
    """One layer, so SD3 reads the embeddings themselves: word and position one-hot, nothing to disentangle."""
    meanings, context = language.tokens, language.context
    width = -(-(len(meanings) + context) // 8) * 8
    model = CLIPTextModelWithProjection(_text_config(tokenizer, context, width, layers=1))
    with torch.no_grad():
        tokens, positions = _embeddings(model).token_embedding, _embeddings(model).position_embedding
        tokens.weight.zero_()
        for i, spellings in enumerate(meanings):
            tokens.weight[tokenizer.convert_tokens_to_ids(spellings), i] = ONE
        positions.weight.zero_()
        positions.weight[range(context), range(len(meanings), len(meanings) + context)] = ONE
    return model.eval()


def _text_config(tokenizer: CLIPTokenizer, context: int, width: int, layers: int) -> CLIPTextConfig:
    ids = tokenizer.get_vocab()
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=context,
        bos_token_id=ids[START],
        eos_token_id=ids[END],
        pad_token_id=ids[END],
    )


def _embeddings(model: CLIPTextModelWithProjection) -> Any:
    return next(module for module in model.modules() if hasattr(module, "token_embedding"))


def write_slow_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """vocab.json and merges.txt beside tokenizer.json, for versions of transformers that read those."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    lines = [" ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines, ""]))


def mute_encoder(width: int) -> T5EncoderModel:
    """A T5 whose output is exactly zero, which is what SD3 uses in place of an absent one.

    `from_pretrained` insists on the component unless told otherwise; this one keeps the plain call working.
    """
    config = T5Config(vocab_size=3, d_model=width, d_kv=8, d_ff=8, num_layers=1, num_heads=1)
    model = T5EncoderModel(config)
    torch.nn.init.zeros_(model.encoder.final_layer_norm.weight)
    return model.eval().requires_grad_(False)


def mute_tokenizer() -> PreTrainedTokenizerFast:
    """Every text is the end token alone, so nothing is ever truncated to `max_sequence_length=1`."""
    raw = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    raw.normalizer = normalizers.Replace(Regex(r"[\s\S]+"), "")
    raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=1
    )
