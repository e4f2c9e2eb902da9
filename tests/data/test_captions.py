"""Captioned pictures: every format, splits, captions to the letter, and what cannot serve named and counted."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vit.data.captions import CaptionListing, list_captions, list_evaluation_captions, write_captions
from vit.errors import DataError

NAMES = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]


def put(path: Path, content: str | bytes | object) -> Path:
    """Write a file: text and bytes as they are, anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_text(text, encoding="utf-8", newline="")
    return path


def pictures(folder: Path, names: list[str] = NAMES) -> None:
    """Files that pass for pictures as long as nobody decodes them."""
    for name in names:
        put(folder / name, b"x")


def train(data: Path, val: float = 0.25, test: float = 0.0, seed: int = 0, images: str | None = None) -> CaptionListing:
    return list_captions(data, val_fraction=val, test_fraction=test, seed=seed, images=images)


def captions(listing: CaptionListing) -> dict[str, tuple[str, ...]]:
    """Captions by the name of the picture, over all splits."""
    return {os.path.basename(p.path): p.captions for split in listing.splits.values() for p in split}


def split_names(listing: CaptionListing) -> dict[str, list[str]]:
    return {split: [os.path.basename(p.path) for p in found] for split, found in listing.splits.items()}


def message(call: Callable, *arguments, **options) -> str:
    with pytest.raises(DataError) as caught:
        call(*arguments, **options)
    return str(caught.value)


TWO = {name: (f"one {name[0]}", f"two, of {name[0]} .") for name in NAMES}
"""the captions that every format below holds"""


def coco(ids: list) -> dict:
    images = [{"id": i, "file_name": name, "height": 3} for i, name in zip(ids, NAMES, strict=True)]
    pairs = [(i, text) for turn in (0, 1) for i, name in zip(ids, NAMES, strict=True) for text in [TWO[name][turn]]]
    annotations = [{"image_id": i, "id": n, "caption": text} for n, (i, text) in enumerate(pairs)]
    return {"info": {}, "images": images, "licenses": [], "annotations": annotations}


def karpathy(splits: list[str], **more) -> dict:
    images = [
        {
            "filename": name,
            "imgid": number,
            "split": split,
            "sentids": [0, 1],
            "sentences": [{"raw": text, "tokens": text.split(), "imgid": number} for text in TWO[name]],
            **more,
        }
        for number, (name, split) in enumerate(zip(NAMES, splits, strict=True))
    ]
    return {"images": images, "dataset": "flickr8k"}


def table(header: str, separator: str, row: Callable[[str, int, str], list[str]]) -> str:
    rows = [separator.join(row(name, n, text)) for name, texts in TWO.items() for n, text in enumerate(texts)]
    return "\n".join([header, *rows] if header else rows) + "\n"


def quoted(text: str) -> str:
    return f'"{text}"' if "," in text else text


FORMATS = {
    "coco.json": coco([1, 2, 3, 4]),
    "coco_texts.json": coco(["x1", "x2", "x3", "x4"]),
    "karpathy.json": karpathy(["train"] * 4),
    "blip.json": [{"image": name, "caption": text} for name, texts in TWO.items() for text in texts],
    "blip_lists.json": [{"image": name, "caption": list(texts)} for name, texts in TWO.items()],
    "Flickr8k.token.txt": table("", "\t", lambda name, n, text: [f"{name}#{n}", text]),
    "captions.txt": table("image,caption", ",", lambda name, n, text: [name, quoted(text)]),
    "results.csv": table("image_name| comment_number| comment", "| ", lambda name, n, text: [name, str(n), text]),
    "cc3m.tsv": table("", "\t", lambda name, n, text: [text, name]),
    "cc12m.tsv": table("", "\t", lambda name, n, text: [name, text]),
    "open_clip.tsv": table("filepath\ttitle", "\t", lambda name, n, text: [name, text]),
    "metadata.csv": table("file_name,text", ",", lambda name, n, text: [name, quoted(text)]),
    "metadata.jsonl": "".join(json.dumps({"file_name": n, "captions": list(t)}) + "\n" for n, t in TWO.items()),
    "one_a_line.jsonl": "".join(
        json.dumps({"image": name, "text": text}) + "\n" for name, texts in TWO.items() for text in texts
    ),
    "lists.csv": "filename,raw\n"
    + "".join('{},"{}"\n'.format(name, json.dumps(list(texts)).replace('"', '""')) for name, texts in TWO.items()),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("folder", ["", "images", "Images", "deep/../Flicker8k_Dataset", "../images"])
def test_every_format_is_told_from_its_content_and_its_pictures_are_found(tmp_path, name, folder):
    data = tmp_path / "data"
    file = put(data / name, FORMATS[name])
    pictures(Path(os.path.normpath(data / folder)))
    for argument in (data, file):
        listing = train(argument)
        assert captions(listing) == TWO
        assert {split: len(found) for split, found in listing.splits.items()} == {"train": 3, "val": 1}
        assert listing.counts == {}
        assert listing.left_out == []
        assert listing.root == str(data)
        assert listing.images == os.path.normpath(data / folder)
        assert all(os.path.isabs(p.path) and os.path.isfile(p.path) for p in listing.splits["train"])


def test_ids_are_those_of_the_file_or_names(tmp_path):
    pictures(tmp_path)
    for content, expected in (
        (FORMATS["coco.json"], "1234"),
        (FORMATS["coco_texts.json"], ["x1", "x2", "x3", "x4"]),
        (FORMATS["karpathy.json"], "0123"),
        (karpathy(["train"] * 4, cocoid=7), None),
        (FORMATS["blip.json"], NAMES),
    ):
        file = put(tmp_path / "x.json", content)
        if expected is None:
            assert "b.jpg and a.jpg have the same id 7" in message(train, file)
        else:
            assert sorted(p.id for found in train(file).splits.values() for p in found) == list(expected)


def test_karpathys_splits_are_taken_and_restval_joins_train(tmp_path):
    file = put(tmp_path / "dataset.json", karpathy(["test", "restval", "val", "train"], filepath="val2014"))
    pictures(tmp_path / "val2014")
    assert split_names(train(file, test=0.5)) == {"train": ["b.jpg", "d.jpg"], "val": ["c.jpg"], "test": ["a.jpg"]}
    os.rename(tmp_path / "val2014", tmp_path / "images")  # where the sub-path is not kept
    assert split_names(train(tmp_path)) == {"train": ["b.jpg", "d.jpg"], "val": ["c.jpg"], "test": ["a.jpg"]}


def test_cocos_folders_are_read_as_they_come(tmp_path):
    for split in ("train2017", "val2017"):
        put(tmp_path / "annotations" / f"captions_{split}.json", coco([1, 2, 3, 4]))
        put(tmp_path / "annotations" / f"instances_{split}.json", "not even JSON")
        pictures(tmp_path / split)
    listing = train(tmp_path)
    assert {split: len(found) for split, found in listing.splits.items()} == {"train": 4, "val": 4}
    assert {os.path.dirname(p.path) for p in listing.splits["val"]} == {str(tmp_path / "val2017")}
    assert listing.images == str(tmp_path / "train2017")


def test_split_lists_beside_a_token_file_are_used(tmp_path):
    put(tmp_path / "Flickr8k.token.txt", FORMATS["Flickr8k.token.txt"])
    put(tmp_path / "Flickr8k.lemma.token.txt", FORMATS["Flickr8k.token.txt"])
    put(tmp_path / "ExpertAnnotations.txt", "a.jpg\tb.jpg#2\t1\t1\t1\n")
    put(tmp_path / "readme.txt", "Flickr8k, with captions\n")
    put(tmp_path / "Flickr_8k.trainImages.txt", "b.jpg\nd.jpg\n")
    put(tmp_path / "Flickr_8k.devImages.txt", "a.jpg\r\n")
    put(tmp_path / "Flickr_8k.testImages.txt", "gone.jpg\n")
    os.mkfifo(tmp_path / "val.txt")
    pictures(tmp_path / "Flicker8k_Dataset")
    listing = train(tmp_path)
    assert split_names(listing) == {"train": ["b.jpg", "d.jpg"], "val": ["a.jpg"]}
    assert listing.counts == {"pictures in none of the split lists": 1}  # c.jpg, which is there
    put(tmp_path / "Flickr_8k.testImages.txt", "c.jpg\nb.jpg\n")
    assert message(train, tmp_path).endswith("line 1: b.jpg is in test and in train")


def test_split_lists_may_leave_out_the_ending(tmp_path):
    put(tmp_path / "results.csv", FORMATS["results.csv"])
    for split, name in (("train", "a\nb"), ("val", "c"), ("test", "d")):
        put(tmp_path / f"{split}.txt", name)
    pictures(tmp_path / "flickr30k_images")
    assert split_names(train(tmp_path)) == {"train": ["a.jpg", "b.jpg"], "val": ["c.jpg"], "test": ["d.jpg"]}


def test_a_file_a_split(tmp_path):
    pictures(tmp_path / "images")
    put(tmp_path / "train.csv", "image,caption\na.jpg,x\nb.jpg,y\n")
    put(tmp_path / "val.csv", "image,caption\nc.jpg,z\n")
    assert split_names(train(tmp_path)) == {"train": ["a.jpg", "b.jpg"], "val": ["c.jpg"]}
    assert split_names(list_evaluation_captions(tmp_path)) == {"val": ["c.jpg"]}
    assert split_names(list_evaluation_captions(tmp_path, split="train")) == {"train": ["a.jpg", "b.jpg"]}
    assert split_names(list_evaluation_captions(tmp_path / "train.csv")) == {"all": ["a.jpg", "b.jpg"]}
    assert message(list_evaluation_captions, tmp_path, split="test").endswith("no split called test; it has train, val")
    put(tmp_path / "val.csv", "image,caption\na.jpg,z\n")
    assert message(train, tmp_path).endswith("val.csv, line 2: a.jpg is in train and in val; it must be in one of them")
    os.remove(tmp_path / "train.csv")
    assert message(train, tmp_path) == f"{tmp_path}: has val but no train"


def test_hugging_faces_folders_by_split(tmp_path):
    for split, name in (("train", "a.jpg"), ("validation", "a.jpg"), ("test", "c.jpg")):
        put(tmp_path / split / "metadata.jsonl", json.dumps({"file_name": name, "text": split}))
        pictures(tmp_path / split, NAMES)
    listing = train(tmp_path)
    assert {split: [p.captions for p in found] for split, found in listing.splits.items()} == {
        "train": [("train",)],
        "val": [("validation",)],
        "test": [("test",)],
    }


def test_a_column_of_splits(tmp_path):
    pictures(tmp_path)
    rows = [{"file_name": n, "caption": "x", "split": s} for n, s in zip(NAMES, ["train", "dev", "Test", "train"])]  # noqa: B905
    put(tmp_path / "metadata.jsonl", "\n".join(map(json.dumps, rows)))
    assert split_names(train(tmp_path)) == {"train": ["a.jpg", "d.jpg"], "val": ["b.jpg"], "test": ["c.jpg"]}
    put(
        tmp_path / "metadata.jsonl",
        "\n".join(map(json.dumps, [*rows, {"file_name": "a.jpg", "caption": "y", "split": "val"}])),
    )
    assert "line 5: a.jpg is in train and in val" in message(train, tmp_path)
    put(tmp_path / "metadata.jsonl", "\n".join(map(json.dumps, [rows[0], {"file_name": "b.jpg", "caption": "y"}])))
    assert message(train, tmp_path) == f"{tmp_path}: 1 entries have no split, others are in train"


def test_a_text_beside_each_picture_has_a_caption_a_line(tmp_path):
    pictures(tmp_path / "train", ["a.jpg", "b.png", "c.jpg", "d.jpg"])
    pictures(tmp_path / "val", ["a.jpg"])
    pictures(tmp_path, ["stray.jpg"])
    put(tmp_path / "train" / "a.txt", "\ufeffone\r\n\n two\u2028lines \n")
    put(tmp_path / "train" / "b.json", {"caption": "of JSON", "url": "x"})
    put(tmp_path / "train" / "c.txt", "\n")
    os.mkfifo(tmp_path / "train" / "d.txt")
    put(tmp_path / "val" / "a.txt", "of val")
    listing = train(tmp_path)
    assert [(p.id, p.captions) for p in listing.splits["train"]] == [
        ("train/a.jpg", ("one", " two\u2028lines ")),
        ("train/b.png", ("of JSON",)),
    ]
    assert split_names(listing)["val"] == ["a.jpg"]
    assert listing.counts == {"pictures without captions": 2, "pictures beside the folders of the splits": 1}


def test_held_out_pictures_depend_on_seed_and_names_alone(tmp_path):
    names = [f"{number}.jpg" for number in range(40)]
    rows = [f"{name},caption {turn}" for name in names for turn in (0, 1)]
    for place in ("here", "there"):
        pictures(tmp_path / place / "images", names)
    put(tmp_path / "here" / "x.csv", "\n".join(["image,caption", *rows]))
    put(tmp_path / "there" / "y.csv", "\n".join(["image,caption", *reversed(rows)]))
    here, there = train(tmp_path / "here", test=0.1), train(tmp_path / "there", test=0.1)
    assert {split: len(found) for split, found in here.splits.items()} == {"train": 26, "val": 10, "test": 4}
    assert {k: set(v) for k, v in split_names(here).items()} == {k: set(v) for k, v in split_names(there).items()}
    assert split_names(here)["val"] != split_names(train(tmp_path / "here", seed=1))["val"]
    assert all(len(p.captions) == 2 for found in here.splits.values() for p in found)


def test_captions_are_kept_to_the_letter(tmp_path):
    texts = [
        "word " * 10_000,
        "قطة تجلس على الأريكة \u200f",
        "\u202eשלום",
        "👩‍👩‍👧 e\u0301 é",
        '"quoted", and a\nline',
        "  blanks  ",
        "a\tb\0c",
    ]
    pictures(tmp_path)
    file = put(tmp_path / "x.jsonl", "\n".join(json.dumps({"image": "a.jpg", "caption": text}) for text in texts))
    assert captions(list_evaluation_captions(file)) == {"a.jpg": tuple(texts)}
    put(file, [{"image": "a.jpg", "caption": texts}])
    file = put(tmp_path / "y.json", [{"image": "a.jpg", "caption": texts}])
    assert captions(list_evaluation_captions(file)) == {"a.jpg": tuple(texts)}


def test_what_cannot_serve_is_named_and_counted(tmp_path):
    pictures(tmp_path / "images", ["a.jpg", "b.jpg", "empty.jpg"])
    put(tmp_path / "images" / "empty.jpg", b"")
    os.mkfifo(tmp_path / "images" / "pipe.jpg")
    rows = [("a.jpg", "x"), ("a.jpg", " "), ("a.jpg", "x"), ("b.jpg", "y"), ("gone.jpg", "z"), ("gone.jpg", "zz")]
    rows += [("empty.jpg", "e"), ("pipe.jpg", "p"), ("https://example.org/a.jpg", "w"), ("bare.jpg", "")]
    file = put(tmp_path / "x.csv", "image,caption\n" + "".join(f"{name},{text}\n" for name, text in rows))
    listing = train(file)
    assert captions(listing) == {"a.jpg": ("x", "x"), "b.jpg": ("y",)}
    assert listing.counts == {
        "empty captions": 2,
        "duplicate captions": 1,
        "pictures that are not there": 1,
        "files that are no pictures": 2,
        "web addresses instead of files": 1,
        "pictures without captions": 1,
    }
    named = {os.path.relpath(item.path, tmp_path): item.reason for item in listing.left_out}
    assert named["x.csv, line 3"] == "empty captions"
    assert named["images/gone.jpg"] == "no such file or directory"
    assert named["images/empty.jpg"] == "empty file"
    assert named["images/pipe.jpg"] == "not a regular file"


def test_all_that_is_skipped_is_named(tmp_path):
    pictures(tmp_path)
    rows = [f"{name},x" for name in NAMES] + [f"gone{number}.jpg,x" for number in range(1000)]
    listing = train(put(tmp_path / "x.csv", "\n".join(["image,caption", *rows])))
    assert listing.counts == {"pictures that are not there": 1000}
    assert len(listing.left_out) == 1000


def test_images_without_captions_and_captions_without_images_are_named(tmp_path):
    data = tmp_path / "data"
    pictures(data / "images")
    put(data / "images" / "deep" / "e.jpg", b"x")
    put(data / "x.csv", "image,caption\na.jpg,x\na.jpg,x\nb.jpg,y\nc.jpg,\ngone.jpg,z\n")
    listing = train(data)
    assert sorted((os.path.relpath(item.path, data), item.reason) for item in listing.left_out) == [
        ("images/d.jpg", "pictures without captions"),
        ("images/deep/e.jpg", "pictures without captions"),
        ("images/gone.jpg", "no such file or directory"),
        ("x.csv, line 5", "empty captions"),
        ("x.csv, line 5", "pictures without captions"),
    ]
    assert list_evaluation_captions(data).counts.get("pictures without captions") == 1  # may be a part of the images


def test_images_of_other_splits_and_other_folders_are_not_missed(tmp_path):
    pictures(tmp_path / "images")
    put(tmp_path / "other" / "e.jpg", b"x")
    put(tmp_path / "captions" / "train.csv", "image,caption\na.jpg,x\nb.jpg,y\n")
    put(tmp_path / "captions" / "val.csv", "image,caption\nc.jpg,x\n")
    assert [os.path.basename(item.path) for item in train(tmp_path / "captions").left_out] == ["d.jpg"]


def test_texts_and_images_that_lack_each_other_are_named(tmp_path):
    pictures(tmp_path)
    for name in ("a.txt", "b.txt", "c.txt", "e.txt"):
        put(tmp_path / name, "a caption")
    put(tmp_path / "f.json", {"caption": "x"})
    put(tmp_path / "info.json", {"about": "x"})
    named = {os.path.basename(item.path): item.reason for item in train(tmp_path).left_out}
    alone = "texts without an image of the same name"
    assert named == {"d.jpg": "pictures without captions", "e.txt": alone, "f.json": alone}


@pytest.mark.parametrize("form", ["x.json", "x.csv", "x.tsv"])
def test_no_name_leads_out_of_the_folder_of_the_pictures(tmp_path, form):
    inside, outside = tmp_path / "data" / "images", tmp_path / "secret"
    pictures(inside)
    pictures(outside, ["s.jpg"])
    (inside / "link.jpg").symlink_to(outside / "s.jpg")
    (inside / "folder").symlink_to(outside)
    (inside / "good.jpg").symlink_to("a.jpg")
    (inside / "dead.jpg").symlink_to("nowhere.jpg")
    bad = [
        "../../secret/s.jpg",
        str(outside / "s.jpg"),
        "link.jpg",
        "folder/s.jpg",
        "a/../../../secret/s.jpg",
        "/dev/null",
    ]
    names = [*bad, "..", *NAMES, "good.jpg", str(inside / "a.jpg"), "./b.jpg", "dead.jpg"]
    if form == "x.json":
        content: object = [{"image": name, "caption": "x"} for name in names]
    elif form == "x.csv":
        content = "image,caption\n" + "".join(f"{name},x\n" for name in names)
    else:
        content = "image\tcaption\n" + "".join(f"{name}\tx\n" for name in names)
    listing = train(put(tmp_path / "data" / form, content))
    assert set(captions(listing)) == {*NAMES, "good.jpg"}
    assert listing.counts == {
        "pictures outside their folder": 7,
        "pictures that are not there": 1,
        "duplicate captions": 2,  # a.jpg and b.jpg under another name
    }
    reasons = {item.path: item.reason for item in listing.left_out}
    assert reasons[str(inside / "link.jpg")] == "a link out of the folder of the pictures"


def test_nothing_outside_is_even_looked_at(tmp_path):
    pictures(tmp_path / "data")
    pictures(tmp_path / "secret", ["s.jpg"])
    names = ["../secret/s.jpg", str(tmp_path / "secret" / "s.jpg"), *NAMES]
    file = put(tmp_path / "data" / "x.json", [{"image": name, "caption": "x"} for name in names])
    code = (
        "import sys\n"
        "sys.addaudithook(lambda event, found: event == 'open' and print('open', found[0]))\n"
        "from vit.data.captions import list_captions\n"
        f"print(len(list_captions({str(file)!r}, val_fraction=0.5, test_fraction=0, seed=0).splits['train']))\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    *opened, count, with_torch = done.stdout.splitlines()
    assert (count, with_torch) == ("2", "False")
    assert f"open {file}" in opened
    assert [line for line in opened if "secret" in line or line.endswith(".jpg")] == []


def test_the_folder_of_the_pictures_can_be_named(tmp_path):
    pictures(tmp_path / "elsewhere" / "deep")
    names = ["a.jpg", str(tmp_path / "elsewhere" / "deep" / "b.jpg")]
    file = put(tmp_path / "data" / "x.json", [{"image": name, "caption": "x"} for name in names])
    assert "none of which can serve (pictures that are not there 1, pictures outside their folder 1" in message(
        train, file
    )
    for images in ("elsewhere", "elsewhere/deep"):
        assert set(captions(train(file, images=str(tmp_path / images)))) == {"a.jpg", "b.jpg"}


def test_one_folder_serves_the_whole_file(tmp_path):
    pictures(tmp_path / "images", NAMES[:3])
    pictures(tmp_path / "other", NAMES[3:])  # another picture that happens to have the name
    listing = train(put(tmp_path / "captions.csv", FORMATS["metadata.csv"]))
    assert set(captions(listing)) == set(NAMES[:3])
    assert listing.counts == {"pictures that are not there": 1}


def test_flickr30ks_broken_row_is_counted(tmp_path):
    pictures(tmp_path)
    text = str(FORMATS["results.csv"]) + "a.jpg| 4   A dog runs across the grass .\n"
    listing = train(put(tmp_path / "results.csv", text))
    assert captions(listing) == TWO
    assert listing.counts == {"broken rows": 1}
    assert listing.left_out[0].path == f"{tmp_path}/results.csv, line 10"


def test_coco_entries_without_their_counterpart_are_counted(tmp_path):
    pictures(tmp_path)
    data = coco([1, "2", 3, 4])
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] != 3] + [{"image_id": 9, "caption": "x"}]
    data["annotations"].append({"image_id": 2, "caption": "of the other type"})
    listing = train(put(tmp_path / "x.json", data))
    assert captions(listing)["b.jpg"] == (*TWO["b.jpg"], "of the other type")
    assert listing.counts == {"captions of no picture": 1, "pictures without captions": 1}
    data["images"][1]["id"] = 1
    assert message(train, put(tmp_path / "x.json", data)).endswith("images[1]: id 1 is also that of images[0]")


def test_tables_of_other_things_are_passed_over(tmp_path):
    pictures(tmp_path)
    put(tmp_path / "metadata.jsonl", FORMATS["metadata.jsonl"])
    put(tmp_path / "questions.csv", "file_name,text,label\na.jpg,what?,cat\n")
    put(tmp_path / "labels.csv", "file_name,label\na.jpg,cat\n")
    put(tmp_path / "pairs.tsv", "a\tb\n")
    put(tmp_path / "info.json", {"images": 3})
    put(tmp_path / "scenes.jsonl", json.dumps({"file_name": "a.jpg", "objects": []}))
    put(tmp_path / "README.txt", "Pictures, with captions\n")
    assert captions(train(tmp_path)) == TWO


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.json", '{"images": [\n{"id": 1,}\n]}', "x.json, line 2: not valid JSON"),
        ("x.json", "[" * 100_000, "x.json: not valid JSON"),
        ("x.json", {"images": [{"id": 1}], "annotations": [{"caption": ""}]}, "images[0]: no column called file_name"),
        ("x.json", coco([1, 2, 3, None]), "images[3]: id must be text, got None"),
        ("x.json", {"images": [3], "annotations": [{"caption": ""}]}, "images[0]: not a JSON object"),
        ("x.json", [{"image": "a.jpg", "caption": "x"}, 3], "entry[1]: not a JSON object"),
        ("x.json", [{"image": "a.jpg", "caption": {"en": "x"}}], "entry[0]: caption must be text or a list of texts"),
        ("x.json", [{"image": "a.jpg", "caption": "\ud800"}], "entry[0]: caption is not valid UTF-8 at character 1"),
        ("x.json", [{"image": "a.jpg", "caption": "x"}, {"caption": "x"}], "entry[1]: no column called path, file"),
        ("x.json", {"images": [{"filename": "a.jpg", "sentences": 3}]}, "images[0]: sentences is not a list"),
        ("x.json", {"images": [{"filename": "a.jpg", "sentences": [{}]}]}, "images[0].sentences[0]: no raw"),
        ("x.json", karpathy(["train", "extra", "val", "val"]), "images[1]: split must be train, val or test, got"),
        ("x.json", [{"image_id": 1, "caption": "x"}], "no captions; expected COCO"),
        ("x.jsonl", '{"image": "a.jpg", "text": "x"}\n{"image"', "line 2: not valid JSON"),
        ("x.csv", 'image,caption\na.jpg,x\nb.jpg,"y\n', "line 3: unexpected end of data"),
        ("x.csv", "image,caption\na.jpg,x,y\n", "line 2: more fields than columns; quote a name that has a comma"),
        ("x.csv", b"image,caption\na.jpg,x\nb.jpg,ab\xff\n", "line 3: caption is not valid UTF-8 at character 3"),
        ("x.csv", "image,caption\n,x\n", "line 2: image must be text, got ''"),
        ("x.csv", "image,kind\na.jpg,x\n", "no captions; expected COCO"),
        ("x.token", "a.jpg#0\tx\nb.jpg\ty\n", "line 2: expected name#number, a tab and the caption"),
        ("x.tsv", "x\ta.jpg\nx\ty\tz\n", "line 2: expected two columns with a tab between them, got 3"),
        ("x.csv", "", "no captions; expected COCO"),
        ("x.csv", "image,caption\n", "no picture with a caption"),
        ("x.csv", "image,caption\ngone.jpg,x\n", "names 1 pictures, none of which can serve"),
        ("x.csv", "image,caption\na.jpg,x\n", "1 to train on, too few to hold out val"),
        ("x.tar", b"x", "not a tar that can be read: "),
        ("x.tar.gz", b"x", "not read as it is; unpack it into a folder, and name that"),
        ("x.parquet", b"x", "not read as it is; write the table as .jsonl or .csv beside the pictures"),
        ("x.md", "text", "no captions; expected COCO"),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_its_place(tmp_path, name, content, words):
    pictures(tmp_path)
    said = message(train, put(tmp_path / name, content))
    assert words in said
    assert name in said or "to hold out" in said or "no picture with" in said
    assert said.count("\n") <= 1
    assert said.isprintable() or "\n" in said


def test_data_that_is_no_captions_is_refused(tmp_path):
    assert message(train, tmp_path / "gone") == f"{tmp_path}/gone: no such file or folder"
    os.mkfifo(tmp_path / "pipe.json")
    assert message(train, tmp_path / "pipe.json") == f"{tmp_path}/pipe.json: not a regular file"
    pictures(tmp_path)
    assert message(train, tmp_path).startswith(f"{tmp_path}: no captions; expected COCO")
    put(tmp_path / "shards" / "0.tar", b"x")
    assert message(train, tmp_path / "shards").startswith(f"{tmp_path}/shards/0.tar: not a tar that can be read: ")
    put(tmp_path / "x.csv", FORMATS["metadata.csv"])
    put(tmp_path / "y.json", FORMATS["blip.json"])
    assert message(train, tmp_path).endswith("several files could be meant, x.csv, y.json; name one of them as DATA")


def test_a_written_split_reads_back_exactly(tmp_path):
    odd = ["a, b.jpg", "c\n.jpg", "ü.jpg", os.fsdecode(b"d\xff.jpg"), "e.jpg"]
    for name in odd:
        put(tmp_path / "images" / name, b"x")
    rows = [
        {"image": name, "caption": [f'"{n}", one', "two\r\nlines", " ש "], "image_id": n} for n, name in enumerate(odd)
    ]
    first = train(put(tmp_path / "x.json", rows))
    write_captions(first, tmp_path / "run.csv")
    again = train(tmp_path / "run.csv", images=first.images)
    assert again.splits == first.splits
    assert split_names(list_evaluation_captions(tmp_path / "run.csv", split="val")) == {
        "val": split_names(first)["val"]
    }
