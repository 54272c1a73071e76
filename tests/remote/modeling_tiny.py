"""A small bidirectional transformer behind the interfaces of LLaDA, Dream and LLaDA 2, as code that comes with a model.

LLaDA's ignores attention masks and names its layers after OLMo; Dream's predicts token i at i - 1; LLaDA 2's takes
``position_ids`` and may hide later blocks by itself. ``square_mask`` makes it as strict as LLaDA 2's released code,
which takes nothing but masks [B, 1, T, T]; with keys and values of S earlier tokens, [B, 1, T, S + T].
"""

import torch
from torch import nn
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast, MaskedLMOutput


class TinyConfig(PretrainedConfig):
    """Sizes of the network."""

    model_type = "tiny"

    vocab_size: int = 64
    hidden_size: int = 32
    num_hidden_layers: int = 2
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

    def __init__(self, width):
        super().__init__()
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
        return x + self.ff_out(nn.functional.silu(self.ff_proj(h)) * self.up_proj(h))


class TinyModel(PreTrainedModel):
    """Embeddings, blocks and an untied vocabulary layer called ``ff_out`` like those of the blocks."""

    config_class = TinyConfig
    heeds_mask = True

    def __init__(self, config):
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.wpe = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config.hidden_size) for _ in range(config.num_hidden_layers))
        self.ff_out = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

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


class DreamModel(TinyModel):
    """Dream's."""

    config_class = DreamConfig


class LLaDA2MoeModelLM(TinyModel):
    """LLaDA 2's, without its experts."""

    config_class = LLaDA2Config
