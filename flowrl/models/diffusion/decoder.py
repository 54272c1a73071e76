"""Images of clean latents, by the pipeline's own code, of which the autoencoder alone costs more for more images."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from flowrl.errors import UserError
from flowrl.models.diffusion.denoiser_spec import DenoiserSpec
from flowrl.models.diffusion.recorder import Recorder, form_of, patched, prediction_of


class ImageDecoder:
    """``decoder(final)`` [N, ...] -> images [N, 3, H, W] (videos [N, F, 3, H, W]) in [0, 1], float32 on the host.

    What pipelines do after their last step (unpack, scale, decode, bring to [0, 1]) reads the latents alone, so they
    are run for one prompt, whose last step gives the latents of many images: of all N on the CPU, of ``rows`` on a
    device that should not hold more of them. The autoencoder inside gets ``rows`` images at a time in any case, as it
    would in runs of ``rows`` prompts, so that the images are the same bit for bit. A few pipelines keep something per
    prompt until then (FLUX.2 its latents' positions, Kandinsky 5 its sizes): they are run for ``rows`` prompts.
    """

    def __init__(self, recorder: Recorder, spec: DenoiserSpec, rows: int) -> None:
        self._recorder = recorder
        self._spec = spec
        self.rows = rows
        """Images that the autoencoder decodes at once."""
        self._one_prompt = autoencoder_of(recorder) is not None
        """Whether one prompt's run decodes the latents of many; until it fails, yes."""

    @torch.no_grad()
    def __call__(self, final: Tensor) -> Tensor:
        """Raises `UserError` for a pipeline that gives no tensors."""
        if not len(final):
            raise ValueError("there are no latents to decode")
        images: Tensor | None = None
        most, done = len(final) if final.device.type == "cpu" else self.rows, 0
        for part in final.to(self._spec.latent_dtype).split(most):
            media = self._media(part).float().clamp(0, 1)
            if images is None:
                images = torch.empty(len(final), *media.shape[1:])
            images[done : done + len(part)] = media
            done += len(part)
        assert images is not None
        return images

    @torch.enable_grad()
    def with_gradient(self, final: Tensor) -> Tensor:
        """The same images on the latents' device, with a gradient to the latents."""
        if not len(final):
            raise ValueError("there are no latents to decode")
        return self._media(final.to(self._spec.latent_dtype), graph=True).float().clamp(0, 1)

    def _media(self, final: Tensor, graph: bool = False) -> Tensor:
        """[N, ...] as the pipeline returns them."""
        final = self._spec.as_sample(final)
        media = self._together(final, graph) if self._one_prompt else None
        if media is None:
            parts = final.split(self.rows)
            media = torch.cat([self._recorder.finish(part, self._spec.blank, len(part), graph) for part in parts])
        return media

    def _together(self, final: Tensor, graph: bool) -> Tensor | None:
        """All images by a run for one prompt; ``None`` where this pipeline cannot be run so."""
        try:
            with self._in_portions(len(final)):
                media = self._recorder.finish(final, self._spec.blank, 1, graph)
        except UserError:
            if len(final) == 1:
                raise
            media = None
        self._one_prompt = media is not None and len(media) == len(final)
        return media if self._one_prompt else None

    def _in_portions(self, count: int) -> AbstractContextManager[None]:
        """Within it the autoencoder takes the latents of ``count`` images ``rows`` images at a time."""
        autoencoder = autoencoder_of(self._recorder)
        if autoencoder is None or count <= self.rows:
            return nullcontext()

        def decode(real: Callable[..., Any], latents: Tensor, *args: Any, **kwargs: Any) -> Any:
            frames = max(1, len(latents) // count)  # where each frame of a video is a row
            made = [real(part, *args, **kwargs) for part in latents.split(self.rows * frames)]
            return form_of(made[0])(torch.cat([prediction_of(part) for part in made]))

        return patched(autoencoder, "decode", decode)


def autoencoder_of(recorder: Recorder) -> nn.Module | None:
    """The pipeline's network that decodes; ``None`` without one, or with several."""
    parts = [part for part in recorder.pipeline.components.values() if isinstance(part, nn.Module)]
    found = [part for part in parts if callable(getattr(part, "decode", None))]
    return found[0] if len(found) == 1 else None
