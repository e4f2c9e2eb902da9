"""Captions: our generation beside transformers' `generate`, with the same random weights.

    python scripts/bench_caption.py [--rounds 3] [--batch 8] [--length 20] [--beams 1 4] [--device cuda] [--small]

ViT-B/16 and GPT-2 small with cross-attention, the end token held back so that every caption has all its tokens. Ours
and theirs run in turn in one process; a round is one of each. Ratios above one are in our favour: of whole captions,
from pixels, and of writing alone, from the encoder's tokens. `--small` takes tiny models, to try the script.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor

from vit.models.encoder_decoder import EncoderDecoder
from vit.models.generation import generate
from vit.models.generation_config import GenerationConfig
from vit.models.huggingface import from_huggingface
from vit.nn import LayerCache

START = 0


def models(small: bool) -> tuple[Any, EncoderDecoder]:
    """transformers' captioner, and ours with its weights."""
    torch.manual_seed(0)
    image: dict[str, Any] = {}
    text: dict[str, Any] = {"bos_token_id": START, "eos_token_id": 1}
    if small:
        image |= {"image_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        text |= {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4}
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(**image), transformers.GPT2Config(**text, add_cross_attention=True)
    )
    theirs: Any = transformers.VisionEncoderDecoderModel(config).eval()
    return theirs, from_huggingface(theirs)


def seconds(work: Callable[[], Any], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def mebibytes(*tensors: Tensor | None) -> float:
    return sum(tensor.nbytes for tensor in tensors if tensor is not None) / 2**20


class Bench:
    """The two models, and captions by each of them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.length, self.device = options.length, options.device
        self.theirs, self.ours = (model.to(options.device) for model in models(options.small))
        side = self.theirs.config.encoder.image_size
        self.images = torch.randn(options.batch, 3, side, side, device=options.device)
        self.prompt = torch.full((options.batch, 1), START, device=options.device)
        self.caches: list[list[LayerCache]] = []
        new_cache = self.ours.decoder.new_cache

        def remembered() -> list[LayerCache]:
            self.caches = [new_cache()]
            return self.caches[0]

        self.ours.decoder.new_cache = remembered  # type: ignore[method-assign]

    @torch.inference_mode()
    def encoded(self) -> Tensor:
        return self.ours.encode(self.images)

    def write(self, beams: int, context: Tensor | None = None) -> list[list[int]]:
        """Our captions."""
        config = GenerationConfig(max_length=self.length, min_length=self.length, beams=beams)
        context = self.encoded() if context is None else context
        return [best.tokens for [best] in generate(self.ours.decoder, self.prompt, config, end=1, context=context)]

    def write_theirs(self, beams: int, context: Tensor | None = None) -> Any:
        """Captions of transformers, and the cache it used."""
        known = None if context is None else transformers.modeling_outputs.BaseModelOutput(context.clone())
        return self.theirs.generate(
            None if known else self.images,
            encoder_outputs=known,
            max_new_tokens=self.length,
            min_new_tokens=self.length,
            num_beams=beams,
            decoder_start_token_id=START,
            pad_token_id=START,
            return_dict_in_generate=True,
        )

    def check(self, beams: int) -> None:
        """Both write the same, and what the keys and values of the pictures take."""
        ours, theirs = self.write(beams), self.write_theirs(beams)
        same = sum(a == b[1:].tolist() for a, b in zip(ours, theirs.sequences, strict=True))
        kept = mebibytes(*(t for layer in self.caches[0] for t in vars(layer.cross_attention).values()))
        layers = theirs.past_key_values.cross_attention_cache.layers
        print(
            f"beams {beams}: {same} of {len(ours)} captions are the same; keys and values of the pictures: "
            f"transformers {mebibytes(*(t for layer in layers for t in (layer.keys, layer.values))):.1f} MiB, "
            f"vit {kept:.1f} MiB"
        )

    def measure(self, name: str, beams: int, context: Tensor | None, rounds: int) -> None:
        """Seconds of each, in turn, and the ratio."""
        taken: list[tuple[float, float]] = []
        works: list[Callable[[], Any]] = [lambda: self.write(beams, context), lambda: self.write_theirs(beams, context)]
        for number in range(rounds):
            order = (0, 1) if number % 2 else (1, 0)
            by_work = {i: seconds(works[i], self.device) for i in order}
            taken.append((by_work[0], by_work[1]))
        ratios = [theirs / ours for ours, theirs in taken]
        ours, theirs = (statistics.median(column) for column in zip(*taken, strict=True))
        spread = f"{statistics.median(ratios):.2f}  ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{name:34} {theirs:9.3f} {ours:9.3f} {spread}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=20, help="tokens of each caption")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--small", action="store_true", help="tiny models, to try the script")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    bench = Bench(options)
    print(
        f"batch {options.batch}, {options.length} tokens, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, {options.device}, {torch.get_num_threads()} threads"
    )
    for beams in options.beams:
        bench.check(beams)  # also the warm-up
    print(f"{'seconds a batch':34} {'theirs':>9} {'ours':>9} ratio  (lowest to highest)")
    for beams in options.beams:
        bench.measure(f"beams {beams}, from pixels", beams, None, options.rounds)
        bench.measure(f"beams {beams}, writing alone", beams, bench.encoded(), options.rounds)


if __name__ == "__main__":
    main()
