"""What the text worlds share: character tokenizers, tiny language models, their pre-training and plain decoding."""

from pathlib import Path


def base_models(world: Path) -> dict[str, Path]:
    """The Hugging Face folders of a world's shipped base models by family: `masked`, `causal`."""
    return {folder.name: folder for folder in sorted((world / "base").glob("*")) if folder.is_dir()}
