"""The service of examples/serve.py answers as `recommend` does."""

import importlib.util
import shutil
from pathlib import Path

import pytest

from recbole_prmkd import recommend

pytest.importorskip("faiss", reason="the extra `serve` is not installed")
pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

FILE = Path(__file__).parent.parent / "examples" / "serve.py"


@pytest.fixture(scope="module")
def routes(runs, tmp_path_factory):
    folder = shutil.copytree(runs / "SASRec", tmp_path_factory.mktemp("served") / "run")
    spec = importlib.util.spec_from_file_location("serve", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    app = module.service(folder)
    return module, {route.path: route.endpoint for route in app.routes if hasattr(route, "endpoint")}


def test_user_gets_the_nearest_items(routes, runs):
    _, answers = routes
    found = answers["/users/{user}"]("u3", 5)
    lists = recommend(runs / "SASRec", users=["u3"], topk=5, unseen=False)
    assert [line["item"] for line in found] == lists.item_id.tolist()
    assert [line["score"] for line in found] == pytest.approx(lists.score.tolist(), abs=1e-4)


def test_new_history_gets_its_list(routes, runs):
    module, answers = routes
    found = answers["/histories"](module.History(items=["i1", "i2"], topk=4))
    lists = recommend(runs / "SASRec", histories={"new": ["i1", "i2"]}, topk=4)
    assert [line["item"] for line in found] == lists.item_id.tolist()


def test_unknown_user_and_history_are_said(routes):
    from fastapi import HTTPException

    module, answers = routes
    with pytest.raises(HTTPException, match="No user nobody"):
        answers["/users/{user}"]("nobody")
    with pytest.raises(HTTPException, match="No history has an item"):
        answers["/histories"](module.History(items=["gone"]))
