"""`kind = "python"`: a user's own judge and prompts, what is made of their answers, and how their mistakes are shown."""

from __future__ import annotations

import inspect
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from inward.config import PromptSettings, PythonJudge, PythonSource, parse_recipe
from inward.errors import UsageError
from inward.functions import user_function
from inward.judging.judge import Group, Judge, Ruling
from inward.judging.make import check_judge, judge_contents, make_judge
from inward.prompts import load_prompts
from inward.records import Prompt

PROMPT = Prompt(id="sum", text="What is 2 times 3?", source="test", answers=("6",))


def written(folder: Path, source: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(source))
    return path


def judge(path: Path, name: str = "score", **settings: Any) -> Judge:
    return make_judge(PythonJudge(kind="python", function=f"{path}:{name}", **settings))


def rulings(path: Path, *responses: str, name: str = "score", **settings: Any) -> list[Ruling]:
    (ruled,) = judge(path, name, **settings).judge([Group(prompt=PROMPT, responses=responses)])
    return ruled


def prompts(path: Path, name: str = "prompts", **settings: Any) -> tuple[Prompt, ...]:
    source = PythonSource(kind="python", function=f"{path}:{name}", **settings)
    return load_prompts(PromptSettings(sources=(source,))).prompts


def example_of(settings: type[Any]) -> str:
    """Return the indented example of a docstring."""
    lines = inspect.cleandoc(settings.__doc__ or "").splitlines()
    return textwrap.dedent("\n".join(line for line in lines if not line or line.startswith("    ")))


def test_the_example_of_a_judge_judges(tmp_path: Path) -> None:
    path = written(tmp_path, example_of(PythonJudge))
    right, wrong, blank = rulings(path, "It is 6.", "It is 7.", " ", lowest=0.0, highest=1.0)
    assert right.value is not None
    assert wrong.value is not None
    assert right.value > wrong.value
    assert (blank.value, blank.unscored) == (None, "a blank response")


def test_the_example_of_prompts_gives_prompts(tmp_path: Path) -> None:
    path = written(tmp_path, example_of(PythonSource))
    first, second = prompts(path, "sums", count=2)
    assert (first.text, first.answers, first.source) == ("What is 2 times 2?", ("4",), "mine.py:sums")
    assert second.text == "What is 2 times 3?"


def test_numbers_of_any_type_are_scores_and_what_is_none_or_not_finite_is_unscored(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        import numpy as np

        def score(prompt, responses):
            return (item for item in (1, 0.5, True, np.float32(0.25), None, float("nan"), -np.inf))
        """,
    )
    ruled = rulings(path, *"abcdefg")
    assert [ruling.value for ruling in ruled] == [1.0, 0.5, 1.0, 0.25, None, None, None]
    assert [ruling.unscored for ruling in ruled[4:]] == [
        "the function gave no score",
        "the function gave nan, which is not finite",
        "the function gave -inf, which is not finite",
    ]


@pytest.mark.parametrize(
    ("returned", "problem"),
    [
        ("[1.0]", "returned 1 items for 2 responses"),
        ("0.5", "returned float 0.5: it must return a list"),
        ("'ab'", "returned str 'ab': it must return a list"),
        ("None", "returned NoneType None: it must return a list"),
        ("['0.5', 1]", "gave str '0.5' as a score: it must be a number"),
        ("[2j, 1]", "gave complex 2j as a score"),
        ("[0.5, -1]", "gave the score -1, below judge.lowest = 0"),
        ("[0.5, 1.5]", "gave the score 1.5, above judge.highest = 1"),
    ],
)
def test_an_answer_that_cannot_be_scores_is_refused_with_the_place_of_the_function(
    tmp_path: Path, returned: str, problem: str
) -> None:
    path = written(tmp_path, f"\n\ndef score(prompt, responses):\n    return {returned}\n")
    with pytest.raises(UsageError) as caught:
        rulings(path, "a", "b", lowest=0.0, highest=1.0)
    assert f"({path}, line 3) {problem}" in str(caught.value)
    assert str(caught.value).endswith("(prompt sum)")


def test_what_a_function_raises_is_shown_with_its_own_lines_and_none_of_ours(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        import json

        def score(prompt, responses):
            return [inner(response) for response in responses]

        def inner(response):
            return json.loads(response)
        """,
    )
    with pytest.raises(UsageError) as caught:
        rulings(path, "{")
    message = str(caught.value)
    headline, *frames = message.splitlines()
    assert headline.startswith(f"function = '{path}:score' failed at {path}, line 8: json.decoder.JSONDecodeError: Expecting")
    assert frames[0] == f'  File "{path}", line 5, in score'
    assert "return json.loads(response)" in message
    assert "inward/" not in message


@pytest.mark.parametrize(
    ("source", "line", "problem"),
    [
        ("x = 1\nimport not_a_package_of_anyone\n", 2, "ModuleNotFoundError: No module named 'not_a_package_of_anyone'"),
        ("x = 1\n\ndef score(:\n", 3, "SyntaxError"),
        ("raise ValueError('two\\nlines')\n", 1, "lines"),
    ],
)
def test_a_file_that_cannot_be_run_is_shown_with_its_line_before_anything_is_judged(
    tmp_path: Path, source: str, line: int, problem: str
) -> None:
    path = written(tmp_path, source)
    settings = PythonJudge(kind="python", function=f"{path}:score")
    for _ in range(2):  # a file that failed is not taken for one that was run
        with pytest.raises(UsageError) as caught:
            check_judge(settings, [])
        assert f"{path}, line {line}: " in str(caught.value)
        assert problem in str(caught.value)


def test_a_function_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    path = written(tmp_path, "def other(): ...\nnumber = 3\n")
    for reference, problem in (
        (f"{path}:score", "has no function 'score'; it has other"),
        (f"{path}:number", "has no function 'number'"),
        (f"{tmp_path}/absent.py:score", "cannot be read: No such file"),
        ("no_such_package.module:score", "the package of 'no_such_package.module' cannot be imported"),
        ("no_such_module:score", "there is no module 'no_such_module' here"),
        ("mine.py", "must be 'file.py:name' or 'package.module:name'"),
        ("mine.py:a b", "must be 'file.py:name' or 'package.module:name'"),
    ):
        with pytest.raises(UsageError) as caught:
            user_function(reference)
        assert problem in str(caught.value)


def test_a_changed_function_is_another_judge_and_its_place_alters_nothing(tmp_path: Path) -> None:
    source = "def score(prompt, responses):\n    return [1.0 for _ in responses]\n"
    here, there = written(tmp_path, source), written(tmp_path, source, "mine.py")
    (tmp_path / "elsewhere").mkdir()
    moved = written(tmp_path / "elsewhere", source)
    assert judge(here).name == judge(moved).name
    before, contents = judge(here).name, judge_contents(PythonJudge(kind="python", function=f"{here}:score"))
    assert before.startswith("python(mine.py:score@")
    assert list(contents) == ["judge.function"]
    there.write_text(source.replace("1.0", "2.0"))
    assert judge(there).name != before
    assert judge_contents(PythonJudge(kind="python", function=f"{there}:score")) != contents
    assert rulings(there, "a")[0].value == 2.0
    assert judge(there, lowest=0.0).name != judge(there).name


def test_a_function_of_a_package_is_found_by_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "my_judges_for_a_test"
    package.mkdir()
    (package / "__init__.py").touch()
    written(
        package, "from .helper import size\n\ndef score(prompt, responses):\n    return [size(r) for r in responses]\n", "j.py"
    )
    written(package, "def size(text):\n    return len(text)\n", "helper.py")
    monkeypatch.syspath_prepend(tmp_path)
    judge_of_package = make_judge(PythonJudge(kind="python", function="my_judges_for_a_test.j:score"))
    assert judge_of_package.name.startswith("python(my_judges_for_a_test.j:score@")
    assert judge_of_package.judge([Group(prompt=PROMPT, responses=("abc",))])[0][0].value == 3.0
    for name in [name for name in sys.modules if name.startswith("my_judges_for_a_test")]:
        del sys.modules[name]


def test_prompts_may_be_texts_or_tables_and_are_sifted_as_those_of_a_file(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        def prompts():
            return ["A plain one.", {"prompt": "With an answer.", "answer": 4}, {"q": "Mapped."}]

        def broken():
            yield "first"
            raise RuntimeError("out of ideas")

        def numbers():
            yield from (1, 2)

        def text():
            return "one prompt?"

        def repeated():
            yield from ("same", "Same ")
        """,
    )
    with pytest.raises(UsageError, match=r"mine\.py:prompts, item 3.*prompt"):
        prompts(path)
    plain, answered = prompts(path, count=2)
    assert (plain.text, plain.answers, answered.answers) == ("A plain one.", (), ("4",))
    for name, problem in (
        ("broken", rf"failed at {path}, line 7: RuntimeError: out of ideas"),
        ("numbers", r"item 1 \(.*mine\.py, line 9\): it is int, but must be a text or a table"),
        ("text", r"\(.*mine\.py, line 12\) returned str: it must return or yield prompts"),
        ("repeated", r"item 2: the prompt repeats that of .*item 1"),
    ):
        with pytest.raises(UsageError, match=problem):
            prompts(path, name)


def test_a_range_is_a_range() -> None:
    tree = {"model": {"path": "smollm2"}, "prompts": {"sources": [{"kind": "tasks", "count": 8}]}}
    function = {"kind": "python", "function": "mine.py:score"}
    with pytest.raises(UsageError, match=r"judge\.lowest \(1\) must be below judge\.highest \(0\)"):
        parse_recipe(tree | {"judge": function | {"lowest": 1.0, "highest": 0.0}})
    bounded = parse_recipe(tree | {"judge": function | {"lowest": -1.0, "highest": 1.0}}).judge
    assert (bounded.lowest_score, bounded.scale) == (-1.0, (-1.0, 1.0))
    half = parse_recipe(tree | {"judge": function | {"lowest": -1.0}}).judge
    assert (half.lowest_score, half.scale) == (-1.0, None)
