"""`vit generate MODEL --prompt TEXT`."""

import io
import sys
from collections.abc import Iterator
from functools import partial

from vit.cli.arguments import MODEL_HELP, Parser, add_generation, announce, generation_of, mention_unknown
from vit.errors import ConfigError, escape_controls


def main(argv: list[str]) -> int:
    """Parse, then write to standard output as it comes. Returns the exit code."""
    parser = Parser(prog="vit generate", description="Go on with a text, or answer it with another.")
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--prompt", default="", help="what to go on with or to answer; - answers every line of input")
    add_generation(parser, beams=1)
    parser.add_argument("--weights", choices=("ema", "raw"), help="averaged or raw weights (default: averaged if any)")
    parser.add_argument("--device", help="cpu, cuda, mps (default: the best there is)")
    options = parser.parse_args(argv)
    generation_of(options)  # refused before anything is read

    from vit.models.build import require_kind
    from vit.models.sources import load_model
    from vit.writers import FOLLOWING, Writer, words_of

    model = load_model(options.model)
    require_kind(model, ("language", "translator"), options.model)
    writer = words_of(model, options.model, weights=options.weights, device=options.device)
    assert isinstance(writer, Writer)
    announce(model)
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    goes_on = model.kind == "language"
    windowed = goes_on and (options.beams or 1) == 1
    if windowed and options.temperature != 0:
        options.sample = True  # greedy decoding soon repeats itself
    # A vocabulary may hold terminal escapes; a pipe gets the text as it is.
    shown = partial(escape_controls, keep="\n\t") if sys.stdout.isatty() else str
    if not generation_of(options).draws:
        parser.refuse_idle(("seed",), "without sampling")
    for prompt in _prompts(options.prompt):
        most = FOLLOWING if windowed else writer.room(prompt)
        config = generation_of(options, max_length=min(most, FOLLOWING) if goes_on else most, window=windowed)
        mention_unknown(writer.tokenizer, prompt)
        begun = prompt if goes_on else ""
        if config.beams == 1 and config.n_best == 1:
            for piece in writer.stream(prompt, config=config, seed=options.seed):
                print(shown(begun + piece), end="", flush=True)
                begun = ""
            print(shown(begun), flush=True)
            continue
        (best,) = writer.generate(prompt, config=config, seed=options.seed)
        for text in (best, *best.alternatives):
            print(shown(begun + text.text), flush=True)
    return 0


def _prompts(prompt: str) -> Iterator[str]:
    if prompt != "-":
        yield prompt
        return
    if sys.stdin is None:
        raise ConfigError("--prompt -: standard input is closed")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(newline="\n")  # a lone CR belongs to the prompt
    for line in sys.stdin:
        yield line.removesuffix("\n").removesuffix("\r")
