"""Writing: word for word as transformers writes, and what must hold of any text.

The models are tiny, with random weights large enough that choices vary, in fp64 so that no choice hangs on rounding.
transformers takes seconds to import, so it is imported when first needed.
"""

import itertools
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from vit.errors import ConfigError
from vit.models.beam import Generated
from vit.models.encoder_decoder import EncoderDecoder
from vit.models.generation import generate, process_logits, stream
from vit.models.generation_config import GenerationConfig
from vit.models.huggingface import from_huggingface
from vit.models.text import LanguageModel
from vit.models.text_architecture import TextArchitecture
from vit.nn import LayerCache, padding_mask

V, START, PAD = 23, 3, 1
TEXT = TextArchitecture(vocabulary=V, length=24, dim=32, depth=2, heads=4, hidden=48, context_dim=24, tied=False)
GREEDY = GenerationConfig(max_length=12)
BEAMS = GenerationConfig(max_length=12, beams=4, n_best=3)
BATCH, M = 6, 5


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@cache
def captioners(seed: int) -> tuple[Any, EncoderDecoder]:
    """transformers' ViT and GPT-2 with cross-attention, random, and ours with its weights."""
    import transformers as hf

    hf.logging.set_verbosity_error()
    torch.manual_seed(seed)
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    image = hf.ViTConfig(image_size=16, patch_size=8, **sizes)
    sizes = {"vocab_size": V, "n_positions": 24, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48}
    text = hf.GPT2Config(**sizes, add_cross_attention=True, tie_word_embeddings=False)
    config = hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(image, text, tie_word_embeddings=False)
    theirs: Any = hf.VisionEncoderDecoderModel(config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    theirs = theirs.double().eval()
    ours = from_huggingface(theirs)
    assert isinstance(ours, EncoderDecoder)
    return theirs, ours


def random_config(random: Random) -> GenerationConfig:
    """Any settings that choose without drawing."""
    beams = random.choice([1, 1, 2, 3, 4, 5])
    search: dict[str, Any] = {
        "length_penalty": random.choice([-1.0, 0.0, 0.6, 1.0, 2.0]),
        "early_stopping": random.choice([False, True, "never"]),
        "n_best": random.randint(1, beams),
    }
    max_length = random.randint(1, 14)
    return GenerationConfig(
        max_length=max_length,
        min_length=random.choice([0, 0, max_length // 2]),
        beams=beams,
        repetition_penalty=random.choice([1.0, 1.0, 1.4, 0.8]),
        no_repeat_ngram=random.choice([0, 0, 1, 2, 3]),
        **(search if beams > 1 else {}),
    )


def theirs_for(config: GenerationConfig) -> dict[str, Any]:
    """Settings as transformers calls them."""
    search = {"length_penalty": config.length_penalty, "early_stopping": config.early_stopping}
    draw = {"temperature": config.temperature, "top_k": config.top_k, "top_p": config.top_p}
    draw |= {"min_p": config.min_p or None, "do_sample": True}
    return {
        "max_new_tokens": config.max_length,
        "min_new_tokens": config.min_length,
        "num_beams": config.beams,
        "num_return_sequences": config.n_best,
        "repetition_penalty": config.repetition_penalty,
        "no_repeat_ngram_size": config.no_repeat_ngram,
        **(search if config.beams > 1 else {}),
        **(draw if config.sample else {}),
        "decoder_start_token_id": START,
        "pad_token_id": PAD,
        "return_dict_in_generate": True,
        "output_scores": True,
    }


@torch.no_grad()
def compare(number: int) -> None:
    """Eight pictures by settings of their own: the same words, scores and endings as transformers'."""
    random = Random(number)
    config = random_config(random)
    theirs, ours = captioners(number % 3)
    torch.manual_seed(number)
    images = torch.randn(8, 3, 16, 16).double()
    prompt = torch.randint(0, V, (8, random.choice([1, 1, 4])))
    prompt[:, 0] = START
    context = ours.encode(images)
    usual = [word for [text] in generate(ours.decoder, prompt, GREEDY, context=context) for word in text.tokens]
    end = random.choice([*usual, *[START] * 10])  # a word that is written, so that texts end; or the start token
    expected = theirs.generate(images, decoder_input_ids=prompt, eos_token_id=end, **theirs_for(config))
    texts = [text for best in generate(ours.decoder, prompt, config, end=end, context=context) for text in best]
    rows = expected.sequences[:, prompt.shape[1] :].tolist()
    assert [text.tokens for text in texts] == [row[: row.index(end)] if end in row else row for row in rows]
    assert [text.finished for text in texts] == [end in row for row in rows]
    if config.beams > 1:
        scores = torch.tensor([text.score for text in texts])
        torch.testing.assert_close(scores, expected.sequences_scores, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("number", range(40))
def test_texts_are_those_of_transformers(number: int) -> None:
    compare(number)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(40, 240, 20))
def test_texts_are_those_of_transformers_in_a_thousand_cases(first: int) -> None:
    for number in range(first, first + 20):
        compare(number)


DRAWS: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "top-k": {"top_k": 4},
    "top-p": {"top_p": 0.7},
    "min-p": {"min_p": 0.2},
    "all": {"temperature": 1.3, "top_k": 9, "top_p": 0.9, "min_p": 0.05, "no_repeat_ngram": 2, "min_length": 3},
    "several": {"repetition_penalty": 1.3, "top_p": 0.95, "n_best": 3},
}


@torch.no_grad()
@pytest.mark.parametrize("changes", DRAWS.values(), ids=DRAWS.keys())
def test_draws_are_those_of_transformers(changes: dict[str, Any]) -> None:
    theirs, ours = captioners(0)
    config = replace(GREEDY, sample=True, **changes)
    images, prompt = torch.randn(8, 3, 16, 16).double(), torch.full((8, 1), START)
    torch.manual_seed(7)
    rows = theirs.generate(images, decoder_input_ids=prompt, eos_token_id=2, **theirs_for(config)).sequences[:, 1:]
    texts = generate(
        ours.decoder, prompt, config, end=2, context=ours.encode(images), generator=torch.Generator().manual_seed(7)
    )
    expected = [row[: row.index(2)] if 2 in row else row for row in rows.tolist()]
    groups = [expected[i : i + config.n_best] for i in range(0, len(expected), config.n_best)]
    assert [sorted(text.tokens for text in best) for best in texts] == [sorted(group) for group in groups]
    for best in texts:
        assert [text.score for text in best] == sorted((text.score for text in best), reverse=True)


@pytest.mark.parametrize("changes", DRAWS.values(), ids=DRAWS.keys())
def test_processed_logits_are_those_of_transformers(changes: dict[str, Any]) -> None:
    import transformers as hf

    c = GenerationConfig(sample=True, **changes)
    logits, tokens = 3 * torch.randn(20, 500), torch.randint(0, 500, (20, 200))
    theirs = hf.LogitsProcessorList()
    if c.repetition_penalty != 1:
        theirs.append(hf.RepetitionPenaltyLogitsProcessor(c.repetition_penalty))
    if c.no_repeat_ngram:
        theirs.append(hf.NoRepeatNGramLogitsProcessor(c.no_repeat_ngram))
    if c.min_length:
        theirs.append(hf.MinNewTokensLengthLogitsProcessor(198, c.min_length, 2))
    theirs.append(hf.TemperatureLogitsWarper(c.temperature))
    if c.top_k:
        theirs.append(hf.TopKLogitsWarper(c.top_k))
    theirs.append(hf.TopPLogitsWarper(c.top_p))
    theirs.append(hf.MinPLogitsWarper(c.min_p))
    before = logits.clone()
    ours = process_logits(logits, tokens, c, end=2, written=2)
    assert torch.equal(logits, before)
    torch.testing.assert_close(ours, theirs(tokens, logits), rtol=0, atol=1e-6)
    if changes:
        assert not torch.equal(ours, logits)


def writer(**changes: Any) -> LanguageModel:
    """A model whose every parameter matters."""
    model = LanguageModel(replace(TEXT, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.4)
    return model.double().eval()


def pictures(model: LanguageModel) -> Tensor:
    with torch.no_grad():
        return model.project(torch.randn(BATCH, M, 24).double())


def prompts(length: int = 1) -> Tensor:
    return torch.cat([torch.full((BATCH, 1), START), torch.randint(0, V, (BATCH, length - 1))], dim=1)


def frequent(texts: list[list[Generated]]) -> int:
    """A word that about half of the texts have."""
    counts = {word: sum(word in best[0].tokens for best in texts) for word in range(V)}
    return min(counts, key=lambda word: abs(counts[word] - len(texts) / 2))


def assert_same(ours: list[list[Generated]], expected: list[list[Generated]]) -> None:
    assert [[text.tokens for text in best] for best in ours] == [[text.tokens for text in best] for best in expected]
    for one, other in zip(itertools.chain(*ours), itertools.chain(*expected), strict=True):
        assert one.finished == other.finished
        assert one.score == pytest.approx(other.score, abs=1e-5)
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


@pytest.mark.parametrize("config", [GREEDY, BEAMS], ids=["greedy", "beams"])
def test_a_text_is_what_it_would_be_alone(config: GenerationConfig) -> None:
    model, prompt = writer(), prompts(3)
    context, counts = pictures(model), torch.tensor([5, 3, 4, 5, 1, 2])
    end = frequent(generate(model, prompt, config, context=context, context_mask=padding_mask(counts, M)))
    together = generate(model, prompt, config, end=end, context=context, context_mask=padding_mask(counts, M))
    alone = [
        generate(model, prompt[i : i + 1], config, end=end, context=context[i : i + 1, :count])[0]
        for i, count in enumerate(counts.tolist())
    ]
    assert_same(together, alone)
    assert {text.finished for best in together for text in best} == {True, False}


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"positions": "none", "rope": True}, {"positions": "sincos", "tied": True}])
def test_a_text_is_what_reading_all_of_it_anew_for_each_word_gives(changes: dict[str, Any]) -> None:
    model, prompt = writer(**changes), prompts(2)
    context = pictures(model)
    texts = generate(model, prompt, GREEDY, context=context)
    tokens, chances = prompt, []
    for _ in range(GREEDY.max_length):
        ahead = model(tokens, context)[:, -1].log_softmax(dim=1).max(dim=1)
        tokens, chances = torch.cat([tokens, ahead.indices[:, None]], dim=1), [*chances, ahead.values]
    assert [best[0].tokens for best in texts] == tokens[:, 2:].tolist()
    assert torch.tensor([best[0].probabilities for best in texts]) == pytest.approx(
        torch.stack(chances, dim=1).exp(), abs=1e-5
    )
    assert [best[0].score for best in texts] == pytest.approx(torch.stack(chances).mean(dim=0).tolist(), abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("penalty", [0.0, 0.7, 2.0])
def test_wide_beams_find_the_best_of_all_texts(penalty: float) -> None:
    """Of every text of up to three words out of six there are, scored one by one."""
    model, end = writer(vocabulary=6, context_dim=None), 4
    scores: dict[tuple[int, ...], float] = {}
    for length in (1, 2, 3):
        for words in itertools.product(range(6), repeat=length):
            if end in words[:-1] or (length < 3 and words[-1] != end):
                continue
            chances = model(torch.tensor([[START, *words]])).log_softmax(dim=2)[0]
            total = sum(chances[i, word].item() for i, word in enumerate(words))
            scores[words] = total / length**penalty
    best = sorted(scores, key=lambda words: -scores[words])[:20]
    config = GenerationConfig(3, beams=200, length_penalty=penalty, early_stopping="never", n_best=20)
    [found] = generate(model, torch.tensor([[START]]), config, end=end)
    assert [(*text.tokens, end) if text.finished else (*text.tokens,) for text in found] == best
    assert [text.score for text in found] == pytest.approx([scores[words] for words in best], abs=1e-5)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Callable[[LanguageModel], tuple[list[int], list[list[LayerCache]]]]:
    """Have a model note how many texts it reads each time, and the caches it made."""

    def watch(model: LanguageModel) -> tuple[list[int], list[list[LayerCache]]]:
        rows: list[int] = []
        caches: list[list[LayerCache]] = []
        read, new_cache = model.read, model.new_cache

        def counted(tokens: Tensor, *args: Any, **options: Any) -> Tensor:
            rows.append(len(tokens))
            return read(tokens, *args, **options)

        def remembered() -> list[LayerCache]:
            caches.append(new_cache())
            return caches[-1]

        monkeypatch.setattr(model, "read", counted)
        monkeypatch.setattr(model, "new_cache", remembered)
        return rows, caches

    return watch


@pytest.mark.parametrize(
    ("config", "texts"),
    [(GREEDY, 1), (BEAMS, 4), (replace(GREEDY, sample=True, n_best=5), 5)],
    ids=["greedy", "beams", "drawn"],
)
def test_all_texts_of_a_picture_share_its_keys_and_values(config: GenerationConfig, texts: int, watched: Any) -> None:
    model = writer()
    context = pictures(model)
    rows, caches = watched(model)
    generate(model, prompts(), config, context=context)
    [cache] = caches
    for layer in cache:
        assert layer.cross_attention.k.shape == layer.cross_attention.v.shape == (BATCH, 4, M, 8)
        assert layer.cross_attention.k.untyped_storage().nbytes() == BATCH * M * 32 * 8
        assert layer.self_attention.k.shape == (BATCH * texts, 4, 12, 8)
    assert rows == [BATCH] + [BATCH * texts] * 11  # the prompt is read once for all


@pytest.mark.parametrize(
    ("config", "texts"), [(GREEDY, 1), (replace(BEAMS, early_stopping=True), 4)], ids=["greedy", "beams"]
)
def test_finished_texts_are_read_no_more(config: GenerationConfig, texts: int, watched: Any) -> None:
    """Once they are half of those that are read; what is left is as in `test_a_text_is_what_it_would_be_alone`."""
    model = writer()
    context = pictures(model)
    written = Counter(w for best in generate(model, prompts(), config, context=context) for w in best[0].tokens)
    rows, _ = watched(model)
    generate(model, prompts(), config, end=written.most_common(1)[0][0], context=context)
    assert rows[1] == BATCH * texts
    assert rows[1:] == sorted(rows[1:], reverse=True)
    assert rows[-1] <= BATCH * texts / 2


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"positions": "none", "rope": True}])
def test_a_window_reads_the_last_tokens_alone(changes: dict[str, Any]) -> None:
    model, prompt = writer(length=8, **changes), prompts(3)
    context = pictures(model)
    config = replace(GREEDY, window=True)
    tokens = prompt
    for _ in range(12):
        tokens = torch.cat([tokens, model(tokens[:, -8:], context)[:, -1:].argmax(dim=2)], dim=1)
    texts = generate(model, prompt, config, context=context)
    assert [best[0].tokens for best in texts] == tokens[:, 3:].tolist()
    assert list(stream(model, prompt[:1], config, context=context[:1])) == texts[0][0].tokens
    [[cut]] = generate(model, tokens[:1, :10], replace(config, max_length=1), context=context[:1])
    assert cut.tokens == tokens[0, 10:11].tolist()
    found = generate(model, prompt[:1], replace(BEAMS, window=True), context=context[:1])
    assert all(len(text.tokens) == 12 for text in found[0])


@pytest.mark.parametrize("length", [9, 13])
def test_texts_that_are_too_long_are_refused_in_words(length: int) -> None:
    model = writer(length=8, context_dim=None)
    config = GenerationConfig(max_length=length - 3)
    said = f"3 tokens and {length - 3} new ones are too long: this model reads at most 8 "
    if length == 9:  # the last word need not be read
        assert len(generate(model, prompts(3), config)[0][0].tokens) == 6
        return
    with pytest.raises(ConfigError, match=said):
        generate(model, prompts(3), config)
    with pytest.raises(ConfigError, match=said):
        next(stream(model, prompts(3)[:1], config))


@pytest.mark.parametrize("drawn", [False, True])
def test_a_stream_gives_the_words_of_the_text(drawn: bool) -> None:
    model, prompt = writer(context_dim=None), prompts(4)[:1]
    config = replace(GREEDY, sample=drawn, max_length=20)
    [[text]] = generate(model, prompt, config, generator=torch.Generator().manual_seed(1))
    words = list(stream(model, prompt, config, generator=torch.Generator().manual_seed(1)))
    assert words == text.tokens
    assert len(words) == 20
    end = words[8]
    until_end = list(stream(model, prompt, config, end=end, generator=torch.Generator().manual_seed(1)))
    assert until_end == words[: words.index(end)]


def test_what_cannot_be_written_is_refused() -> None:
    model = writer()
    context = pictures(model)
    with pytest.raises(ValueError, match="at least one token"):
        generate(model, prompts()[:, :0], GREEDY, context=context)
    with pytest.raises(ValueError, match="got 2 prompts and 6 contexts"):
        generate(model, prompts()[:2], GREEDY, context=context)
    for prompt, config in ((prompts(), GREEDY), (prompts()[:1], BEAMS)):
        with pytest.raises(ValueError, match="a stream is of one text"):
            next(stream(model, prompt, config))


@pytest.mark.parametrize("config", [GREEDY, BEAMS, replace(GREEDY, sample=True)], ids=["greedy", "beams", "drawn"])
def test_words_that_are_never_written(config: GenerationConfig) -> None:
    model = writer()
    context = pictures(model)
    never = sorted({w for best in generate(model, prompts(), config, context=context) for w in best[0].tokens})[:6]
    texts = generate(model, prompts(), config, never=never, context=context)
    assert {word for best in texts for word in best[0].tokens}.isdisjoint(never)


@pytest.mark.parametrize("config", [GREEDY, BEAMS, replace(GREEDY, sample=True)], ids=["greedy", "beams", "drawn"])
def test_words_repeat_once_all_have_been_written(config: GenerationConfig) -> None:
    model = writer(vocabulary=7, context_dim=None)
    prompt = torch.full((2, 1), START)
    for [text, *_] in generate(model, prompt, replace(config, no_repeat_ngram=1), end=2, never=[5]):
        words = text.tokens[:4] if text.finished else text.tokens[:5]
        assert len(set(words) - {START, 5}) == len(words)
        assert all(0 < p <= 1 for p in text.probabilities)


def test_without_temperature_the_likeliest_word_is_taken() -> None:
    model = writer(context_dim=None)
    cold = replace(GREEDY, sample=True, temperature=0.0, top_k=5)
    assert generate(model, prompts(), cold) == generate(model, prompts(), GREEDY)


def test_a_score_is_of_all_words_and_the_end() -> None:
    model = writer()
    context = pictures(model)
    end = frequent(generate(model, prompts(), BEAMS, context=context))
    for config in (replace(BEAMS, length_penalty=0.6), GREEDY):
        texts = generate(model, prompts(), config, end=end, context=context)
        for i, text in enumerate(best[0] for best in texts):
            words = torch.tensor([[START, *text.tokens, *([end] if text.finished else [])]])
            with torch.no_grad():
                chances = model(words[:, :-1], context[i : i + 1]).log_softmax(dim=2)
            chances = chances.gather(2, words[:, 1:, None])[0, :, 0]
            assert text.score == pytest.approx(chances.sum().item() / len(chances) ** config.length_penalty, abs=1e-5)
            assert text.probabilities == pytest.approx(chances.exp()[: len(text.tokens)].tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_length": 0}, "max_length: must be at least 1, got 0"),
        ({"beams": 0}, "beams: must be at least 1, got 0"),
        ({"n_best": 0}, "n_best: must be at least 1, got 0"),
        ({"n_best": 3, "beams": 2}, "n_best: must be at most beams, 2, without sampling, got 3"),
        ({"min_length": 21}, "min_length: must be in 0..20, got 21"),
        ({"min_length": -1}, "min_length: must be in 0..20, got -1"),
        ({"temperature": -0.1, "sample": True}, "temperature: must not be negative, got -0.1"),
        ({"temperature": math.nan, "sample": True}, "temperature: must not be negative, got nan"),
        ({"top_k": -1}, "top_k: must not be negative, got -1"),
        ({"top_p": 0.0, "sample": True}, r"top_p: must be in \(0, 1\], got 0.0"),
        ({"min_p": 1.5, "sample": True}, r"min_p: must be in \[0, 1\], got 1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty: must be positive, got 0.0"),
        ({"no_repeat_ngram": -2}, "no_repeat_ngram: must not be negative, got -2"),
        ({"sample": True, "beams": 2}, "beams: must be 1 when sampling, got 2"),
        ({"temperature": 0.5, "beams": 2}, "beams: must be 1 when sampling, which temperature 0.5 implies, got 2"),
        ({"top_p": 0.5, "beams": 2}, "beams: must be 1 when sampling, which top_p 0.5 implies, got 2"),
        (
            {"sample": True, "temperature": 0.0, "n_best": 2},
            "n_best: must be 1 at temperature 0, which draws nothing, got 2",
        ),
        *(
            (
                {"temperature": 0.0, name: value},
                f"{name}: has no effect at temperature 0, which is greedy decoding, got {value}",
            )
            for name, value in (("top_k", 5), ("top_p", 0.5), ("min_p", 0.5))
        ),
        ({"length_penalty": 2.0}, "length_penalty: only acts with beams above 1, got 2.0"),
        ({"early_stopping": "never"}, "early_stopping: only acts with beams above 1, got never"),
        ({"early_stopping": "always", "beams": 2}, "early_stopping: must be true, false or never, got always"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=rf"^generation\.{said}$"):
        GenerationConfig(**changes)


@pytest.mark.parametrize("changes", [{"temperature": 0.5}, {"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.5}])
def test_sampling_options_imply_sampling(changes: dict[str, Any]) -> None:
    model, prompt = writer(context_dim=None), torch.tensor([[3, 5]])
    texts = [
        [
            text.tokens
            for text in generate(model, prompt, GenerationConfig(**changes, **more), generator=torch.manual_seed(1))[0]
        ]
        for more in ({"n_best": 4}, {"n_best": 4, "sample": True})
    ]
    assert texts[0] == texts[1]
    assert len(set(map(tuple, texts[0]))) > 1
    assert GenerationConfig(**changes).draws
    assert not GenerationConfig(temperature=0.0).draws
    assert not GenerationConfig(temperature=1.0).draws


def test_settings_are_read_without_torch() -> None:
    code = "import sys, vit.models.generation_config, vit.models.beam; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
