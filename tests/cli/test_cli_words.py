"""Models of words from the command line: trained, measured, used, resumed; and what is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import vit as api
from vit.data.scenes import make_scenes
from vit.errors import ConfigError, NonFiniteOutput
from vit.explain.words import WORD_METHODS, word_maps
from vit.models.file import read_model, save_model

SMALL = [
    "--text.depth=1",
    "--text.dim=32",
    "--text.heads=2",
    "--text.hidden=32",
    "--text.dropout=0",
    "--train.accelerator=cpu",
    "--data.workers=0",
    "--optim.lr=0.003",
]
EYES = ["--model.name=micro/8", "--model.image_size=48", "--model.depth=1", "--model.dim=32", "--model.heads=2"]
EYES += ["--model.hidden=32", "--data.batch_size=8"]


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 scenes of 48 x 48 pixels to train on, some to validate and test on."""
    folder = tmp_path_factory.mktemp("scenes") / "scenes"
    make_scenes(folder, count=24, seed=0, side=48)
    return folder


@pytest.fixture(scope="session")
def captioner(scenes: Path, train: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("captioner") / "run"
    train(scenes, "--task", "caption", "--train.epochs=2", *EYES, *SMALL, "--out", run)
    return run


@pytest.fixture(scope="session")
def fused(scenes: Path, train: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("fused") / "run"
    train(scenes / "questions.csv", "--task", "fuse", "--train.epochs=1", *EYES, *SMALL, "--out", run)
    return run


@pytest.fixture(scope="session")
def language(train: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("language")
    (folder / "text.txt").write_text("the cat sat on the mat. " * 120)
    run = folder / "run"
    words = ["--task=language", "--text.tokenizer=characters", "--text.length=16", "--data.batch_size=8"]
    train(folder / "text.txt", *words, "--train.epochs=3", "--text.epoch_steps=30", *SMALL, "--out", run)
    return run


@pytest.fixture(scope="session")
def translator(train: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("translator")
    pairs = [f"{a}{b}\t{b}{a}" for a in "abcdefgh" for b in "abcdefgh"]
    (folder / "pairs.tsv").write_text("\n".join(pairs) + "\n")
    run = folder / "run"
    train(folder / "pairs.tsv", "--task=translate", "--data.batch_size=8", "--train.epochs=4", *SMALL, "--out", run)
    return run


def test_a_run_of_words_leaves_what_a_run_leaves(captioner: Path) -> None:
    names = {path.name for path in captioner.iterdir()}
    assert {"model.safetensors", "metrics.csv", "config.yaml", "data.json", "tokenizer.json", "log.txt"} <= names
    header, *rows = (captioner / "metrics.csv").read_text().splitlines()
    assert "val/picture_gain" in header
    assert len(rows) == 2
    log = (captioner / "log.txt").read_text()
    assert "24" in log
    assert "vit caption" in log
    facts = json.loads((captioner / "data.json").read_text())
    assert facts["samples"]["train"] == 24


def test_unreadable_csv_names_captions_without_images_and_images_without_captions(
    train: Callable[..., None], tmp_path: Path
) -> None:
    rows = ["image,caption"]
    for number in range(8):
        Image.new("RGB", (48, 48), (number * 30, 0, 0)).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,number {number}" if number < 6 else f"gone{number}.png,none")
    (tmp_path / "5.png").write_bytes(b"no image")
    (tmp_path / "captions.csv").write_text("\n".join(rows))
    run = tmp_path / "run"
    train(tmp_path / "captions.csv", "--task", "caption", "--train.epochs=1", *EYES, *SMALL, "--out", run)
    header, *found = (run / "unreadable.csv").read_text().splitlines()
    assert header == "split,path,reason"
    named = {Path(row.split(",")[1]).name: row.split(",", 2)[::2] for row in found}
    assert named["gone6.png"] == named["gone7.png"] == ["", "no such file or directory"]
    assert named["6.png"] == named["7.png"] == ["", "pictures without captions"]
    assert named["5.png"][0] in ("train", "val")
    assert len(found) == 5


def test_captions_are_json_lines_with_every_token(vit: Callable[..., Any], captioner: Path, scenes: Path) -> None:
    pictures = sorted((scenes / "images").glob("test-*.png"))[:2]
    outcome = vit("caption", captioner, *pictures, "--n-best", 2, "--beams", 3, "--device", "cpu")
    assert (outcome.code, outcome.err) == (0, "")
    lines = [json.loads(line) for line in outcome.out.splitlines()]
    assert [line["path"] for line in lines] == [str(path) for path in pictures]
    model = api.load(captioner, device="cpu")
    assert isinstance(model, api.Captioner)
    captions = model.caption(pictures, beams=3, n_best=2)
    for line, caption in zip(lines, captions, strict=True):
        assert line["caption"] == caption.text
        assert [token["token"] for token in line["tokens"]] == list(caption.words)
        assert line["score"] == pytest.approx(caption.score, abs=1e-5)
        assert len(line["alternatives"]) == 1
        assert caption.alternatives[0].score <= caption.score


def test_every_word_gets_its_map_and_the_page_shows_them(
    vit: Callable[..., Any], captioner: Path, scenes: Path, tmp_path: Path
) -> None:
    picture = sorted((scenes / "images").glob("test-*.png"))[0]
    out = tmp_path / "maps"
    assert vit("caption", captioner, picture, "--attention", out, "--device", "cpu").code == 0
    assert {path.name for path in out.iterdir()} == {f"0000-{picture.stem}.png", "explorer.html"}
    with Image.open(out / f"0000-{picture.stem}.png") as drawn:
        assert min(drawn.size) > 100
    assert "<script" in (out / "explorer.html").read_text()
    model = api.load(captioner, device="cpu")
    assert isinstance(model, api.Captioner)
    (caption,) = model.caption(picture)
    for method in ("cross", "generic"):
        maps = model.word_maps(str(picture), caption, method=method)  # type: ignore[arg-type]
        assert maps.shape == (len(caption.words), 6, 6)
        assert maps.isfinite().all()
        assert maps.min() >= 0


def test_cross_maps_are_the_rows_of_cross_attention(captioner: Path, scenes: Path) -> None:
    from vit.nn import Trace

    model = api.load(captioner, device="cpu")
    assert isinstance(model, api.Captioner)
    picture = sorted((scenes / "images").glob("test-*.png"))[0]
    (images,) = model.batches([picture], 1)
    tokens = torch.tensor([[model.tokenizer.start, 4, 5, 6]])
    trace = Trace()
    with torch.no_grad():
        model.network(images, tokens[:, :-1], trace=trace)
    expected = trace.cross_attention[0].rows()[0, 1, :, 1:]
    found = word_maps(model.network, images, tokens, layer=0, head=1)
    torch.testing.assert_close(found.flatten(1), expected)
    with pytest.raises(ConfigError, match="layer: must be 0 to 0, got 1"):
        word_maps(model.network, images, tokens, layer=1)


def test_a_captioner_is_measured(vit: Callable[..., Any], captioner: Path, scenes: Path, tmp_path: Path) -> None:
    outcome = vit("evaluate", captioner, scenes, "--out", tmp_path / "report", "--accelerator", "cpu", "--beams", 1)
    assert outcome.code == 0, outcome
    assert "CIDEr-D" in outcome.out
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert metrics["split"] == "test"
    assert 0 <= metrics["distinct_captions"] <= 1
    lines = (tmp_path / "report" / "captions.jsonl").read_text().splitlines()
    assert len(lines) == metrics["count"]
    assert {"path", "caption", "cider_d"} <= json.loads(lines[0]).keys()
    words = ["--out", tmp_path / "varied", "--accelerator", "cpu", "--no-repeat-ngram", 1]
    assert vit("evaluate", captioner, scenes, *words).code == 0
    lines = (tmp_path / "varied" / "captions.jsonl").read_text().splitlines()
    written = [json.loads(line)["caption"].split() for line in lines]
    assert all(len(set(caption)) == len(caption) for caption in written)


def test_a_captioner_learns_the_same_from_shards_and_is_measured_on_them(
    vit: Callable[..., Any], scenes: Path, train: Callable[..., None], tmp_path: Path
) -> None:
    shards = tmp_path / "shards"
    assert vit("data", "shard", scenes, "--task=caption", "--out", shards, "--data.workers=1").code == 0
    weights, numbers = [], []
    for data in (scenes, shards):
        run = tmp_path / f"run of {data.name}"
        few = ["--train.epochs=1", "--data.cache=none"]
        train(data, "--task", "caption", *few, *EYES, *SMALL, "--out", run)
        outcome = vit("evaluate", run, data, "--out", tmp_path / "report", "--accelerator", "cpu", "--beams", 1)
        assert outcome.code == 0, outcome
        told = json.loads((tmp_path / "report" / "metrics.json").read_text())
        numbers.append({key: told[key] for key in ("split", "count", "exact", "rouge_l", "cider_d")})
        weights.append(torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert numbers[0] == numbers[1]


def test_a_run_of_words_goes_on_as_if_it_had_never_stopped(
    scenes: Path, train: Callable[..., None], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train(scenes, "--task", "caption", "--train.epochs=1", "--schedule.name=constant", *EYES, *SMALL, "--out", run)
    whole = tmp_path / "whole"
    train(scenes, "--task", "caption", "--train.epochs=2", "--schedule.name=constant", *EYES, *SMALL, "--out", whole)
    train("--out", run, "--resume", "--train.epochs=2")
    one, other = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for folder in (run, whole)
    )
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_the_last_epochs_can_be_trained_by_reward(
    scenes: Path, train: Callable[..., None], captioner: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ["--train.epochs=3", "--text.reward_epochs=1", "--optim.lr=0.01", "--schedule.name=constant"]
    train(scenes, "--task", "caption", *EYES, *SMALL, *words, "--out", run)
    rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    losses = [float(row[rows[0].index("train/loss")]) for row in rows[1:]]
    assert min(losses[:2]) > 1 > abs(losses[2])  # a gain over other captions, no longer a cross-entropy


def test_data_that_changed_is_not_gone_on_with(refused: Callable[..., str], scenes: Path, captioner: Path) -> None:
    facts = json.loads((captioner / "data.json").read_text())
    before = (captioner / "data.json").read_text()
    (captioner / "data.json").write_text(json.dumps(facts | {"sha256": "0" * 64}))
    try:
        message = refused("train", "--out", captioner, "--resume", "--train.epochs=3", code=2)
    finally:
        (captioner / "data.json").write_text(before)
    assert "has changed since the run began" in message


def test_questions_are_answered_with_either_side_missing(
    vit: Callable[..., Any], fused: Path, scenes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report"
    outcome = vit("evaluate", fused, scenes / "questions.csv", "--out", out, "--accelerator", "cpu")
    assert outcome.code == 0, outcome
    metrics = json.loads((out / "metrics.json").read_text())
    assert {"both", "picture_alone", "text_alone"} <= metrics.keys()
    model = api.load(fused, device="cpu")
    assert isinstance(model, api.FusedModel)
    picture = sorted((scenes / "images").glob("test-*.png"))[0]
    for images, text in ((picture, "what shape is the square?"), (picture, None), (None, "what shape is the square?")):
        (answer,) = model.predict(images, text, top=2)
        assert len(answer.classes) == 2
        assert answer.classes[0] in model.classes
    outcome = vit("predict", fused, picture, "--text", "what shape is the square?", "--top", 1, "--device", "cpu")
    assert (outcome.code, outcome.err) == (0, "")
    (answer,) = model.predict(picture, "what shape is the square?", top=1)
    assert json.loads(outcome.out)["top"][0]["class"] == answer.classes[0]
    with pytest.raises(ConfigError, match="must be given"):
        model.predict(None, None)
    with pytest.raises(ConfigError, match="1 pictures and 2 texts"):
        model.predict(picture, ["a", "b"])


def test_a_language_model_learns_and_goes_on(vit: Callable[..., Any], language: Path, tmp_path: Path) -> None:
    rows = (language / "metrics.csv").read_text().splitlines()
    losses = [float(row.split(",")[rows[0].split(",").index("val/loss")]) for row in rows[1:]]
    assert losses[-1] < losses[0]
    outcome = vit("generate", language, "--prompt", "the c", "--temperature", 0, "--max-length", 8, "--device", "cpu")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("the c")
    assert len(outcome.out.rstrip("\n")) == len("the c") + 8
    drawn = [
        vit("generate", language, "--prompt", "the c", "--seed", seed, "--device", "cpu").out for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    cooler = [
        vit("generate", *words, language, "--prompt", "the c", "--temperature", 0.7, "--device", "cpu").out
        for words in ([], ["--sample"])
    ]
    assert cooler[0] == cooler[1] != drawn[0]
    text = tmp_path / "other.txt"
    text.write_text("the cat sat on the mat. " * 10)
    own = vit("evaluate", language, language.parent / "text.txt", "--out", tmp_path / "own", "--accelerator", "cpu")
    assert f"of 576 letters of {language.parent / 'text.txt'}, split val" in own.out  # a fifth was held out
    refusal = vit("evaluate", language, text, "--split", "val", "--accelerator", "cpu")
    assert f"{text}: no split called val; it has none" in refusal.err
    outcome = vit("evaluate", language, text, "--out", tmp_path / "report", "--accelerator", "cpu")
    assert outcome.code == 0, outcome
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert metrics["tokens"] == 239
    model = api.load(language, device="cpu")
    assert isinstance(model, api.Writer)
    ids = torch.tensor([model.tokenizer.encode("the cat sat on t")])
    with torch.no_grad():
        first = torch.nn.functional.cross_entropy(model.network(ids[:, :-1])[0], ids[0, 1:])  # type: ignore[operator]
    assert model.loss("the cat sat on t")[0] == pytest.approx(float(first), abs=1e-5)


def test_a_text_is_answered_by_another(vit: Callable[..., Any], translator: Path, tmp_path: Path) -> None:
    outcome = vit("generate", translator, "--prompt", "ab", "--device", "cpu")
    assert outcome.code == 0, outcome
    pairs = tmp_path / "test.tsv"
    pairs.write_text("ab\tba\ncd\tdc\n")
    outcome = vit("evaluate", translator, pairs, "--out", tmp_path / "report", "--accelerator", "cpu")
    assert outcome.code == 0, outcome
    lines = [json.loads(line) for line in (tmp_path / "report" / "predictions.jsonl").read_text().splitlines()]
    model = api.load(translator, device="cpu")
    assert isinstance(model, api.Writer)
    for line in lines:
        (answer,) = model.answer([line["source"]], beams=4)
        assert answer.text == line["answer"]
        assert line["right"] == (answer.text == line["target"])


def test_words_are_found_by_their_embeddings(
    vit: Callable[..., Any], refused: Callable[..., str], language: Path
) -> None:
    outcome = vit("embed", language, "--nearest", "a", "--top", 3)
    assert (outcome.code, outcome.err) == (0, "")
    lines = [json.loads(line) for line in outcome.out.splitlines()]
    assert len(lines) == 3
    assert "a" not in [line["word"] for line in lines]
    assert [line["cosine"] for line in lines] == sorted((line["cosine"] for line in lines), reverse=True)
    outcome = vit("embed", language, "--analogy", "a", "t", "h", "--top", 2)
    assert not {json.loads(line)["word"] for line in outcome.out.splitlines()} & {"a", "t", "h"}
    assert "not one word of the vocabulary" in refused("embed", language, "--nearest", "cat", code=2)


def test_sampling_options_imply_sampling(vit: Callable[..., Any], captioner: Path, scenes: Path) -> None:
    picture = sorted((scenes / "images").glob("test-*.png"))[0]

    def captions(*words: object) -> list[str]:
        outcome = vit("caption", *words, captioner, picture, "--device", "cpu", "--max-length", 12)
        assert (outcome.code, outcome.err) == (0, "")
        record = json.loads(outcome.out)
        return [record["caption"], *(other["caption"] for other in record.get("alternatives", []))]

    assert captions("--temperature", 0) == captions("--beams", 1)
    for option in ("--temperature", "--top-p"):
        drawn = captions(option, 0.9, "--n-best", 6, "--seed", 3)
        assert drawn == captions("--sample", option, 0.9, "--n-best", 6, "--seed", 3)
        assert len(drawn) == 6
    assert captions("--temperature", 1, "--seed", 3) == captions("--sample", "--seed", 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--beams", "0"], "argument --beams: must be at least 1, got 0"),
        (["--temperature", "-1", "--sample"], "generation.temperature: must not be negative"),
        (["--n-best", "5"], "generation.n_best: must be at most beams, 4"),
        (["--top-k", "5", "--beams", "2"], "generation.beams: must be 1 when sampling, which top_k 5 implies, got 2"),
        (["--temperature", "1", "--beams", "2"], "generation.beams: must be 1 when sampling, got 2"),
        (["--temperature", "0", "--top-k", "5"], "generation.top_k: has no effect at temperature 0"),
    ],
)
def test_settings_of_generation_that_cannot_be_are_refused(
    words: list[str], message: str, refused: Callable[..., str], captioner: Path, scenes: Path
) -> None:
    picture = sorted((scenes / "images").glob("test-*.png"))[0]
    assert message in refused("caption", captioner, picture, *words, code=2)


def test_a_model_of_another_kind_is_told_what_to_do(
    refused: Callable[..., str], trained_run: Path, captioner: Path, language: Path, scenes: Path
) -> None:
    picture = sorted((scenes / "images").glob("test-*.png"))[0]
    classifier = refused("caption", trained_run, picture, code=1)
    assert "not a captioner but a classifier of pictures" in classifier
    assert f"`vit train CAPTIONS --task caption --model.init {trained_run}` makes a captioner" in classifier
    assert "`vit caption` describes" in refused("predict", captioner, picture, code=1)
    assert "not a captioner but a language model" in refused("caption", language, picture, code=1)
    assert "reads pictures alone" in refused("predict", trained_run, picture, "--text", "a", code=2)
    assert "`vit predict`" in refused("generate", trained_run, "--prompt", "a", code=1)


def test_a_prompt_longer_than_the_model_reads_is_refused(
    refused: Callable[..., str], captioner: Path, scenes: Path
) -> None:
    picture = sorted((scenes / "images").glob("test-*.png"))[0]
    assert "shorten it" in refused("caption", captioner, picture, "--prompt", "a " * 100, code=2)


def test_what_the_vocabulary_lacks_is_named(vit: Callable[..., Any], language: Path) -> None:
    outcome = vit("generate", language, "--prompt", "the 猫", "--max-length", 4, "--device", "cpu")
    assert outcome.code == 0
    assert outcome.err == "note     the model's vocabulary lacks 猫\n"
    assert outcome.out.startswith("the 猫")
    outcome = vit("generate", language, "--prompt", "the cat " * 9, "--device", "cpu", "--beams", 2)
    assert (outcome.code, outcome.out) == (2, "")


def test_unreadable_pictures_among_good_ones_are_named(
    vit: Callable[..., Any], captioner: Path, scenes: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    picture = sorted((scenes / "images").glob("test-*.png"))[0]
    outcome = vit("caption", captioner, broken, picture, "--device", "cpu")
    assert outcome.code == 1
    first, second = (json.loads(line) for line in outcome.out.splitlines())
    assert "error" in first
    assert "caption" in second
    assert "broken.png" in outcome.err


def test_the_encoder_of_a_captioner_starts_an_answerer_of_questions(
    scenes: Path, captioner: Path, train: Callable[..., None], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ["--model.init", captioner, "--data.batch_size=8", "--train.epochs=1", "--optim.lr=1e-9"]
    train(scenes / "questions.csv", "--task", "fuse", *SMALL, *words, "--out", run)
    model, first = api.load(run, device="cpu"), api.load(captioner, device="cpu")
    assert isinstance(model, api.FusedModel)
    assert isinstance(first, api.Captioner)
    mine, theirs = model.network.image.state_dict(), first.network.encoder.state_dict()
    assert all(torch.allclose(mine[name], theirs[name], atol=1e-6) for name in mine)


def test_an_encoder_of_a_classifier_starts_a_captioner(
    scenes: Path, trained_run: Path, train: Callable[..., None], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ["--model.init", trained_run, "--data.batch_size=8", "--text.freeze_encoder=-1", "--train.epochs=1"]
    train(scenes, "--task", "caption", *words, *SMALL, "--out", run)
    model, first = api.load(run, device="cpu"), api.load(trained_run, device="cpu")
    assert isinstance(model, api.Captioner)
    assert isinstance(first, api.Classifier)
    mine, theirs = model.network.encoder.state_dict(), first.network.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)  # it stood still


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task=caption", "--tune.method=knn"], "tune.method"),
        (["--task=caption", "--augment.mixup=0.2"], "augment.mixup"),
        (["--task=language", "--train.monitor=macro_f1"], "train.monitor: must be loss for task language"),
        (["--task=caption", "--optim.layer_decay=0.5"], "optim.layer_decay: must be 1 for task caption"),
        (["--task=caption", "--text.dim=-1"], "text.dim: must be at least 1"),
        (["--task=fuse", "--text.freeze_encoder=1"], "text.freeze_encoder: is for task caption, got 1"),
        (["--task=caption", "--data.balanced=true"], "data.balanced: has no effect on task caption, got True"),
        (["--task=caption", "--loss.class_weights=balanced"], "loss.class_weights: has no effect on task caption"),
        (["--task=caption", "--data.cache=device"], "data.cache: is not for task caption, got 'device'"),
    ],
)
def test_settings_that_do_not_suit_a_task_are_refused(
    words: list[str], message: str, refused: Callable[..., str], scenes: Path, tmp_path: Path
) -> None:
    assert message in refused("train", scenes, *words, "--out", tmp_path / "run", code=2)


def test_a_text_that_cannot_be_as_long_as_asked_for_is_refused_in_a_line(
    refused: Callable[..., str], vit: Callable[..., Any], captioner: Path, language: Path, scenes: Path
) -> None:
    picture = sorted((scenes / "images").glob("test-*.png"))[0]
    assert "are too long" in refused("caption", captioner, picture, "--max-length", 500, "--device", "cpu", code=2)
    outcome = vit("generate", language, "--prompt", "the c", "--beams", 2, "--device", "cpu")
    assert (outcome.code, outcome.err) == (0, "")
    assert len(outcome.out.rstrip("\n")) == 17  # 16 are read, the last one is not


def test_maps_of_a_caption_that_was_begun_are_of_the_words_after_the_beginning(captioner: Path, scenes: Path) -> None:
    model = api.load(captioner, device="cpu")
    assert isinstance(model, api.Captioner)
    picture = sorted((scenes / "images").glob("test-*.png"))[0]
    (caption,) = model.caption(picture, prompt="a small red")
    assert len(caption.prompt) == 3
    whole = replace(caption, prompt=(), tokens=caption.prompt + caption.tokens)
    for method in WORD_METHODS:
        maps = model.word_maps(picture, caption, method=method)
        assert len(maps) == len(caption.words) > 0
        torch.testing.assert_close(maps, model.word_maps(picture, whole, method=method)[3:])
        assert model.word_maps(picture, replace(caption, tokens=(), words=()), method=method).shape == (0, 6, 6)


def test_a_begun_caption_has_its_maps_and_the_page_holds_the_first_pictures(
    vit: Callable[..., Any], captioner: Path, scenes: Path, tmp_path: Path
) -> None:
    pictures = sorted((scenes / "images").glob("test-*.png"))
    out, words = tmp_path / "maps", ["--prompt", "a small red", "--device", "cpu"]
    assert vit("caption", captioner, *[pictures[0]] * 9, *words, "--attention", out).code == 0
    assert len(list(out.glob("*.png"))) == 9
    page = (out / "explorer.html").read_text()
    assert page.count(pictures[0].name) == 8
    assert "small" in page


def test_references_are_compared_as_the_tokenizer_writes_them(
    vit: Callable[..., Any], captioner: Path, scenes: Path, tmp_path: Path
) -> None:
    """The tokenizer knows neither capitals nor where blanks were."""
    model = api.load(captioner, device="cpu")
    assert isinstance(model, api.Captioner)
    picture = sorted((scenes / "images").glob("test-*.png"))[0]
    (caption,) = model.caption(picture, beams=1)
    shutil.copy(picture, tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(f"  {caption.text.capitalize()}\n")
    outcome = vit("evaluate", captioner, tmp_path, "--beams", 1, "--out", tmp_path / "report", "--accelerator", "cpu")
    assert outcome.code == 0, outcome
    assert json.loads((tmp_path / "report" / "metrics.json").read_text())["exact"] == 1


def test_texts_whose_picture_is_missing_or_broken_are_counted(
    vit: Callable[..., Any], refused: Callable[..., str], fused: Path, scenes: Path, tmp_path: Path
) -> None:
    model = api.load(fused, device="cpu")
    answer = model.classes[0]
    (tmp_path / "broken.png").write_bytes(b"no picture")
    shutil.copy(sorted((scenes / "images").glob("test-*.png"))[0], tmp_path / "good.png")
    table = tmp_path / "questions.csv"
    table.write_text("".join(f"{line}\n" for line in ("file_name,text,label", f"broken.png,what?,{answer}")))
    words = ["--out", tmp_path / "report", "--accelerator", "cpu", "--batch-size", 1]
    said = refused("evaluate", fused, table, *words, code=1)
    assert "none of the 1 texts has a picture that can be read" in said
    table.write_text(table.read_text() + f"good.png,what?,{answer}\ngone.png,what?,{answer}\n")
    outcome = vit("evaluate", fused, table, *words)
    assert outcome.code == 0, outcome
    assert "broken.png: not a picture" in outcome.out
    assert "left out           1 " in outcome.out
    (tmp_path / "alone.csv").write_text(f"text,label\nwhat?,{answer}\n")
    assert "none of the 1 texts" in refused("evaluate", fused, tmp_path / "alone.csv", *words, code=1)


def test_what_is_written_goes_on_from_the_prompt(
    train: Callable[..., None], vit: Any, refused: Callable[..., str], tmp_path: Path
) -> None:
    """Words have blanks between them, the one after the prompt too."""
    (tmp_path / "text.txt").write_text("the cat sat on the mat . " * 120)
    words = ["--task=language", "--text.tokenizer=words", "--text.length=16", "--data.batch_size=8"]
    run = tmp_path / "run"
    train(tmp_path / "text.txt", *words, "--train.epochs=1", "--text.epoch_steps=4", *SMALL, "--out", run)
    for drawn in ([], ["--beams", 2]):
        outcome = vit("generate", run, "--prompt", "the cat", "--max-length", 5, *drawn, "--device", "cpu")
        assert outcome.out.startswith("the cat "), outcome
    more = ["train", tmp_path / "text.txt", "--task=language", "--text.init", run, "--train.accelerator=cpu"]
    assert "reads at most 16 tokens, got 32" in refused(*more, "--text.length=32", "--out", tmp_path / "a", code=2)
    said = refused(*more, "--text.depth=3", "--out", tmp_path / "b", code=2)
    assert said == "vit: text.depth: the weights of text.init settle it, got 3\n"


def test_pictures_that_cannot_be_read_are_listed_in_the_run_folder(
    scenes: Path, train: Callable[..., None], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(scenes, data)
    broken = sorted((data / "images").glob("train-*.png"))[:3]
    for path in broken:
        path.write_bytes(b"no picture")
    run = tmp_path / "run"
    train(data, "--task", "caption", "--train.epochs=1", *EYES, *SMALL, "--train.checkpointing=true", "--out", run)
    header, *rows = (run / "unreadable.csv").read_text().splitlines()
    assert header == "split,path,reason"
    assert [row.split(",")[:2] for row in rows] == [["train", str(path)] for path in broken]


@pytest.mark.parametrize("option", [["--precision", "bf16"], ["--workers", 2], ["--devices", 2]])
def test_options_that_would_do_nothing_are_refused(
    option: list[Any], refused: Callable[..., str], captioner: Path, trained_run: Path, scenes: Path
) -> None:
    said = refused("evaluate", captioner, scenes, *option, code=2)
    assert said == f"vit: {option[0]}: has no effect on a captioner\n"
    assert "--java: has no effect on a classifier" in refused("evaluate", trained_run, scenes, "--java", code=2)


def scaled(run: Path, out: Path) -> Path:
    """Write the model of a run with all weights 1e30 times as large, and a checksum that fits them."""
    model = read_model(run)
    save_model(replace(model, raw={name: weight * 1e30 for name, weight in model.raw.items()}, ema=None), out)
    return out


@pytest.mark.parametrize("beams", [1, 3])
def test_a_caption_of_scores_that_are_not_finite_is_a_failed_record(
    vit: Callable[..., Any], captioner: Path, scenes: Path, tmp_path: Path, beams: int
) -> None:
    pictures = sorted((scenes / "images").glob("test-*.png"))[:2]
    broken = scaled(captioner, tmp_path / "broken.safetensors")
    outcome = vit("caption", broken, *pictures, tmp_path / "missing.png", "--beams", beams, "--device", "cpu")
    assert outcome.code == 1
    records = [json.loads(line) for line in outcome.out.splitlines()]
    reasons = [*["the model's output is NaN or inf"] * 2, "no such file or folder"]
    assert [record["error"] for record in records] == reasons
    outcome = vit("caption", captioner, pictures[0], tmp_path / "missing.png", "--beams", beams, "--device", "cpu")
    assert outcome.code == 1
    assert ["error" in json.loads(line) for line in outcome.out.splitlines()] == [False, True]


def test_one_image_with_scores_that_are_not_finite_does_not_cost_the_other_captions(
    vit: Callable[..., Any], captioner: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = sorted((scenes / "images").glob("*.png"))[:3]
    expected = [json.loads(line) for line in vit("caption", captioner, *pictures, "--device=cpu").out.splitlines()]
    caption, calls = api.Captioner.caption, []

    def overflowing(self: Any, images: Any, **settings: Any) -> Any:
        calls.append(len(images))
        if any(torch.equal(image, self.prepare(pictures[1])) for image in images):
            raise NonFiniteOutput("NaN or inf")
        return caption(self, images, **settings)

    monkeypatch.setattr(api.Captioner, "caption", overflowing)
    outcome = vit("caption", captioner, *pictures, "--device=cpu")
    found = [json.loads(line) for line in outcome.out.splitlines()]
    assert (outcome.code, calls) == (1, [3, 1, 1, 1])
    assert found[1] == {"path": str(pictures[1]), "error": "the model's output is NaN or inf"}
    assert [record["caption"] for record in found[::2]] == [record["caption"] for record in expected[::2]]


def test_models_of_text_whose_scores_are_not_finite_are_refused(
    refused: Callable[..., str],
    captioner: Path,
    fused: Path,
    language: Path,
    translator: Path,
    scenes: Path,
    tmp_path: Path,
) -> None:
    text, pairs = language.parent / "text.txt", translator.parent / "pairs.tsv"
    data = {captioner: scenes, fused: scenes / "questions.csv", language: text, translator: pairs}
    for number, (run, source) in enumerate(data.items()):
        broken = scaled(run, tmp_path / f"{number}.safetensors")
        message = refused("evaluate", broken, source, "--accelerator=cpu", "--out", tmp_path / "report", code=1)
        assert "NaN or inf" in message
        if prompt := {language: "cat", translator: "ab"}.get(run):
            assert "NaN or inf" in refused("generate", broken, "--prompt", prompt, "--device=cpu", code=1)
    assert not list((tmp_path / "report").iterdir())


def test_cosines_of_embeddings_do_not_overflow(vit: Callable[..., Any], language: Path, tmp_path: Path) -> None:
    expected = vit("embed", language, "--nearest", "t")
    assert vit("embed", scaled(language, tmp_path / "large.safetensors"), "--nearest", "t") == expected


def test_reports_of_text_models_go_to_a_folder_per_split(
    vit: Callable[..., Any], captioner: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(captioner / "model.safetensors", tmp_path / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    for split in ("val", "test"):
        words = ["evaluate", "model.safetensors", scenes, "--split", split, "--beams=1", "--accelerator=cpu"]
        assert vit(*words).code == 0
    reports = {
        split: json.loads(Path(f"evaluation/scenes/{split}/metrics.json").read_text()) for split in ("val", "test")
    }
    assert [report["split"] for report in reports.values()] == ["val", "test"]
    assert all(Path(f"evaluation/scenes/{split}/captions.jsonl").is_file() for split in reports)


def test_embed_leaves_out_rows_without_a_token(vit: Callable[..., Any], language: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    import torch

    from vit.models.file import read_model, save_model

    model = read_model(language)
    name = "token_embed.weight"
    padded = torch.cat([model.raw[name], torch.ones(1, model.raw[name].shape[1])])
    architecture = model.architecture | {"vocabulary": len(padded)}
    save_model(
        replace(model, architecture=architecture, raw=model.raw | {name: padded}, ema=None), tmp_path / "m.safetensors"
    )
    outcome = vit("embed", tmp_path / "m.safetensors", "--nearest", "a", "--top", 100)
    assert outcome.code == 0
    assert len(outcome.out.splitlines()) == len(padded) - 2  # neither the letter itself nor the row without a token
