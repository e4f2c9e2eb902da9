"""What a captioner has to beat: captions that were not written about the picture, scored as `vit evaluate` scores.

    python scripts/caption_baselines.py DATA [--split val] [--model RUN]

- most frequent: the training caption that most training pictures have, the same for every picture.
- best constant: of `--tries` training captions, the one that scores highest on the very pictures that are scored.
- nearest neighbour: the first caption of the training picture that looks most alike.
- consensus: of the captions of the 20 nearest training pictures, the one closest to the others by CIDEr-D (Devlin et
  al. 2015, "Exploring nearest neighbor approaches for image captioning").

Alike are pictures whose features by the encoder of `--model` (a captioner, mean of its tokens) have the largest cosine;
without a model, whose 16 x 16 pixels do.
"""

import argparse
import random
from collections import Counter

import numpy as np
from PIL import Image

from vit.api import load
from vit.data.captions import Captioned, list_captions
from vit.data.decode import decode
from vit.evaluate.captions import CiderD, caption_scores
from vit.evaluate.ptb import ptb_tokens
from vit.writers import Captioner

NEIGHBOURS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--split", default="val")
    parser.add_argument("--model")
    parser.add_argument("--tries", type=int, default=1000)
    options = parser.parse_args()
    splits = list_captions(options.data, val_fraction=0.1, test_fraction=0.0, seed=0).splits
    train, scored = splits["train"], splits[options.split]
    references = {entry.path: list(entry.captions) for entry in scored}
    captions = [caption for entry in train for caption in entry.captions]

    said = Counter(" ".join(ptb_tokens(caption)) for caption in captions)
    frequent, count = said.most_common(1)[0]
    report(f"most frequent, {count} times", dict.fromkeys(references, frequent), references)

    cider = CiderD([entry.captions for entry in scored])
    tried = random.Random(0).sample(captions, min(options.tries, len(captions)))
    best = max(tried, key=lambda caption: sum(cider.score(caption, place) for place in range(len(scored))))
    report("best constant", dict.fromkeys(references, best), references)

    features = {split: describe(part, options.model) for split, part in (("train", train), ("scored", scored))}
    near = np.argsort(-features["scored"] @ features["train"].T, axis=1, kind="stable")
    nearest = {entry.path: train[row[0]].captions[0] for entry, row in zip(scored, near, strict=True)}
    report("nearest neighbour", nearest, references)

    consensus = CiderD([entry.captions for entry in train])
    agreed = {}
    for entry, row in zip(scored, near, strict=True):
        around = row[:NEIGHBOURS]
        agreed[entry.path] = max(
            (caption for place in around for caption in train[place].captions),
            key=lambda caption, around=around: sum(consensus.score(caption, int(place)) for place in around),
        )
    report(f"consensus of {NEIGHBOURS}", agreed, references)


def describe(entries: list[Captioned], model: str | None) -> np.ndarray:
    """Features [pictures, D] of length one, their mean over the pictures taken away first."""
    if model is None:
        rows = [np.asarray(Image.fromarray(decode(e.path)).resize((16, 16), Image.Resampling.BOX)) for e in entries]
        features = np.stack(rows).reshape(len(rows), -1).astype(np.float32)
    else:
        captioner = load(model, device="cpu")
        assert isinstance(captioner, Captioner)
        paths = [entry.path for entry in entries]
        batches = (captioner.network.encode(batch).mean(dim=1) for batch in captioner.batches(paths, 50))
        features = np.concatenate([batch.detach().numpy() for batch in batches])
    features = features - features.mean(axis=0)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def report(what: str, candidates: dict[str, str], references: dict[str, list[str]]) -> None:
    """A row of the table."""
    scores = caption_scores(candidates, references)
    low, high = scores.intervals["cider_d"]
    print(
        f"{what:24} CIDEr-D {scores.cider_d:.4f} (95 %: {low:.4f} to {high:.4f})  BLEU-4 {scores.bleu[3]:.4f}  "
        f"ROUGE-L {scores.rouge_l:.4f}  e.g. {next(iter(candidates.values()))}",
        flush=True,
    )


if __name__ == "__main__":
    main()
