"""Captions: our generation beside transformers' `generate`, with the same random weights.

    python scripts/bench_caption.py [--rounds 3] [--batch 8] [--length 20] [--beams 1 4] [--device cuda] [--small]
        [--json FILE]

ViT-B/16 and GPT-2 small with cross-attention, the end token held back so that every caption has all its tokens. Ours
and theirs run in turn in one process; a round is one of each. Ratios above one are in our favour: of whole captions,
from pixels, and of writing alone, from the encoder's tokens. `--small` takes tiny models, to try the script.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor

from bench_report import SPREAD, Table, add_json, in_turn, seconds
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

    def check(self, beams: int) -> str:
        """Whether both write the same, and what the keys and values of the pictures take."""
        ours, theirs = self.write(beams), self.write_theirs(beams)
        same = sum(a == b[1:].tolist() for a, b in zip(ours, theirs.sequences, strict=True))
        kept = mebibytes(*(t for layer in self.caches[0] for t in vars(layer.cross_attention).values()))
        layers = theirs.past_key_values.cross_attention_cache.layers
        return (
            f"With {beams} beam{'s' * (beams > 1)} {same} of {len(ours)} captions are the same, and the pictures' keys "
            f"and values take {mebibytes(*(t for layer in layers for t in (layer.keys, layer.values))):.1f} MiB in "
            f"transformers, {kept:.1f} MiB here."
        )

    def measure(self, table: Table, name: str, beams: int, context: Tensor | None, rounds: int) -> None:
        """A row: seconds of each, in turn."""
        works: dict[str, Callable[[], Any]] = {
            "ours": lambda: self.write(beams, context),
            "theirs": lambda: self.write_theirs(beams, context),
        }
        taken = in_turn({who: partial(seconds, work, self.device) for who, work in works.items()}, rounds)
        table.compare(name, taken["theirs"], taken["ours"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=20, help="tokens of each caption")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--small", action="store_true", help="tiny models, to try the script")
    add_json(parser)
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    bench = Bench(options)
    columns = {"what": "name", "transformers": "theirs", "vit": "ours", SPREAD: "ratio"}
    title = f"Captions by {options.device}, batches of {options.batch}, {options.length} tokens, seconds a batch"
    table = Table(title, columns)
    for beams in options.beams:
        table.note(bench.check(beams))  # also the warm-up
    for beams in options.beams:
        how = "greedy" if beams == 1 else f"beam search with {beams} beams"
        bench.measure(table, f"{how}, from pixels", beams, None, options.rounds)
        bench.measure(table, f"{how}, writing alone", beams, bench.encoded(), options.rounds)
    table.write(options.json)


if __name__ == "__main__":
    main()
