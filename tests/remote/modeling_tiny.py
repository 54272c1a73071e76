"""A small bidirectional transformer behind the interfaces of LLaDA, Dream and LLaDA 2, as code that comes with a model.

LLaDA's ignores attention masks and names its layers after OLMo; Dream's predicts token i at i - 1; LLaDA 2's takes
``position_ids`` and may hide later blocks by itself. ``square_mask`` makes it as strict as LLaDA 2's released code,
which takes nothing but masks [B, 1, T, T]; with keys and values of S earlier tokens, [B, 1, T, S + T].

Like the released files, all three were written for transformers 4 and fail under 5 unless they are helped: LLaDA never
calls ``post_init`` and ties weights without arguments; Dream takes rotary frequencies from a table entry that is gone,
keeps them in a buffer that no file holds, hands masks to the attention as they are and has a ``from_pretrained`` of its
own; LLaDA 2 imports what is gone, lists its tied weights and computes without gradients outside of training.
"""

import torch
from torch import nn
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast, MaskedLMOutput
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.utils.import_utils import is_torch_fx_available

FX = is_torch_fx_available()


class TinyConfig(PretrainedConfig):
    """Sizes of the network."""

    model_type = "tiny"

    vocab_size: int = 64
    hidden_size: int = 32
    num_hidden_layers: int = 2
    num_attention_heads: int = 1
    rope_theta: float = 10_000.0
    max_position_embeddings: int = 64
    block_causal: int = 0
    square_mask: bool = False
    tie_word_embeddings: bool = False


class LLaDAConfig(TinyConfig):
    """LLaDA's."""

    model_type = "llada"


class DreamConfig(TinyConfig):
    """Dream's."""

    model_type = "Dream"


class LLaDA2Config(TinyConfig):
    """LLaDA 2's."""

    model_type = "llada2_moe"


class Block(nn.Module):
    """Attention with one head and a gated feed-forward layer."""

    def __init__(self, width, learns):
        super().__init__()
        self.learns = learns
        self.attn_norm, self.ff_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.attn_out = nn.Linear(width, width)
        self.ff_proj, self.up_proj = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        self.ff_out = nn.Linear(2 * width, width)

    def forward(self, x, bias, cache=None, layer=0):
        """``x`` [B, T, d]; ``bias`` [B, T, S + T] is added to the attention scores."""
        h = self.attn_norm(x)
        keys, values = self.k_proj(h), self.v_proj(h)
        if cache is not None:
            keys, values = (found[:, 0] for found in cache.update(keys[:, None], values[:, None], layer))
        scores = self.q_proj(h) @ keys.transpose(1, 2) / x.shape[-1] ** 0.5 + bias
        x = x + self.attn_out(scores.softmax(-1) @ values)
        h = self.ff_norm(x)
        return x + (self.feed(h) if self.learns or self.training else self.infer(h))

    def feed(self, h):
        """The feed-forward layer."""
        return self.ff_out(nn.functional.silu(self.ff_proj(h)) * self.up_proj(h))

    @torch.no_grad()
    def infer(self, h):
        """The same, as for a mixture of experts in LLaDA 2."""
        return self.feed(h)


class TinyModel(PreTrainedModel):
    """Embeddings, blocks and an untied vocabulary layer called ``ff_out`` like those of the blocks."""

    config_class = TinyConfig
    heeds_mask = True
    learns = True
    _tied_weights_keys = ["ff_out.weight"]  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        self.build(config)
        self.post_init()

    def build(self, config):
        """Make the layers."""
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.wpe = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        blocks = (Block(config.hidden_size, self.learns) for _ in range(config.num_hidden_layers))
        self.blocks = nn.ModuleList(blocks)
        self.ff_out = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.3)

    def get_input_embeddings(self):
        """[V, d] embedding."""
        return self.wte

    def get_output_embeddings(self):
        """The vocabulary layer."""
        return self.ff_out

    def forward(
        self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, use_cache=False, **kwargs
    ):
        """Logits [B, T, V]."""
        length = input_ids.shape[1]
        place = torch.arange(length, device=input_ids.device)
        x = self.wte(input_ids) + self.wpe(place if position_ids is None else position_ids)
        if self.config.square_mask:
            return self.masked_by(attention_mask, x, past_key_values, use_cache)
        bias = x.new_zeros(len(input_ids), length, length)
        if attention_mask is not None and self.heeds_mask:
            bias = bias.masked_fill(attention_mask[:, None, :] == 0, float("-inf"))
        if self.config.block_causal:
            block = place // self.config.block_causal
            bias = bias.masked_fill(block[None, :] > block[:, None], float("-inf"))
        for layer in self.blocks:
            x = layer(x, bias)
        return MaskedLMOutput(logits=self.ff_out(x))

    def masked_by(self, bias, x, cache, use_cache):
        """Logits with a mask [B, 1, T, S + T] that is added to the attention scores."""
        cache = DynamicCache() if use_cache and cache is None else cache
        earlier = 0 if cache is None else cache.get_seq_length()
        if bias.size() != (len(x), 1, x.shape[1], earlier + x.shape[1]):
            raise ValueError(f"only block attention masks are supported, got {tuple(bias.size())}")
        for number, layer in enumerate(self.blocks):
            x = layer(x, bias[:, 0], cache, number)
        return CausalLMOutputWithPast(logits=self.ff_out(x), past_key_values=cache)


class LLaDAModelLM(TinyModel):
    """LLaDA's, which ignores attention masks."""

    config_class = LLaDAConfig
    heeds_mask = False
    _tied_weights_keys = None

    def __init__(self, config):
        PreTrainedModel.__init__(self, config)
        self.build(config)
        for layer in [self.wte, self.wpe, *(m for m in self.modules() if isinstance(m, nn.Linear))]:
            nn.init.normal_(layer.weight, std=0.3)

    def tie_weights(self):
        """Nothing is tied."""


class DreamModel(TinyModel):
    """Dream's."""

    config_class = DreamConfig

    def build(self, config):
        """With angles of every position in the embeddings."""
        super().build(config)
        frequencies, _ = ROPE_INIT_FUNCTIONS["default"](config, None)
        self.register_buffer("inv_freq", frequencies, persistent=False)
        self.original_inv_freq = self.inv_freq

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """With settings of Dream's own generation."""
        model = super().from_pretrained(*args, **kwargs)
        model.generation_config = None
        return model

    def forward(self, input_ids, attention_mask=None, **kwargs):
        """Logits [B, T, V]; the mask is the attention's own."""
        angles = torch.arange(input_ids.shape[1], device=input_ids.device)[:, None] * self.inv_freq
        x = (
            self.wte(input_ids)
            + self.wpe.weight[: input_ids.shape[1]]
            + torch.cat([angles.sin(), angles.cos()], dim=-1)
        )
        bias = x.new_zeros(len(input_ids), input_ids.shape[1], input_ids.shape[1])
        if attention_mask is not None:
            if attention_mask.dtype != torch.bool:
                raise RuntimeError("expected attn_mask dtype to be bool")
            bias = bias[:, None].masked_fill(~attention_mask, float("-inf"))[:, 0]
        for layer in self.blocks:
            x = layer(x, bias)
        return MaskedLMOutput(logits=self.ff_out(x))


class LLaDA2MoeModelLM(TinyModel):
    """LLaDA 2's, with one expert."""

    config_class = LLaDA2Config
    learns = False
