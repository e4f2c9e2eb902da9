"""transformers' models of words inside our block: the same outputs, in memory and from the folders it writes.

Small, with random values everywhere. transformers takes seconds to import, so it is imported when first needed.
"""

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vit.data.config import Preprocessing
from vit.data.decode import decode
from vit.data.normalise import Normalise, as_tensor
from vit.data.tokenizer import Tokenizer
from vit.data.transforms import EvaluationTransform
from vit.errors import ConfigError, ModelFileError, VitError
from vit.files import read_json
from vit.models.build import build_model, build_network
from vit.models.encoder_decoder import EncoderDecoder
from vit.models.file import ModelFile, read_model, save_model
from vit.models.generation import generate
from vit.models.generation_config import GenerationConfig
from vit.models.huggingface import from_huggingface
from vit.models.huggingface_folder import tensors_in
from vit.models.huggingface_text import DEFAULTS, Words, words_model
from vit.models.sources import load_model
from vit.models.text import LanguageModel
from vit.models.vocabulary import check_vocabulary, with_special_ids
from vit.nn import padding_mask
from vit.writers import words_of

V, LENGTH = 50, 12
GPT2 = {"vocab_size": V, "n_positions": LENGTH, "n_embd": 16, "n_layer": 2, "n_head": 2}
GPT2 |= {"bos_token_id": 49, "eos_token_id": 49}
BERT = {"vocab_size": V, "max_position_embeddings": LENGTH, "hidden_size": 16, "num_hidden_layers": 2}
BERT |= {"num_attention_heads": 2, "intermediate_size": 24}
CLIP = BERT | {"bos_token_id": 48, "eos_token_id": 49, "projection_dim": 8}
BLIP = BERT | {"bos_token_id": 48, "eos_token_id": 2, "sep_token_id": 3}
IMAGE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
IMAGE |= {"image_size": 32, "patch_size": 8}
WIDE = IMAGE | {"hidden_size": 24}

Peer = Callable[[Any], Any]
PEERS: dict[str, Peer] = {  # what makes the module; t is transformers
    "gpt2": lambda t: t.GPT2LMHeadModel(t.GPT2Config(**GPT2)),
    "gpt2 alone": lambda t: t.GPT2Model(t.GPT2Config(**GPT2)),
    "gpt2 other": lambda t: t.GPT2LMHeadModel(
        t.GPT2Config(**GPT2, n_inner=20, activation_function="gelu", layer_norm_epsilon=0.1, tie_word_embeddings=False)
    ),
    "gpt2 cross": lambda t: t.GPT2LMHeadModel(t.GPT2Config(**GPT2, add_cross_attention=True)),
    "bert": lambda t: t.BertModel(t.BertConfig(**BERT)),
    "bert masked": lambda t: t.BertForMaskedLM(t.BertConfig(**BERT, hidden_act="gelu_new")),
    "clip": lambda t: t.CLIPTextModel(t.CLIPTextConfig(**CLIP)),
    "clip projection": lambda t: t.CLIPTextModelWithProjection(t.CLIPTextConfig(**CLIP)),
    "clip old end": lambda t: t.CLIPTextModel(t.CLIPTextConfig(**{**CLIP, "eos_token_id": 2})),
    "clip whole": lambda t: t.CLIPModel(
        t.CLIPConfig(text_config=CLIP, vision_config={**IMAGE, "projection_dim": 8}, projection_dim=8)
    ),
    "vit gpt2": lambda t: captioner(t, t.ViTConfig(**IMAGE), t.GPT2Config(**GPT2)),
    "vit gpt2 bytes": lambda t: captioner(
        t, t.ViTConfig(**IMAGE), t.GPT2Config(**GPT2 | {"vocab_size": 261, "bos_token_id": 260, "eos_token_id": 260})
    ),
    "vit gpt2 wide": lambda t: captioner(t, t.ViTConfig(**WIDE), t.GPT2Config(**GPT2)),
    "deit gpt2": lambda t: captioner(t, t.DeiTConfig(**IMAGE), t.GPT2Config(**GPT2, tie_word_embeddings=False)),
    "vit bert": lambda t: captioner(t, t.ViTConfig(**IMAGE), t.BertConfig(**BERT)),
    "blip": lambda t: t.BlipForConditionalGeneration(t.BlipConfig(text_config=BLIP, vision_config=IMAGE)),
}
KINDS = {"gpt2": "language", "bert": "text-encoder", "clip": "text-encoder"}


def captioner(t: Any, encoder: Any, decoder: Any) -> Any:
    return t.VisionEncoderDecoderModel(t.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder))


def peer(name: str) -> Any:
    """A module of transformers with random values everywhere."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    module: nn.Module = PEERS[name](transformers)
    with torch.no_grad():
        for parameter in module.parameters():  # those that are tied, once
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return module.eval()


def side(name: str) -> Any:
    return "text" if name == "clip whole" else "image"


def tokens_for(name: str) -> Tensor:
    """Ids [2, 9]; a CLIP's texts end by token 49, one of them before its last token."""
    tokens = torch.randint(4, 48, (2, 9))
    if name.startswith("clip"):
        tokens[0, 5], tokens[0, 8], tokens[1, 8] = 49, 49, 49
    return tokens


def both(ours: Words, theirs: Any, name: str) -> list[tuple[Tensor, Tensor]]:
    """Our outputs beside theirs; the second text has no more than 6 tokens where there is a mask."""
    tokens, dtype = tokens_for(name), next(theirs.parameters()).dtype
    if isinstance(ours, EncoderDecoder):
        images = torch.randn(2, 3, 32, 32, dtype=dtype)
        words = "input_ids" if name == "blip" else "decoder_input_ids"
        return [(ours(images, tokens), theirs(pixel_values=images, **{words: tokens}).logits)]
    if name == "gpt2 alone":
        return [(ours.read(tokens, causal=True), theirs(tokens).last_hidden_state)]
    if isinstance(ours, LanguageModel):
        context = torch.randn(2, 5, 16, dtype=dtype) if name == "gpt2 cross" else None
        return [(ours(tokens, context), theirs(tokens, encoder_hidden_states=context).logits)]
    tower = next((getattr(theirs, part) for part in ("bert", "text_model") if hasattr(theirs, part)), theirs)
    pairs = []
    for lengths in ([9, 9], [9, 6]):
        mask = padding_mask(torch.tensor(lengths), 9)
        there = mask[:, 0, 0]
        out = tower(tokens, attention_mask=there.long())
        pairs.append((ours.encode(tokens, mask=mask)[there], out.last_hidden_state[there]))
        pooled = out.last_hidden_state[:, 0] if name.startswith("bert") else out.pooler_output
        if hasattr(theirs, "text_projection"):
            pooled = theirs.text_projection(pooled)
        whole = len(pairs) if name.startswith("clip") and lengths[1] < 9 else 2  # an end beyond the mask is none
        pairs.append((ours(tokens, mask=mask)[:whole], pooled[:whole]))
    return pairs


def assert_equal(ours: Words, theirs: Any, name: str, atol: float) -> None:
    for mine, other in both(ours, theirs, name):
        torch.testing.assert_close(mine, other, rtol=0, atol=atol)


@torch.no_grad()
@pytest.mark.parametrize("name", list(PEERS))
def test_outputs_equal_those_of_transformers(name: str) -> None:
    theirs = peer(name)
    ours = from_huggingface(theirs, side=side(name))
    assert not ours.training
    assert_equal(ours, theirs, name, 1e-5)  # type: ignore[arg-type]
    theirs = theirs.double()
    ours = from_huggingface(theirs, side=side(name))
    assert_equal(ours, theirs, name, 1e-12)  # type: ignore[arg-type]


@torch.no_grad()
@pytest.mark.parametrize("name", list(PEERS))
def test_folders_that_transformers_saved_give_the_same(name: str, tmp_path: Path) -> None:
    """Under the names that files have, of which pictures' differ from those in memory; through a file of ours."""
    theirs, folder = peer(name), tmp_path / "saved"
    theirs.save_pretrained(folder)
    source = f"hf:{folder}{'@text' if side(name) == 'text' else ''}"
    file = load_model(source)
    assert (file.kind, file.origin) == (KINDS.get(name.split()[0], "captioner"), source)
    assert (file.classes, file.tokenizer) == ([], None)
    assert (file.preprocessing == {}) == (file.kind != "captioner")
    save_model(file, tmp_path / "model.safetensors")
    assert_equal(build_model(read_model(tmp_path / "model.safetensors")), theirs, name, 1e-5)  # type: ignore[arg-type]
    theirs.double().save_pretrained(folder)
    exact = words_model(read_json(folder / "config.json"), tensors_in(folder)).eval()
    assert_equal(exact, theirs, name, 1e-12)
    with pytest.raises(ModelFileError, match=r"^its\.name: not a classifier of pictures but a"):
        build_network(file, source="its.name")


def test_of_a_clip_that_has_both_sides_that_of_pictures_is_read_unless_asked(tmp_path: Path) -> None:
    peer("clip whole").save_pretrained(tmp_path)
    assert load_model(tmp_path).kind == load_model(f"hf:{tmp_path}").kind == "classifier"
    assert load_model(f"hf:{tmp_path}@text").kind == "text-encoder"
    peer("gpt2").save_pretrained(tmp_path / "gpt2@text")  # a folder may be called so
    assert load_model(f"hf:{tmp_path / 'gpt2@text'}").kind == "language"


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "gpt2 cross", "vit gpt2 wide", "vit bert", "blip"])
def test_words_one_by_one_give_the_same_as_all_at_once(name: str) -> None:
    theirs = peer(name).double()
    ours, tokens = from_huggingface(theirs), tokens_for(name)
    images = torch.randn(2, 3, 32, 32).double()
    decoder = ours.decoder if isinstance(ours, EncoderDecoder) else ours
    assert isinstance(decoder, LanguageModel)
    context = ours.encode(images) if isinstance(ours, EncoderDecoder) else None
    if name == "gpt2 cross":
        context = torch.randn(2, 5, 16).double()
    if isinstance(ours, EncoderDecoder):
        words = "input_ids" if name == "blip" else "decoder_input_ids"
        expected = theirs(pixel_values=images, **{words: tokens}).logits
    else:
        expected = theirs(tokens, encoder_hidden_states=context).logits
    cache = decoder.new_cache()
    parts = [decoder(part, context, cache=cache) for part in tokens.split([3, 1, 1, 4], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "beams"), [("gpt2", 1), ("vit gpt2 wide", 1), ("vit gpt2 wide", 3), ("vit bert", 1), ("blip", 3)]
)
def test_it_writes_what_transformers_writes(name: str, beams: int) -> None:
    theirs = peer(name).double()
    ours, end = from_huggingface(theirs), 3
    config = GenerationConfig(max_length=7, beams=beams)
    options = {"num_beams": beams, "eos_token_id": end, "pad_token_id": 0, "max_new_tokens": 7, "do_sample": False}
    images, start = torch.randn(2, 3, 32, 32).double(), torch.full((2, 1), 48)
    if name == "gpt2":
        expected = theirs.generate(start, **options)
    elif name == "blip":  # which fixes start and end itself
        options.pop("eos_token_id"), options.pop("pad_token_id")
        expected = theirs.generate(images, **options)
    else:
        expected = theirs.generate(images, decoder_start_token_id=48, **options)
    context = ours.encode(images) if isinstance(ours, EncoderDecoder) else None
    decoder = ours.decoder if isinstance(ours, EncoderDecoder) else ours
    assert isinstance(decoder, LanguageModel)
    texts = generate(decoder, start, config, end=end, context=context)
    for [text], row in zip(texts, expected[:, 1:].tolist(), strict=True):
        assert text.tokens == (row[: row.index(end)] if end in row else row)


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "vit gpt2", "bert masked"])
def test_old_files_are_read(name: str, tmp_path: Path) -> None:
    """A pickle of tensors, with the buffers that old versions kept, and norms called gamma and beta."""
    theirs = peer(name)
    theirs.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    for key in [key for key in state if key.endswith("attn.c_attn.bias")]:
        place = key.removesuffix("c_attn.bias")
        state |= {f"{place}bias": torch.ones(1, 1, LENGTH, LENGTH).tril(), f"{place}masked_bias": torch.tensor(-1e4)}
    if name == "gpt2":  # as published first, without the name of the model in front
        state = {key.removeprefix("transformer."): tensor for key, tensor in state.items()}
    if name.startswith("bert"):
        state = {
            re.sub(
                r"LayerNorm\.(weight|bias)", lambda m: f"LayerNorm.{'gamma' if m[1] == 'weight' else 'beta'}", key
            ): t
            for key, t in state.items()
        }
        state |= {"bert.embeddings.position_ids": torch.arange(LENGTH)[None]}
        state |= {"cls.seq_relationship.weight": torch.zeros(2, 16), "cls.seq_relationship.bias": torch.zeros(2)}
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert_equal(build_model(load_model(tmp_path)), theirs, name, 1e-5)  # type: ignore[arg-type]


def test_a_pickle_of_anything_but_tensors_is_refused(tmp_path: Path) -> None:
    peer("gpt2").config.save_pretrained(tmp_path)
    torch.save({"wte.weight": Path("/")}, tmp_path / "pytorch_model.bin")
    assert "holds objects that could run code; such files are refused (pathlib." in complaint(tmp_path)
    torch.save([torch.zeros(2)], tmp_path / "pytorch_model.bin")
    assert complaint(tmp_path) == f"{tmp_path / 'pytorch_model.bin'}: no tensors by name"


UNUSED = {  # what may be missing without any loss, of all that transformers saves
    "gpt2": "",
    "bert": r"pooler\.",
    "clip whole": r"vision_model\.|visual_projection\.|logit_scale",
    "vit gpt2 wide": r"encoder\.pooler\.",
    "blip": "",
}


@pytest.mark.parametrize("name", list(UNUSED))
def test_every_tensor_is_used_or_known_to_be_of_no_use(name: str, tmp_path: Path) -> None:
    peer(name).save_pretrained(tmp_path)
    config, state = read_json(tmp_path / "config.json"), load_file(tmp_path / "model.safetensors")

    def values(state: dict[str, Tensor]) -> set[float]:
        """All that ours holds."""
        return {
            value for tensor in words_model(config, state).state_dict().values() for value in tensor.unique().tolist()
        }

    numbered = {key: torch.full_like(state[key], number) for number, key in enumerate(state)}
    there = values(numbered)
    absent = [key for number, key in enumerate(state) if number not in there]  # unused, or added to another
    unused = [key for key in absent if values({**numbered, key: numbered[key] + 1000}) == there]
    assert unused == [key for key in state if UNUSED[name] and re.match(UNUSED[name], key)]
    prefixes = {"vit gpt2 wide": ("", "encoder.", "decoder."), "blip": ("", "vision_model.", "text_decoder.")}
    for prefix in prefixes.get(name, ("",)):
        with pytest.raises((RuntimeError, ValueError), match="nobody"):
            words_model(config, {**state, f"{prefix}nobody.knows": torch.zeros(1)})


@pytest.mark.parametrize("kind", list(DEFAULTS))
def test_what_a_config_leaves_out_is_what_transformers_takes(kind: str) -> None:
    import transformers

    theirs = transformers.AutoConfig.for_model(kind).to_dict()
    assert {key: theirs[key] for key in DEFAULTS[kind]} == DEFAULTS[kind]


def test_dropout_and_training_come_along() -> None:
    theirs = peer("vit gpt2").train()
    ours = from_huggingface(theirs)
    assert ours.training
    assert isinstance(ours, EncoderDecoder)
    assert (ours.decoder.architecture.dropout, ours.decoder.architecture.attention_dropout) == (0.1, 0.1)
    assert all(parameter.requires_grad for parameter in ours.parameters())
    assert ours.decoder.token_embed.weight.data_ptr() != theirs.decoder.transformer.wte.weight.data_ptr()


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def complaint(source: object, kind: type[VitError] = ModelFileError) -> str:
    with pytest.raises(kind) as caught:
        load_model(source)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "part", "changes", "words"),
    [
        ("gpt2", None, {"scale_attn_weights": False}, "attention that is not scaled (scale_attn_weights)"),
        ("gpt2", None, {"scale_attn_by_inverse_layer_idx": True}, "scaled by the layer (scale_attn_by_inverse"),
        ("gpt2", None, {"activation_function": "relu"}, "activation 'relu' (activation_function)"),
        ("gpt2", None, {"model_type": "t5"}, "model_type 't5'; supported are vit, deit, dinov2"),
        ("bert", None, {"hidden_act": "silu"}, "activation 'silu' (hidden_act)"),
        ("bert", None, {"is_decoder": True}, "bert as a decoder of its own (is_decoder)"),
        (
            "bert",
            None,
            {"position_embedding_type": "relative_key"},
            "positions 'relative_key' (position_embedding_type)",
        ),
        ("vit gpt2", "encoder", {"model_type": "swin"}, "an encoder of model_type 'swin'; supported are vit, deit"),
        ("vit gpt2", "decoder", {"model_type": "trocr"}, "a decoder of model_type 'trocr'; supported are gpt2, bert"),
        ("vit gpt2", "decoder", {"n_head": 3}, "text.heads: must divide dim 16, got 3"),
    ],
)
def test_options_that_are_not_supported_are_named(
    name: str, part: str | None, changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    peer(name).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    change(config, **(changes if part is None else {part: json.loads(config.read_text())[part] | changes}))
    assert words in complaint(tmp_path, ConfigError)


@torch.no_grad()
def test_what_the_hub_has_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client is stood in for: weights as a pickle, a tokenizer in two files, and no preprocessing."""
    from huggingface_hub.errors import EntryNotFoundError

    theirs, asked = peer("vit gpt2 bytes"), []
    theirs.save_pretrained(tmp_path)
    byte_pairs(tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()

    def download(repository: str, name: str) -> str:
        asked.append(name)
        if repository != "somebody/captioner" or not (tmp_path / name).is_file():
            raise EntryNotFoundError(name)
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"https": "one"})
    file = load_model("hf:somebody/captioner")
    assert (file.kind, file.origin) == ("captioner", "hf:somebody/captioner")
    assert Tokenizer.from_json(file.tokenizer or "").encode(" cat") == [259]
    assert_equal(build_model(file), theirs, "vit gpt2", 1e-5)  # type: ignore[arg-type]
    assert asked.index("pytorch_model.bin") > asked.index("model.safetensors")
    assert complaint("hf:somebody/else").endswith("none of config.json in it; no other weights are read")


def test_a_side_of_words_that_is_not_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    assert "the side of words of model_type 'siglip'" in complaint(f"hf:{tmp_path}@text", ConfigError)


def test_blip_with_an_encoder_of_another_width_is_refused() -> None:
    import transformers as t

    theirs = t.BlipForConditionalGeneration(t.BlipConfig(text_config=BLIP, vision_config=WIDE))
    with pytest.raises(
        ConfigError, match=r"cross-attention from width 16 to tokens of width 24 \(encoder_hidden_size\)"
    ):
        from_huggingface(theirs)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    peer("vit gpt2").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    change(tmp_path / "config.json", decoder=config["decoder"] | {"n_layer": 3})
    assert "weights and config do not fit: blocks: expected 3, found 2" in complaint(tmp_path)
    change(tmp_path / "config.json", decoder=config["decoder"])
    state = load_file(tmp_path / "model.safetensors")
    save_file({key: t for key, t in state.items() if "wte" not in key}, tmp_path / "model.safetensors")
    assert "no tensor or entry 'token_embed.weight'" in complaint(tmp_path)
    save_file({**state, "other.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert "other.weight is of neither encoder.* nor decoder.*" in complaint(tmp_path)


def test_pictures_are_prepared_as_the_folder_says(tmp_path: Path) -> None:
    half = (0.5, 0.5, 0.5)
    for name, usual in (("vit gpt2", ("squash", "bilinear", half)), ("blip", ("squash", "bicubic", None))):
        peer(name).save_pretrained(tmp_path)
        untold = load_model(tmp_path).preprocessing
        assert (untold["size"], untold["resize"], untold["interpolation"]) == ((32, 32), *usual[:2])
        assert (untold["mean"] == half) == (usual[2] is not None)
        told = {"size": {"height": 16, "width": 16}, "resample": 3, "image_mean": [0.1, 0.2, 0.3]}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
        file = load_model(tmp_path)
        assert (file.preprocessing["size"], file.preprocessing["mean"]) == ((16, 16), (0.1, 0.2, 0.3))
        assert file.architecture["encoder"]["image_size"] == (16, 16)
        build_model(file)(torch.randn(1, 3, 16, 16), torch.ones(1, 3, dtype=torch.long))  # type: ignore[call-arg]
        (tmp_path / "preprocessor_config.json").unlink()


def byte_pairs(folder: Path) -> None:
    """A vocabulary as GPT-2's: bytes, some pairs of them, and the end of a text."""
    from tokenizers import pre_tokenizers

    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġa", "Ġc", "Ġca", "Ġcat", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\nĠ a\nĠ c\nĠc a\nĠca t\n", encoding="utf-8")


def test_gpt2s_two_files_are_its_tokenizer(tmp_path: Path) -> None:
    from transformers import GPT2TokenizerFast

    peer("vit gpt2 bytes").save_pretrained(tmp_path)
    byte_pairs(tmp_path)
    theirs = GPT2TokenizerFast(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    made, text = load_model(tmp_path).tokenizer, "two cats, a café and a cat "
    assert made is not None
    ours = Tokenizer.from_json(made)
    assert ours.encode(text) == theirs.encode(text) == Tokenizer.load(tmp_path).encode(text)
    assert ours.decode(ours.encode(text)) == text
    assert ours.start == ours.end == theirs.eos_token_id == len(ours) - 1
    theirs.save_pretrained(tmp_path)  # as one file, which is taken first
    assert (tmp_path / "tokenizer.json").is_file()
    (tmp_path / "merges.txt").write_text("", encoding="utf-8")
    whole = load_model(tmp_path).tokenizer
    assert whole is not None
    assert Tokenizer.from_json(whole).encode(text) == theirs.encode(text)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert f"{tmp_path}: no tokenizer that can be read: " in complaint(tmp_path)


@pytest.mark.parametrize(("rows", "tokens"), [(50, 50), (50, 49), (64, 50), (50_304, 50_257), (1000, 901)])
def test_a_tokenizer_may_leave_rows_of_its_embedding_unused(rows: int, tokens: int, tmp_path: Path) -> None:
    """GPT-2's 50,257 are often padded to 50,304; what no token stands for is never written."""
    file = language_file(rows, tokens, tmp_path)
    check_vocabulary(file, "x")
    text = with_special_ids(file.tokenizer or "", tmp_path, {"model_type": "gpt2", "eos_token_id": 3}, rows)
    assert Tokenizer.from_json(text).never == tuple(range(tokens, rows))


@pytest.mark.parametrize(("rows", "tokens"), [(50_257, 1), (50, 51), (50_257, 30_522), (50, 20), (2000, 1799)])
def test_a_tokenizer_of_another_model_is_refused_at_load(rows: int, tokens: int, tmp_path: Path) -> None:
    said = f"a tokenizer of {tokens} tokens beside an embedding of {rows}; they do not belong together"
    with pytest.raises(ModelFileError, match=f"^x: {said}$"):
        check_vocabulary(language_file(rows, tokens, tmp_path), "x")


def test_a_folder_whose_tokenizer_is_another_models_is_refused(tmp_path: Path) -> None:
    for name in ("gpt2", "vit gpt2", "bert", "blip", "clip"):
        peer(name).save_pretrained(tmp_path)
        word_level(tmp_path, 8)
        assert "a tokenizer of 8 tokens beside an embedding of 50" in complaint(tmp_path)
        word_level(tmp_path)
        file = load_model(tmp_path)
        save_model(replace(file, tokenizer=language_file(60, 60, tmp_path).tokenizer), tmp_path / "own.safetensors")
        assert "a tokenizer of 60 tokens beside an embedding of 50" in complaint(tmp_path / "own.safetensors")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eos_token_id": 50}, "end of a text (eos_token_id): expected ids of 0 to 49, got 50"),
        ({"eos_token_id": [3, "4"]}, "end of a text (eos_token_id): expected ids of 0 to 49, got [3, '4']"),
        (
            {"decoder_start_token_id": -1},
            "start of a text (decoder_start_token_id, bos_token_id): expected ids of 0 to",
        ),
        ({"decoder_start_token_id": [1, 2]}, "start of a text (decoder_start_token_id, bos_token_id): expected one id"),
        ({"eos_token_id": []}, "end of a text (eos_token_id): expected ids"),
    ],
)
def test_ids_that_are_none_are_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    peer("vit gpt2").save_pretrained(tmp_path)
    word_level(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps(changes))
    assert words in complaint(tmp_path)


def test_settings_of_generate_without_a_counterpart_are_said_to_be_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    peer("vit gpt2").save_pretrained(tmp_path)
    word_level(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"forced_bos_token_id": 4, "eos_token_id": 3}))
    load_model(tmp_path)
    (said,) = {record.getMessage() for record in caplog.records if str(tmp_path) in record.getMessage()}
    assert said.endswith(f"{tmp_path}: forced_bos_token_id is not supported and has no effect")


def test_an_end_that_is_text_is_part_of_the_text(tmp_path: Path) -> None:
    word_level(tmp_path)
    text = with_special_ids(
        (tmp_path / "tokenizer.json").read_text(), tmp_path, {"model_type": "gpt2", "eos_token_id": [6, 9]}, V
    )
    tokenizer = Tokenizer.from_json(text)
    assert (tokenizer.closing(9), tokenizer.closing(6), tokenizer.closing(None)) == ([9], [], [])
    assert (tokenizer.start, tokenizer.end, tokenizer.ends) == (5, 6, (6, 9))


def language_file(rows: int, tokens: int, folder: Path) -> ModelFile:
    word_level(folder, tokens)
    text = (folder / "tokenizer.json").read_text()
    return ModelFile("language", {"vocabulary": rows}, [], {}, {}, tokenizer=text)


def test_two_files_that_are_not_gpt2s_are_no_tokenizer(tmp_path: Path) -> None:
    peer("clip").save_pretrained(tmp_path)
    byte_pairs(tmp_path)
    assert load_model(tmp_path).tokenizer is None


def test_blips_tokenizer_gets_the_token_that_starts_a_caption(tmp_path: Path) -> None:
    import tokenizers

    peer("blip").save_pretrained(tmp_path)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"word{number}" for number in range(44))]
    model = tokenizers.models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]")
    tokenizers.Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
    made = load_model(tmp_path).tokenizer
    assert made is not None
    ours = Tokenizer.from_json(made)
    assert (ours.start, ours.end, ours.pad, len(ours)) == (BLIP["bos_token_id"], BLIP["sep_token_id"], 0, V)


def word_level(folder: Path, tokens: int = V) -> None:
    """A tokenizer whose names say other ids than the configurations below: 5 starts a text and 6 ends it."""
    import tokenizers

    names = {5: "<s>", 6: "</s>", 7: "[UNK]"}
    vocabulary = {names.get(number, f"w{number}"): number for number in range(tokens)}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]")).save(
        str(folder / "tokenizer.json")
    )


IN_CONFIG = {"decoder_start_token_id": 11, "bos_token_id": 12, "pad_token_id": 0}
IN_CONFIG |= {"eos_token_id": [12, 40, 49, *range(11, 47, 2)]}
IN_GENERATION = {"decoder_start_token_id": 21, "bos_token_id": 22, "pad_token_id": 1}
IN_GENERATION |= {"eos_token_id": [23, 49, *range(2, 50, 2)], "suppress_tokens": [40, 41, 42, 43]}


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("where", ["names", "config", "generation", "both"])
@pytest.mark.parametrize("name", ["gpt2", "vit gpt2 wide", "vit bert", "blip"])
def test_the_configurations_ids_start_and_end_a_text(name: str, where: str, beams: int, tmp_path: Path) -> None:
    """As transformers' own `generate` of the same folder writes; ids that no configuration gives follow from names."""
    import transformers as t

    theirs = peer(name)
    theirs.save_pretrained(tmp_path)
    word_level(tmp_path)
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    for part in (config, config.get("decoder", {})):
        part.update(dict.fromkeys(("bos_token_id", "eos_token_id", "decoder_start_token_id")))
    config |= IN_CONFIG if where in ("config", "both") else {}
    (tmp_path / "config.json").write_text(json.dumps(config))
    if where in ("generation", "both"):
        (tmp_path / "generation_config.json").write_text(json.dumps(IN_GENERATION))
    words: Any = words_of(load_model(tmp_path), tmp_path, device="cpu")
    given = {"names": (5, (6,)), "config": (12 if name == "gpt2" else 11, tuple(IN_CONFIG["eos_token_id"]))}  # type: ignore[arg-type]
    expected = given.get(where, (22 if name == "gpt2" else 21, tuple(IN_GENERATION["eos_token_id"])))  # type: ignore[arg-type]
    expected = (48, (3,)) if name == "blip" else expected  # which takes those of its text config alone
    assert (words.tokenizer.start, words.tokenizer.ends) == expected
    assert Tokenizer.from_json(words.tokenizer.to_json()).ends == words.tokenizer.ends
    settings, images = GenerationConfig(max_length=9, beams=beams), torch.randn(8, 3, 32, 32)
    options = {"num_beams": beams, "do_sample": False, "max_new_tokens": 9}
    module = {"gpt2": t.GPT2LMHeadModel, "blip": t.BlipForConditionalGeneration}.get(name, t.VisionEncoderDecoderModel)
    again = module.from_pretrained(tmp_path).eval()
    if where == "names":
        options |= {} if name == "blip" else {"eos_token_id": 6, "pad_token_id": 0, "bos_token_id": 5}
    if name == "gpt2":
        prompts = [f"w{number}" for number in range(20, 28)]
        rows = [again.generate(torch.tensor([words.tokenizer.encode(p)]), **options)[0, 1:].tolist() for p in prompts]
        found = words.generate(prompts, config=settings)
        assert words.generate("", config=settings)[0].prompt == (expected[0],)
    else:
        rows = [row[1:].tolist() for row in again.generate(images, **options)]
        found = words.write(words.network.encode(images), "", settings)
    for text, row in zip(found, rows, strict=True):
        end = next((place for place, token in enumerate(row) if token in expected[1]), len(row))
        assert list(text.tokens) == row[:end]
        assert text.finished == (end < len(row))
    if where != "names" and name != "blip":
        assert any(text.finished for text in found), [text.tokens for text in found]


@torch.no_grad()
def test_the_published_captioner_says_what_was_published() -> None:
    """Of nlpconnect/vit-gpt2-image-captioning and COCO's picture 39769, the logits and the caption in the tests of
    transformers. Needs VIT_TEST_WEIGHTS, a folder with both: vit-gpt2-image-captioning/ and 000000039769.jpg.
    """
    place = Path(os.environ.get("VIT_TEST_WEIGHTS", ""))
    folder, picture = place / "vit-gpt2-image-captioning", place / "000000039769.jpg"
    if not (folder.is_dir() and picture.is_file()):
        pytest.skip("VIT_TEST_WEIGHTS names no folder with vit-gpt2-image-captioning/ and 000000039769.jpg")
    file: ModelFile = load_model(f"hf:{folder}")
    network = build_model(file).double()
    assert isinstance(network, EncoderDecoder)
    assert file.tokenizer is not None
    tokenizer = Tokenizer.from_json(file.tokenizer)
    preprocessing = Preprocessing.from_json(file.preprocessing)
    pixels = as_tensor(EvaluationTransform(preprocessing)(decode(picture)))[None]
    context = network.encode(Normalise(preprocessing, torch.float64)(pixels))
    start = torch.tensor([[tokenizer.start]])
    logits = network.decoder(start, context)
    assert logits.shape == (1, 1, 50257)
    published = [-38.705807, -30.639929, -31.41903, -39.012012, -38.38696]
    published += [-34.887207, -33.290855, -35.68447, -38.508484, -36.124645]
    torch.testing.assert_close(logits[0, 0, :10], torch.tensor(published).double(), rtol=0, atol=1e-4)
    config = GenerationConfig(max_length=15, beams=4)  # the start token is the sixteenth
    [[caption]] = generate(network.decoder, start, config, end=tokenizer.end, context=context)
    assert tokenizer.decode(caption.tokens).strip() == "a cat laying on top of a couch next to another cat"
    assert caption.score == pytest.approx(-0.5956343, abs=1e-4)
