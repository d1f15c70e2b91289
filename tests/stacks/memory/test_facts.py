"""Models, cards, formats and versions: what is found, and how what is not known is refused."""

from __future__ import annotations

import msgspec
import pytest

from stacks.memory.cards import GIB, builtin_cards, card_of_size, card_with_memory, find_card
from stacks.memory.formats import (
    check_support,
    find_kv_format,
    find_weight_format,
    format_of_checkpoint,
    is_online,
    kv_formats,
    refine_format,
    weight_formats,
)
from stacks.memory.models import (
    Model,
    NonsenseError,
    UnknownFactError,
    builtin_models,
    check_model,
    find_model,
    simplify,
)
from stacks.memory.versions import Version, constant, parse_version


def test_every_built_in_model_adds_up() -> None:
    models = builtin_models()
    assert len(models) == 68
    for model in models.values():
        check_model(model)
        params = model.params
        parts = (params.embedding, params.lm_head, params.attention, params.mlp, params.experts, params.norms)
        assert sum(parts) + params.positions + params.other == params.text_total, model.name
        assert (params.vision is not None) == (model.encoder is not None), model.name
        assert (params.lm_head == 0) == model.tied_embeddings, model.name
        assert model.full_layers + model.windowed_layers + model.linear_layers == model.layers


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Meta-Llama-3.1-8B"),
        ("RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w4a16", "meta-llama/Meta-Llama-3.1-8B"),
        ("RedHatAI/Llama-3.3-70B-Instruct-fp8-dynamic", "meta-llama/Meta-Llama-3.1-70B"),
        ("DeepSeek-R1-Distill-Qwen-32B-GGUF:Q4_K_M", "Qwen/Qwen2.5-32B-Instruct"),
        ("Qwen/Qwen3-32B-AWQ", "Qwen/Qwen3-32B"),
        ("gaunernst/gemma-3-12b-it-int4-awq", "google/gemma-3-12b-it"),
        ("deepseek-ai/DeepSeek-V2-Lite-Chat", "deepseek-ai/DeepSeek-V2-Lite"),
        ("deepseek-ai/DeepSeek-V3", "deepseek-ai/DeepSeek-V3"),
    ],
)
def test_copies_of_a_model_are_found_by_their_names(name: str, key: str) -> None:
    assert find_model(name).params == builtin_models()[key].params


@pytest.mark.parametrize("name", ["deepseek-ai/DeepSeek-V4-Flash-0731", "nobody/nothing-9b", ""])
def test_an_unknown_model_is_refused_with_near_names(name: str) -> None:
    with pytest.raises(UnknownFactError, match="Nearest: "):
        find_model(name)


def test_aliases_lead_to_models_that_exist() -> None:
    from stacks.memory.models import _aliases

    assert len(_aliases()) > 30
    assert set(_aliases().values()) <= set(builtin_models())


def test_words_on_tuning_and_quantization_do_not_count() -> None:
    assert simplify("org/Some-Model-7B-Instruct-GPTQ-Int4") == "some-model-7b"
    assert simplify("Some_Model-7B.gguf") == "some-model-7b"


def broken(**changes: object) -> Model:
    return msgspec.structs.replace(find_model("Qwen/Qwen3-8B"), **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers": 0}, "layers is 0"),
        ({"vocab": -1}, "vocab is -1"),
        ({"kv_heads": 5}, "32 query heads do not divide over 5 KV heads"),
        ({"kv_heads": None}, "kv_heads and head_dim"),
        ({"layer_types": {"full_attention": 3}}, "do not add up to 36 layers"),
    ],
)
def test_nonsense_is_refused_by_name(changes: dict[str, object], words: str) -> None:
    with pytest.raises(NonsenseError, match=words):
        check_model(broken(**changes))


# --- cards ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("RTX-4090-24GB", "RTX-4090-24GB"),
        ("rtx 4090", "RTX-4090-24GB"),
        ("rtx4090", "RTX-4090-24GB"),
        ("4090", "RTX-4090-24GB"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090-24GB"),
        ("NVIDIA H100 80GB HBM3", "H100-SXM-80GB"),
        ("NVIDIA H100 PCIe", "H100-PCIE-80GB"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA A100 80GB PCIe", "A100-80GB"),
        ("Tesla T4", "T4-16GB"),
        ("NVIDIA L4", "L4-24GB"),
        ("L40S", "L40S-48GB"),
        ("MI300X", "MI300X-192GB"),
    ],
)
def test_cards_by_what_people_and_drivers_call_them(name: str, card: str) -> None:
    assert find_card(name).id == card


def test_an_unknown_card_is_refused_with_the_nearest_ones() -> None:
    with pytest.raises(UnknownFactError, match="Nearest: ") as refused:
        find_card("Voodoo 2")
    assert "--" not in str(refused.value), "an option of one command is no advice of the table"
    with pytest.raises(NonsenseError, match="-1 bytes"):
        card_with_memory("A10G", -1)


def test_a_measured_total_replaces_the_table_and_keeps_the_speeds() -> None:
    card = card_with_memory("A10G", round(22.3 * GIB))
    assert card.usable_gib == pytest.approx(22.3)
    assert card.bandwidth_gb_s == 600
    assert card_with_memory("my card", 8 * GIB).bandwidth_gb_s is None


def test_a_marketing_size_is_a_span_of_cards() -> None:
    sized = card_of_size("24 GB class")
    assert sized is not None
    known = [card.usable_gib for card in builtin_cards().values() if card.vram_gb == 24]
    assert (sized.low_gib, sized.high_gib) == (min(known), max(known))
    assert card_of_size("24GB") == card_of_size("24 GB")._replace(card=card_of_size("24GB").card)  # type: ignore[union-attr]
    assert card_of_size("H100") is None


def test_hardware_classes() -> None:
    classes = {name: find_card(name).hardware_class for name in ("H100", "B200", "RTX-5090-32GB", "L4", "A10G", "T4")}
    assert list(classes.values()) == ["hopper", "blackwell", "blackwell", "ada", "ampere", "turing"]
    assert find_card("V100 32 GB").hardware_class == "older"
    assert find_card("MI300X").hardware_class == "amd"


# --- formats ----------------------------------------------------------------------------------------------------


def test_spellings_lead_to_one_format_each() -> None:
    seen: dict[str, str] = {}
    for entry in weight_formats().values():
        for spelling in (entry.name, *entry.spellings):
            assert seen.setdefault(spelling, entry.name) == entry.name, spelling
            assert find_weight_format(spelling.upper()) is entry
    for kv in kv_formats().values():
        assert find_kv_format(kv.name, find_weight_format("fp16")) is kv


@pytest.mark.parametrize(
    ("name", "theory"),
    [("awq", 0.5 + 2 / 128 + 0.5 / 128), ("gptq", 0.5 + 2 / 128), ("nf4", 0.5 + 4 / 64), ("mxfp4", 0.5 + 1 / 32)],
)
def test_theory_follows_from_the_definition(name: str, theory: float) -> None:
    assert find_weight_format(name).theory == pytest.approx(theory, abs=5e-5)


def test_smaller_groups_cost_more_scales() -> None:
    awq = find_weight_format("awq")
    assert awq.bytes_at(None) == awq.bytes_at(128) == awq.bytes
    assert awq.bytes_at(32) - awq.bytes == pytest.approx(2.5 / 32 - 2.5 / 128)
    assert find_weight_format("fp8").bytes_at(32) == find_weight_format("fp8").bytes


def test_auto_kv_follows_the_weights() -> None:
    assert find_kv_format("auto", find_weight_format("awq")).bytes == 2
    assert find_kv_format("auto", find_weight_format("fp32")).bytes == 4
    with pytest.raises(UnknownFactError, match="fp8"):
        find_kv_format("fp7", find_weight_format("awq"))


@pytest.mark.parametrize(
    ("weights", "kv", "stack", "version", "words"),
    [
        ("nf4", "auto", "vllm", "0.33.0", r"0\.33\.0 has no bnb-nf4.*before 0\.28\.0"),
        ("mxfp4", "auto", "vllm", "0.9.0", r"from 0\.10\.1"),
        ("nvfp4", "auto", "tgi", None, "tgi has no nvfp4.*vllm"),
        ("awq", "q8_0", "vllm", "0.33.0", "no q8_0 KV"),
        ("fp16", "fp8", "llamacpp", None, "no fp8 KV"),
    ],
)
def test_formats_that_a_stack_does_not_have(weights: str, kv: str, stack: str, version: str | None, words: str) -> None:
    chosen = find_weight_format(weights)
    with pytest.raises(UnknownFactError, match=words):
        check_support(chosen, find_kv_format(kv, chosen), stack, parse_version(version) if version else None)


def test_formats_that_a_stack_has_pass() -> None:
    awq = find_weight_format("awq")
    check_support(awq, find_kv_format("fp8", awq), "vllm", parse_version("0.33.0"))


def test_an_unknown_format_is_refused_with_near_ones() -> None:
    with pytest.raises(UnknownFactError, match="Nearest: awq"):
        find_weight_format("awqq")


def test_checkpoints_name_their_formats() -> None:
    assert format_of_checkpoint("gptq", 4) == "gptq-int4"
    assert format_of_checkpoint("compressed-tensors", 8) == "int8"
    assert format_of_checkpoint("bitsandbytes", None) == "bnb-nf4"
    assert format_of_checkpoint("awq", 4) == "awq-int4"
    assert format_of_checkpoint("something", None) is None


def test_variants_that_an_engine_holds() -> None:
    assert refine_format(find_weight_format("int8"), "gptq-int8", scales_kept_double=False).name == "gptq-int8"
    assert refine_format(find_weight_format("nf4"), None, scales_kept_double=True).name == "bnb-nf4-double"
    assert refine_format(find_weight_format("awq"), "awq", scales_kept_double=True).name == "awq-int4"
    assert is_online("fp8 (online)")
    assert not is_online("fp8")


# --- versions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("0.19.1", (0, 19, 1)),
        ("v0.6.4.post1", (0, 6, 4)),
        ("0.14.x", (0, 14, 0)),
        ("1.4", (1, 4, 0)),
        ("0.9.1.dev287", (0, 9, 1)),
    ],
)
def test_versions_are_read(text: str, version: tuple[int, int, int]) -> None:
    assert parse_version(text) == version


def test_what_is_no_version_is_refused() -> None:
    with pytest.raises(UnknownFactError, match="latest"):
        parse_version("latest")


@pytest.mark.parametrize(
    ("version", "hardware", "value"),
    [("0.16.0", "hopper", 38.3), ("0.17.0", "hopper", 14.7), ("0.19.0", "ampere", 28.5)],
)
def test_constants_by_version_and_hardware(version: str, hardware: str, value: float) -> None:
    found = constant("vllm", "sampler_bytes_per_logit", parse_version(version), hardware)
    assert found.value == value
    assert found.source


def test_default_fraction_changed_in_0_20_2() -> None:
    fractions = [constant("vllm", "default_utilization", Version(0, 20, patch), "hopper").value for patch in (1, 2)]
    assert fractions == [0.90, 0.92]
