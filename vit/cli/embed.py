"""`vit embed MODEL`."""

from typing import TYPE_CHECKING

from vit.cli.arguments import MODEL_HELP, Parser, announce, integer
from vit.errors import ConfigError, display_path
from vit.files import dump_json

if TYPE_CHECKING:
    from vit.data.tokenizer import Tokenizer


_EMBEDDINGS = ("token_embed.weight", "decoder.token_embed.weight", "text.token_embed.weight")


def main(argv: list[str]) -> int:
    """Parse, then print a JSON line a word, the nearest first. Returns the exit code."""
    parser = Parser(prog="vit embed", description="Words by their embeddings, by cosine.")
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--nearest", metavar="WORD", help="the words nearest to this one")
    asked.add_argument("--analogy", nargs=3, metavar=("A", "B", "C"), help="what is to C as B is to A")
    parser.add_argument("--top", type=integer(1), default=10, help="words to show (default: 10)")
    parser.add_argument("--weights", choices=("ema", "raw"), help="averaged or raw weights (default: averaged if any)")
    options = parser.parse_args(argv)

    from vit.data.tokenizer import Tokenizer
    from vit.explain.embeddings import analogy, nearest
    from vit.models.build import build_model, require_kind
    from vit.models.sources import load_model

    model = load_model(options.model)
    require_kind(model, ("language", "captioner", "translator", "fused", "text-encoder"), options.model)
    if model.tokenizer is None:
        raise ConfigError(f"{display_path(options.model)}: holds no tokenizer, so its words cannot be named")
    announce(model)
    tokenizer = Tokenizer.from_json(model.tokenizer)
    state = build_model(model, options.weights, source=options.model).state_dict()
    name = next(name for name in _EMBEDDINGS if name in state)
    embeddings = state[name]
    if options.nearest is not None:
        found = nearest(embeddings, _token(tokenizer, options.nearest), top=len(embeddings))
    else:
        a, b, c = (_token(tokenizer, word) for word in options.analogy)
        found = analogy(embeddings, a, b, c, top=len(embeddings))
    for token, cosine in [pair for pair in found if tokenizer.has(pair[0])][: options.top]:
        print(dump_json({"word": tokenizer.token(token), "cosine": round(cosine, 6)}, ensure_ascii=False))
    return 0


def _token(tokenizer: "Tokenizer", word: str) -> int:
    """The one token that a word is, alone or, in a byte-level vocabulary, after a space."""
    for text in (word, f" {word}"):
        ids = tokenizer.encode(text)
        if len(ids) == 1 and ids[0] != tokenizer.unknown:
            return ids[0]
    pieces = [tokenizer.token(token) for token in tokenizer.encode(word)]
    shown = f"it is {len(pieces)} tokens: {' '.join(map(display_path, pieces[:8]))}" if len(pieces) > 1 else "unknown"
    raise ConfigError(f"{display_path(word)}: not one word of the vocabulary, {shown}")
