"""Models of words: what must hold of any weights, and that they come back from a file as they were."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vit.errors import ConfigError, ModelFileError
from vit.models.architecture import VisionArchitecture
from vit.models.build import build_model, build_network, image_encoder
from vit.models.encoder_decoder import EncoderDecoder
from vit.models.file import ModelFile, read_model, save_model
from vit.models.fusion import FusedClassifier
from vit.models.text import LanguageModel, TextEncoder
from vit.models.text_architecture import EncoderDecoderArchitecture, FusionArchitecture, Side, TextArchitecture
from vit.nn import Trace, padding_mask

TEXT = TextArchitecture(vocabulary=11, length=12, dim=16, depth=2, heads=2, hidden=24)
IMAGE = VisionArchitecture((16, 24), (8, 8), dim=24, depth=2, heads=3, hidden=32, classes=0)
POSITIONS: dict[str, dict[str, Any]] = {
    "learned": {},
    "sincos": {"positions": "sincos"},
    "rope": {"positions": "none", "rope": True},
    "head of its own": {"tied": False, "qk_norm": True, "norm": "rms", "mlp": "swiglu"},
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def lively(model: Any) -> Any:
    """Weights large enough that everything matters."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.double().eval()


def words(batch: int, count: int) -> Tensor:
    return torch.randint(0, TEXT.vocabulary, (batch, count))


@pytest.mark.parametrize("changes", POSITIONS.values(), ids=POSITIONS.keys())
def test_no_word_knows_the_words_after_it(changes: dict[str, Any]) -> None:
    model, tokens = lively(LanguageModel(replace(TEXT, **changes))), words(2, 9)
    logits = model(tokens)
    assert logits.shape == (2, 9, 11)
    other = tokens.clone()
    other[:, 5:] = (other[:, 5:] + 1) % TEXT.vocabulary
    changed = model(other)
    torch.testing.assert_close(changed[:, :5], logits[:, :5], rtol=0, atol=0)
    assert not torch.allclose(changed[:, 5:], logits[:, 5:])
    assert not torch.allclose(model(tokens.flip(1)).flip(1), logits)  # places matter


@pytest.mark.parametrize("changes", POSITIONS.values(), ids=POSITIONS.keys())
def test_with_a_cache_the_logits_are_those_of_the_whole_text(changes: dict[str, Any]) -> None:
    model, tokens = lively(LanguageModel(replace(TEXT, context_dim=20, **changes))), words(2, 9)
    context = model.project(torch.randn(2, 7, 20).double())
    whole = model(tokens, context)
    cache, parts = model.new_cache(), []
    for part in tokens.split([3, 1, 1, 4], dim=1):
        parts.append(model(part, context, cache=cache))
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-12)
    assert cache[0].cross_attention.k.shape == (2, 2, 7, 8)


def test_several_texts_share_one_context_as_if_each_had_its_own() -> None:
    model, tokens = lively(LanguageModel(replace(TEXT, context_dim=16))), words(6, 5)
    context, mask = torch.randn(2, 7, 16).double(), padding_mask(torch.tensor([7, 4]), 7)
    each = model(tokens, context.repeat_interleave(3, dim=0), context_mask=mask.repeat_interleave(3, dim=0))
    cache = model.new_cache()
    shared = [model(part, context, context_mask=mask, cache=cache) for part in tokens.split([2, 3], dim=1)]
    torch.testing.assert_close(torch.cat(shared, dim=1), each, rtol=0, atol=1e-12)
    assert cache[1].cross_attention.v.shape[0] == 2


def test_a_text_that_is_too_long_is_refused_in_words() -> None:
    model = LanguageModel(TEXT)
    cache = model.new_cache()
    model(words(1, 10), cache=cache)
    for tokens, kept in ((words(1, 13), None), (words(1, 3), cache)):
        with pytest.raises(ValueError, match="a text of 13 tokens is too long: this model reads at most 12"):
            model(tokens, cache=kept)


@pytest.mark.parametrize("pool", ["first", "last", "mean"])
def test_padding_changes_nothing_of_what_an_encoder_reads(pool: Any) -> None:
    model, tokens = lively(TextEncoder(replace(TEXT, pool=pool))), words(2, 6)
    padded = torch.cat([tokens, words(2, 3)], dim=1)
    mask = padding_mask(torch.tensor([6, 6]), 9)
    torch.testing.assert_close(model(padded, mask=mask), model(tokens), rtol=0, atol=1e-12)
    first = model.encode(tokens)[:, 0]
    tokens[:, 4] = (tokens[:, 4] + 1) % TEXT.vocabulary
    assert not torch.allclose(model.encode(tokens)[:, 0], first)  # the first word reads the later ones


@pytest.mark.parametrize("encoder", [IMAGE, replace(TEXT, dim=24, heads=3)], ids=["pictures", "words"])
def test_a_decoder_writes_about_what_its_encoder_saw(encoder: Any) -> None:
    model = lively(EncoderDecoder(EncoderDecoderArchitecture(encoder, replace(TEXT, context_dim=24))))
    source = torch.randn(2, 3, 16, 24).double() if encoder is IMAGE else words(2, 8)
    tokens, trace = words(2, 5), Trace()
    logits = model(source, tokens, trace=trace)
    assert logits.shape == (2, 5, 11)
    torch.testing.assert_close(model.decoder(tokens, model.encode(source)), logits)
    assert not torch.allclose(model(source.flip(0), tokens), logits)
    (first, _) = trace.cross_attention
    assert first.rows().shape == (2, 2, 5, 7 if encoder is IMAGE else 8)
    torch.testing.assert_close(first.rows().sum(dim=-1), torch.ones(2, 2, 5).double())


def test_a_decoder_must_fit_its_encoder() -> None:
    with pytest.raises(ConfigError, match="context_dim: must be the encoder's dim 24, got 16"):
        EncoderDecoderArchitecture(IMAGE, replace(TEXT, context_dim=16))
    with pytest.raises(ConfigError, match="context_dim: must be set"):
        EncoderDecoderArchitecture(IMAGE, TEXT)


@pytest.mark.parametrize("attends", ["image", "text"])
def test_either_side_of_a_fused_classifier_may_be_missing(attends: Side) -> None:
    model = lively(FusedClassifier(FusionArchitecture(IMAGE, TEXT, classes=4, attends=attends)))
    images, tokens = torch.randn(3, 3, 16, 24).double(), words(3, 6)
    both, image_alone, text_alone = model(images, tokens), model(images, None), model(None, tokens)
    for scores in (both, image_alone, text_alone):
        assert scores.shape == (3, 4)
    assert not torch.allclose(both, image_alone)
    assert not torch.allclose(both, text_alone)
    assert not torch.allclose(model(images, tokens.flip(1)), both)
    padded = torch.cat([tokens, words(3, 2)], dim=1)
    mask = padding_mask(torch.tensor([6, 6, 6]), 8)
    torch.testing.assert_close(model(images, padded, text_mask=mask), both, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="both are missing"):
        model(None, None)


@pytest.mark.parametrize("attends", ["image", "text"])
def test_several_texts_about_one_picture_answer_as_if_each_had_its_own_copy(attends: Side) -> None:
    model = lively(FusedClassifier(FusionArchitecture(IMAGE, TEXT, classes=4, attends=attends)))
    images, tokens, owners = torch.randn(2, 3, 16, 24).double(), words(5, 6), torch.tensor([0, 0, 1, 1, 1])
    for read in (tokens, None):
        shared, copied = model(images, read, owners=owners), model(images[owners], read)
        torch.testing.assert_close(shared, copied, rtol=0, atol=1e-12)
    torch.testing.assert_close(model(None, tokens, owners=owners), model(None, tokens), rtol=0, atol=0)
    even = torch.tensor([0, 0, 1, 1])
    together, apart = model(images, tokens[:4]), model(images, tokens[:4], owners=even)
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-12)


@pytest.mark.parametrize("attends", ["image", "text"])
def test_every_parameter_learns(attends: Side) -> None:
    architecture = EncoderDecoderArchitecture(IMAGE, replace(TEXT, context_dim=24))
    models: list[tuple[nn.Module, Tensor]] = []
    captioner = lively(EncoderDecoder(architecture))
    images = torch.randn(2, 3, 16, 24).double()
    models.append((captioner, captioner(images, words(2, 12))))
    fused = lively(FusedClassifier(FusionArchitecture(IMAGE, TEXT, classes=4, attends=attends)))
    scores = fused(images, words(2, 12)) + fused(None, words(2, 12)) + fused(images, None)
    models.append((fused, scores))
    for model, output in models:
        output.square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


CASES: list[tuple[str, Any, Any]] = [
    ("language", replace(TEXT, positions="sincos", rope=True), LanguageModel),
    ("text-encoder", TEXT, TextEncoder),
    ("captioner", EncoderDecoderArchitecture(IMAGE, replace(TEXT, context_dim=24)), EncoderDecoder),
    ("translator", EncoderDecoderArchitecture(TEXT, replace(TEXT, context_dim=16)), EncoderDecoder),
    ("fused", FusionArchitecture(IMAGE, TEXT, classes=2, attends="text"), FusedClassifier),
]


@pytest.mark.parametrize(("kind", "architecture", "network"), CASES, ids=[kind for kind, *_ in CASES])
def test_a_model_comes_back_from_its_file(kind: str, architecture: Any, network: Any, tmp_path: Path) -> None:
    model = network(architecture).eval()
    classes = ["yes", "no"] if kind == "fused" else []
    preprocessing = {"size": list(IMAGE.image_size)} if kind in ("captioner", "fused") else {}
    tokenizer = '{"version": "1.0"}'
    file = ModelFile(kind, asdict(architecture), classes, preprocessing, model.state_dict(), tokenizer=tokenizer)
    save_model(file, tmp_path / "model.safetensors")
    read = read_model(tmp_path / "model.safetensors")
    assert read.tokenizer == '{"version": "1.0"}'
    again = build_model(read)
    assert type(again) is network
    assert again.architecture == model.architecture
    assert not again.training
    for parameter in again.parameters():  # a tensor in a file lies anywhere, and MKL rounds by how memory is aligned
        parameter.data = parameter.data.clone()
    inputs = {
        "language": (words(2, 5),),
        "text-encoder": (words(2, 5),),
        "captioner": (torch.randn(2, 3, 16, 24), words(2, 5)),
        "translator": (words(2, 7), words(2, 5)),
        "fused": (torch.randn(2, 3, 16, 24), words(2, 5)),
    }[kind]
    torch.testing.assert_close(again(*inputs), model(*inputs), rtol=0, atol=0)
    with pytest.raises(ModelFileError, match=r"my\.file: not a classifier of pictures but "):
        build_network(read, source="my.file")
    first = next(iter(file.raw))
    with pytest.raises(ModelFileError, match="weights and architecture do not fit"):
        build_model(replace(file, raw={first: file.raw[first]}))


def test_what_reads_the_pictures_of_a_model_of_words_is_a_classifier_without_classes() -> None:
    text = replace(TEXT, context_dim=24)
    captioner = EncoderDecoder(EncoderDecoderArchitecture(IMAGE, text))
    fused = FusedClassifier(FusionArchitecture(IMAGE, TEXT, classes=3, depth=1))
    for kind, network, encoder in (("captioner", captioner, captioner.encoder), ("fused", fused, fused.image)):
        fields, state = asdict(network.architecture), network.state_dict()
        model = ModelFile(kind, fields, ["a", "b", "c"], {}, raw=state, ema=state, tokenizer="{}")
        alone = image_encoder(model)
        assert (alone.kind, alone.classes, alone.tokenizer) == ("classifier", [], None)
        built = build_network(alone).state_dict()
        assert built.keys() == encoder.state_dict().keys()
        assert all(torch.equal(built[name], tensor) for name, tensor in encoder.state_dict().items())
        assert image_encoder(alone) is alone
    language = LanguageModel(TEXT)
    model = ModelFile("language", asdict(language.architecture), [], {}, raw=language.state_dict())
    with pytest.raises(ModelFileError, match="not a classifier"):
        image_encoder(model, "RUN")
