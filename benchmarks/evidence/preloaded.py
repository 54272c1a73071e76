"""What runs import, imported for all of them by the process they are forked from (`warm`)."""

import diffusers
import peft  # noqa: F401
import transformers

import benchmarks.evidence.page
import flowrl.cli
import flowrl.report.page
import flowrl.train  # noqa: F401

LOADED = (
    diffusers.StableDiffusion3Pipeline,
    diffusers.FlowMatchEulerDiscreteScheduler,
    transformers.AutoTokenizer,
    transformers.CLIPTextModelWithProjection,
    transformers.LlamaForCausalLM,
    transformers.T5EncoderModel,
)
"""Of the packages that import their parts when these are asked for."""
