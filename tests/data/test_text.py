import itertools
import platform

import numpy as np
import pytest

from fl.data import load_shakespeare, load_stdlib
from fl.data.text import ASCII_VOCABULARY, corpus, speeches
from fl.errors import ConfigError


def test_speakers_say_their_own_lines():
    text = "ANN:\nHello.\nYou?\n\nBOB:\nI: am well.\n\n\nANN:\nGood.\n\nBOB:\n"
    assert speeches(text) == {"ANN": "Hello.\nYou?\nGood.", "BOB": "I: am well.\n"}


def test_targets_are_the_next_characters_and_the_last_tenth_is_held_out():
    # 20 characters: 18 for training, 2 held out. 37: 33 and 4.
    texts = {"a": "abcdefghijklmnopqrst", "b": "0123456789" * 3 + "0123456"}
    vocabulary = "abcdefghijklmnopqrst0123456789"
    source = corpus("toy", texts, vocabulary, window=1)
    assert source.task == "next-token"
    assert source.natural is not None
    assert source.natural_test is not None
    for client, text in enumerate(texts.values()):
        cut = len(text) * 9 // 10
        for part, examples, rows in (
            (text[:cut], source.train, source.natural),
            (text[cut:], source.test, source.natural_test),
        ):
            x = "".join(vocabulary[t] for t in examples.x[rows[client]].ravel())
            y = "".join(vocabulary[t] for t in examples.y[rows[client]].ravel())
            assert (x, y) == (part[:-1], part[1:])


def test_windows_follow_each_other_and_share_one_character():
    text = "".join(chr(33 + i) for i in range(90))
    source = corpus("toy", {"a": text}, ASCII_VOCABULARY, window=8)
    # 81 training characters: 10 windows with a target each; 9 held out: 1 window.
    assert source.train.x.shape == source.train.y.shape == (10, 8)
    assert len(source.test) == 1
    np.testing.assert_array_equal(source.train.x[1:, 0], source.train.y[:-1, -1])
    np.testing.assert_array_equal(source.train.x[:, 1:], source.train.y[:, :-1])


def test_clients_without_a_window_of_each_kind_are_left_out():
    texts = {"short": "x" * 80, "long": "x" * 90, "other": "x" * 200}
    source = corpus("toy", texts, "x", window=8)
    assert source.natural is not None
    assert source.natural.sizes.tolist() == [10, 22]
    with pytest.raises(ConfigError, match=r"window=20: no client .*choose a smaller"):
        corpus("toy", texts, "x", window=20)
    with pytest.raises(ConfigError, match="window=0"):
        corpus("toy", texts, "x", window=0)


def test_unknown_characters_share_the_last_token():
    source = corpus("toy", {"a": "a\té" * 20}, ASCII_VOCABULARY, window=2)
    tokens = set(source.train.x.ravel().tolist())
    assert tokens == {ASCII_VOCABULARY.index("a"), len(ASCII_VOCABULARY) - 1}


def test_a_large_vocabulary_is_not_cut_off():
    vocabulary = "".join(map(chr, range(1000, 1400)))
    source = corpus("toy", {"a": vocabulary}, vocabulary, window=4)
    assert source.train.x.ravel().tolist() == list(range(356))  # of 360, all but the last window


def test_the_standard_library_is_a_corpus_of_modules():
    source = load_stdlib()
    assert source.num_classes == len(ASCII_VOCABULARY) == 97
    assert source.natural is not None
    assert len(source.natural) > 100
    assert source.natural.sizes.max() == (18_000 - 1) // 80  # of 20,000 characters, 9 in 10
    again = load_stdlib()
    np.testing.assert_array_equal(source.train.x, again.train.x)
    # Modules are in alphabetical order: the first is __future__.
    first = "".join(ASCII_VOCABULARY[t] for t in source.train.x[0])
    assert "Record of phased-in incompatible language changes" in first, platform.python_version()


def test_a_cap_shortens_every_module():
    source = load_stdlib(window=40, max_chars=1000)
    assert source.natural is not None
    assert source.natural.sizes.max() == (900 - 1) // 40


def test_without_the_file_the_error_names_it_and_another_way(monkeypatch, tmp_path):
    monkeypatch.setenv("FL_DATA_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match=r"tinyshakespeare/input.txt.*data=stdlib"):
        load_shakespeare()
    monkeypatch.delenv("FL_DATA_DIR")
    with pytest.raises(ConfigError, match="FL_DATA_DIR=None"):
        load_shakespeare()


def test_shakespeares_speakers_are_clients(data_dir):
    text = (data_dir / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    source = load_shakespeare()
    assert source.num_classes == len(set(text)) == 65
    said = speeches(text)
    # Nothing is lost but names and blank lines: every line that is spoken is someone's.
    lines = ["", *text.splitlines()]
    spoken = [line for before, line in itertools.pairwise(lines) if before and line]
    assert set(spoken) <= {line for speech in said.values() for line in speech.splitlines()}
    assert source.natural is not None
    long_enough = [s for s in said.values() if len(s) - int(0.9 * len(s)) > 80]
    assert source.natural.sizes.tolist() == [(int(0.9 * len(s)) - 1) // 80 for s in long_enough]
