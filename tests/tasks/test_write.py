"""What a step of writing computes."""

from dataclasses import replace

import torch

from vit.data.config import Preprocessing
from vit.data.tokenizer import Tokenizer
from vit.data.words import WordBatch
from vit.models.architecture import VisionArchitecture
from vit.models.encoder_decoder import EncoderDecoder
from vit.models.text_architecture import EncoderDecoderArchitecture, TextArchitecture
from vit.tasks.config import Config
from vit.tasks.write import Write


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
    shared = WordBatch(tokens, lengths, torch.tensor([0, 0, 1, 1, 2, 2]), True, torch.arange(3), images=images)
    copied = replace(shared, even=False)
    torch.testing.assert_close(task.losses(shared)["loss"], task.losses(copied)["loss"], rtol=0, atol=1e-6)
    context = task.context(network, shared)
    for shift in (1, 2):
        ones, others = (task._logits(network, batch, context, shift=shift) for batch in (shared, copied))
        torch.testing.assert_close(ones, others, rtol=0, atol=1e-5)
    alone = [network(task.normalise(images[[i // 2]]), tokens[[i], :-1]) for i in range(6)]  # type: ignore[misc]
    torch.testing.assert_close(task._logits(network, shared, context), torch.cat(alone), rtol=0, atol=1e-5)
