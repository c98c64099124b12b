"""Built-in corpora: the same text each time, in two parts that share nothing."""

from functools import partial
from pathlib import Path

import datasets
import pytest

from hf_infinite_lr.stream import corpora
from hf_infinite_lr.stream.corpora import CorpusFile, build_corpus, corpus_names, load_corpus


def _files(count=400, text="text of file {}\nand a second line\n"):
    texts = [text.format(number) for number in range(count)]
    return [CorpusFile(f"package/{i}.py", len(text), partial(str, text)) for i, text in enumerate(texts)]


def _fail(error):
    raise error


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", corpus_names())
def test_same_text_twice_and_no_file_in_both_parts(name, cache):
    first = load_corpus(name, max_bytes=200_000)
    for directory in (cache / "hf_infinite_lr").iterdir():
        directory.rename(cache / f"{directory.name}.moved")
    again = load_corpus(name, max_bytes=200_000)
    assert again.fingerprint == first.fingerprint
    assert again.train["text"][:] == first.train["text"][:]
    assert again.eval["source"][:] == first.eval["source"][:]
    assert not set(first.train["source"]) & set(first.eval["source"])
    assert not set(first.train["text"]) & set(first.eval["text"])
    assert not any(Path(source).is_absolute() for source in [*first.train["source"], *first.eval["source"]])
    sizes = [sum(len(text.encode()) for text in part["text"]) for part in (first.train, first.eval)]
    assert 180_000 < sizes[0] <= 200_000
    assert 8_000 < sizes[1] <= 10_000
    assert first.num_bytes == sum(sizes)
    assert first.num_files == len(first.train) + len(first.eval)


def test_second_load_reads_the_cache(cache, monkeypatch):
    first = load_corpus("python", max_bytes=20_000)
    monkeypatch.setattr(corpora, "build_corpus", partial(_fail, AssertionError("built again")))
    assert load_corpus("python", max_bytes=20_000).fingerprint == first.fingerprint


def test_corpora_hold_what_their_names_say(cache):
    python, cpp, docs = (load_corpus(name, max_bytes=200_000) for name in ("python", "cpp", "docs"))
    assert sum("import " in text for text in python.train["text"]) > len(python.train) / 2
    assert all(source.endswith(".py") for source in python.train["source"])
    assert not any("test" in Path(source).parts or "site-packages" in source for source in python.train["source"])
    assert any("#include" in text for text in cpp.train["text"])
    roots = {source.split("/")[0] for source in docs.train["source"]}
    assert {"pydoc", "python", "torch", "transformers"} <= roots
    assert "pytest" not in roots


def test_docs_name_declared_dependencies_only():
    names = {distribution.metadata["Name"].lower() for distribution in corpora._dependencies()}
    assert {"torch", "transformers", "datasets", "accelerate"} <= names
    assert not names & {"pytest", "trl", "peft", "mypy"}


def test_docstrings_are_taken_without_import(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        '"""Top."""\nraise SystemExit\nclass C:\n    def f(self):\n        """Inner\n        line."""\n'
        'try:\n    x = "none"\nexcept E:\n    async def g():\n        """In a handler."""\n'
        'def h():\n    """Last."""\n'
    )
    assert corpora._docstrings(path) == "Top.\n\nInner\nline.\n\nIn a handler.\n\nLast."


def test_order_and_parts_do_not_depend_on_the_order_of_the_files():
    files = _files()
    one = build_corpus(files, max_bytes=2_000, eval_bytes=500)
    other = build_corpus(reversed(files), max_bytes=2_000, eval_bytes=500)
    assert one.fingerprint == other.fingerprint
    assert one.train["source"][:] == other.train["source"][:]
    assert one.train["source"][:] != sorted(one.train["source"])
    assert 0.02 < sum(file.held_out for file in files) / len(files) < 0.08


def test_fingerprint_follows_content_names_and_versions():
    base = build_corpus(_files(), max_bytes=None, eval_bytes=None)
    changed = _files()
    changed[7] = CorpusFile(changed[7].source, changed[7].size, lambda: "other")
    renamed = _files()
    renamed[7] = CorpusFile("package/other.py", renamed[7].size, renamed[7].read)
    variants = [
        build_corpus(changed, max_bytes=None, eval_bytes=None),
        build_corpus(renamed, max_bytes=None, eval_bytes=None),
        build_corpus(_files(), versions=("torch==2",), max_bytes=None, eval_bytes=None),
    ]
    assert len({base.fingerprint, *(variant.fingerprint for variant in variants)}) == 4


def test_text_under_two_names_is_in_one_part_once():
    corpus = build_corpus(_files(text="the same text"), max_bytes=None, eval_bytes=None)
    assert (len(corpus.train), len(corpus.eval)) == (0, 1)


def test_files_that_cannot_be_read_are_passed_over(tmp_path):
    (tmp_path / "latin.h").write_bytes(b"caf\xe9")
    (tmp_path / "broken.py").write_text("def (")
    bad = [
        CorpusFile("latin.h", 4, partial((tmp_path / "latin.h").read_text, encoding="utf-8")),
        CorpusFile("broken.py", 5, partial(corpora._docstrings, tmp_path / "broken.py")),
        CorpusFile("gone.py", 5, partial(corpora._docstrings, tmp_path / "gone.py")),
    ]
    corpus = build_corpus(_files(50) + bad, max_bytes=None, eval_bytes=None)
    assert corpus.num_files == len(corpus.train) + len(corpus.eval) == 50


def test_cut_keeps_whole_lines_and_characters():
    assert corpora._cut(b"one\ntwo\nthree", 13) == "one\ntwo\nthree"
    assert corpora._cut(b"one\ntwo\nthree", 12) == "one\ntwo"
    assert corpora._cut("éé".encode(), 3) == "é"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "pythn"}, "builtin 'pythn' is not a built-in corpus; there are cpp, docs, python"),
        ({"name": "docs", "max_bytes": 0}, "max_bytes is 0 but must be a positive"),
        ({"name": "docs", "max_bytes": 3e6}, "max_bytes is 3000000.0 but"),
        ({"name": "docs", "eval_bytes": True}, "eval_bytes is True but"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_corpus(**arguments)
