"""Words of a caption as the COCO caption scorers count them: Penn Treebank tokens in lower case, without punctuation.

No letters: this file knows strings only.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

# Python's \w holds superscripts and fractions too
_LETTER = r"(?:[^\W\d_\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u2089\u2153-\u215e]|&[aeiouAEIOU](?:acute|grave|uml);)"
_LETTERS = rf"(?:{_LETTER}|[\u0300-\u036f])"  # an accent may follow its letter as a character of its own
_ALNUM = rf"(?:{_LETTERS}|\d)"
_END = rf"(?!{_ALNUM})"
_WORD_END = rf"(?!{_ALNUM}|[.!?]{_LETTERS}|-{_ALNUM}|'(?i:s|m|d|re|ve|ll){_END})"  # of what is not a longer word
_NUMBER = r"\d*(?:[.:,]\d+)+"

_CAPITALISED = "ark az del ill la mass miss ore tex wash"
"""abbreviations only with a capital: in lower case they are words that may end a sentence"""

_NUMBERED = "art ca fig no nos op pp prop"
"""abbreviations only where a number follows"""

_ABBREVIATIONS = """
    adj adm adv al ala alex apr ariz assn assoc asst atty attys aug ave bancorp bhd bldg blvd brig bros calif capt cf
    cie cmdr co col colo comdr conn corp cos cpl ct dak dec dept det dr drs elec ens esq est etc ext feb fla fri ft ga
    gen gov govs hon inc ind insp intl invt jan jos jr jul jun kan kans ky lieut lt ltd maj mar md messrs mfg mich minn
    mlle mme mo mon mont mr mrs ms msgr mt mtg natl neb nev nov oct okla penn pfc ph plc ppte ppty pres prof profs pte
    ptes pty ptys pvt rd rep reps rev rt sen sens sep sept seq sfc sgt spc sq sr st ste supt sys tel tenn thu thurs tue
    tues univ va vs vt wed wis wisc wm wyo ed.d ph.d
"""


_DROPPED = r"\.{3,}|-{2,4}(?!-)"  # not tokens, but no part of a number behind them
_DOTS_OR_DASHES = re.compile(_DROPPED)

_FILES = (
    "bat|bmp|class|cgi|cpp|dll|docx?|exe|gif|gz|html?|jar|java|jpe?g|mov|mp3|pdf|php|pl|png|pptx?|ps|py|sql|tar|txt|wav|"
    "xml|xlsx?|zip|3gp|wm[va]|avi|flv|mp4|m4g|c|h|x"
)
"""endings of file names"""


def _any(words: str) -> str:
    """A pattern for one of the words, in any case; longer ones come first."""
    return "(?i:" + "|".join(re.escape(word) for word in sorted(words.split(), key=len, reverse=True)) + ")"


def _capital(words: str) -> str:
    """A pattern for one of the words where its first letter is a capital."""
    return "(?=[A-Z])" + _any(words)


# Stanford's lexer takes the longest match of all its rules. These rules stand in an order that makes the first match
# the longest one. What no rule matches is dropped: white space, punctuation that does not count, unknown characters.
_TOKEN = re.compile(
    "|".join(
        [
            r"<(?:/?[A-Za-z]|[!?][A-Za-z-])[^<>]*>",  # a tag is one token
            r"(?i:c\+\+|[cf]#)",
            rf"(?i:can(?=not{_WORD_END})|(?:gon|wan)(?=na{_WORD_END})|got(?=ta{_WORD_END})|(?:lem|gim)(?=me{_WORD_END}))",
            # apostrophes
            rf"(?i:'t(?=(?:is|was){_END}))",
            rf"'[nN]'|(?i:n't|'(?:s|m|d|re|ve|ll)|'em|'till?|'cause|'n|'[2-9]0s){_END}|'\d\d(?!\S)",
            rf"(?i:ol'|somethin'|dunkin'){_END}",
            rf"(?i:c'mon|e'er|s'mores|ev'ry|li'l|nat'l|nor'easter|o'o){_END}",
            rf"[dDoOlL]'{_ALNUM}{_ALNUM}+(?:-{_ALNUM}+)*|[A-HJ-XZn]'{_LETTERS}{_LETTERS}+",
            rf"(?i:[ldj]'(?={_LETTERS})|y'(?=all\b|know\b))",
            rf"{_LETTERS}+[aeiouyAEIOUY]'(?!s{_END}|d{_END}|m{_END}|re{_END}|ve{_END}|ll{_END})[aeiouA-Z]{_LETTERS}*",
            rf"{_LETTERS}+?(?=[nN]'[tT]{_END})",
            # letters with periods
            rf"(?:[A-Za-z]\.)+(?:-{_ALNUM}+)*(?!{_LETTERS})",
            rf"(?:{_any(_ABBREVIATIONS)}|{_capital(_CAPITALISED)})\.(?!{_LETTERS})",
            rf"{_any(_NUMBERED)}\.(?=\s*\d)",
            # numbers and compounds
            r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}",
            rf"{_ALNUM}+(?:[-_]{_ALNUM}+)+",
            rf"{_DROPPED}|[-+]?{_NUMBER}|[-+]\d+",
            r"[A-Z]+\$|[A-Z]+(?:(?:\+|&(?:amp;)?)[A-Z]+)+",
            rf"{_LETTER}{_ALNUM}*(?:[.!?]{_LETTER}{_ALNUM}*)*(?:\.(?=[,;:]))?",
            rf"\d+(?:\.(?=[,;:]))?(?!{_ALNUM})|{_ALNUM}+",
            # signs
            rf"#{_LETTERS}+|@[A-Za-z_][A-Za-z_0-9]*",
            r"[<>]?[:;=][-o*']?[()DPdpO\\@|{\[\]](?![A-Za-z0-9])",
            r"[-^x=~<>']_[-^x=~<>']",
            r"&(?:amp|lt|gt|#\d+|HT|TL|UR|LR|QC|QL|QR|odq|cdq);",
            r"\\\*",
            r"[?!]{2,}|#+|\*+|_+|@+|<<|>>|-{5,}",
            r"[][(){}$%&+/<=>\\^|~]",
            r"[\u00a1-\u00a9\u00ac\u00ae-\u00b4\u00b6-\u00b9\u00bc-\u00bf\u00d7\u00f7\u20a0\u20a4\u20ac]",
            r"[\u2016\u2017\u201a\u201e-\u2023\u2030-\u2038\u203b\u203e-\u2042\u2044\u2070-\u208e\u2100-\u214f]",
            r"[\u2153-\u215e\u2190-\u2bff\u3001\u3002\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\uffe0-\uffe6]",
        ]
    )
)

_PATH = r"[^\s\"<>|(){}]+[^\s\"<>|.!?(){},-]"
_SUBSCRIBER = r"\d{3,4}[- \u00a0]?\d{3,5}"

# What the rules above may cut short: of these, the longest match counts where it is longer.
_LONGER = tuple(
    re.compile(rule)
    for rule in (
        rf"(?i:https?://){_PATH}",
        rf"(?i:www\.(?:[^\s\"<>|.!?(){{}},]+\.)+[a-z]{{2,4}})(?:/{_PATH})?",
        rf"(?:[^\s\"`'<>|!(){{}}$,-_]{{1,255}}\.)+(?i:com|net|org|edu)(?:/{_PATH})?",  # ,-_ is a range
        r"<?[A-Za-z0-9][^\s\"<>|(){}]{0,255}@(?:[^\s\"<>|(){}.]+\.)*[^\s\"<>|(){}.]+>?",  # an address
        r"[A-Za-z0-9][A-Za-z0-9.,]{0,255}(?:-(?:(?:[A-Za-z]\.){2,}|[A-Za-z0-9]+))+",
        rf"{_ALNUM}+(?:\.{_ALNUM}+)*\.(?i:{_FILES})(?=[\s.?!,]|$)",
        r"\([-^x=~<>'][_.]?[-^x=~<>']\)|\([\^x=~<>']-[\^x=~<>'`]\)",  # faces
    )
)
_ACROSS_SPACES = tuple(
    re.compile(rule)
    for rule in (
        rf"\(\d{{2,3}}\)[ \u00a0]?{_SUBSCRIBER}",
        rf"\+{{0,2}}\d{{2,4}}[- \u00a0]{_SUBSCRIBER}",
        rf"\+{{0,2}}\d{{2,4}}[- \u00a0]\d{{2,4}}[- \u00a0]{_SUBSCRIBER}",
        r"(?:\+{0,2}\d{2,4}\.)?\d{2,4}\.\d{3,4}\.\d{3,5}",
        r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}",  # a date
        r"\d{1,4}[- \u00a0]\d{1,4}\\?/\d{1,4}",  # a whole number and a fraction
    )
)

_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_SIGNS = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "£": "#", "€": "$", "₠": "$", "¤": "$", "¢": "cents"}
_FRACTIONS = {"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
_REPLACED = _BRACKETS | _SIGNS | _FRACTIONS
_BRACKET = re.compile(r"[()]")
_ACROSS = re.compile(r"[<\d]")  # only tags and numbers make rules look across spaces
_SPACE = re.compile(r"\s")
_ENTITIES = {
    "&quot;": '"',
    "&apos;": "'",
    "&nbsp;": " ",
    "&mdash;": " ",
    "&ndash;": " ",
    "&MD;": " ",  # as all dashes
}
_ENTITY = re.compile("|".join(_ENTITIES))
_QUOTES = str.maketrans({"\u2019": "'", "\x92": "'", "\u00ad": None})  # curly apostrophes; soft hyphens go


def ptb_tokens(caption: str) -> list[str]:
    """The words of `caption` that the COCO scorers compare, in order.

    Copies what coco-caption gets from Stanford's PTBTokenizer 3.4.1 with `-preserveLines -lowerCase` after it removed
    its punctuation list, quirks included: "don't" is "do n't", "cannot" is "can not"; brackets are words ("-lrb-")
    since the list to remove holds them in capitals; "?!" is a word where "?" is none; "u.s." and "mr." keep their
    periods; "£" is "#". A token may hold a space of its own, U+00A0 ("1 1/2").

    "c#" and "c++" are words; "www.x.org/y" is three, since a path counts from two characters on; "12 100 200" is one, a
    telephone number.

    Every caption is read by itself, line breaks as spaces; in the Java pipeline a line break ends a caption too early.
    Known to differ: an apostrophe ’ that opens a quotation, and the period of a single letter ("I.") that ends a
    sentence or paragraph.
    """
    text = _ENTITY.sub(lambda entity: _ENTITIES[entity[0]], caption).translate(_QUOTES)
    if _ACROSS.search(text):
        return _tokens(text, _LONGER + _ACROSS_SPACES)
    return [token for chunk in text.split() for token in _chunk_tokens(chunk)]


def _tokens(text: str, rules: Sequence[re.Pattern[str]] = _LONGER) -> list[str]:
    tokens, end = list[str](), 0
    while (match := _TOKEN.search(text, end)) is not None:
        start, end = match.span()
        for rule in rules:
            if (longer := rule.match(text, start)) is not None:
                end = max(end, longer.end())
        if _DOTS_OR_DASHES.fullmatch(text, start, end) is None:
            tokens.append(_written(text[start:end]))
    return tokens


@lru_cache(maxsize=1 << 16)
def _chunk_tokens(chunk: str) -> tuple[str, ...]:
    """Tokens of a piece without spaces; captions share most of their pieces, so remembering is ten times as fast."""
    return tuple(_tokens(chunk))


def _written(token: str) -> str:
    """The token as Stanford writes it."""
    if token.isalpha():
        return token.lower()
    if token in _REPLACED:
        return _REPLACED[token]
    token = _SPACE.sub("\u00a0", token.replace("&amp;", "&"))
    if not token.endswith(">"):  # a tag
        token = _BRACKET.sub(lambda bracket: _BRACKETS[bracket[0]], token)
    return token.lower()
