"""Models that can't be calibrated are refused by name, with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from guardcore.adapters.transformers.attachment import Attachment
from guardcore.adapters.transformers.support import UnsupportedError, find_text_model
from guardcore.calibration.attention_calibration import AttentionCalibration

TEXT = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip


def sinks() -> Any:
    from transformers import GptOssConfig, GptOssForCausalLM

    return GptOssForCausalLM(GptOssConfig(**TEXT, num_local_experts=2, num_experts_per_tok=1))


def latent() -> Any:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    return DeepseekV3ForCausalLM(
        DeepseekV3Config(
            **{**TEXT, "head_dim": 4}, q_lora_rank=8, kv_lora_rank=8, qk_nope_head_dim=4, qk_rope_head_dim=4,
            v_head_dim=8, n_routed_experts=2, n_group=1, topk_group=1, num_experts_per_tok=1, moe_intermediate_size=8,
        )
    )  # fmt: skip


def chunked() -> Any:
    from transformers import Llama4ForCausalLM, Llama4TextConfig

    return Llama4ForCausalLM(
        Llama4TextConfig(
            **TEXT, intermediate_size_mlp=16, num_local_experts=1, attention_chunk_size=8, no_rope_layers=[1] * 4
        )
    )


def encoder_decoder() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    )


def linear() -> Any:
    from transformers import MambaConfig, MambaForCausalLM

    return MambaForCausalLM(MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, state_size=4))


def own_attention() -> Any:
    from transformers import CodeGenConfig, CodeGenForCausalLM

    return CodeGenForCausalLM(CodeGenConfig(vocab_size=32, n_embd=16, n_layer=1, n_head=4, rotary_dim=4))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (sinks, "attention sinks"),
        (latent, "latent"),
        (chunked, "chunked"),
        (encoder_decoder, "encoder-decoder"),
        (linear, "no layer attends through transformers' attention interface"),
        (own_attention, "no layer attends through transformers' attention interface"),
    ],
)
def test_refuses_a_model_and_says_why(build: Callable[[], Any], reason: str) -> None:
    model = build()
    before = model.config._attn_implementation
    with pytest.raises(UnsupportedError, match=reason) as caught:
        Attachment(model)
    assert type(model).__name__ in str(caught.value)
    assert model.config._attn_implementation == before


def test_refuses_what_is_no_model_of_transformers() -> None:
    from torch import nn

    with pytest.raises(UnsupportedError, match="Linear is no model of transformers"):
        Attachment(nn.Linear(2, 2))


def test_an_older_transformers_is_refused_by_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import __version__, masking_utils

    monkeypatch.setattr(masking_utils, "sdpa_mask", lambda cache_position: cache_position)
    with pytest.raises(UnsupportedError, match=__version__):
        Attachment(object())


def hybrid() -> Any:
    """Three linear layers before every one that attends."""
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

    return Qwen3NextForCausalLM(
        Qwen3NextConfig(
            **TEXT, linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8, linear_value_head_dim=8,
            num_experts=2, num_experts_per_tok=1, moe_intermediate_size=8, shared_expert_intermediate_size=8,
        )
    )  # fmt: skip


def test_a_hybrid_models_calibration_must_find_a_layer_that_attends() -> None:
    text = find_text_model(hybrid())
    assert set(text.layers) == {3}
    text.check([AttentionCalibration(layers=(0.5, 1.0)), None, AttentionCalibration(layers=(3,))])
    with pytest.raises(UnsupportedError, match=r"none of the layers \[0, 1\] can be calibrated"):
        text.check([AttentionCalibration(layers=(0.0, 0.5))])
    with pytest.raises(UnsupportedError, match="layer 2 can't be calibrated"):
        text.check([AttentionCalibration(layers=(2, 3))])


def test_layers_and_heads_that_the_model_lacks_are_named(tiny: Callable[[str], Any]) -> None:
    from bench.calibrated_batch import calibrated_batch

    model = tiny("llava")
    batch, attachment = calibrated_batch(model, requests=1), Attachment(model.model)
    wrong = {
        "below the model's 6 layers; got 6": AttentionCalibration(layers=(6,)),
        "below the model's 4 heads; got 4": AttentionCalibration(layers=(2,), heads={2: (4,)}),
    }
    try:
        for reason, calibration in wrong.items():
            with pytest.raises(ValueError, match=reason):
                attachment.session(batch.spans, batch.padding, [calibration], device=model.model.device)
    finally:
        attachment.detach()


@pytest.mark.parametrize(
    ("span", "layers", "missing"),
    [
        ("prefix", (1, 4), "self-attention"),
        ("instruction", (1, 4), "self-attention"),
        ("unsafe", (4,), "self-attention"),
        ("image", (0, 2, 3, 5), "cross-attention"),
        ("image", (0.3, 0.45), "cross-attention"),  # a band: layer 2
    ],
)
def test_every_rule_needs_a_layer_whose_keys_it_is_for(
    tiny: Callable[[str], Any], span: str, layers: tuple[Any, ...], missing: str
) -> None:
    """Llama 3.2 Vision attends to pictures in layers 1 and 4 only, and to text in the others only."""
    text = find_text_model(tiny("mllama").model)
    calibration = AttentionCalibration(rules={span: "log_gain:5"}, layers=layers)
    with pytest.raises(UnsupportedError, match=f"a rule for {span} needs a {missing} layer; none of the layers"):
        text.check([None, calibration])
    text.check([AttentionCalibration(rules={span: "log_gain:5"}, layers=(3, 4)), None])
    text.check([AttentionCalibration(rules={span: "log_gain:1"}, layers=layers)])  # changes nothing
    find_text_model(tiny("llava").model).check([calibration])


def test_finds_the_text_side_of_a_pure_language_model() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**TEXT))
    attachment = Attachment(model)
    assert model.config._attn_implementation == attachment.name
    assert (attachment.text.path, attachment.text.depth, attachment.text.heads) == ((), 4, 2)
    assert attachment.text.scale == pytest.approx(8**-0.5)
    attachment.detach()
    assert model.config._attn_implementation == "sdpa"
