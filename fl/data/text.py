"""Character corpora whose authors are natural clients: Shakespeare's speakers, Python's modules.

A client's text is cut once: the last tenth is held out. Each part is cut into consecutive windows
of T characters; the target at each position is the next character. What is left at the end of a
part is dropped.
"""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fl.data.federated import Examples, Partitions, Source
from fl.errors import ConfigError

# Newline, printable ASCII, and one character that stands for every other.
ASCII_VOCABULARY = "\n" + "".join(map(chr, range(32, 127))) + "\x1a"


def load_shakespeare(window: int = 80) -> Source:
    """Loads the speeches of `<FL_DATA_DIR>/tinyshakespeare/input.txt`; speakers are clients.

    A block of lines is a speech, its first line the speaker's name and a colon. The speeches of one
    name are joined, without the names, in the order of the text. Names recur between plays ("First
    Citizen"), and are one speaker here. The vocabulary is the text's own 65 characters.

    Args:
        window: characters T of one example. Speakers too short for one window of training and one
            of held-out text are left out.

    Raises:
        ConfigError: FL_DATA_DIR is unset or has no such file, it is not text, or no speaker is
            long enough.
    """
    root = os.environ.get("FL_DATA_DIR")
    path = Path(root or "") / "tinyshakespeare" / "input.txt"
    if root is None or not path.is_file():
        raise ConfigError(
            f"FL_DATA_DIR={root}: need a folder with tinyshakespeare/input.txt (1.1 MB of plays, "
            "file data/tinyshakespeare/input.txt of github.com/karpathy/char-rnn), or use "
            "data=stdlib, which needs no file"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read as UTF-8 text ({error}): replace it, or use data=stdlib"
        ) from error
    return corpus("shakespeare", speeches(text), "".join(sorted(set(text))), window)


def speeches(text: str) -> dict[str, str]:
    """Returns what each speaker says, speeches joined by a newline, in order of first speech."""
    lines: dict[str, list[str]] = {}
    for block in re.split(r"\n{2,}", text.strip("\n")):
        speaker, _, speech = block.partition("\n")
        lines.setdefault(speaker.removesuffix(":"), []).append(speech)
    return {speaker: "\n".join(said) for speaker, said in lines.items()}


def load_stdlib(window: int = 80, max_chars: int = 20_000) -> Source:
    """Loads the source text of Python's standard library; top-level modules are clients.

    Modules are taken in alphabetical order. The text belongs to the running Python, so it differs
    between versions; the fingerprint of the data tells. Characters other than newline and printable
    ASCII become one, so the vocabulary always has 97.

    Args:
        window: characters T of one example. Modules too short for one window of training and one
            of held-out text are left out.
        max_chars: only the first that many characters of a module are used.

    Raises:
        ConfigError: no module is long enough.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    # The listed names leave out build-specific files such as _sysconfigdata_*.
    paths = [folder / f"{name}.py" for name in sorted(sys.stdlib_module_names)]
    texts = {
        path.stem: path.read_text(encoding="utf-8")[:max_chars] for path in paths if path.is_file()
    }
    return corpus("stdlib", texts, ASCII_VOCABULARY, window)


def corpus(name: str, texts: Mapping[str, str], vocabulary: str, window: int) -> Source:
    """Cuts each client's text into windows of characters and their successors.

    Args:
        name: name of the data set.
        texts: text of each client; its order is the order of natural clients.
        vocabulary: character of each token; its last one stands for characters it does not have.
        window: characters T of one example.

    Returns:
        Inputs uint8 or uint16 and targets int64, both of shape (n, T).

    Raises:
        ConfigError: a window below 1, or no text long enough.
    """
    if window < 1:
        raise ConfigError(f"window={window}: must be at least 1 character")
    tokens = {char: token for token, char in enumerate(vocabulary)}
    train, test = [], []
    for text in texts.values():
        codes = np.array([tokens.get(c, len(vocabulary) - 1) for c in text], dtype=np.int64)
        cut = int(0.9 * len(codes))
        if min(cut, len(codes) - cut) > window:
            train.append(codes[:cut])
            test.append(codes[cut:])
    if not train:
        raise ConfigError(
            f"window={window}: no client of {name!r} has text for a window of training and one of "
            f"held-out characters, about {10 * (window + 1)}; choose a smaller window"
        )
    train_examples, natural = _windows(train, window, len(vocabulary))
    test_examples, natural_test = _windows(test, window, len(vocabulary))
    return Source(
        name=name,
        train=train_examples,
        test=test_examples,
        num_classes=len(vocabulary),
        input_shape=(window,),
        task="next-token",
        natural=natural,
        natural_test=natural_test,
    )


def _windows(
    texts: list[NDArray[np.int64]], T: int, vocabulary: int
) -> tuple[Examples, Partitions]:
    # The target of a window's last character is the first of the next window: hence one to spare.
    counts = [(len(codes) - 1) // T for codes in texts]
    x = np.concatenate([c[: n * T].reshape(n, T) for c, n in zip(texts, counts, strict=True)])
    y = np.concatenate([c[1 : n * T + 1].reshape(n, T) for c, n in zip(texts, counts, strict=True)])
    small = np.uint8 if vocabulary <= 256 else np.uint16
    return Examples(x.astype(small), y), Partitions.contiguous(counts)
