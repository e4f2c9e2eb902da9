"""What a step of writing computes."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vit.data.config import Preprocessing
from vit.data.sampling import ExactSampler
from vit.data.tokenizer import Tokenizer
from vit.data.words import WordBatch, word_loader
from vit.models.architecture import VisionArchitecture
from vit.models.encoder_decoder import EncoderDecoder
from vit.models.text import LanguageModel
from vit.models.text_architecture import EncoderDecoderArchitecture, TextArchitecture
from vit.tasks.config import Config, DataConfig, TextConfig
from vit.tasks.words import Words, set_up_words
from vit.tasks.write import Write, word_loss
from vit.writers import Writer


def test_captions_that_share_a_pictures_tokens_have_the_loss_of_captions_with_copies() -> None:
    torch.manual_seed(0)
    encoder = VisionArchitecture((16, 16), (8, 8), dim=32, depth=1, heads=2, hidden=32, classes=0)
    decoder = TextArchitecture(vocabulary=12, length=8, dim=32, depth=2, heads=2, hidden=32, context_dim=32)
    network = EncoderDecoder(EncoderDecoderArchitecture(encoder, decoder))
    tokenizer = Tokenizer.train(["a red square"], "words", 12)
    config = Config(task="caption")
    task = Write(network, tokenizer, config, kind="captioner", preprocessing=Preprocessing((16, 16)))
    tokens, lengths = torch.randint(1, 12, (6, 5)), torch.tensor([5, 3, 4, 2, 5, 5])
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    owners = torch.tensor([0, 0, 1, 1, 2, 2])
    shared = WordBatch(tokens, lengths, owners, torch.arange(6), True, torch.arange(3), images=images)
    copied = replace(shared, even=False)
    torch.testing.assert_close(task.losses(shared)["loss"].mean, task.losses(copied)["loss"].mean, rtol=0, atol=1e-6)
    context = task.context(network, shared)
    for shift in (1, 2):
        ones, others = (task._logits(network, batch, context, shift=shift) for batch in (shared, copied))
        torch.testing.assert_close(ones, others, rtol=0, atol=1e-5)
    alone = [network(task.normalise(images[[i // 2]]), tokens[[i], :-1]) for i in range(6)]  # type: ignore[misc]
    torch.testing.assert_close(task._logits(network, shared, context), torch.cat(alone), rtol=0, atol=1e-5)


def test_hidden_words_are_read_as_ends_and_still_have_to_be_written() -> None:
    torch.manual_seed(0)
    architecture = TextArchitecture(vocabulary=12, length=64, dim=32, depth=1, heads=2, hidden=32)
    tokenizer = Tokenizer.train(["a red square"], "words", 12)
    config = Config(task="language", text=TextConfig(word_dropout=0.4))
    task = Write(LanguageModel(architecture), tokenizer, config, kind="language")
    tokens = torch.randint(3, 12, (50, 41))
    batch = WordBatch(tokens, torch.full((50,), 41), torch.arange(50), torch.arange(50), True, torch.arange(50))
    read = task._hidden(batch).tokens
    changed = read != tokens
    assert not changed[:, 0].any()
    assert 0.37 < changed[:, 1:].float().mean() < 0.43
    assert (read[changed] == tokenizer.end).all()
    torch.manual_seed(1)
    loss = task.losses(batch)["loss"].mean
    torch.manual_seed(1)
    logits = task.network(task._hidden(batch).tokens[:, :-1])
    expected = word_loss(logits, tokens, batch.lengths, smoothing=config.loss.smoothing).mean
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)


@pytest.mark.parametrize("extra", ["", "a", "a quick brown"])
def test_a_language_model_is_validated_on_every_token_but_the_first(
    extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `vit evaluate` measures it; the last window may hold any number of tokens, down to one to predict."""
    torch.manual_seed(0)
    val = "the lazy dog jumps over a fox. " * 2 + extra
    config = Config(
        task="language",
        data=DataConfig(batch_size=3, workers=0),
        text=TextConfig(tokenizer="characters", length=16, dim=32, depth=1, heads=2, hidden=32, dropout=0.0),
    )
    run = set_up_words(Words({"train": [("a quick brown fox. " * 9 + val,)], "val": [(val,)]}), config)
    assert isinstance(run.task, Write)
    assert isinstance(run.task.network, LanguageModel)
    logged: dict[str, Any] = {}
    monkeypatch.setattr(run.task, "_trainer", SimpleNamespace(current_epoch=0))
    monkeypatch.setattr(run.task, "log", lambda name, value, **_: logged.update({name: value}))
    run.task.eval()
    run.task.on_validation_epoch_start()
    with torch.no_grad():
        for index, batch in enumerate(
            word_loader(run.data.val, ExactSampler(len(run.data.val)), batch_size=3, workers=0)
        ):
            run.task.validation_step(batch, index)
    assert run.task.written.words == len(val) - 1
    run.task.on_validation_epoch_end()
    loss, tokens = Writer(run.task.network, run.tokenizer).loss(val)
    assert tokens == len(val) - 1
    assert logged["val/loss"] == pytest.approx(loss, rel=1e-6)
