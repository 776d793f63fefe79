"""Ray tasks a few at a time, without a cluster: what is asked of Ray is noted."""

import pytest

from rayzero.studies import tasks
from rayzero.studies.errors import CorpusError


class Noted:
    """In Ray's place: a reference is its item, and the task that ends first is the one of the least letter."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.cancelled: list[str] = []

    def remote(self, function: object) -> object:
        noted = self

        class Task:
            def options(self, name: str) -> object:
                assert name == "upper"
                return self

            def remote(self, item: str) -> str:
                noted.started.append(item)
                return item

        return Task()

    def wait(self, running: list[str], num_returns: int) -> tuple[list[str], list[str]]:
        first = min(running)
        return [first], [one for one in running if one != first]

    def get(self, reference: str) -> str:
        if reference == "x":
            raise CorpusError("the store is away")
        return reference.upper()

    def cancel(self, reference: str, force: bool) -> None:
        assert force
        self.cancelled.append(reference)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Noted:
    noted = Noted()
    for name in ("remote", "wait", "get", "cancel"):
        monkeypatch.setattr(tasks.ray, name, getattr(noted, name))
    return noted


def test_results_come_as_tasks_end_or_in_order(ray: Noted) -> None:
    assert list(tasks.mapped(str.upper, "cbadef", name="upper", most=3)) == list("ABCDEF")
    assert list(tasks.mapped(str.upper, "cbadef", name="upper", most=3, ordered=True)) == list("CBADEF")
    assert list(tasks.mapped(str.upper, "", name="upper", most=3)) == []
    assert ray.cancelled == []


def test_no_more_are_started_than_run(ray: Noted) -> None:
    results = tasks.mapped(str.upper, "abcdef", name="upper", most=2)
    next(results)
    assert ray.started == list("abc")


def test_a_task_that_fails_ends_the_others(ray: Noted) -> None:
    results = tasks.mapped(str.upper, "axyz", name="upper", most=3)
    assert next(results) == "A"
    with pytest.raises(CorpusError, match="the store is away"):
        next(results)
    # Nothing more was started after the failure.
    assert (ray.started, ray.cancelled) == (list("axyz"), ["y", "z"])


def test_a_caller_that_stops_ends_the_others(ray: Noted) -> None:
    results = tasks.mapped(str.upper, "abcdef", name="upper", most=3)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert ray.cancelled == ["b", "c", "d"]
