"""Student models of this package, beside RecBole's own, which are students without being named anywhere.

- `lightgcn`: LightGCN on a torch-geometric layer;
- `graph`: that layer, the graph of the interactions.

To add one: a RecBole model in a file of its own, an entry in `STUDENTS`, `properties/model/<Name>.yaml`.
"""

from recbole.model.abstract_recommender import AbstractRecommender

from recbole_prmkd.students.lightgcn import PyGLightGCN

STUDENTS: dict[str, type[AbstractRecommender]] = {"PyGLightGCN": PyGLightGCN}

__all__ = ["STUDENTS"]
