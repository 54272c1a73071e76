"""VQAScore: how likely a vision-language model says that the image shows the prompt. Lin et al., arXiv:2404.01291."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any

from torch import Tensor

from flowrl.errors import UserError
from flowrl.scorers.endpoint import EndpointOptions
from flowrl.scorers.images import score_images
from rewards._vlm import open_backend

RANGE = "[0, 1]"
NEEDS = ("path: a vision-language model with safetensors, or url and model of an OpenAI-compatible endpoint",)
QUESTION = 'Does this figure show "{prompt}"? Please answer yes or no.'


class vqascore:  # noqa: N801 - the name a config uses
    """P("Yes") as the first token of the answer to 'Does this figure show "..."? Please answer yes or no.'.

    `path` is any image-text-to-text model of transformers with a chat template (Qwen-VL, LLaVA, Idefics, SmolVLM, ...):
    one forward pass, the softmax over the whole vocabulary. `url` and `model` name an OpenAI-compatible endpoint that
    gives log-probabilities (vLLM, SGLang): the sum over the first token's 20 alternatives that read "Yes" with or
    without spaces; an image for which neither "Yes" nor "No" is among them could not be scored. `normalised` divides by
    P("Yes") + P("No"), which takes away how much the model likes other words.

    The paper's numbers come from CLIP-FlanT5-XXL, which transformers does not run; scores of different models,
    questions or normalisations do not compare, so all are in `version`. t2v_metrics asks Qwen-VL another question (set
    `question: Does this image show "{prompt}"?`) and takes Qwen2.5-VL's chances after the repetition penalty of its
    generation configuration, which lowers every word of the question and is left out here. Preprocessing is the
    model's own with Pillow's resize, from uint8 images; to an endpoint they go as PNG. `dtype` is the network's; the
    softmax is in float64. `key_variable` names the environment variable with the endpoint's key. Raises `UserError` for
    a model that cannot be asked, or a word that is no token.
    """

    def __init__(
        self,
        path: str | None = None,
        url: str | None = None,
        model: str | None = None,
        question: str = QUESTION,
        answer: str = "Yes",
        opposite: str = "No",
        normalised: bool = False,
        device: str | None = None,
        dtype: str = "bfloat16",
        batch_size: int = 8,
        key_variable: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        timeout: float = 60.0,
        retries: int = 5,
        backoff: float = 1.0,
        concurrency: int = 8,
    ) -> None:
        if {name for _, name, _, _ in Formatter().parse(question) if name is not None} != {"prompt"}:
            raise UserError(f"vqascore: the question should contain {{prompt}} and no other field, found {question!r}")
        endpoint = EndpointOptions(
            url or "",
            model or "",
            key_variable,
            timeout,
            retries,
            backoff,
            concurrency=concurrency,
            parameters=parameters or {},
        )
        self._backend = open_backend("vqascore", path, device, dtype, endpoint)
        self._backend.check((answer, opposite))
        self._question, self._words, self._normalised = question, (answer, opposite), normalised
        self._batch_size = batch_size
        convention = "yes-no" if normalised else "vocabulary"
        self.version = f"vqascore:{self._backend.name}:{question!r}:{answer}:{convention}-2"

    def __call__(self, images: Tensor, prompts: Sequence[str], **columns: Any) -> Tensor:
        """Scores [N] in [0, 1] of images [N, 3, H, W] in [0, 1]; NaN for one that is not finite or got no answer."""

        def score(pixels: Tensor, rows: slice) -> Tensor:
            questions = [self._question.format(prompt=prompt) for prompt in prompts[rows]]
            yes, no = self._backend.chances(pixels, questions, self._words).unbind(dim=1)
            return yes / (yes + no) if self._normalised else yes

        return score_images(images, prompts, self._batch_size, score)
