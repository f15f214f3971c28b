# ruff: noqa: E501 (a table with one line an architecture)
"""Tiny randomly initialised models of the transformers library, by architecture."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

BATCH, STEPS, VOCABULARY = 2, 6, 31
TEXT = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "intermediate_size": 24}
DECODER = {
    **TEXT,
    **HEADS,
    "num_key_value_heads": 1,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
}
ENCODER = {**TEXT, **HEADS, "max_position_embeddings": 16}
IMAGE = {
    "image_size": 16,
    "patch_size": 8,
    "num_channels": 3,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    **HEADS,
}


def tokens(**more: Tensor) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"input_ids": torch.randint(3, VOCABULARY, (BATCH, STEPS), generator=generator), **more}


def pairs() -> dict[str, Tensor]:
    return {**tokens(), "decoder_input_ids": tokens()["input_ids"].flip(1)}


def images(size: int = 16) -> dict[str, Tensor]:
    return {
        "pixel_values": torch.randn(
            BATCH, 3, size, size, generator=torch.Generator().manual_seed(0)
        )
    }


def sound(steps: int = 800) -> dict[str, Tensor]:
    return {"input_values": torch.randn(BATCH, steps, generator=torch.Generator().manual_seed(0))}


def spectra() -> dict[str, Tensor]:
    features = torch.randn(BATCH, 8, 24, generator=torch.Generator().manual_seed(0))
    return {"input_features": features, "decoder_input_ids": tokens()["input_ids"]}


Architecture = tuple[str, str, dict[str, Any], Callable[[], dict[str, Tensor]]]
WAVE = {
    "hidden_size": 16, "num_hidden_layers": 2, **HEADS, "vocab_size": VOCABULARY, "conv_dim": (8, 8),
    "conv_stride": (5, 4), "conv_kernel": (10, 3), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
SEQ2SEQ = {
    "vocab_size": VOCABULARY, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24, "max_position_embeddings": 16,
}  # fmt: skip
EXPERTS = {**DECODER, "num_experts_per_tok": 2, "num_local_experts": 4, "moe_intermediate_size": 8}

ARCHITECTURES: dict[str, Architecture] = {
    # encoders
    "BERT": ("BertConfig", "BertForMaskedLM", ENCODER, tokens),
    "BERT, classifier": ("BertConfig", "BertForSequenceClassification", ENCODER, tokens),
    "RoBERTa": ("RobertaConfig", "RobertaForMaskedLM", ENCODER, tokens),
    "DistilBERT": ("DistilBertConfig", "DistilBertForMaskedLM", {"vocab_size": VOCABULARY, "dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 16}, tokens),
    "ELECTRA": ("ElectraConfig", "ElectraForMaskedLM", {**ENCODER, "embedding_size": 12}, tokens),
    "ALBERT": ("AlbertConfig", "AlbertForMaskedLM", {**ENCODER, "embedding_size": 12}, tokens),
    "DeBERTa v2": ("DebertaV2Config", "DebertaV2ForMaskedLM", ENCODER, tokens),
    "ModernBERT": ("ModernBertConfig", "ModernBertForMaskedLM", {**ENCODER, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}, tokens),
    "FNet": ("FNetConfig", "FNetForMaskedLM", {**TEXT, "intermediate_size": 24, "max_position_embeddings": 16, "use_tpu_fourier_optimizations": False, "tpu_short_seq_length": STEPS}, tokens),
    # decoders
    "GPT-2": ("GPT2Config", "GPT2LMHeadModel", {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}, tokens),
    "GPT-NeoX": ("GPTNeoXConfig", "GPTNeoXForCausalLM", ENCODER, tokens),
    "GPT-Neo": ("GPTNeoConfig", "GPTNeoForCausalLM", {"vocab_size": VOCABULARY, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 24, "max_position_embeddings": 16, "attention_types": [[["global", "local"], 1]]}, tokens),
    "OPT": ("OPTConfig", "OPTForCausalLM", {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 24, "max_position_embeddings": 16, "word_embed_proj_dim": 16}, tokens),
    "BLOOM": ("BloomConfig", "BloomForCausalLM", {"vocab_size": VOCABULARY, "hidden_size": 16, "n_layer": 2, "n_head": 2}, tokens),
    "Llama": ("LlamaConfig", "LlamaForCausalLM", DECODER, tokens),
    "Mistral": ("MistralConfig", "MistralForCausalLM", DECODER, tokens),
    "Gemma": ("GemmaConfig", "GemmaForCausalLM", {**DECODER, "head_dim": 8}, tokens),
    "Qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {**DECODER, "head_dim": 8}, tokens),
    "Phi-3": ("Phi3Config", "Phi3ForCausalLM", {**DECODER, "bos_token_id": 1, "eos_token_id": 2}, tokens),
    "Falcon": ("FalconConfig", "FalconForCausalLM", {**TEXT, "num_attention_heads": 2}, tokens),
    # mixtures of experts
    "Mixtral": ("MixtralConfig", "MixtralForCausalLM", EXPERTS, tokens),
    "Qwen3 MoE": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", {**EXPERTS, "num_experts": 4, "head_dim": 8}, tokens),
    "OLMoE": ("OlmoeConfig", "OlmoeForCausalLM", {**EXPERTS, "num_experts": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}, tokens),
    # state spaces
    "Mamba": ("MambaConfig", "MambaForCausalLM", {**TEXT, "state_size": 4, "expand": 2, "time_step_rank": 4, "use_mambapy": False}, tokens),
    "Mamba-2": ("Mamba2Config", "Mamba2ForCausalLM", {**TEXT, "state_size": 4, "expand": 2, "num_heads": 4, "head_dim": 8, "n_groups": 1, "chunk_size": 4}, tokens),
    "RecurrentGemma": ("RecurrentGemmaConfig", "RecurrentGemmaForCausalLM", {**TEXT, **HEADS, "lru_width": 16, "attention_window_size": 8, "num_hidden_layers": 3, "num_key_value_heads": 1, "head_dim": 8}, tokens),
    # encoder and decoder
    "T5": ("T5Config", "T5ForConditionalGeneration", {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}, pairs),
    "BART": ("BartConfig", "BartForConditionalGeneration", SEQ2SEQ, pairs),
    "Marian": ("MarianConfig", "MarianMTModel", {**SEQ2SEQ, "pad_token_id": 0, "decoder_start_token_id": 0}, pairs),
    "Pegasus": ("PegasusConfig", "PegasusForConditionalGeneration", SEQ2SEQ, pairs),
    # vision
    "ViT": ("ViTConfig", "ViTForImageClassification", IMAGE, images),
    "DeiT": ("DeiTConfig", "DeiTForImageClassification", IMAGE, images),
    "BEiT": ("BeitConfig", "BeitForImageClassification", IMAGE, images),
    "DINOv2": ("Dinov2Config", "Dinov2ForImageClassification", IMAGE, images),
    "Swin": ("SwinConfig", "SwinForImageClassification", {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2}, images),
    "ConvNeXt": ("ConvNextConfig", "ConvNextForImageClassification", {"hidden_sizes": [8, 12], "depths": [1, 1], "num_stages": 2}, lambda: images(32)),
    "ResNet": ("ResNetConfig", "ResNetForImageClassification", {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic"}, lambda: images(32)),
    # sound
    "wav2vec 2": ("Wav2Vec2Config", "Wav2Vec2ForCTC", WAVE, sound),
    "HuBERT": ("HubertConfig", "HubertForCTC", WAVE, sound),
    "Whisper": ("WhisperConfig", "WhisperForConditionalGeneration", {**SEQ2SEQ, "num_mel_bins": 8, "max_source_positions": 12, "max_target_positions": 16, "decoder_start_token_id": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "suppress_tokens": None, "begin_suppress_tokens": None}, spectra),
    "Audio Spectrogram Transformer": ("ASTConfig", "ASTForAudioClassification", {**TEXT, **HEADS, "patch_size": 4, "frequency_stride": 4, "time_stride": 4, "max_length": 16, "num_mel_bins": 8}, lambda: {"input_values": torch.randn(BATCH, 16, 8, generator=torch.Generator().manual_seed(0))}),
}  # fmt: skip


def build(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A model and a batch; the weights are drawn from a fixed seed."""
    import transformers  # noqa: PLC0415

    config, model, settings, batch = ARCHITECTURES[name]
    torch.manual_seed(0)
    settings = dict(settings)
    if hasattr(getattr(transformers, config)(), "pad_token_id") and "pad_token_id" not in settings:
        settings["pad_token_id"] = 0
    if "Vi" in model or "Image" in model:
        settings.pop("pad_token_id", None)
    network = getattr(transformers, model)(getattr(transformers, config)(**settings))
    with torch.no_grad():
        for parameter in network.parameters():  # a token of zeros has no derivative to speak of
            parameter.add_(torch.randn(parameter.shape), alpha=0.05)
    return network, batch()
