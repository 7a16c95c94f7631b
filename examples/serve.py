"""A small HTTP service on a trained student: the nearest items from an index, for users and for new histories.

    pip install 'recbole_prmkd[serve]'
    python examples/serve.py runs/sasrec

    curl 'localhost:8000/users/196?topk=5'
    curl -X POST localhost:8000/histories -H 'content-type: application/json' -d '{"items": ["242", "302"]}'

faiss holds the item vectors of `--format=vectors`; a user's vector is looked up there. A new history is scored by the
student itself.
"""

import sys
from pathlib import Path

import faiss
import numpy as np
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

import recbole_prmkd


class History(BaseModel):
    """Item tokens, newest last."""

    items: list[str]
    topk: int = 10


def service(run_folder: Path) -> FastAPI:
    """The service of a run's folder."""
    student = recbole_prmkd.load(run_folder)
    recbole_prmkd.export(student, "vectors")
    items, users = (np.load(run_folder / "export" / f"{name}.npz") for name in ("items", "users"))
    item_tokens, user_place = items["item_id"], {str(token): place for place, token in enumerate(users["user_id"])}
    user_vectors = np.ascontiguousarray(users["feat"])
    index = faiss.IndexFlatIP(items["feat"].shape[1])  # a score is the inner product
    index.add(np.ascontiguousarray(items["feat"]))
    app = FastAPI()

    @app.get("/users/{user}")
    def of_user(user: str, topk: int = 10) -> list[dict[str, str | float]]:
        """The best items of a user; items that the user has taken are not left out."""
        if user not in user_place:
            raise HTTPException(404, f"No user {user}; ask with a history.")
        scores, places = index.search(user_vectors[user_place[user]][None], topk)
        pairs = zip(places[0], scores[0], strict=True)
        return [{"item": str(item_tokens[place]), "score": float(score)} for place, score in pairs if place >= 0]

    @app.post("/histories")
    def of_history(history: History) -> list[dict[str, str | float]]:
        """The best items after a history that the student never saw."""
        try:
            lists = student.recommend(histories={"new": history.items}, topk=history.topk)
        except recbole_prmkd.UserError as error:
            raise HTTPException(422, str(error)) from error
        return [{"item": item, "score": score} for item, score in zip(lists.item_id, lists.score, strict=True)]

    return app


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(service(Path(sys.argv[1])))
