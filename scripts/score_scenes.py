"""How right a captioner is about generated scenes, measured exactly: by the truth that `vit data make scenes` writes.

    python scripts/score_scenes.py RUN SCENES [--split test] [--limit 300] [--beams N] [--no-repeat-ngram N]

A caption is right where it names every object and claims nothing that is not so. Of the colour and shape words of right
captions, the share is told whose map has its highest patch on the object that the word names: it touches its box.
"""

import argparse
import json
from pathlib import Path

from vit.api import load
from vit.data.scenes import describes, named_objects, parse_caption, read_scenes
from vit.models.generation_config import GenerationConfig
from vit.writers import Captioner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("scenes")
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--beams", type=int, default=1)
    parser.add_argument("--no-repeat-ngram", type=int, default=0)
    parser.add_argument("--method", choices=("cross", "generic"), default="cross")
    options = parser.parse_args()
    model = load(options.run, device="cpu")
    assert isinstance(model, Captioner)
    folder = Path(options.scenes)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    names = [row["file_name"] for row in rows if row["split"] == options.split][: options.limit]
    truth = read_scenes(folder)
    config = GenerationConfig(beams=options.beams, no_repeat_ngram=options.no_repeat_ngram, max_length=model.room(""))
    captions = model.caption([folder / name for name in names], config=config, batch_size=50)
    right = [describes(caption.text, truth[name]) for name, caption in zip(names, captions, strict=True)]
    said = sum(parse_caption(caption.text) is not None for caption in captions)
    inside = words = 0
    for name, caption, correct in zip(names, captions, right, strict=True):
        if not correct:
            continue
        maps = model.word_maps(folder / name, caption, method=options.method)
        rows_, columns = maps.shape[1:]
        height, width = model.preprocessing.size
        for place, thing in named_objects(caption.text, truth[name]).items():
            word = caption.text.split()[place].strip(",:")
            token = next((i for i, piece in enumerate(caption.words[place:], place) if piece == word), None)
            if token is None:
                continue
            peak = int(maps[token].argmax())
            y, x = (peak // columns + 0.5) * height / rows_, (peak % columns + 0.5) * width / columns
            top, left, bottom, right_ = thing.box
            margin = height / rows_ / 2  # the patch's own extent
            words += 1
            inside += top - margin <= y <= bottom + margin and left - margin <= x <= right_ + margin
    print(f"{len(names)} pictures of {options.split}: {100 * said / len(names):.1f} % are sentences of the grammar,")
    print(f"{100 * sum(right) / len(names):.1f} % are right; ", end="")
    print(
        f"{100 * inside / max(1, words):.1f} % of {words} words have their map's peak in the object ({options.method})"
    )


if __name__ == "__main__":
    main()
