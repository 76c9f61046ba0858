"""The cache of verdicts: never the same question twice, never the answer to another question."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from inward.config import PairwiseJudge
from inward.errors import JudgeError, StorageError
from inward.judging.judge import Group
from inward.judging.make import make_judge
from inward.judging.pairwise.cache import FILE, Cached
from inward.judging.pairwise.comparer import Battle, Outcome, Stopped
from inward.judging.pairwise.judge import Pairwise, load
from inward.judging.spending import Spending
from tests.build import prompt
from tests.tiny import CHAT_TEMPLATE, tiny_model

BATTLES = [Battle(prompt=prompt(), first=f"a{n}", second=f"b{n}") for n in range(6)]


@dataclass
class Counting:
    """A comparer that says what it read, in order, and notes what it was asked."""

    name: str = "judge (greedy)"
    asked: list[Battle] = field(default_factory=list)
    broken: frozenset[str] = frozenset()
    gone_after: int = 10**9

    def costs(self) -> Spending:
        return Spending(answers=len(self.asked))

    def compare(self, battles: Sequence[Battle]) -> list[Outcome]:
        if len(self.asked) + len(battles) > self.gone_after:
            raise JudgeError("the endpoint is gone")
        self.asked += battles
        return [
            Outcome(value=None, error="no verdict", raw="?")
            if battle.first in self.broken
            else Outcome(value=1.0 if battle.first < battle.second else -1.0, raw=f"{battle.first}>{battle.second}")
            for battle in battles
        ]


def test_nothing_is_asked_twice_within_a_call_between_calls_and_between_runs(tmp_path: Path) -> None:
    judge = Counting()
    cached = Cached(judge, tmp_path / "new" / "cache")
    expected = Counting().compare([*BATTLES, *BATTLES])
    assert cached.compare([*BATTLES, *BATTLES]) == expected
    assert cached.compare(BATTLES[::-1]) == expected[:6][::-1]
    assert judge.asked == BATTLES
    later = Counting()
    assert Cached(later, tmp_path / "new" / "cache").compare(BATTLES) == expected[:6]
    assert later.asked == []
    assert cached.name == judge.name


@pytest.mark.parametrize(
    "other",
    [
        Battle(prompt=prompt(), first="b0", second="a0"),  # the other way round
        Battle(prompt=prompt("Name a town."), first="a0", second="b0"),
        Battle(prompt=prompt(), first="a0b", second="0"),  # the same letters, cut elsewhere
        Battle(prompt=prompt(), first="a0", second="b0 "),
    ],
)
def test_another_question_is_asked(tmp_path: Path, other: Battle) -> None:
    judge = Counting()
    cached = Cached(judge, tmp_path)
    cached.compare(BATTLES[:1])
    assert cached.compare([other]) == Counting().compare([other])
    assert judge.asked == [BATTLES[0], other]


def test_the_same_text_under_another_id_is_the_same_question(tmp_path: Path) -> None:
    judge = Counting()
    cached = Cached(judge, tmp_path)
    cached.compare([Battle(prompt=prompt(id=name), first="a", second="b") for name in ("p", "q")])
    assert len(judge.asked) == 1


def test_another_judge_or_other_settings_are_asked_for_themselves(tmp_path: Path) -> None:
    Cached(Counting(), tmp_path).compare(BATTLES)
    other = Counting(name="judge (with ties)")
    Cached(other, tmp_path).compare(BATTLES)
    assert other.asked == BATTLES


def test_an_error_is_handed_on_and_asked_again(tmp_path: Path) -> None:
    ill = Counting(broken=frozenset({"a2"}))
    assert Cached(ill, tmp_path).compare(BATTLES)[2].error == "no verdict"
    well = Counting()
    assert Cached(well, tmp_path).compare(BATTLES)[2].value == 1.0
    assert well.asked == [BATTLES[2]]


def test_what_was_answered_before_the_endpoint_went_is_kept(tmp_path: Path) -> None:
    with pytest.raises(JudgeError):
        Cached(Counting(gone_after=5), tmp_path, chunk=2).compare(BATTLES)
    later = Counting()
    Cached(later, tmp_path, chunk=2).compare(BATTLES)
    assert later.asked == BATTLES[4:]


def test_what_was_answered_within_a_chunk_is_kept_too(tmp_path: Path) -> None:
    @dataclass
    class Stopping(Counting):
        def compare(self, battles: Sequence[Battle]) -> list[Outcome]:
            answered = dict(enumerate(super().compare(battles[:4])))
            answered[2] = Outcome(value=None, error="HTTP 500")
            raise Stopped("the endpoint is gone", answered)

    with pytest.raises(Stopped, match="gone"):
        Cached(Stopping(), tmp_path).compare(BATTLES)
    later = Counting()
    Cached(later, tmp_path).compare(BATTLES)
    assert later.asked == [BATTLES[2], *BATTLES[4:]]


def test_what_a_name_does_not_say_keeps_judges_apart(tmp_path: Path) -> None:
    Cached(Counting(), tmp_path, identity="weights of Monday").compare(BATTLES)
    later = Counting()
    Cached(later, tmp_path, identity="weights of Tuesday").compare(BATTLES)
    assert later.asked == BATTLES


def test_what_the_cache_held_costs_nothing(tmp_path: Path) -> None:
    for expected in (6, 0):
        cached = Cached(Counting(), tmp_path)
        cached.compare(BATTLES)
        assert cached.costs() == Spending(answers=expected)


def settings(model: Path, **changes: Any) -> PairwiseJudge:
    return PairwiseJudge(kind="pairwise", path=str(model), **({"dtype": "float32", "max_tokens": 8} | changes))


def test_a_models_content_number_format_and_settings_are_in_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path can hold another model tomorrow: nobody must get the old one's verdicts then."""
    model = tiny_model(tmp_path / "model", context=4096)
    keys = set()

    def identity(**changes: Any) -> str:
        judge = make_judge(settings(model, **changes))
        assert isinstance(judge, Pairwise)
        assert isinstance(judge.comparer, Cached)
        return judge.comparer.key(BATTLES[0]).hex()

    monkeypatch.setenv("INWARD_CACHE", str(tmp_path / "cache"))
    keys |= {identity(), identity(), identity(prior=1.0), identity(scheme="full")}
    assert len(keys) == 1, "how battles become scores changes no battle"
    keys |= {identity(dtype="bfloat16"), identity(form="abc"), identity(max_tokens=9), identity(turn="user")}
    assert len(keys) == 5
    tiny_model(model, seed=1, context=4096)
    keys.add(identity())
    assert len(keys) == 6
    tokenizer = model / "tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text().replace("<|im_start|>", "<|im_start|> "))
    keys.add(identity())
    assert len(keys) == 7


def test_the_day_is_in_the_key_where_the_judges_chat_template_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INWARD_CACHE", str(tmp_path / "cache"))

    def key(model: Path, day: int) -> str:
        judge = load(settings(model), rho=0.0, today=date(2024, 2, day))
        assert isinstance(judge.comparer, Cached)
        return judge.comparer.key(BATTLES[0]).hex()

    plain = tiny_model(tmp_path / "plain", context=4096)
    dated = tiny_model(tmp_path / "dated", context=4096, chat_template="{{ strftime_now('%d') }}" + CHAT_TEMPLATE)
    assert key(plain, 1) == key(plain, 2)
    assert key(dated, 1) != key(dated, 2)
    assert key(dated, 1) == key(dated, 1)


def test_the_cache_can_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INWARD_CACHE", str(tmp_path / "cache"))
    judge = make_judge(settings(tiny_model(tmp_path / "model", context=4096), cache=False))
    judge.judge([Group(prompt=prompt(), responses=("a", "b"))])
    assert not (tmp_path / "cache").exists()


def test_hostile_texts_are_kept_as_they_are(tmp_path: Path) -> None:
    battles = [
        Battle(prompt=prompt(), first=text, second="z")
        for text in ("", "\x00", "'); DROP TABLE outcomes;--", "ü\n\u2028", "\ud800")
    ]
    first = Cached(Counting(), tmp_path).compare(battles)
    assert Cached(Counting(gone_after=0), tmp_path).compare(battles) == first


def test_a_damaged_file_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database at all" * 100)
    with pytest.raises(StorageError, match="delete it"):
        Cached(Counting(), tmp_path)


FULL = """
import resource, sys
from pathlib import Path
from inward.errors import StorageError
from inward.judging.pairwise.cache import Cached
from inward.judging.pairwise.comparer import Battle
from tests.build import prompt
from tests.unit.test_cache import Counting
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    Cached(Counting(), Path(sys.argv[1])).compare([Battle(prompt=prompt(), first="x" * 200_000, second="y")])
except StorageError as error:
    print(error)
"""


def test_a_full_disk_says_what_to_do(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, env=paths(), check=True)
    for part in ("the cache of verdicts", "Free some space", "cache = false", "run the same command again"):
        assert part in done.stdout, done.stdout + done.stderr


def test_a_folder_that_cannot_be_made_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="INWARD_CACHE"):
        Cached(Counting(), tmp_path / "file" / "verdicts")


def paths() -> dict[str, str]:
    root = Path(__file__).parents[2]
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(root / "src")])}


CHILD = """
import sys
from pathlib import Path
from inward.judging.pairwise.cache import Cached
from inward.judging.pairwise.comparer import Battle, Outcome
from tests.build import prompt
from tests.tiny import CHAT_TEMPLATE, tiny_model

class Slow:
    name = "judge (greedy)"
    def compare(self, battles):
        print(battles[0].first, flush=True)
        sys.stdin.readline()
        return [Outcome(value=1.0, raw="x") for _ in battles]

Cached(Slow(), Path(sys.argv[1]), chunk=1).compare([Battle(prompt=prompt(), first=f"a{n}", second=f"b{n}") for n in range(6)])
"""


def test_a_kill_loses_only_what_was_being_asked(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=paths(),
    )
    with child:
        assert child.stdin is not None
        assert child.stdout is not None
        for n in range(3):
            assert child.stdout.readline().strip() == f"a{n}"
            child.stdin.write("go\n")
            child.stdin.flush()
        assert child.stdout.readline().strip() == "a3"
        child.send_signal(signal.SIGKILL)
    later = Counting()
    Cached(later, tmp_path).compare(BATTLES)
    assert later.asked == BATTLES[3:]
