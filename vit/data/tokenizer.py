"""Text to token ids and back: tokenizers made from texts, or read from files, all over the `tokenizers` library.

Special tokens stand for the start and the end of a text, for padding and for what is unknown. No text is ever read as
one of them: "<end>" in a caption is ordinary characters.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from vit.errors import ConfigError, ModelFileError, display_path
from vit.files import dump_json, read_json
from vit.names import SPECIAL_IDS

# The library works in threads otherwise, and warns in every process that a loader forks.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

Kind = Literal["bpe", "wordpiece", "characters", "words"]
"""bpe: any text, byte by byte, exactly; wordpiece, words: lower case, spaces as print has them; characters: exactly"""

KINDS: tuple[Kind, ...] = get_args(Kind)

PAD, START, END, UNKNOWN = "<pad>", "<start>", "<end>", "<unk>"

# What the special tokens of well-known vocabularies are called, the likeliest first.
_NAMES = {
    "pad": (PAD, "[PAD]", "<|pad|>", "<|endoftext|>"),
    "start": (START, "<s>", "<bos>", "[DEC]", "[CLS]", "<|startoftext|>", "<|endoftext|>"),
    "end": (END, "</s>", "<eos>", "[SEP]", "<|endoftext|>"),
    "unknown": (UNKNOWN, "[UNK]"),
}

# What an apostrophe joins to a word and print writes without a space; it is a word of its own, since "'s" is frequent.
_JOINED = "['\u2019](?:s|t|re|ve|ll|m|d)\\b"

# A word with its hyphens, such an ending, or any one other character, an emoji with all that is joined to it.
_WORD = rf"\w+(?:-\w+)*|{_JOINED}|[^\w\s](?:[\x{{fe00}}-\x{{fe0f}}\x{{1f3fb}}-\x{{1f3ff}}]|\x{{200d}}[^\w\s])*"


class Tokenizer:
    """Text -> ids -> text. Made by `train`, `load` or `from_json`."""

    def __init__(self, library: tokenizers.Tokenizer, special: Mapping[str, Any] | None = None) -> None:
        """Of the library's tokenizer, with its rules for cutting, padding and special tokens switched off.

        `special` holds ids that a model's configuration gives, which take the place of those found by name: `start`,
        `ends`, of which each ends a text, and `never`, those that must not be generated.
        """
        library.no_truncation()
        library.no_padding()
        library.encode_special_tokens = True  # as text
        self._library = library
        vocabulary = library.get_vocab(with_added_tokens=True)
        self._size = max(vocabulary.values(), default=-1) + 1

        def find(what: str) -> int | None:
            return next((vocabulary[name] for name in _NAMES[what] if name in vocabulary), None)

        self._special = dict(special or {})
        start, end = self._special.get("start", find("start")), find("end")
        self.ends: tuple[int, ...] = tuple(self._special.get("ends") or ([] if end is None else [end]))
        end = self.ends[0] if self.ends else None
        if start is None or end is None:
            missing = "start" if start is None else "end"
            raise ModelFileError(
                f"tokenizer: no token for the {missing} of a text; expected one of {', '.join(_NAMES[missing])}"
            )
        self.start, self.end = start, end
        self._unused = set(range(self._size)) - set(vocabulary.values())
        self.pad, self.unknown = find("pad"), find("unknown")
        # A dictionary does in a tenth of the time what the library does with one rule a character.
        self._characters = vocabulary if _is_of_characters(library) else None
        self._bytes = isinstance(library.decoder, decoders.ByteLevel)

    @classmethod
    def train(cls, texts: Iterable[str], kind: str, vocabulary: int) -> "Tokenizer":
        """Make a tokenizer of one of `KINDS` with at most `vocabulary` tokens, special ones included.

        It depends on the texts alone, not on their order. Raises `ConfigError` for a vocabulary that is too small.
        """
        special = [PAD, START, END]
        if kind not in KINDS:
            raise ConfigError(f"tokenizer: must be one of {', '.join(KINDS)}, got {kind!r}")
        least = len(special) + (256 if kind == "bpe" else 2)
        if vocabulary < least:
            raise ConfigError(f"vocabulary: must be at least {least} for a tokenizer of {kind}, got {vocabulary}")
        if kind == "bpe":
            library = tokenizers.Tokenizer(models.BPE())
            library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            library.decoder = decoders.ByteLevel()
            trainer = trainers.BpeTrainer(
                vocab_size=vocabulary,
                special_tokens=special,
                initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
                show_progress=False,
            )
            library.train_from_iterator(texts, trainer)
        elif kind == "characters":
            counts: Counter[str] = Counter()
            for text in texts:
                counts.update(text)
            library = _characters([*special, UNKNOWN, *_most_frequent(counts, vocabulary - len(special) - 1)])
        else:
            library = _of_words(kind, list(texts), [*special, UNKNOWN], vocabulary)
        library.add_special_tokens(special)
        return cls(library)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """Read a tokenizer.json, or a folder with one, or with GPT-2's vocab.json and merges.txt.

        Raises `ModelFileError` for anything else, and where no token stands for the start and the end of a text.
        """
        file = Path(path)
        if file.is_dir():
            if (file / "tokenizer.json").exists():
                file = file / "tokenizer.json"
            elif (file / "vocab.json").exists() and (file / "merges.txt").exists():
                return _named(file, lambda: cls(_gpt2(file)))
            else:
                raise ModelFileError(
                    f"{display_path(file)}: neither tokenizer.json nor vocab.json with merges.txt lies in it"
                )
        read_json(file)  # names what is no file or no JSON better than the library does
        return _named(file, lambda: cls(tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))))

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        """What `to_json` gave. Raises `ModelFileError` for anything that is no tokenizer."""

        def make() -> Tokenizer:
            values = json.loads(text)
            special = values.pop(SPECIAL_IDS, None)
            return cls(tokenizers.Tokenizer.from_str(text if special is None else dump_json(values)), special)

        return _named("tokenizer", make)

    def to_json(self) -> str:
        """The whole tokenizer as JSON, in the format of a tokenizer.json, with the special ids that it was given."""
        text: str = self._library.to_str()
        return dump_json(json.loads(text) | {SPECIAL_IDS: self._special}) if self._special else text

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Tokenizer.from_json, (self.to_json(),)  # to worker processes

    def __len__(self) -> int:
        """Rows that an embedding needs: the highest id and one."""
        return self._size

    @property
    def never(self) -> tuple[int, ...]:
        """Ids that must not be generated: unused ones, and those that a model's configuration suppresses.

        Without a configuration padding, start and unknown, as far as they are not the end.
        """
        found = {n for n in (self.pad, self.start, self.unknown) if n is not None} - {self.end}
        return tuple(sorted(self._unused | set(self._special.get("never", found))))

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without those of its start and end."""
        if self._characters is not None:
            unknown = self._characters[UNKNOWN]
            return [self._characters.get(character, unknown) for character in text]
        return self._library.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def lacks(self, text: str) -> list[str]:
        """The words of a text, or its characters, that the vocabulary has nothing for, each once."""
        split = self._library.pre_tokenizer
        parts = [text] if split is None else [part for part, _ in split.pre_tokenize_str(text)]
        return [part for part in dict.fromkeys(parts) if self.unknown in self.encode(part)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids. Padding, start and end leave nothing, what is unknown shows as such."""
        return self._library.decode(list(ids), skip_special_tokens=True)

    def closing(self, end: int | None) -> list[int]:
        """Return the token that ended a text where it is text itself, as a full stop may be, else nothing."""
        named = {name for names in _NAMES.values() for name in names}
        return [] if end is None or self._library.id_to_token(end) in named else [end]

    def has(self, number: int) -> bool:
        """Whether a token has this id; a vocabulary may skip ids, and an embedding may be padded beyond it."""
        return 0 <= number < len(self) and self._library.id_to_token(number) is not None

    def token(self, number: int) -> str:
        """One id in readable form: a piece of text, or the name of a special token. Raises `ValueError` for no id.

        Bytes that are no whole character are written as `\\xe2`, a piece that goes on with a word as `##ing`.
        """
        token = self._library.id_to_token(number) if self.has(number) else None
        if token is None:
            raise ValueError(f"token {number}: the vocabulary has {len(self)}")
        if not self._bytes or number in (self.pad, self.start, *self.ends):
            return token
        values = _byte_values()
        if any(character not in values for character in token):
            return token
        return bytes(values[character] for character in token).decode("utf-8", "backslashreplace")


def _named(source: object, make: Callable[[], Tokenizer]) -> Tokenizer:
    """What `make` gives; the library's complaints, which are plain Exceptions, name `source`."""
    try:
        return make()
    except ModelFileError as error:
        raise ModelFileError(f"{display_path(source)}: {str(error).removeprefix('tokenizer: ')}") from error
    except Exception as error:
        raise ModelFileError(f"{display_path(source)}: not a tokenizer, {display_path(error)}") from error


def _numbered(tokens: Iterable[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(tokens)}


def _most_frequent(counts: Counter[str], most: int) -> list[str]:
    """The `most` most frequent entries, equally frequent ones by the alphabet."""
    return sorted(counts, key=lambda entry: (-counts[entry], entry))[:most]


def _characters(tokens: list[str]) -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(models.WordLevel(_numbered(tokens), unk_token=UNKNOWN))
    library.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    library.decoder = decoders.Fuse()
    return library


def _is_of_characters(library: tokenizers.Tokenizer) -> bool:
    """Whether a tokenizer is one that `_characters` makes."""
    rules = json.loads(library.to_str())
    ours = json.loads(_characters([UNKNOWN]).to_str())
    same = all(rules[part] == ours[part] for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"))
    model = rules["model"]
    return same and model["type"] == "WordLevel" and model["unk_token"] == UNKNOWN and UNKNOWN in model["vocab"]


def _of_words(kind: str, texts: list[str], special: list[str], vocabulary: int) -> tokenizers.Tokenizer:
    """Whole words, or pieces of words, of texts in lower case."""
    split = pre_tokenizers.Split(Regex(_WORD), "isolated")
    library = tokenizers.Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    library.normalizer = normalizers.Lowercase()
    library.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), split])
    if kind == "words":
        trainer = trainers.WordLevelTrainer(vocab_size=vocabulary, special_tokens=special, show_progress=False)
        library.train_from_iterator(texts, trainer)
        library.model = models.WordLevel(library.get_vocab(), unk_token=UNKNOWN)
    else:
        library.model = models.WordPiece(_word_pieces(library, texts, special, vocabulary), unk_token=UNKNOWN)
    plain = tokenizers.Tokenizer(library.model)  # training has made unknown a special token, which decoding drops
    plain.normalizer, plain.pre_tokenizer, plain.decoder = library.normalizer, library.pre_tokenizer, _print_spaces()
    return plain


def _word_pieces(
    library: tokenizers.Tokenizer, texts: list[str], special: list[str], vocabulary: int
) -> dict[str, int]:
    """The pieces of words that the library's training finds, numbered.

    It numbers single characters in the order of a hash table, and settles draws by the numbers. So they are found in
    a first round, and named in order in a second, as if they were special tokens: the texts alone decide then.
    """
    characters: list[str] = []
    for size in (0, vocabulary):
        library.model = models.WordPiece(unk_token=UNKNOWN)
        trainer = trainers.WordPieceTrainer(
            vocab_size=size, special_tokens=[*special, *characters], show_progress=False
        )
        library.train_from_iterator(texts, trainer)
        characters = sorted(library.get_vocab().keys() - set(special))
    if len(library.get_vocab()) > vocabulary:
        least = len(library.get_vocab())
        raise ConfigError(f"vocabulary: must be at least {least}, for every character of the texts, got {vocabulary}")
    return library.get_vocab()


def _print_spaces() -> decoders.Decoder:
    """Words joined by spaces, `##` pieces without, and none where print has none: before `.`, after `(`."""
    before = decoders.Replace(Regex(rf" (?=[.,!?;:%)\]}}]|{_JOINED})"), "")
    after = decoders.Replace(Regex(r"(?<=[(\[{]) "), "")
    return decoders.Sequence([decoders.WordPiece(prefix="##", cleanup=False), decoders.Fuse(), before, after])


def _gpt2(folder: Path) -> tokenizers.Tokenizer:
    """GPT-2's byte-level BPE from its two files (Radford et al. 2019)."""
    library = tokenizers.Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    if library.token_to_id("<|endoftext|>") is not None:
        library.add_special_tokens(["<|endoftext|>"])
    return library


@cache
def _byte_values() -> dict[str, int]:
    """The character that stands for a byte in byte-level BPE -> the byte.

    Those that print stand for themselves, all others for the characters from 256 on, in order (Radford et al. 2019).
    """
    printing = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [value for value in range(256) if value not in printing]
    return {chr(value): value for value in printing} | {chr(256 + place): value for place, value in enumerate(others)}
