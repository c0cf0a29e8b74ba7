"""Requirements, preferences and budgets as people write them: every right form, every wrong one with its advice."""

from __future__ import annotations

import pytest

from p2pcompute.model.errors import UnknownNameError, UsageError
from p2pcompute.model.job import JobOptions
from p2pcompute.model.peer import Isolation
from p2pcompute.model.placement import Budget, Preferences, TaskType, budget_of, preferences_of
from p2pcompute.model.requirement import ISOLATIONS, NAMES, TIER_DEFAULT, TIERS, requirements_of

GIB = 2.0**30


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, []),
        ({"gpu_memory": ">=16GB"}, [("gpu_memory", ">=", 16 * GIB)]),
        ({"gpu_memory": ">= 16 GiB"}, [("gpu_memory", ">=", 16 * GIB)]),
        ({"memory": "0.5tb"}, [("memory", ">=", 512 * GIB)]),
        ({"available_memory": ">1024KiB"}, [("available_memory", ">", 2.0**20)]),
        ({"memory": "512B"}, [("memory", ">=", 512.0)]),
        ({"memory": 0}, [("memory", ">=", 0.0)]),
        ({"memory_gb": 32}, [("memory", ">=", 32 * GIB)]),
        ({"gpu_memory_gb": ">=1.5"}, [("gpu_memory", ">=", 1.5 * GIB)]),
        ({"cpu_cores": 8}, [("cpu_cores", ">=", 8.0)]),
        ({"cores": "==8"}, [("cpu_cores", "==", 8.0)]),
        ({"cpu_cores": ">=4,<=16"}, [("cpu_cores", "<=", 16.0), ("cpu_cores", ">=", 4.0)]),
        ({"required_gpu_count": 1}, [("gpu_count", ">=", 1.0)]),
        ({"cpu_frequency": "3.2GHz"}, [("cpu_frequency", ">=", 3200.0)]),
        ({"latency": "50ms"}, [("latency", "<=", 0.05)]),
        ({"latency": "<0.5 s"}, [("latency", "<", 0.5)]),
        ({"bandwidth": "1Gbps"}, [("bandwidth", ">=", 1000.0)]),
        ({"cost_per_hour": 2.5}, [("cost_per_hour", "<=", 2.5)]),
        ({"load": "<0.5"}, [("load", "<", 0.5)]),
        ({"python": "3.12"}, [("python", ">=", (3, 12))]),
        ({"python": "=3.11.7"}, [("python", "==", (3, 11, 7))]),
        ({"platform": "Linux"}, [("platform", "==", "linux")]),
        ({"gpu_name": "!= T4"}, [("gpu_name", "!=", "t4")]),
        ({"isolation": ">=sandbox"}, [("isolation", ">=", 2.0)]),
        ({"engine": "wasm"}, [("engine", "==", "wasm")]),
        ({"grant": "folder:Data"}, [("grant", "==", "folder:Data")]),
        ({"tier": "premium"}, [("performance_tier", ">=", 2.0)]),
        ({"name": "Kitchen"}, [("name", "==", "kitchen")]),
        ({"labels": {"zone": "lab", "disk": "ssd"}}, [("label", "==", "disk=ssd"), ("label", "==", "zone=lab")]),
        ({"labels": ["ssd", "!=slow"]}, [("label", "!=", "slow"), ("label", "==", "ssd")]),
        ({"location": "Oslo"}, [("label", "==", "location=Oslo")]),
        ("gpu_memory>=16GB", [("gpu_memory", ">=", 16 * GIB)]),
        (["cores >= 2", "label zone=lab", "name kitchen"], [
            ("cpu_cores", ">=", 2.0), ("label", "==", "zone=lab"), ("name", "==", "kitchen")]),
        (["cores>=2", "cores>=2"], [("cpu_cores", ">=", 2.0)]),
    ],
)  # fmt: skip
def test_right_forms(given: object, wanted: list[tuple[str, str, object]]) -> None:
    found = requirements_of(given)
    assert [(each.name, each.operator, each.value) for each in found] == wanted
    assert requirements_of([str(each) for each in found]) == found, "what is shown can be written"
    assert requirements_of(found) == found
    assert JobOptions(requirements=given).requirements == found  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ({"gpu_memory": "16"}, "has no unit: write one of B, KB, KiB"),
        ({"gpu_memory": ">=16XB"}, "for example '>=16GB'"),
        ({"gpu_memory": ">=-1GB"}, "for example '>=16GB'"),
        ({"gpu_memory": ">="}, "write a comparison and a value"),
        ({"gpu_memory": None}, "write a comparison and a value"),
        ({"gpu_memory": True}, "write a comparison and a value"),
        ({"gpu_count": "1.5"}, "not a whole number"),
        ({"gpu_count": "1GB"}, "write a number"),
        ({"python": ">=three"}, "not a version"),
        ({"platform": ">=linux"}, "has only == and !="),
        ({"labels": 3}, "write a label such as 'zone=lab'"),
        ({"labels": ">=x"}, "write a label"),
        ({"name": "a\x1bb"}, "write a comparison and a value"),
        ("gpu_memory", "write a name, a comparison and a value"),
        ("gpu_memory16GB", "has no comparison"),
        ("", "write a name"),
        ([3], "write a text"),
        (7, "give a mapping"),
        ([f"name != n{number}" for number in range(65)], "65 requirements"),
    ],
)
def test_wrong_forms_say_how_to_write_them(given: object, advice: str) -> None:
    with pytest.raises(UsageError, match=advice):
        requirements_of(given)


@pytest.mark.parametrize(
    ("given", "nearest"),
    [({"gpu_memry": ">=1GB"}, "gpu_memory"), ("coress>=1", "cores"), ({"performance_tier": "premum"}, "premium")],
)
def test_unknown_names_have_a_nearest_one(given: object, nearest: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        requirements_of(given)
    assert caught.value.nearest == nearest


def test_every_name_has_an_example_that_can_be_read() -> None:
    for name, (_, example) in NAMES.items():
        (found,) = requirements_of({name: example})
        assert found.name == name
    assert tuple(Isolation) == ISOLATIONS, "the same order as in the record"
    assert TIER_DEFAULT in TIERS


def test_preferences() -> None:
    assert preferences_of({}) == Preferences()
    assert preferences_of({}).is_empty
    wanted = Preferences(prefer_local=True, max_latency_s=0.1, cost_limit=10.0)
    assert preferences_of({"prefer_local": "yes", "max_latency": "100ms", "cost_limit": "10"}) == wanted
    assert preferences_of({"prefer_local": True, "max_latency": 100, "cost_limit": 10}) == wanted
    assert preferences_of(wanted) is wanted
    assert not wanted.is_empty
    for bad in ({"cost_limit": "much"}, {"prefer_local": 3}, {"max_latency_s": -1}, 3, {"max_latency": "100"}):
        with pytest.raises(UsageError):
            preferences_of(bad)
    with pytest.raises(UnknownNameError, match="prefer_local"):
        preferences_of({"prefer_locl": True})


def test_budgets_and_task_types() -> None:
    assert budget_of(None) is None
    assert budget_of("2.5") == budget_of(2.5) == budget_of({"max_cost": 2.5}) == Budget(2.5, "USD")
    assert str(budget_of({"max_cost": 1, "currency": "EUR"})) == "1 EUR"
    for bad in (-1, float("nan"), "x", {"currency": "USD"}, {"max_cost": 1, "currency": "no money"}, True):
        with pytest.raises(UsageError):
            budget_of(bad)
    with pytest.raises(UnknownNameError, match="max_cost"):
        budget_of({"max_costs": 1})
    assert TaskType.parse("NETWORK_INTENSIVE") is TaskType.parse("network") is TaskType.NETWORK
    with pytest.raises(UnknownNameError, match="compute"):
        TaskType.parse("computing")
