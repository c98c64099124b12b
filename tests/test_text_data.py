"""Documents from files and corpora: every kind of source, held-out parts, and bad input."""

import csv
import gzip
import json
import logging

import datasets
import pytest

from hf_infinite_lr.keys import from_mapping
from hf_infinite_lr.objectives.text import TextSource, load_held_out, load_text

TEXTS = [f"Document number {number}.\nIt has a second line." for number in range(200)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def _jsonl(path, texts, column="text"):
    path.write_text("".join(json.dumps({column: text, "id": i}) + "\n" for i, text in enumerate(texts)))
    return str(path)


def _write(kind, directory, texts):
    directory.mkdir()
    if kind == "jsonl":
        _jsonl(directory / "part.jsonl", texts)
    elif kind == "jsonl.gz":
        with gzip.open(directory / "part.jsonl.gz", "wt") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    elif kind == "parquet":
        datasets.Dataset.from_dict({"text": texts}).to_parquet(directory / "part.parquet")
    elif kind == "csv":
        with open(directory / "part.csv", "w", newline="") as file:
            csv.writer(file).writerows([["text"], *([text] for text in texts)])
    else:
        for number, text in enumerate(texts):
            (directory / f"{number:04d}.{kind}").write_text(text)
    return str(directory / f"*.{kind}")


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet", "csv", "txt", "md"])
def test_every_kind_of_file_gives_the_same_documents(kind, tmp_path):
    splits = load_text(TextSource(name="news", data_files=_write(kind, tmp_path / "data", TEXTS)))
    assert splits.train.column_names == splits.eval.column_names == ["text"]
    assert sorted([*splits.train["text"], *splits.eval["text"]]) == sorted(TEXTS)
    assert not set(splits.train["text"]) & set(splits.eval["text"])


def test_held_out_documents_are_chosen_by_their_text_alone(tmp_path):
    first = load_text(TextSource(data_files=_jsonl(tmp_path / "first.jsonl", TEXTS)))
    more = [*(f"New text {number}" for number in range(200)), *reversed(TEXTS)]
    second = load_text(TextSource(data_files=_jsonl(tmp_path / "second.jsonl", more)))
    assert 0 < len(first.eval) < 30
    assert set(first.eval["text"]) <= set(second.eval["text"])


def test_eval_fraction_is_a_share(tmp_path):
    path = _jsonl(tmp_path / "a.jsonl", [str(number) for number in range(4000)])
    assert 0.27 < len(load_text(TextSource(data_files=path, eval_fraction=0.3)).eval) / 4000 < 0.33


def test_equal_texts_stay_together(tmp_path):
    splits = load_text(TextSource(data_files=_jsonl(tmp_path / "a.jsonl", TEXTS[:40] * 5), eval_fraction=0.2))
    assert len(splits.eval)
    assert not set(splits.train["text"]) & set(splits.eval["text"])


def test_two_documents_are_enough(tmp_path):
    splits = load_text(TextSource(data_files=_jsonl(tmp_path / "a.jsonl", TEXTS[:2])))
    assert (len(splits.train), len(splits.eval)) == (1, 1)


def test_number_of_held_out_documents(tmp_path):
    path = _jsonl(tmp_path / "a.jsonl", TEXTS)
    splits = load_text(TextSource(data_files=path, num_eval_samples=13))
    assert (len(splits.train), len(splits.eval)) == (187, 13)


def test_named_held_out_part(tmp_path):
    train, held_out = _jsonl(tmp_path / "a.jsonl", TEXTS), _jsonl(tmp_path / "b.jsonl", ["x", "", "y", "z"])
    splits = load_text(TextSource(data_files=train, eval_data_files=held_out))
    assert splits.train["text"][:] == TEXTS
    assert splits.eval["text"][:] == ["x", "y", "z"]
    splits = load_text(TextSource(data_files=train, eval_data_files=held_out, num_eval_samples=2))
    assert splits.eval["text"][:] == ["x", "y"]


def test_folder_with_splits(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    _jsonl(folder / "train.jsonl", TEXTS, "content")
    _jsonl(folder / "test.jsonl", ["held", "out"], "content")
    source = TextSource(dataset_name=str(folder), eval_split="test", text_column="content")
    splits = load_text(source)
    assert splits.train["text"][:] == TEXTS
    assert splits.eval["text"][:] == ["held", "out"]


def test_stream_holds_its_first_documents_out(tmp_path):
    path = _jsonl(tmp_path / "a.jsonl", ["", *TEXTS])
    splits = load_text(TextSource(data_files=path, streaming=True, num_eval_samples=5))
    assert isinstance(splits.train, datasets.IterableDataset)
    assert splits.eval["text"][:] == TEXTS[:5]
    assert [row["text"] for row in splits.train] == TEXTS[5:]


def test_stream_with_a_named_held_out_part(tmp_path):
    train, held_out = _jsonl(tmp_path / "a.jsonl", TEXTS), _jsonl(tmp_path / "b.jsonl", ["x", "y"])
    splits = load_text(TextSource(data_files=train, eval_data_files=held_out, streaming=True))
    assert [row["text"] for row in splits.train] == TEXTS
    assert splits.eval["text"][:] == ["x", "y"]


def test_empty_documents_are_counted_and_logged(tmp_path, caplog):
    path = _jsonl(tmp_path / "a.jsonl", ["", " \n", None, *TEXTS])
    with caplog.at_level(logging.WARNING, logger="hf_infinite_lr"):
        splits = load_text(TextSource(name="news", data_files=path))
    assert len(splits.train) + len(splits.eval) == len(TEXTS)
    assert "Task 'news': 3 of 203 documents are empty and were dropped." in caplog.messages


def test_builtin_corpus():
    splits = load_text(TextSource(name="code", builtin="python", max_bytes=50_000, eval_bytes=5_000))
    assert splits.train.column_names == ["text"]
    assert len(splits.fingerprint) == 64
    assert (
        load_held_out(TextSource(builtin="python", max_bytes=50_000, eval_bytes=5_000))["text"][:]
        == splits.eval["text"][:]
    )


def test_evaluation_only_text_is_all_of_it(tmp_path):
    path = _jsonl(tmp_path / "a.jsonl", ["", *TEXTS])
    assert load_held_out(TextSource(data_files=path))["text"][:] == TEXTS
    assert load_held_out(TextSource(data_files=path, num_eval_samples=3))["text"][:] == TEXTS[:3]
    assert load_held_out(TextSource(data_files=path, streaming=True, num_eval_samples=3))["text"][:] == TEXTS[:3]
    with pytest.raises(ValueError, match="streams and must name its held-out part"):
        load_held_out(TextSource(data_files=path, streaming=True))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "a"}, "Task 'a' must give exactly one of builtin, dataset_name and data_files, not none of them"),
        ({"builtin": "docs", "data_files": "x"}, "not builtin and data_files"),
        ({"data_file": "x"}, "'data_file' is an unknown key; did you mean 'data_files'?"),
        ({"builtin": "docs", "num_step": 3}, "'num_step' is an unknown key; did you mean 'num_steps'?"),
        ({"builtin": "docs", "split": "test"}, "split of task 'data' is 'test' but does not go with builtin"),
        ({"data_files": "x", "max_bytes": 5}, "max_bytes of task 'data' is 5 but does not go with data_files"),
        ({"data_files": "x", "eval_fraction": 1.0}, "eval_fraction of task 'data' is 1.0 but must be between"),
        ({"data_files": "x", "num_eval_samples": 0}, "num_eval_samples of task 'data' is 0 but must be"),
        (
            {"data_files": "x", "eval_fraction": 0.1, "eval_data_files": "y"},
            "eval_data_files and eval_fraction, of which",
        ),
        (
            {"data_files": "x", "eval_fraction": 0.1, "num_eval_samples": 5},
            "eval_fraction and num_eval_samples, of which",
        ),
        ("docs", "'docs' must be a mapping"),
    ],
)
def test_bad_keys(entry, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        from_mapping(TextSource, entry, other_keys=("num_steps",))


def test_keys_of_others_are_passed_over():
    assert from_mapping(TextSource, {"builtin": "cpp", "num_steps": 5}, other_keys=["num_steps"]).builtin == "cpp"


def test_missing_files(tmp_path):
    with pytest.raises(ValueError, match=r"data_files '.*\*\.txt' of task 'news' matches no file"):
        load_text(TextSource(name="news", data_files=str(tmp_path / "*.txt")))


def test_missing_column(tmp_path):
    path = _jsonl(tmp_path / "a.jsonl", TEXTS, "content")
    message = "text_column of task 'news' is 'text', but there is only content, id"
    for streaming in (False, True):
        with pytest.raises(ValueError, match=message):
            load_text(TextSource(name="news", data_files=path, streaming=streaming, num_eval_samples=2))


def test_column_that_is_no_text(tmp_path):
    with pytest.raises(ValueError, match="text_column 'id' of task 'news' holds int64, not text"):
        load_text(TextSource(name="news", data_files=_jsonl(tmp_path / "a.jsonl", TEXTS), text_column="id"))


@pytest.mark.parametrize("suffix", ["txt", "md", "jsonl", "csv"])
@pytest.mark.parametrize("offset", [5, 2**20 - 1, 2**20 + 7])
def test_not_utf8(tmp_path, suffix, offset):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"a" * offset + "é".encode("latin-1") + b" tail")
    with pytest.raises(ValueError, match=rf"a\.{suffix} is not UTF-8 text: byte {offset} cannot be decoded"):
        load_text(TextSource(data_files=str(path)))


@pytest.mark.parametrize("end", ["", "/"])
def test_a_folder_is_answered_with_its_pattern(tmp_path, end):
    with pytest.raises(ValueError, match=rf"matches no file: a folder is given by a pattern, '{tmp_path}/\*'"):
        load_text(TextSource(data_files=f"{tmp_path}{end}"))


def test_text_that_ends_inside_a_character(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"abc" + "漢".encode()[:2])
    with pytest.raises(ValueError, match="is not UTF-8 text: byte 3 cannot"):
        load_text(TextSource(data_files=str(tmp_path / "a.txt")))


def test_mixed_kinds(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    _jsonl(tmp_path / "b.jsonl", TEXTS)
    with pytest.raises(ValueError, match="of task 'data' mixes json and text files"):
        load_text(TextSource(data_files=str(tmp_path / "*")))


def test_only_empty_documents(tmp_path):
    with pytest.raises(ValueError, match=r"Task 'news' has no document that is not empty \(2 were read\)"):
        load_text(TextSource(name="news", data_files=_jsonl(tmp_path / "a.jsonl", ["", " "])))


def test_one_document_cannot_be_split(tmp_path):
    (tmp_path / "book.txt").write_text("One long document.")
    sentence = r"too few different documents \(1\) to hold some out: name eval_data_files or eval_split \(a plain text"
    with pytest.raises(ValueError, match=sentence):
        load_text(TextSource(name="news", data_files=str(tmp_path / "book.txt")))


def test_stream_must_name_its_held_out_part(tmp_path):
    path = _jsonl(tmp_path / "a.jsonl", TEXTS)
    with pytest.raises(ValueError, match="streams and must name its held-out part by eval_split, eval_data_files or"):
        load_text(TextSource(data_files=path, streaming=True))
    with pytest.raises(ValueError, match="eval_fraction of task 'data' needs all documents"):
        load_text(TextSource(data_files=path, streaming=True, eval_fraction=0.1))


def test_huge_text_file_is_refused(tmp_path):
    with open(tmp_path / "a.txt", "wb") as file:
        file.truncate(2**28 + 1)
    with pytest.raises(ValueError, match=r"is one document of more than 268435456 bytes, .*: split it"):
        load_text(TextSource(data_files=str(tmp_path / "a.txt")))


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_huge_line(tmp_path, suffix):
    with (tmp_path / f"a.{suffix}").open("wb") as file:
        file.write(b'text\n{"text": "')
        file.truncate(2**28 + 40)
    with pytest.raises(ValueError, match=r"has a line of more than 268435456 bytes.*split a longer one into several"):
        load_text(TextSource(name="news", data_files=str(tmp_path / f"a.{suffix}")))


def test_many_short_lines_are_no_huge_one(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_infinite_lr.objectives.text._LARGEST_DOCUMENT", 2000)
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": f"{number} words " * 100}) + "\n" for number in range(2000))
    )
    assert len(load_text(TextSource(name="news", data_files=str(tmp_path / "a.jsonl"))).train)


def test_huge_parquet_row(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_infinite_lr.objectives.text._LARGEST_DOCUMENT", 1000)
    path = str(tmp_path / "a.parquet")
    datasets.Dataset.from_dict({"text": ["".join(map(str, range(500)))]}).to_parquet(path)
    with pytest.raises(
        ValueError, match=r"a\.parquet has documents of \d+ bytes, above the limit of 1000: split them"
    ):
        load_text(TextSource(name="news", data_files=path))
