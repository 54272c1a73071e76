"""Character tokenizers for the text worlds' tiny language models."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, EOS, MASK = "<pad>", "<eos>", "<mask>"


def build_tokenizer(characters: str, *, masked: bool) -> PreTrainedTokenizerFast:
    """One token per character, nothing added around the text; another character is an error. Ids: pad 0, eos 1, then
    mask 2 for a masked model, then `characters` in their order."""
    special = [PAD, EOS, MASK] if masked else [PAD, EOS]
    raw = Tokenizer(models.WordLevel({token: i for i, token in enumerate([*special, *characters])}))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    raw.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token=PAD,
        eos_token=EOS,
        mask_token=MASK if masked else None,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes it under the class name that transformers 4 and 5 both know."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
