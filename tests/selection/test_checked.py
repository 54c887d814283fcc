"""What anybody's selection may say, and what it is blamed for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest

from fl.errors import ConfigError
from fl.selection import Ask, Choice, Opening, Selection, Trial
from fl.selection.checked import ask_of, choice_of, trial_of


@dataclass(frozen=True)
class Mine(Selection):
    said: Any = ()

    def trial(self, state, idle):
        return self.said

    def ask(self, state, opening):
        return self.said

    def select(self, state, opening):
        return self.said


OPENING = Opening(1, idle=(3, 5, 8), here=(3, 5, 7, 8), count=2, rng=lambda purpose: None)


def choice(*clients, weights=None):
    return Choice(list(clients), weights), "next"


def trial(*clients):
    return Trial(clients, 1.0, alone=True), "next"


def ask(*clients):
    return Ask("query", clients, 1.0), "next"


@pytest.mark.parametrize(
    ("said", "value"),
    [
        (choice(3, 9), "9"),
        (choice(7), "7"),  # there, but not idle
        (choice(5, 5), "5"),
        (choice(3, 5, weights=[1.0]), "1 weights"),
        (choice(3, 5, weights=[1.0, math.nan]), "nan"),
        (choice(3, 5, weights=[1.0, 0.0]), "0.0"),
        (choice(3, 5, weights=[-1.0, 2.0]), "-1.0"),
        (choice(3, weights=[math.inf]), "inf"),
        ([3, 5], "[3, 5]"),
        (Choice([3, 5]), "Choice("),  # without the next state
        (("next", Choice([3])), "'next'"),
    ],
)
def test_choice_that_cannot_be_is_blamed_on_its_class(said, value):
    with pytest.raises(ConfigError, match=r"Mine\.select") as refused:
        choice_of(Mine(said), (), OPENING)
    assert value in str(refused.value)


def test_choice_that_can_be_is_passed_on():
    for said in (choice(3, 8), choice(), choice(8, 3, weights=(0.5, 2))):
        assert choice_of(Mine(said), (), OPENING) == said


@pytest.mark.parametrize("said", [trial(7), trial(3, 3), [3], (Choice([3]), "next")])
def test_trial_that_cannot_be_is_blamed_on_its_class(said):
    with pytest.raises(ConfigError, match=r"Mine\.trial"):
        trial_of(Mine(said), (), OPENING.idle)


def test_clients_that_are_asked_need_not_be_idle():
    assert ask_of(Mine(ask(7, 3)), (), OPENING) == ask(7, 3)
    assert ask_of(Mine((None, "next")), (), OPENING) == (None, "next")
    with pytest.raises(ConfigError, match=r"Mine\.ask"):
        ask_of(Mine(ask(9)), (), OPENING)
