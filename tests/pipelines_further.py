"""More tiny random pipelines: rarer architectures, each with some habit of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import transformers

from tests.components import (
    clip_text,
    clip_tokenizer,
    flow_vae,
    gemma2,
    image_vae,
    qwen_text,
    t5_text,
    wan_vae,
    word_tokenizer,
)

SMALL = {"height": 16, "width": 16}


def flow(**options: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**options)


def causal(kind: str, **options: Any) -> Any:
    """A small decoder-only language model."""
    config = getattr(transformers, f"{kind.removesuffix('ForCausalLM').removesuffix('Model')}Config")(
        vocab_size=100, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16, pad_token_id=0, eos_token_id=1, bos_token_id=1, **options,
    )  # fmt: skip
    return getattr(transformers, kind)(config)


CHAT = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def auraflow() -> Any:
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=32, caption_projection_dim=32, pos_embed_max_size=64,
    )  # fmt: skip
    return diffusers.AuraFlowPipeline(
        tokenizer=word_tokenizer(), text_encoder=t5_text(kind="UMT5"), vae=image_vae(), transformer=transformer,
        scheduler=flow(shift=1.73),
    )  # fmt: skip


def cogview4() -> Any:
    transformer = diffusers.CogView4Transformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=4, num_attention_heads=4,
        text_embed_dim=32, time_embed_dim=8, condition_dim=4, rope_axes_dim=(16, 16), sample_size=8,
    )  # fmt: skip
    return diffusers.CogView4Pipeline(
        tokenizer=word_tokenizer(side="left"), text_encoder=causal("GlmModel"), vae=image_vae(),
        transformer=transformer, scheduler=flow(use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75),
    )  # fmt: skip


def cogview3() -> Any:
    transformer = diffusers.CogView3PlusTransformer2DModel(
        patch_size=2, in_channels=4, num_layers=1, attention_head_dim=4, num_attention_heads=2, out_channels=4,
        text_embed_dim=32, time_embed_dim=8, condition_dim=2, pos_embed_max_size=8, sample_size=8,
    )  # fmt: skip
    return diffusers.CogView3PlusPipeline(
        tokenizer=word_tokenizer(), text_encoder=t5_text(), vae=image_vae(), transformer=transformer,
        scheduler=diffusers.CogVideoXDDIMScheduler(
            prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=4.0,
            timestep_spacing="trailing",
        ),
    )  # fmt: skip


def hunyuan_dit() -> Any:
    transformer = diffusers.HunyuanDiT2DModel(
        sample_size=16, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3, in_channels=4,
        cross_attention_dim=32, cross_attention_dim_t5=32, pooled_projection_dim=16, hidden_size=24,
        activation_fn="gelu-approximate",
    )  # fmt: skip
    bert = transformers.BertModel(transformers.BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=37
    ))  # fmt: skip
    return diffusers.HunyuanDiTPipeline(
        vae=image_vae(), text_encoder=bert, tokenizer=word_tokenizer(), transformer=transformer,
        scheduler=diffusers.DDPMScheduler(
            beta_start=0.00085, beta_end=0.02, beta_schedule="scaled_linear", prediction_type="v_prediction",
            steps_offset=1,
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False, text_encoder_2=t5_text(),
        tokenizer_2=word_tokenizer(),
    )  # fmt: skip


def hidream() -> Any:
    transformer = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8,
        num_attention_heads=4, caption_channels=[32, 32], text_emb_dim=64, axes_dims_rope=(4, 2, 2),
        max_resolution=(32, 32), llama_layers=(0, 1), force_inference_output=True,
    )  # fmt: skip
    return diffusers.HiDreamImagePipeline(
        scheduler=flow(), vae=flow_vae(4), text_encoder=clip_text(projection=True), tokenizer=clip_tokenizer(),
        text_encoder_2=clip_text(projection=True), tokenizer_2=clip_tokenizer(), text_encoder_3=t5_text(),
        tokenizer_3=word_tokenizer(), text_encoder_4=causal("LlamaForCausalLM"), tokenizer_4=word_tokenizer(),
        transformer=transformer,
    )  # fmt: skip


def flux2_klein() -> Any:
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=96, timestep_guidance_channels=32, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8), layers_per_block=1, latent_channels=4, norm_num_groups=1, sample_size=32,
    )  # fmt: skip
    return diffusers.Flux2KleinPipeline(
        scheduler=flow(use_dynamic_shifting=True), vae=vae, text_encoder=causal("Qwen3ForCausalLM"),
        tokenizer=word_tokenizer(chat=CHAT), transformer=transformer,
    )  # fmt: skip


def z_image() -> Any:
    transformer = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2,
        n_kv_heads=2, cap_feat_dim=32, axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
    )  # fmt: skip
    return diffusers.ZImagePipeline(
        scheduler=flow(shift=3.0), vae=flow_vae(4), text_encoder=causal("Qwen3Model"),
        tokenizer=word_tokenizer(chat=CHAT), transformer=transformer,
    )  # fmt: skip


def kandinsky3() -> Any:
    unet = diffusers.Kandinsky3UNet(
        in_channels=4, time_embedding_dim=4, groups=2, attention_head_dim=4, layers_per_block=3,
        block_out_channels=(32, 64), cross_attention_dim=4, encoder_hid_dim=32,
    )  # fmt: skip
    movq = diffusers.VQModel(
        block_out_channels=(32, 64), in_channels=3, latent_channels=4, layers_per_block=1, norm_num_groups=8,
        norm_type="spatial", num_vq_embeddings=12, out_channels=3, vq_embed_dim=4,
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    )  # fmt: skip
    return diffusers.Kandinsky3Pipeline(
        tokenizer=word_tokenizer(), text_encoder=t5_text(), unet=unet, scheduler=diffusers.DDPMScheduler(), movq=movq
    )


def kandinsky5() -> Any:
    transformer = diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=4, in_text_dim=32, in_text_dim2=32, time_dim=16, out_visual_dim=4, patch_size=(1, 2, 2),
        model_dim=16, ff_dim=32, num_text_blocks=1, num_visual_blocks=2, axes_dims=(1, 1, 2), visual_cond=False,
    )  # fmt: skip
    return diffusers.Kandinsky5T2IPipeline(
        transformer=transformer, vae=flow_vae(4), text_encoder=qwen_text(), tokenizer=word_tokenizer(),
        text_encoder_2=clip_text(), tokenizer_2=clip_tokenizer(), scheduler=flow(shift=3.0),
    )  # fmt: skip


def ovis() -> Any:
    transformer = diffusers.OvisImageTransformer2DModel(
        in_channels=16, out_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    return diffusers.OvisImagePipeline(
        scheduler=flow(use_dynamic_shifting=True), vae=flow_vae(4), text_encoder=causal("Qwen3Model"),
        tokenizer=word_tokenizer(chat=CHAT), transformer=transformer,
    )  # fmt: skip


def bria() -> Any:
    transformer = diffusers.BriaTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=None, axes_dims_rope=[0, 4, 4],
    )  # fmt: skip
    return diffusers.BriaPipeline(
        transformer=transformer, scheduler=flow(), vae=image_vae(shift_factor=0.0, scaling_factor=0.13),
        text_encoder=t5_text(), tokenizer=word_tokenizer(),
    )  # fmt: skip


def lumina() -> Any:
    transformer = diffusers.LuminaNextDiT2DModel(
        sample_size=4, patch_size=2, in_channels=4, hidden_size=32, num_layers=2, num_attention_heads=2, num_kv_heads=1,
        multiple_of=16, learn_sigma=True, cross_attention_dim=32,
    )  # fmt: skip
    gemma = transformers.GemmaModel(transformers.GemmaConfig(
        vocab_size=100, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, pad_token_id=0, eos_token_id=1, bos_token_id=1,
    ))  # fmt: skip
    return diffusers.LuminaPipeline(
        transformer=transformer, scheduler=flow(), vae=image_vae(), text_encoder=gemma, tokenizer=word_tokenizer()
    )


def pixart_alpha() -> Any:
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=128, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3, caption_channels=32,
        in_channels=4, cross_attention_dim=24, out_channels=8, use_additional_conditions=True,
    )  # fmt: skip
    return diffusers.PixArtAlphaPipeline(
        tokenizer=word_tokenizer(), text_encoder=t5_text(), vae=image_vae(), transformer=transformer,
        scheduler=diffusers.DPMSolverMultistepScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02),
    )  # fmt: skip


def ltx() -> Any:
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=4, attention_head_dim=8, cross_attention_dim=32,
        num_layers=1, caption_channels=32,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False), decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1, patch_size_t=1,
    )  # fmt: skip
    return diffusers.LTXPipeline(
        scheduler=flow(use_dynamic_shifting=True), vae=vae, text_encoder=t5_text(), tokenizer=word_tokenizer(),
        transformer=transformer,
    )  # fmt: skip


def mochi() -> Any:
    transformer = diffusers.MochiTransformer3DModel(
        patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=2, pooled_projection_dim=16,
        in_channels=12, text_embed_dim=32, time_embed_dim=4, max_sequence_length=16,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLMochi(
        latent_channels=12, encoder_block_out_channels=(32, 32, 32, 32), decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    )  # fmt: skip
    return diffusers.MochiPipeline(
        scheduler=flow(invert_sigmas=True),
        vae=vae,
        text_encoder=t5_text(),
        tokenizer=word_tokenizer(),
        transformer=transformer,
    )


def cogvideox() -> Any:
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=2, text_embed_dim=32,
        num_layers=1, sample_width=2, sample_height=2, sample_frames=9, max_text_seq_length=16,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
    )  # fmt: skip
    return diffusers.CogVideoXPipeline(
        tokenizer=word_tokenizer(), text_encoder=t5_text(), vae=vae, transformer=transformer,
        scheduler=diffusers.CogVideoXDPMScheduler(
            prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=3.0,
            timestep_spacing="trailing",
        ),
    )  # fmt: skip


def latte() -> Any:
    transformer = diffusers.LatteTransformer3DModel(
        sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=3, caption_channels=32,
        in_channels=4, cross_attention_dim=24, out_channels=8, attention_bias=True, activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000, norm_type="ada_norm_single", norm_elementwise_affine=False,
        video_length=2,
    )  # fmt: skip
    return diffusers.LattePipeline(
        tokenizer=word_tokenizer(), text_encoder=t5_text(), vae=image_vae(), transformer=transformer,
        scheduler=diffusers.DDIMScheduler(beta_schedule="linear", beta_end=0.02, clip_sample=False),
    )  # fmt: skip


def skyreels2() -> Any:
    transformer = diffusers.SkyReelsV2Transformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=32,
        freq_dim=16, ffn_dim=32, num_layers=2, rope_max_seq_len=32,
    )  # fmt: skip
    return diffusers.SkyReelsV2Pipeline(
        tokenizer=word_tokenizer(), text_encoder=t5_text(kind="UMT5"), vae=wan_vae("AutoencoderKLWan"),
        transformer=transformer,
        scheduler=diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0
        ),
    )  # fmt: skip


def text_to_video() -> Any:
    unet = diffusers.UNet3DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, in_channels=4, out_channels=4, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"), up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=32, attention_head_dim=4,
    )  # fmt: skip
    return diffusers.TextToVideoSDPipeline(
        vae=image_vae(), text_encoder=clip_text(), tokenizer=clip_tokenizer(), unet=unet,
        scheduler=diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False),
    )  # fmt: skip


def prx() -> Any:
    transformer = diffusers.PRXTransformer2DModel(
        in_channels=4,
        patch_size=1,
        context_in_dim=32,
        hidden_size=8,
        mlp_ratio=2.0,
        num_heads=2,
        depth=1,
        axes_dim=[2, 2],
    )
    return diffusers.PRXPipeline(
        transformer=transformer, scheduler=flow(), text_encoder=gemma2(), tokenizer=word_tokenizer(), vae=flow_vae(4),
        default_sample_size=16,
    )  # fmt: skip


PIPELINES: dict[str, Callable[[], Any]] = {
    "auraflow": auraflow, "cogview4": cogview4, "cogview3": cogview3, "hunyuan_dit": hunyuan_dit, "hidream": hidream,
    "flux2_klein": flux2_klein, "z_image": z_image, "kandinsky3": kandinsky3, "kandinsky5": kandinsky5, "ovis": ovis,
    "bria": bria, "lumina": lumina, "pixart_alpha": pixart_alpha, "ltx": ltx, "mochi": mochi, "cogvideox": cogvideox,
    "latte": latte, "skyreels2": skyreels2, "prx": prx,
}  # fmt: skip
LENGTH = {"max_sequence_length": 16}
CALLS: dict[str, dict[str, Any]] = {
    "auraflow": {"guidance_scale": 3.5, **LENGTH, **SMALL},
    "cogview4": {"guidance_scale": 5.0, **LENGTH, **SMALL},
    "cogview3": {"guidance_scale": 5.0, **LENGTH, **SMALL},
    "hunyuan_dit": {"guidance_scale": 5.0, "use_resolution_binning": False, **SMALL},
    "hidream": {"guidance_scale": 5.0, **LENGTH, **SMALL},
    "flux2_klein": {"guidance_scale": 4.0, **LENGTH, "text_encoder_out_layers": (0, 1, 2), **SMALL},
    "z_image": {"guidance_scale": 4.0, "cfg_normalization": True, **LENGTH, **SMALL},
    "kandinsky3": {"guidance_scale": 3.0, **SMALL},
    "kandinsky5": {"guidance_scale": 3.5, **LENGTH, **SMALL},
    "ovis": {"guidance_scale": 5.0, **LENGTH, **SMALL},
    "bria": {"guidance_scale": 5.0, **LENGTH, **SMALL},
    "lumina": {"guidance_scale": 4.0, **LENGTH, **SMALL},
    "pixart_alpha": {"guidance_scale": 4.5, "use_resolution_binning": False, **LENGTH, **SMALL},
    "ltx": {"guidance_scale": 3.0, "num_frames": 9, **LENGTH, "height": 32, "width": 32},
    "mochi": {"guidance_scale": 4.5, "num_frames": 7, **LENGTH, **SMALL},
    "cogvideox": {"guidance_scale": 6.0, "num_frames": 9, **LENGTH, **SMALL},
    "latte": {"guidance_scale": 4.5, "video_length": 2, "clean_caption": False, **SMALL},
    "skyreels2": {"guidance_scale": 6.0, "num_frames": 5, **LENGTH, **SMALL},
    "prx": {"guidance_scale": 1.0, "use_resolution_binning": False, **SMALL},
}
